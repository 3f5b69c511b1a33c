"""The figures of calibration: coverage, PIT histogram, posterior predictive check."""

from __future__ import annotations

from collections.abc import Sequence

from tunecast.analysis.report.figures.parts import BLUE_SIGNAL, SHAPES, Rows, Spec, axis, figure


def coverage(rows: Rows) -> Spec:
    """Return nominal against actual coverage with binomial bands, a colour for each check.

    Parameters
    ----------
    rows : list of dict
        ``check, nominal, actual, low, high``, all of one check (several are drawn beside).
    """
    checks = list(dict.fromkeys(row["check"] for row in rows))
    x = {"scale": "x", "field": "check", "band": 0.5}
    return figure(
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
            axis("block", "bottom", "nominal interval (%)"),
            axis("y", "left", "share of runs inside", grid=True, format="%", tickCount=5),
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
    return figure(
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
            axis("x", "bottom", "share of the forecast below the run"),
            axis("y", "left", "runs", grid=True, tickCount=5),
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
                        "fill": BLUE_SIGNAL,
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
    return figure(
        250,
        data=[{"name": "table", "values": rows}],
        scales=[
            {"name": "x", "domain": list(bins), "range": "width"},
            {"name": "y", "domain": [0, 1], "range": "height"},
        ],
        axes=[
            axis("x", "bottom", "log loss less its expectation", tickCount=6),
            axis("y", "left", "share of runs below", grid=True, format="%", tickCount=5),
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
                        "stroke": BLUE_SIGNAL,
                        "strokeWidth": {"value": 2.2},
                        "interpolate": {"value": "step-after"},
                    }
                },
            },
        ],
    )
