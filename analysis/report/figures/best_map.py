"""The map of the probably best method by data size and model size."""

from __future__ import annotations

from collections.abc import Mapping

from tunecast.analysis.report.figures.parts import (
    Spec,
    figure,
    log_axis,
    method_scales,
    runs_as_points,
)


def best_map(colours: Mapping[str, str], data: str, factor: str | None) -> Spec:
    """Return the map of the probably best method; the page computes its numbers."""
    box = {
        "type": "rect",
        "from": {"data": "table"},
        "encode": {
            "update": {
                "x": {"scale": "x", "field": "data_from"},
                "x2": {"scale": "x", "field": "data_to"},
                "y": {"scale": "y", "field": "size_from"},
                "y2": {"scale": "y", "field": "size_to"},
                "fill": {"scale": "colour", "field": "method"},
                "fillOpacity": {"scale": "sure", "field": "p_best"},
                "tooltip": {
                    "signal": "{'probably best': datum.method, 'P(best)': format(datum.p_best, "
                    "'.0%'), 'data': format(datum.data, '.3~s'), 'size': "
                    "replace(format(datum.size, '.3~s'), 'G', 'B')}"
                },
            }
        },
    }
    seen = {
        "type": "rect",
        "interactive": False,
        "encode": {
            "update": {
                "x": {"scale": "x", "signal": "seen[0]"},
                "x2": {"scale": "x", "signal": "seen[1]"},
                "y": {"scale": "y", "signal": "seen_y[0]"},
                "y2": {"scale": "y", "signal": "seen_y[1]"},
                "stroke": {"signal": "ink"},
                "strokeWidth": {"value": 1.5},
                "strokeDash": {"value": [5, 3]},
            }
        },
    }
    crossover = [
        *(
            {
                "type": "line",
                "from": {"data": "band"},
                "interactive": False,
                "encode": {
                    "update": {
                        "y": {"scale": "y", "field": "size"},
                        "x": {"scale": "x", "field": name},
                        "stroke": {"signal": "ink"},
                        "strokeWidth": {"value": width},
                        "strokeDash": {"value": dash},
                    }
                },
                "clip": True,
            }
            for name, width, dash in (("q05", 1, [2, 3]), ("q50", 2, []), ("q95", 1, [2, 3]))
        ),
    ]
    runs = runs_as_points({"scale": "y", "field": "size"}, plain=True)
    axes = [log_axis("x", "bottom", data)]
    if factor is not None:
        axes.append(log_axis("y", "left", factor, tickCount=3))
    legend = {"fill": "colour", "orient": "top", "direction": "horizontal", "columns": 3}
    return figure(
        360 if factor is not None else 120,
        signals=[
            {"name": name, "value": [1, 2]} for name in ("seen", "asked", "seen_y", "asked_y")
        ],
        data=[{"name": name, "values": []} for name in ("table", "band", "runs")],
        scales=[
            # Rounded, or the seams between rectangles show.
            {
                "name": "x",
                "type": "log",
                "domain": {"signal": "asked"},
                "range": "width",
                "round": True,
            },
            {
                "name": "y",
                "type": "log",
                "domain": {"signal": "asked_y"},
                "range": "height",
                "round": True,
            },
            {
                "name": "sure",
                "domain": [1 / max(len(colours), 2), 1],
                "range": [0.12, 0.95],
                "clamp": True,
            },
            *method_scales(colours),
        ],
        axes=axes,
        legends=[legend],
        marks=[
            box,
            *(crossover if factor is not None else []),
            seen,
            *([runs] if factor is not None else []),
        ],
    )
