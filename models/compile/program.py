"""A recorded scalar and its gradient as a program in LLVM's intermediate language.

The graph of a `tunecast.models.compile.graph.Tape` becomes loops over arrays of one shape
(`tunecast.models.compile.schedule`). A call asks for one block of memory. Sizes of dimensions
are inputs, so a program serves every table of a structure.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunecast.models.compile.gradient import ancestors, gradient
from tunecast.models.compile.graph import At, Listed, Loop, Node, Places, Size, Tape
from tunecast.models.compile.schedule import Step, groups_of


@dataclass(frozen=True)
class Program:
    """What computes a scalar and its gradient, as text.

    Parameters
    ----------
    text : str
        LLVM's intermediate language. The function ``density(dim, x, gradient, value, numbers)``
        returns 0; -1 without memory, which ends a sampler; or 3 or 4 where gradient or value are
        not finite, which it counts as a divergence.
    inputs : tuple of str
        Arrays of which ``numbers`` has the addresses, first.
    unknowns : tuple of str
        Unknowns of which it has the places in ``x``, next.
    sizes : tuple of str
        Symbols of which it has the sizes, last.
    """

    text: str
    inputs: tuple[str, ...]
    unknowns: tuple[str, ...]
    sizes: tuple[str, ...]


def write(tape: Tape, value: Node, unknowns: Sequence[Node], integers: set[str]) -> Program:
    """Return the program for a scalar and its gradient by the unknowns.

    Parameters
    ----------
    tape : Tape
        Where they are recorded.
    value : Node
        The scalar.
    unknowns : sequence of Node
        Inputs that lie in ``x``, one after another.
    integers : set of str
        Names of the inputs that hold 32-bit integers; all others hold doubles.
    """
    slopes = [
        tape.filled(s, u.shape)
        for s, u in zip(gradient(tape, value, unknowns), unknowns, strict=True)
    ]
    return _Writer(tape, value, list(unknowns), slopes, integers).program()


@dataclass
class _Writer:
    tape: Tape
    value: Node
    unknowns: list[Node]
    slopes: list[Node]
    integers: set[str]
    lines: list[str] = field(default_factory=list)
    count: int = 0
    block: str = "entry"
    functions: list[str] = field(default_factory=list)
    used: dict[str, str] = field(default_factory=dict)  # arguments of the function being written

    def __post_init__(self) -> None:
        self.nodes = ancestors([self.value, *self.slopes])
        named = {u.detail for u in self.unknowns}
        read = [n.detail for n in self.nodes if n.kind == "input" and n.detail not in named]
        self.inputs = tuple(dict.fromkeys(read))
        symbols = [s for n in self.nodes for s in self.tape.sizes(n) if isinstance(s, str)]
        self.symbols = tuple(dict.fromkeys(symbols))

    # ------------------------------------------------------------------ text

    def _new(self, text: str) -> str:
        self.count += 1
        self.lines.append(f"  %v{self.count} = {text}")
        return f"%v{self.count}"

    def _begin(self, name: str) -> None:
        self.lines.append(f"{name}:")
        self.block = name

    def _size(self, size: Size) -> str:
        if isinstance(size, int):
            return str(size)
        name = f"%s{self.symbols.index(size)}"
        self.used[name] = "i64"
        return name

    def _place(self, node: Node) -> str:
        name = f"%p{node.index}"
        self.used[name] = "ptr noalias"
        return name

    def _elements(self, shape: Sequence[Size]) -> str:
        total = "1"
        for size in shape:
            total = self._times(total, self._size(size))
        return total

    def _times(self, a: str, b: str) -> str:
        if "0" in (a, b):
            return "0"
        if "1" in (a, b):
            return b if a == "1" else a
        return self._new(f"mul nsw i64 {a}, {b}")

    def _plus(self, a: str, b: str) -> str:
        if "0" in (a, b):
            return b if a == "0" else a
        return self._new(f"add nsw i64 {a}, {b}")

    def _address(self, node: Node, where: Sequence[str]) -> str:
        flat = "0"
        for size, index in zip(self.tape.sizes(node), where, strict=True):
            flat = self._plus(self._times(flat, self._size(size)), index)
        kind = "i32" if node.kind == "input" and node.detail in self.integers else "double"
        return self._new(f"getelementptr inbounds {kind}, ptr {self._place(node)}, i64 {flat}")

    def _where(self, places: Places, loops: Sequence[str]) -> list[str]:
        found = []
        for place in places:
            match place:
                case At(index):
                    found.append(str(index))
                case Loop(axis, offset):
                    found.append(self._plus(loops[axis], str(offset)))
                case Listed(table, axes):
                    at = self._address(table, [loops[k] for k in axes])
                    found.append(self._new(f"sext i32 {self._new(f'load i32, ptr {at}')} to i64"))
        return found

    def _load(self, node: Node, where: Sequence[str]) -> str:
        if node.kind == "number":
            return _literal(node.detail)
        if node.kind == "input" and node.detail in self.integers:
            raise ValueError(f"'{node.detail}' holds places, not numbers")
        return self._new(f"load double, ptr {self._address(node, where)}")

    def _computed(self, kind: str, a: Sequence[str]) -> str:
        match kind:
            case "add" | "sub" | "mul" | "div":
                return self._new(f"f{kind} double {a[0]}, {a[1]}")
            case "neg":
                return self._new(f"fneg double {a[0]}")
            case "exp" | "log" | "sqrt" | "fabs":
                return self._new(f"call double @llvm.{kind}.f64(double {a[0]})")
            case "softplus":  # log(1 + exp(-|x|)) + max(x, 0): no overflow
                small = self._computed("exp", [self._computed("neg", [self._computed("fabs", a)])])
                log = self._computed("log", [self._computed("add", [small, _literal(1.0)])])
                above = self._new(f"fcmp ogt double {a[0]}, {_literal(0.0)}")
                rest = self._new(f"select i1 {above}, double {a[0]}, double {_literal(0.0)}")
                return self._computed("add", [log, rest])
            case "clip":
                low = self._new(f"fcmp olt double {a[0]}, {a[1]}")
                raised = self._new(f"select i1 {low}, double {a[1]}, double {a[0]}")
                high = self._new(f"fcmp ogt double {raised}, {a[2]}")
                return self._new(f"select i1 {high}, double {a[2]}, double {raised}")
            case "within":
                above = self._new(f"fcmp oge double {a[0]}, {a[1]}")
                below = self._new(f"fcmp ole double {a[0]}, {a[2]}")
                return self._new(f"uitofp i1 {self._new(f'and i1 {above}, {below}')} to double")
        raise AssertionError(kind)

    def _loops(self, shape: Sequence[Size]) -> tuple[list[str], list[Any]]:
        """Open a loop for each dimension; return its counters and what `_close` needs."""
        counters, opened = [], []
        for size in shape:
            if size == 1:
                counters.append("0")
                continue
            self.count += 1
            name, before = f"loop{self.count}", self.block
            self.lines.append(f"  br label %{name}")
            self._begin(name)
            self.lines.append(f"  %i{name} = phi i64 [ 0, %{before} ], [ %n{name}, %end{name} ]")
            counters.append(f"%i{name}")
            opened.append((name, self._size(size)))
        return counters, opened

    def _close(self, opened: Sequence[Any]) -> None:
        for name, size in reversed(opened):
            self.lines.append(f"  br label %end{name}")
            self._begin(f"end{name}")
            self.lines.append(f"  %n{name} = add nuw nsw i64 %i{name}, 1")
            self.lines.append(f"  %more{name} = icmp slt i64 %n{name}, {size}")
            self.lines.append(f"  br i1 %more{name}, label %{name}, label %after{name}")
            self._begin(f"after{name}")

    def _group(self, group: Sequence[Step], kept: set[Node]) -> str:
        """Write the function of a group; return the call of it.

        Functions of their own compile faster than one for all, and tell LLVM that the arrays which
        a loop touches lie apart.
        """
        self.lines, self.used = [], {}
        self._begin("entry")
        counters, opened = self._loops(group[0].shape)
        at_hand: dict[Node, str] = {}

        def value(node: Node) -> str:
            if node not in at_hand:
                at_hand[node] = self._load(node, counters)
            return at_hand[node]

        for step in group:
            node = step.node
            if step.part is not None:
                address = self._address(node, self._where(node.detail[step.part], counters))
                before = self._new(f"load double, ptr {address}")
                after = self._computed("add", [before, value(step.added)])
                self.lines.append(f"  store double {after}, ptr {address}")
                continue
            if node.kind == "read":
                at_hand[node] = self._load(node.args[0], self._where(node.detail, counters))
            else:
                at_hand[node] = self._computed(node.kind, [value(a) for a in node.args])
            if node in kept:
                address = self._address(node, counters)
                self.lines.append(f"  store double {at_hand[node]}, ptr {address}")
        self._close(opened)
        self.lines.append("  ret void")
        name = f"@group{len(self.functions)}"
        taken = ", ".join(f"{kind} {argument}" for argument, kind in self.used.items())
        body = "\n".join(self.lines)
        self.functions.append(f"define internal void {name}({taken}) noinline {{\n{body}\n}}\n")
        given = ", ".join(f"{kind.split()[0]} {argument}" for argument, kind in self.used.items())
        return f"  call void {name}({given})"

    def program(self) -> Program:
        groups = list(groups_of(self.tape, self.nodes))
        home = {s.node: k for k, group in enumerate(groups) for s in group if s.part is None}
        kept = {self.value, *self.slopes}
        for k, group in enumerate(groups):
            for step in group:
                needed = step.node.args if step.part is None else (step.added,)
                kept |= {a for a in needed if home.get(a) != k}
        sums = [n for n in self.nodes if n.kind == "sum"]
        stored = [n for n in self.nodes if n in home and n in kept]

        calls = [self._group(group, kept) for group in groups]

        self.lines, self.used = [], {}
        self._begin("entry")
        numbers = iter(range(len(self.inputs) + len(self.unknowns) + len(self.symbols)))

        def take(name: str, kind: str) -> str:
            at = self._new(f"getelementptr inbounds i64, ptr %numbers, i64 {next(numbers)}")
            self.lines.append(f"  {name} = load {kind}, ptr {at}")
            return name

        inputs = {n.detail: n for n in self.nodes if n.kind == "input"}
        for name in self.inputs:
            take(self._place(inputs[name]), "ptr")
        offsets = []
        for unknown in self.unknowns:
            offsets.append(take(f"%o{unknown.index}", "i64"))
            self._point(unknown, "%x", offsets[-1])
        for symbol in self.symbols:
            take(self._size(symbol), "i64")
        # Sums lie together at the front of the block, where one stroke makes zeros of them.
        starts, end, zeros = [], "0", "0"
        for k, node in enumerate((*sums, *stored)):
            zeros = end if k == len(sums) else zeros
            starts.append(end)
            end = self._plus(end, self._elements(self.tape.sizes(node)))
        block = self._new(f"call ptr @malloc(i64 {self._times(end, '8')})")
        nothing = self._new(f"icmp eq ptr {block}, null")
        self.lines.append(f"  br i1 {nothing}, label %failed, label %begin")
        self._begin("failed")
        self.lines.append("  ret i64 -1")
        self._begin("begin")
        for node, start in zip((*sums, *stored), starts, strict=True):
            self._point(node, block, start)
        self.lines += [
            f"  call void @llvm.memset.p0.i64(ptr {block}, i8 0, i64 {self._times(zeros, '8')}, "
            "i1 false)",
            *calls,
        ]
        self._finish(block, offsets)
        return Program(
            _FRAME.format(functions="\n".join(self.functions), body="\n".join(self.lines)),
            self.inputs, tuple(u.detail for u in self.unknowns), self.symbols,
        )  # fmt: skip

    def _point(self, node: Node, block: str, start: str) -> None:
        self.lines.append(
            f"  {self._place(node)} = getelementptr inbounds double, ptr {block}, i64 {start}"
        )

    def _finish(self, block: str, offsets: Sequence[str]) -> None:
        """Copy the results out, and see whether they are finite: zero times them is zero then."""
        value = self._load(self.value, ())
        self.lines.append(f"  store double {value}, ptr %value")
        for slope, unknown, offset in zip(self.slopes, self.unknowns, offsets, strict=True):
            to = self._new(f"getelementptr inbounds double, ptr %gradient, i64 {offset}")
            size = self._times(self._elements(self.tape.sizes(unknown)), "8")
            self.lines.append(
                f"  call void @llvm.memcpy.p0.p0.i64(ptr {to}, ptr {self._place(slope)}, "
                f"i64 {size}, i1 false)"
            )
        self.lines.append(f"  call void @free(ptr {block})")
        code = self._new(f"call i64 @fault(i64 %dim, ptr %gradient, double {value})")
        self.lines.append(f"  ret i64 {code}")


def _literal(number: float) -> str:
    return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"


_FRAME = """\
declare double @llvm.exp.f64(double)
declare double @llvm.log.f64(double)
declare double @llvm.sqrt.f64(double)
declare double @llvm.fabs.f64(double)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare noalias ptr @malloc(i64)
declare void @free(ptr)

{functions}
define internal i64 @fault(i64 %dim, ptr %gradient, double %value) {{
entry:
  %zero = fmul double %value, 0.0
  br label %check
check:
  %k = phi i64 [ 0, %entry ], [ %next, %check ]
  %seen = phi double [ 0.0, %entry ], [ %sum, %check ]
  %where = getelementptr inbounds double, ptr %gradient, i64 %k
  %slope = load double, ptr %where
  %nothing = fmul double %slope, 0.0
  %sum = fadd double %seen, %nothing
  %next = add nuw nsw i64 %k, 1
  %more = icmp slt i64 %next, %dim
  br i1 %more, label %check, label %last
last:
  %bad_value = fcmp uno double %zero, 0.0
  %bad_slope = fcmp uno double %sum, 0.0
  %code = select i1 %bad_value, i64 4, i64 0
  %result = select i1 %bad_slope, i64 3, i64 %code
  ret i64 %result
}}

define i64 @density(i64 %dim, ptr %x, ptr %gradient, ptr %value, ptr %numbers) {{
{body}
}}

define i64 @identity(i64 %dim, i64 %expanded, ptr %x, ptr %out, ptr %numbers) {{
  %size = mul nsw i64 %dim, 8
  call void @llvm.memcpy.p0.p0.i64(ptr %out, ptr %x, i64 %size, i1 false)
  ret i64 0
}}
"""
