"""The figure of a parameter: its prior, its posterior and published values, cell by cell."""

from __future__ import annotations

from tunecast.analysis.labels import VERMILION
from tunecast.analysis.report.figures.parts import (
    BLUE_SIGNAL,
    Rows,
    Spec,
    axis,
    figure,
    log_axis,
)

FAR = 300.0  # how far beyond the posterior a parameter's axis follows its prior


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
                    "tooltip": {"field": "tooltip"},
                }
            },
        }

    return figure(
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
            log_axis("x", "bottom", "", grid=True, tickCount=3)
            if logarithmic
            else axis("x", "bottom", "", grid=True, tickCount=6),
            axis("y", "left", "", labelLimit=150, domain=False, ticks=False),
        ],
        marks=[
            rule("prior_q05", "prior_q95", 13, {"signal": "faint"}, 0.3),
            rule("q05", "q95", 2, BLUE_SIGNAL, 1),
            rule("q25", "q75", 6, BLUE_SIGNAL, 1),
            {
                "type": "symbol",
                "from": {"data": "table"},
                "encode": {
                    "update": {
                        "x": {"scale": "x", "field": "q50"},
                        "y": y,
                        "fill": {"signal": "paper"},
                        "stroke": BLUE_SIGNAL,
                        "size": {"value": 45},
                        "tooltip": {"field": "tooltip"},
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
                        "fill": {"value": VERMILION},
                        "stroke": {"signal": "paper"},
                        "size": {"value": 110},
                        "tooltip": {"field": "tooltip"},
                    }
                },
            },
        ],
    )
