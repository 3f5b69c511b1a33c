"""Reverse differentiation of a recorded graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunecast.models.compile.graph import Listed, Node, Places, Tape, here

# The derivative of each operation by each argument, from its value and arguments.
SLOPES: dict[str, Callable[..., tuple[Any, ...]]] = {
    "add": lambda out, a, b: (1.0, 1.0),
    "sub": lambda out, a, b: (1.0, -1.0),
    "mul": lambda out, a, b: (b, a),
    "div": lambda out, a, b: (1.0 / b, -out / b),
    "neg": lambda out, a: (-1.0,),
    "exp": lambda out, a: (out,),
    "log": lambda out, a: (1.0 / a,),
    "sqrt": lambda out, a: (0.5 / out,),
    "softplus": lambda out, a: (1.0 / (1.0 + a.tape.exp(-a)),),
    "clip": lambda out, a, low, high: (a.tape.apply("within", a, low, high), 0.0, 0.0),
}


def gradient(tape: Tape, total: Node, unknowns: Sequence[Node]) -> list[Node]:
    """Return the derivative of a scalar by each of the unknowns, in their shapes."""
    upstream = ancestors([total])
    moving = set(unknowns)
    for node in upstream:
        if any(a in moving for a in node.args):
            moving.add(node)
    found: dict[Node, list[tuple[Node, Places]]] = {total: [(tape.number(1.0), ())]}
    for node in reversed(upstream):
        if node not in moving or node not in found or not node.args:
            continue
        slope = _collected(tape, node, found[node])
        for arg, part in zip(node.args, _passed_on(tape, node, slope), strict=True):
            if arg in moving and part is not None:
                found.setdefault(arg, []).append(part)
    return [_collected(tape, u, found.get(u, [])) for u in unknowns]


def _collected(tape: Tape, node: Node, parts: Sequence[tuple[Node, Places]]) -> Node:
    own: Node = tape.number(0.0)
    added = []
    for part, places in parts:
        if part.kind == "number" or tape.covers(part, places, node.shape):
            own = own + part
        else:
            added.append((part, places))
    if not added:
        return own
    if own.kind != "number" or own.detail != 0:
        added.append((tape.filled(own, node.shape), here(node.shape)))
    return tape.total(added, node.shape)


def _passed_on(tape: Tape, node: Node, slope: Node) -> list[tuple[Node, Places] | None]:
    """Return what a node's slope adds to those of its arguments, and where.

    A number is added to all elements.
    """
    if node.kind == "read":
        return [(tape.filled(slope, node.shape), node.detail)]
    if node.kind == "sum":
        return [
            (tape.read(slope, places, arg.shape), here(arg.shape))
            for arg, places in zip(node.args, node.detail, strict=True)
        ]
    whole = here(node.shape)
    return [
        None if isinstance(by, float) and by == 0 else (tape.apply("mul", slope, by), whole)
        for by in SLOPES[node.kind](node, *node.args)
    ]


def ancestors(outputs: Sequence[Node]) -> list[Node]:
    """Return all nodes that outputs are computed from, arguments first, outputs included."""
    found: dict[int, Node] = {}
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node.index not in found:
            found[node.index] = node
            waiting += [*node.args, *_tables_of(node)]
    return [found[k] for k in sorted(found)]


def _tables_of(node: Node) -> list[Node]:
    """Return the arrays of integers by which a node finds its places."""
    every: Mapping[str, Any] = {"read": [node.detail], "sum": node.detail}
    return [
        place.table
        for places in every.get(node.kind, ())
        for place in places
        if isinstance(place, Listed)
    ]
