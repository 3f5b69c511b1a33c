"""In which loops the nodes of a graph are computed: as many in each as possible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunecast.models.compile.graph import Node, Size, Tape


@dataclass(frozen=True)
class Step:
    """One thing to do in a loop: compute a node, or add an argument of a sum to it."""

    node: Node
    part: int | None
    shape: tuple[Size, ...]

    @property
    def added(self) -> Node:
        """What is added."""
        assert self.part is not None
        return self.node.args[self.part]


def _steps(tape: Tape, nodes: Sequence[Node]) -> list[Step]:
    steps = []
    for node in nodes:
        if node.kind == "sum":
            steps += [Step(node, i, tape.sizes(a)) for i, a in enumerate(node.args)]
        elif node.kind not in ("number", "input"):
            steps.append(Step(node, None, tape.sizes(node)))
    return steps


def groups_of(tape: Tape, nodes: Sequence[Node]) -> Iterator[list[Step]]:
    """Yield steps that one loop can do, in an order in which each finds what it needs.

    Shapes that came up first go first, as long as anything can be done in them: those are the
    small ones, and loops over rows then do much at once.
    """
    waiting = _steps(tape, nodes)
    rank = {s.shape: -i for i, s in reversed(list(enumerate(waiting)))}
    parts = {n: len(n.args) for n in nodes if n.kind == "sum"}
    done = {n for n in nodes if n.kind in ("number", "input")}
    while waiting:
        ready = {s.shape for s in waiting if _ready(s, done, set())}
        shape = max(ready, key=lambda s: rank[s])
        group, inside = [], set[Node]()
        rest = []
        for step in waiting:
            if step.shape == shape and _ready(step, done, inside):
                group.append(step)
                if step.part is None:
                    inside.add(step.node)
            else:
                rest.append(step)
        waiting = rest
        done |= inside
        for step in group:
            if step.part is not None:
                parts[step.node] -= 1
                if not parts[step.node]:
                    done.add(step.node)
        yield group


def _ready(step: Step, done: set[Node], inside: set[Node]) -> bool:
    """Whether a step finds what it needs: from earlier loops, or in the same round of its own.

    A place of another element cannot be read in the loop that fills the array.
    """
    if step.part is not None:
        return step.added in done or step.added in inside
    if step.node.kind == "read":
        return step.node.args[0] in done
    return all(a in done or a in inside for a in step.node.args)
