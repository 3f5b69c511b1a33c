"""Parts of which figures are made: the figure itself, scales, axes, shades, runs as points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

type Spec = dict[str, Any]
type Rows = list[dict[str, Any]]

# Shapes and dashes tell methods apart where colours do not.
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke")
DASHES = ((1, 0), (7, 3), (2, 3), (9, 3, 2, 3), (4, 4), (12, 4), (1, 5))

BLUE_SIGNAL = {"signal": "blue"}  # which the page's script sets, by the reader's theme

# A billion parameters, not a giga; and no milli: small numbers stay digits.
_SHORT = (
    "datum.value >= 1000 ? replace(format(datum.value, '.3~s'), 'G', 'B') : "
    "datum.value < 0.001 ? format(datum.value, '.0e') : format(datum.value, '.3~g')"
)


def figure(height: int, **parts: Any) -> Spec:
    """Return a figure as wide as the page gives it, whose marks a screen reader passes over."""
    for kind in ("marks", "axes", "legends"):
        parts[kind] = _unspoken(parts.get(kind, []))
    return {
        "height": height,
        "padding": 4,
        "autosize": {"type": "fit", "contains": "padding", "resize": True},
        **parts,
    }


def _unspoken(part: Any) -> Any:
    """Take the marks out of what a screen reader reads: the figure as a whole has a name."""
    if isinstance(part, list):
        return [_unspoken(each) for each in part]
    inner = {"marks": _unspoken(part["marks"])} if "marks" in part else {}
    return {**part, "aria": False, **inner}


def method_scales(colours: Mapping[str, str]) -> list[Spec]:
    """Return the scales that give a method its colour, shape and dash."""
    names = list(colours)
    return [
        {"name": "colour", "type": "ordinal", "domain": names, "range": list(colours.values())},
        {
            "name": "shape",
            "type": "ordinal",
            "domain": names,
            "range": [SHAPES[i % len(SHAPES)] for i in range(len(names))],
        },
        {
            "name": "dash",
            "type": "ordinal",
            "domain": names,
            "range": [list(DASHES[i % len(DASHES)]) for i in range(len(names))],
        },
    ]


def axis(scale: str, orient: str, title: str, **more: Any) -> Spec:
    """Return an axis whose labels never overlap."""
    plain = {"scale": scale, "orient": orient, "title": title, "labelOverlap": "greedy"}
    return {**plain, **more}


def log_axis(scale: str, orient: str, title: str, **more: Any) -> Spec:
    """Return a logarithmic axis, its counts in short."""
    labels = {"update": {"text": {"signal": _SHORT}}}
    plain = {"labelSeparation": 8, "tickCount": 6, "encode": {"labels": labels}}
    return axis(scale, orient, title, **{**plain, **more})


def shade(low: str, high: str) -> Spec:
    """Return the shading of what lies outside the data."""
    return {
        "type": "rect",
        "interactive": False,
        "encode": {
            "update": {
                "x": {"scale": "x", "signal": low},
                "x2": {"scale": "x", "signal": high},
                "y": {"value": 0},
                "y2": {"signal": "height"},
                "fill": {"signal": "faint"},
                "fillOpacity": {"value": 0.13},
            }
        },
    }


def runs_as_points(y: Spec, *, plain: bool = False) -> Spec:
    """Return the runs as points that say what they are; plain ones are all alike."""
    look: Spec = {
        "shape": {"scale": "shape", "field": "method"},
        "fill": {"scale": "colour", "field": "method"},
        "size": {"value": 52},
    }
    if plain:
        look = {"fill": {"signal": "ink"}, "size": {"value": 28}}
    return {
        "type": "symbol",
        "from": {"data": "runs"},
        "clip": True,
        "encode": {
            "update": {
                "x": {"scale": "x", "field": "data"},
                "y": y,
                **look,
                "stroke": {"signal": "paper"},
                "strokeWidth": {"value": 0.7},
                "opacity": {"signal": "datum.near ? 1 : 0.4"},
                "tooltip": {"field": "tooltip"},
            }
        },
    }
