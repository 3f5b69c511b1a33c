"""Arithmetic on arrays, recorded instead of done: the model as a graph.

The model computes with whatever it is given. Given the nodes of a `Tape` it leaves behind a graph
of few kinds of node, small enough that the rules of reverse differentiation
(`tunecast.models.compile.gradient`) and of code generation (`tunecast.models.compile.program`) are
one each:

* a number, or an input array;
* an elementwise operation on arrays of one shape;
* ``read``: an array whose elements are read from places in another (slice, gather, broadcast);
* ``sum``: an array of zeros to which elements of others are added in places (sum, scatter,
  concatenation). Reading and adding are each other's gradient.

Sizes stay symbols where tables differ in them, so a graph depends on no table.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np

from tunecast.models.compile.special import log_gamma

type Size = int | str  # of a dimension: the same for all tables of a structure, or a symbol


@dataclass(frozen=True)
class Loop:
    """A place that follows the loop over an axis, from an offset on."""

    axis: int
    offset: int = 0


@dataclass(frozen=True)
class At:
    """A fixed place."""

    index: int


@dataclass(frozen=True)
class Listed:
    """A place that an array of integers holds, itself read at loops over the given axes."""

    table: Node
    axes: tuple[int, ...]


type Places = tuple[Loop | At | Listed, ...]  # one for each dimension of what is read or added to


class Node:
    """One array of the graph. It takes part in arithmetic as a NumPy array does.

    Parameters
    ----------
    tape : Tape
        Where it is recorded.
    index : int
        Its number there: after those of its arguments.
    kind : str
        ``number``, ``input``, ``read``, ``sum`` or the name of an elementwise operation.
    args : tuple of Node
        What it is computed from.
    shape : tuple of (int or str)
        Sizes of its dimensions.
    detail : Any
        Value of a number, name of an input, places of a read (one for each dimension of its
        argument), or places of a sum (for each argument, one for each dimension of the sum).
    """

    __slots__ = ("args", "detail", "index", "kind", "shape", "tape")
    __array_ufunc__ = None  # NumPy arrays leave the arithmetic to the node

    def __init__(
        self, tape: Tape, index: int, kind: str, args: tuple[Node, ...], shape: tuple[Size, ...],
        detail: Any,
    ) -> None:  # fmt: skip
        self.tape, self.index, self.kind = tape, index, kind
        self.args, self.shape, self.detail = args, shape, detail

    def __add__(self, other: Any) -> Node:
        return self.tape.apply("add", self, other)

    def __sub__(self, other: Any) -> Node:
        return self.tape.apply("sub", self, other)

    def __mul__(self, other: Any) -> Node:
        return self.tape.apply("mul", self, other)

    def __truediv__(self, other: Any) -> Node:
        return self.tape.apply("div", self, other)

    def __rsub__(self, other: Any) -> Node:
        return self.tape.apply("sub", other, self)

    def __rtruediv__(self, other: Any) -> Node:
        return self.tape.apply("div", other, self)

    def __neg__(self) -> Node:
        return self.tape.apply("neg", self)

    __radd__, __rmul__ = __add__, __mul__

    def __pow__(self, power: Any) -> Node:
        """Return the power of a positive number, or of any if the power is -1, 1 or 2."""
        if isinstance(power, int | float) and power in (-1, 1, 2):
            return {-1: lambda: 1 / self, 1: lambda: self, 2: lambda: self * self}[int(power)]()
        return self.tape.exp(power * self.tape.log(self))

    def __matmul__(self, other: Node) -> Node:
        """Return the product of a vector and a matrix."""
        return self.tape.total([(self[:, None] * other, (Loop(1),))], other.shape[1:])

    def __getitem__(self, key: Any) -> Node:
        """Return a part: places, ``:``, ``None``, ``...`` and one array of places.

        Places count from the front. Those that a table alone can refute are not checked.
        """
        keys = key if isinstance(key, tuple) else (key,)
        given = sum(k is not None and k is not ... for k in keys)
        rest = [slice(None)] * (len(self.shape) - given)
        if not any(k is ... for k in keys):
            keys = (*keys, ...)
        spread: list[Any] = []
        for k in keys:
            spread.extend(rest if isinstance(k, EllipsisType) else [k])
        shape: list[Size] = []
        places: list[Loop | At | Listed] = []
        for k in spread:
            loop = len(shape)
            if k is None:
                shape.append(1)
                continue
            size = self.shape[len(places)]
            if isinstance(k, slice):
                if k != slice(None):
                    raise ValueError(f"{k}: only whole dimensions can be sliced")
                shape.append(size)
                places.append(Loop(loop))
            elif isinstance(k, Node):
                if any(isinstance(place, Listed) for place in places):
                    raise ValueError("several arrays of places at once")
                shape.extend(k.shape)
                places.append(Listed(k, tuple(range(loop, loop + len(k.shape)))))
            else:
                self._check_place(k, size)
                places.append(At(k))
        return self.tape.read(self, tuple(places), tuple(shape))

    def _check_place(self, place: int, size: Size) -> None:
        size = self.tape.size(size)
        if place < 0 or (isinstance(size, int) and place >= size):
            raise ValueError(f"place {place} of a dimension of size {size}")

    def sum(self, axis: int | None = None) -> Node:
        """Return the sum of all elements, or over one axis."""
        axes = range(len(self.shape))
        kept = [] if axis is None else [k for k in axes if k != axes[axis]]
        shape = tuple(self.shape[k] for k in kept)
        return self.tape.total([(self, tuple(Loop(k) for k in kept))], shape)


_NUMBERS: dict[str, Callable[..., float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
}


class Tape:
    """A recording. It stands where the model expects NumPy, as far as the model uses that."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._known: dict[Any, Node] = {}
        self._same: dict[str, Size] = {}

    def _record(
        self, kind: str, args: Sequence[Node], shape: Sequence[Size], detail: Any = None
    ) -> Node:
        key = (kind, tuple(a.index for a in args), tuple(shape), detail)
        if key not in self._known:
            node = Node(self, len(self.nodes), kind, tuple(args), tuple(shape), detail)
            self.nodes.append(node)
            self._known[key] = node
        return self._known[key]

    def size(self, size: Size) -> Size:
        """Return what stands for a size: an integer, or one of the symbols equal to it."""
        while isinstance(size, str) and size in self._same:
            size = self._same[size]
        return size

    def sizes(self, node: Node) -> tuple[Size, ...]:
        """Return what stands for each size of a node."""
        return tuple(self.size(size) for size in node.shape)

    def _equal(self, a: Size, b: Size) -> Size:
        a, b = self.size(a), self.size(b)
        if a == b:
            return a
        kept, other = sorted((a, b), key=lambda size: (isinstance(size, str), size))
        if isinstance(other, int):
            raise ValueError(f"sizes {a} and {b} do not broadcast")
        self._same[other] = kept
        return kept

    def input(self, name: str, shape: Sequence[Size]) -> Node:
        """Return an array that will be given when the graph is computed."""
        return self._record("input", (), shape, name)

    def number(self, value: float) -> Node:
        """Return a constant."""
        return self._record("number", (), (), float(value))

    def node(self, value: Any) -> Node:
        """Return a value as a node.

        Raises
        ------
        TypeError
            For an array: recorded as a constant, it would be taken for that of every table.
        """
        if isinstance(value, Node):
            return value
        if np.ndim(value):
            raise TypeError(f"an array of shape {np.shape(value)} is no input of the graph")
        return self.number(float(value))

    def read(self, source: Node, places: Places, shape: tuple[Size, ...]) -> Node:
        """Return an array of a shape, read from places in another."""
        if source.kind == "number" or self.covers(source, places, shape):
            return source
        return self._record("read", (source,), shape, places)

    def covers(self, node: Node, places: Places, shape: tuple[Size, ...]) -> bool:
        """Whether places lead each element of a node to the same one of an array of a shape."""
        return (
            places == here(shape)
            and len(node.shape) == len(shape)
            and all(self.size(a) == self.size(b) for a, b in zip(node.shape, shape, strict=True))
        )

    def total(self, parts: Iterable[tuple[Node, Places]], shape: tuple[Size, ...]) -> Node:
        """Return zeros of a shape, to which each part is added in its places."""
        args, places = zip(*parts, strict=True)
        return self._record("sum", args, shape, places)

    def filled(self, value: Node, shape: tuple[Size, ...]) -> Node:
        """Return an array of a shape also where the value is a number."""
        if value.kind != "number":
            return value
        return self._record("read", (value,), shape, ())

    def spread(self, value: Node, shape: tuple[Size, ...]) -> Node:
        """Return an array broadcast to a shape, by NumPy's rules."""
        if value.kind == "number":
            return value
        lead = len(shape) - len(value.shape)
        places: list[Loop | At] = []
        for k, (own, wanted) in enumerate(zip(value.shape, shape[lead:], strict=True)):
            repeated = self.size(own) == 1 and self.size(wanted) != 1
            places.append(At(0) if repeated else Loop(lead + k))
        return self.read(value, tuple(places), shape)

    def apply(self, kind: str, *values: Any) -> Node:
        """Return an elementwise operation on values, broadcast."""
        args = [self.node(value) for value in values]
        if all(a.kind == "number" for a in args) and kind in _NUMBERS:
            return self.number(_NUMBERS[kind](*(a.detail for a in args)))
        simple = self._simplified(kind, args)
        if simple is not None:
            return simple
        read = next((a for a in args if a.kind != "number"), args[0])
        if self._repeats(read) and all(a.kind == "number" or _how(a) == _how(read) for a in args):
            # What is the same for many elements is computed once, and then read for each of them.
            once = self.apply(kind, *(a if a.kind == "number" else a.args[0] for a in args))
            return self.read(once, read.detail, read.shape)
        shape: list[Size] = []
        for a in args:
            own = list(a.shape)
            width = max(len(shape), len(own))
            pairs = zip([1] * (width - len(shape)) + shape, [1] * (width - len(own)) + own)  # noqa: B905
            shape = [v if u == 1 else u if v == 1 else self._equal(u, v) for u, v in pairs]
        return self._record(kind, [self.spread(a, tuple(shape)) for a in args], shape)

    def _repeats(self, node: Node) -> bool:
        """Whether a node reads all of an array, some elements several times.

        Places that an array lists are taken to cover it: an element that none of them reads must
        still have a finite value and slope.
        """
        return node.kind == "read" and all(
            isinstance(place, Listed)
            or self.size(size) == 1
            or (isinstance(place, Loop) and self.size(node.shape[place.axis]) == self.size(size))
            for place, size in zip(node.detail, node.args[0].shape, strict=True)
        )

    def _simplified(self, kind: str, args: Sequence[Node]) -> Node | None:
        first, second = args[0], args[-1]

        def is_number(node: Node, value: float) -> bool:
            return node.kind == "number" and node.detail == value

        if kind == "add":
            return second if is_number(first, 0) else first if is_number(second, 0) else None
        if kind == "sub" and is_number(second, 0):
            return first
        if kind == "mul":
            for one, other in ((first, second), (second, first)):
                if is_number(one, 1):
                    return other
                if is_number(one, -1):
                    return self.apply("neg", other)
                if is_number(one, 0):
                    return one
        if kind == "div" and is_number(first, 1) and second.kind == "exp":
            # Its slope by the quotient's rule would overflow where neither of them does.
            return self.exp(-second.args[0])
        if kind == "neg" and first.kind == "neg":
            return first.args[0]
        if kind == "log" and first.kind == "exp":
            return first.args[0]
        return None

    # What the model takes from NumPy.

    def exp(self, x: Any) -> Node:
        """Return e to the power of x."""
        return self.apply("exp", x)

    def log(self, x: Any) -> Node:
        """Return the natural logarithm of x."""
        return self.apply("log", x)

    def sqrt(self, x: Any) -> Node:
        """Return the square root of x."""
        return self.apply("sqrt", x)

    def softplus(self, x: Any) -> Node:
        """Return ``log(1 + exp(x))``."""
        return self.apply("softplus", x)

    def clip(self, x: Any, low: float, high: float) -> Node:
        """Return x, held between two numbers."""
        return self.apply("clip", x, low, high)

    def concatenate(self, parts: Sequence[Node], axis: int) -> Node:
        """Join arrays along an axis on which their sizes are the same for all tables."""
        shape = list(parts[0].shape)
        along = axis % len(shape)
        placed, end = [], 0
        for part in parts:
            loops = [Loop(k, end if k == along else 0) for k in range(len(shape))]
            placed.append((part, tuple(loops)))
            size = self.size(part.shape[along])
            if not isinstance(size, int):
                raise ValueError(f"size {size} of a part to join is a symbol")
            end += size
            for k in range(len(shape)):
                if k != along:
                    shape[k] = self._equal(shape[k], part.shape[k])
        shape[along] = end
        return self.total(placed, tuple(shape))

    def add_at(self, x: Node, places: Node, values: Node) -> Node:
        """Return x with values added to some places of its last axis, each named once."""
        loops = here(values.shape)
        where = (*loops[:-1], Listed(places, (len(loops) - 1,)))
        shape = (*values.shape[:-1], x.shape[-1])
        return self.total([(self.spread(x, shape), here(shape)), (values, where)], shape)

    def log_gamma(self, x: Any) -> Node:
        """Return the log of the gamma function of positive x."""
        result: Node = log_gamma(self.node(x), self)
        return result


def _how(node: Node) -> tuple[Any, ...]:
    """Return what distinguishes reads, apart from the array that is read."""
    return node.kind, node.detail, node.shape, [a.shape for a in node.args]


def here(shape: Sequence[Size]) -> Places:
    """Return the places of an array that lead each element to itself."""
    return tuple(Loop(k) for k in range(len(shape)))
