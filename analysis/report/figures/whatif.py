"""The figure of forecast curves against data size."""

from __future__ import annotations

from collections.abc import Mapping

from tunecast.analysis.labels import LOSS
from tunecast.analysis.report.figures.parts import (
    Spec,
    axis,
    figure,
    log_axis,
    method_scales,
    runs_as_points,
    shade,
)

# The stretches of the data axis that no run has seen.
_BEYOND = (("asked[0]", "seen[0]"), ("seen[1]", "asked[1]"))


def whatif(colours: Mapping[str, str], data: str) -> Spec:
    """Return the figure of forecast curves; the page computes its numbers."""
    legend = {
        "fill": "colour",
        "shape": "shape",
        "orient": "top",
        "direction": "horizontal",
        "columns": 3,
        "symbolSize": 90,
    }
    median = {
        "type": "line",
        "from": {"data": "series"},
        "interactive": False,
        "encode": {
            "update": {
                "x": {"scale": "x", "field": "data"},
                "y": {"scale": "y", "field": "q50"},
                "stroke": {"scale": "colour", "field": "method"},
                "strokeDash": {"scale": "dash", "field": "method"},
                "strokeWidth": {"value": 2.2},
            }
        },
    }
    rule = {
        "type": "rule",
        "interactive": False,
        "encode": {
            "update": {
                "x": {"scale": "x", "signal": "target"},
                "y": {"value": 0},
                "y2": {"signal": "height"},
                "stroke": {"signal": "ink"},
                "strokeDash": {"value": [3, 3]},
            }
        },
    }
    return figure(
        380,
        signals=[
            {"name": "seen", "value": [1, 2]},
            {"name": "asked", "value": [1, 2]},
            {"name": "target", "value": 1},
        ],
        data=[{"name": "table", "values": []}, {"name": "runs", "values": []}],
        scales=[
            {"name": "x", "type": "log", "domain": {"signal": "asked"}, "range": "width"},
            {
                "name": "y",
                "domain": {
                    "fields": [
                        {"data": "table", "field": "q05"},
                        {"data": "table", "field": "q95"},
                        {"data": "runs", "field": "loss"},
                    ]
                },
                "range": "height",
                "zero": False,
                "nice": True,
            },
            *method_scales(colours),
        ],
        axes=[
            log_axis("x", "bottom", data),
            axis("y", "left", LOSS, grid=True, tickCount=6),
        ],
        legends=[legend] if len(colours) > 1 else [],
        marks=[
            *(shade(low, high) for low, high in _BEYOND),
            # The bands of all methods first, or they would hide the lines of some.
            _by_method([_band("q05", "q95", 0.14), _band("q25", "q75", 0.24)]),
            _by_method([median]),
            rule,
            runs_as_points({"scale": "y", "field": "loss"}),
        ],
    )


def _by_method(marks: list[Spec]) -> Spec:
    facet = {"name": "series", "data": "table", "groupby": "method"}
    return {"type": "group", "from": {"facet": facet}, "marks": marks}


def _band(low: str, high: str, opacity: float) -> Spec:
    return {
        "type": "area",
        "from": {"data": "series"},
        "interactive": False,
        "encode": {
            "update": {
                "x": {"scale": "x", "field": "data"},
                "y": {"scale": "y", "field": low},
                "y2": {"scale": "y", "field": high},
                "fill": {"scale": "colour", "field": "method"},
                "fillOpacity": {"value": opacity},
            }
        },
    }
