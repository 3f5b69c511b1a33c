"""The figures of a report's page, as Vega specifications with the numbers that they show.

A figure is a dictionary; its data set ``table`` is what the button beside it saves as CSV. The
page's script gives each one its width and the colours of the reader's theme (``ink``, ``faint``
and ``paper``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

type Spec = dict[str, Any]
type Rows = list[dict[str, Any]]

# Shapes and dashes tell methods apart where colours do not.
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke")
DASHES = ((1, 0), (7, 3), (2, 3), (9, 3, 2, 3), (4, 4), (12, 4), (1, 5))

# A billion parameters, not a giga; and no milli: small numbers stay digits.
_SHORT = (
    "datum.value >= 1000 ? replace(format(datum.value, '.3~s'), 'G', 'B') : "
    "datum.value < 0.001 ? format(datum.value, '.0e') : format(datum.value, '.3~g')"
)
FAR = 300.0  # how far beyond the posterior a parameter's axis follows its prior
BLUE = {"signal": "blue"}
_BESIDE = (
    ("shade_left", "asked[0]", "seen[0]"),
    ("shade_right", "seen[1]", "asked[1]"),
)


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


def _unspoken(part: Any) -> Any:
    """Take the marks out of what a screen reader reads: the figure as a whole has a name."""
    if isinstance(part, list):
        return [_unspoken(each) for each in part]
    inner = {"marks": _unspoken(part["marks"])} if "marks" in part else {}
    return {**part, "aria": False, **inner}


def _figure(height: int, **parts: Any) -> Spec:
    for kind in ("marks", "axes", "legends"):
        parts[kind] = _unspoken(parts.get(kind, []))
    return {
        "height": height,
        "padding": 4,
        "autosize": {"type": "fit", "contains": "padding", "resize": True},
        **parts,
    }


def _log_axis(scale: str, orient: str, title: str, **more: Any) -> Spec:
    return {
        "scale": scale,
        "orient": orient,
        "title": title,
        "labelOverlap": "greedy",
        "labelSeparation": 8,
        "tickCount": 6,
        "encode": {"labels": {"update": {"text": {"signal": _SHORT}}}},
        **more,
    }


def _axis(scale: str, orient: str, title: str, **more: Any) -> Spec:
    return {
        "scale": scale, "orient": orient, "title": title, "labelOverlap": "greedy", **more,
    }  # fmt: skip


def _shade(low: str, high: str, scale: str = "x") -> Spec:
    """Return the shading of what lies outside the data."""
    other = {"y": {"value": 0}, "y2": {"signal": "height"}}
    return {
        "type": "rect",
        "interactive": False,
        "encode": {
            "update": {
                "x": {"scale": scale, "signal": low},
                "x2": {"scale": scale, "signal": high},
                **other,
                "fill": {"signal": "faint"},
                "fillOpacity": {"value": 0.13},
            }
        },
    }


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


def _by_method(marks: list[Spec]) -> Spec:
    facet = {"name": "series", "data": "table", "groupby": "method"}
    return {"type": "group", "from": {"facet": facet}, "marks": marks}


def _runs(y: Spec, *, plain: bool = False) -> Spec:
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
                "tooltip": {"field": "told"},
            }
        },
    }


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
    return _figure(
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
            _log_axis("x", "bottom", data),
            _axis("y", "left", "test loss (nats per target token)", grid=True, tickCount=6),
        ],
        legends=[legend] if len(colours) > 1 else [],
        marks=[
            *(_shade(low, high) for _, low, high in _BESIDE),
            # The bands of all methods first, or they would hide the lines of some.
            _by_method([_band("q05", "q95", 0.14), _band("q25", "q75", 0.24)]),
            _by_method([median]),
            rule,
            _runs({"scale": "y", "field": "loss"}),
        ],
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
    axes = [_log_axis("x", "bottom", data)]
    if factor is not None:
        axes.append(_log_axis("y", "left", factor, tickCount=3))
    legend = {"fill": "colour", "orient": "top", "direction": "horizontal", "columns": 3}
    return _figure(
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
            *([_runs({"scale": "y", "field": "size"}, plain=True)] if factor is not None else []),
        ],
    )


def coverage(rows: Rows) -> Spec:
    """Return nominal against actual coverage with binomial bands, a colour for each check.

    Parameters
    ----------
    rows : list of dict
        ``check, nominal, actual, low, high``, all of one check (several are drawn beside).
    """
    checks = list(dict.fromkeys(row["check"] for row in rows))
    x = {"scale": "x", "field": "check", "band": 0.5}
    return _figure(
        250,
        data=[{"name": "table", "values": rows}],
        scales=[
            {
                "name": "block",
                "type": "band",
                "domain": [50, 80, 90, 95],
                "range": "width",
                "padding": 0.15,
            },
            {
                "name": "x",
                "type": "band",
                "domain": checks,
                "range": [0, {"signal": "bandwidth('block')"}],
            },
            {"name": "y", "domain": [0, 1], "range": "height"},
            {
                "name": "shape",
                "type": "ordinal",
                "domain": checks,
                "range": list(SHAPES),
            },
        ],
        axes=[
            _axis("block", "bottom", "nominal interval (%)"),
            _axis("y", "left", "share of runs inside", grid=True, format="%", tickCount=5),
        ],
        legends=[
            {
                "shape": "shape",
                "orient": "top",
                "columns": 1,
                "labelLimit": 320,
                "symbolFillColor": {"signal": "ink"},
                "symbolSize": 80,
            }
        ],
        marks=[
            {
                "type": "group",
                "from": {"facet": {"name": "series", "data": "table", "groupby": "nominal"}},
                "encode": {"update": {"x": {"scale": "block", "field": "nominal"}}},
                "marks": [
                    {
                        "type": "rule",
                        "encode": {
                            "update": {
                                "x": {"value": 0},
                                "x2": {"signal": "bandwidth('block')"},
                                "y": {"scale": "y", "signal": "parent.nominal / 100"},
                                "stroke": {"signal": "ink"},
                                "strokeDash": {"value": [4, 3]},
                            }
                        },
                    },
                    {
                        "type": "rule",
                        "from": {"data": "series"},
                        "encode": {
                            "update": {
                                "x": x,
                                "y": {"scale": "y", "field": "low"},
                                "y2": {"scale": "y", "field": "high"},
                                "stroke": {"signal": "faint"},
                                "strokeWidth": {"value": 10},
                                "strokeOpacity": {"value": 0.35},
                            }
                        },
                    },
                    {
                        "type": "symbol",
                        "from": {"data": "series"},
                        "encode": {
                            "update": {
                                "x": x,
                                "y": {"scale": "y", "field": "actual"},
                                "shape": {"scale": "shape", "field": "check"},
                                "size": {"value": 90},
                                "fill": {"signal": "ink"},
                                "stroke": {"signal": "paper"},
                                "tooltip": {
                                    "signal": "{'check': datum.check, 'inside': "
                                    "format(datum.actual, '.0%'), 'expected': "
                                    "format(datum.low, '.0%') + ' to ' + format(datum.high, '.0%')}"
                                },
                            }
                        },
                    },
                ],
            }
        ],
    )


def histogram(rows: Rows, low: float, high: float) -> Spec:
    """Return a histogram of PIT values with the band of uniform ones.

    Parameters
    ----------
    rows : list of dict
        ``from, to, count`` of each bin.
    low, high : float
        Counts between which a bin of a calibrated forecast stays in 95 of 100 cases.
    """
    return _figure(
        250,
        data=[{"name": "table", "values": rows}],
        scales=[
            {"name": "x", "domain": [0, 1], "range": "width"},
            {
                "name": "y",
                "domain": [0, max([high, *(row["count"] for row in rows)]) * 1.05],
                "range": "height",
            },
        ],
        axes=[
            _axis("x", "bottom", "share of the forecast below the run"),
            _axis("y", "left", "runs", grid=True, tickCount=5),
        ],
        marks=[
            {
                "type": "rect",
                "encode": {
                    "update": {
                        "x": {"value": 0},
                        "x2": {"signal": "width"},
                        "y": {"scale": "y", "value": low},
                        "y2": {"scale": "y", "value": high},
                        "fill": {"signal": "faint"},
                        "fillOpacity": {"value": 0.22},
                    }
                },
            },
            {
                "type": "rect",
                "from": {"data": "table"},
                "encode": {
                    "update": {
                        "x": {"scale": "x", "field": "from", "offset": 1},
                        "x2": {"scale": "x", "field": "to", "offset": -1},
                        "y": {"scale": "y", "field": "count"},
                        "y2": {"scale": "y", "value": 0},
                        "fill": BLUE,
                        "fillOpacity": {"value": 0.75},
                        "tooltip": {"signal": "{'runs': datum.count}"},
                    }
                },
            },
        ],
    )


def predictive(rows: Rows, bins: Sequence[float]) -> Spec:
    """Return a posterior predictive check: the residuals' distribution beside replicated ones.

    Parameters
    ----------
    rows : list of dict
        ``at, observed, q05, q50, q95``: shares of runs below each value of the residual.
    bins : sequence of float
        Smallest and largest residual shown.
    """
    return _figure(
        250,
        data=[{"name": "table", "values": rows}],
        scales=[
            {"name": "x", "domain": list(bins), "range": "width"},
            {"name": "y", "domain": [0, 1], "range": "height"},
        ],
        axes=[
            _axis("x", "bottom", "log loss less its expectation", tickCount=6),
            _axis("y", "left", "share of runs below", grid=True, format="%", tickCount=5),
        ],
        marks=[
            {
                "type": "area",
                "from": {"data": "table"},
                "encode": {
                    "update": {
                        "x": {"scale": "x", "field": "at"},
                        "y": {"scale": "y", "field": "q05"},
                        "y2": {"scale": "y", "field": "q95"},
                        "fill": {"signal": "faint"},
                        "fillOpacity": {"value": 0.3},
                    }
                },
            },
            {
                "type": "line",
                "from": {"data": "table"},
                "encode": {
                    "update": {
                        "x": {"scale": "x", "field": "at"},
                        "y": {"scale": "y", "field": "observed"},
                        "stroke": BLUE,
                        "strokeWidth": {"value": 2.2},
                        "interpolate": {"value": "step-after"},
                    }
                },
            },
        ],
    )


def intervals(rows: Rows, *, logarithmic: bool) -> Spec:
    """Return priors (wide, pale) against posteriors with published values as diamonds.

    Parameters
    ----------
    rows : list of dict
        ``cell, method, prior_q05, prior_q95, q05, q25, q50, q75, q95`` and ``published`` (a number
        or None) of one parameter.
    logarithmic : bool
        Whether the axis is.
    """
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    y = {"scale": "y", "field": "cell", "band": 0.5}
    low = min(min(r["prior_q05"], r["q05"], r["published"] or r["q05"]) for r in rows)
    high = max(max(r["prior_q95"], r["q95"], r["published"] or r["q95"]) for r in rows)
    if logarithmic:  # a prior may span twenty decades; the posterior must stay visible
        low = max(low, min(r["q05"] for r in rows) / FAR)
        high = min(high, max(r["q95"] for r in rows) * FAR)

    def rule(from_: str, to: str, width: float, colour: Spec, opacity: float) -> Spec:
        return {
            "type": "rule",
            "from": {"data": "table"},
            "clip": True,
            "encode": {
                "update": {
                    "x": {"scale": "x", "field": from_},
                    "x2": {"scale": "x", "field": to},
                    "y": y,
                    "stroke": colour,
                    "strokeWidth": {"value": width},
                    "strokeOpacity": {"value": opacity},
                    "tooltip": {"field": "told"},
                }
            },
        }

    return _figure(
        40 + 30 * len(cells),
        data=[
            {"name": "table", "values": rows},
            {
                "name": "marked",
                "source": "table",
                "transform": [{"type": "filter", "expr": "datum.published !== null"}],
            },
        ],
        scales=[
            {
                "name": "x",
                "type": "log" if logarithmic else "linear",
                "domain": [low, high],
                "range": "width",
                "zero": False,
            },
            {"name": "y", "type": "band", "domain": cells, "range": "height"},
        ],
        axes=[
            _log_axis("x", "bottom", "", grid=True, tickCount=3)
            if logarithmic
            else _axis("x", "bottom", "", grid=True, tickCount=6),
            _axis("y", "left", "", labelLimit=150, domain=False, ticks=False),
        ],
        marks=[
            rule("prior_q05", "prior_q95", 13, {"signal": "faint"}, 0.3),
            rule("q05", "q95", 2, BLUE, 1),
            rule("q25", "q75", 6, BLUE, 1),
            {
                "type": "symbol",
                "from": {"data": "table"},
                "encode": {
                    "update": {
                        "x": {"scale": "x", "field": "q50"},
                        "y": y,
                        "fill": {"signal": "paper"},
                        "stroke": BLUE,
                        "size": {"value": 45},
                        "tooltip": {"field": "told"},
                    }
                },
            },
            {
                "type": "symbol",
                "from": {"data": "marked"},
                "encode": {
                    "update": {
                        "x": {"scale": "x", "field": "published"},
                        "y": y,
                        "shape": {"value": "diamond"},
                        "fill": {"value": "#D55E00"},
                        "stroke": {"signal": "paper"},
                        "size": {"value": 110},
                        "tooltip": {"field": "told"},
                    }
                },
            },
        ],
    )
