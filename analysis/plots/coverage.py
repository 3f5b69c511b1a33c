"""How often intervals held what runs reached."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tunecast.analysis.labels import BLUE, percent
from tunecast.analysis.plots.axes import tidy
from tunecast.analysis.plots.frame import GREY, MAX_PANELS, blank, headed


def plot_coverage(ax: Axes, scores: pd.Series) -> Axes:
    """Draw how often intervals held what was reached, with binomial bands, against what they say.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    scores : Series
        A row of the table of scores, with ``cover50`` and so on and their ``_low`` and ``_high``.

    Returns
    -------
    Axes
        ``ax``.
    """
    nominal = np.array([n for n in (50, 80, 90, 95) if f"cover{n}" in scores])
    observed = np.array([100 * scores[f"cover{n}"] for n in nominal])
    ax.plot([0, 100], [0, 100], color=GREY, linewidth=1)
    low = np.array([100 * scores[f"cover{n}_low"] for n in nominal])
    high = np.array([100 * scores[f"cover{n}_high"] for n in nominal])
    ax.vlines(nominal, low, high, color=BLUE, linewidth=2, alpha=0.5)
    ax.plot(nominal, observed, "o", color=BLUE)
    ax.set(xlim=(40, 100), ylim=(0, 102))
    ax.set_xlabel("interval (%)")
    ax.set_ylabel("runs inside it (%)")
    tidy(ax)
    return ax


def coverage_figure(scores: pd.DataFrame) -> Figure:
    """Return coverage against nominal coverage, a panel for each row of scores (six at most)."""
    scores = scores.head(MAX_PANELS)
    figure, axes = blank(len(scores))
    groups = [name for name in scores.columns[: list(scores.columns).index("n")]]
    for ax, (_, row) in zip(axes, scores.iterrows(), strict=True):
        plot_coverage(ax, row)
        named = " / ".join(str(row[name]) for name in groups)
        ax.set_title(f"{named or 'all'}, {int(row['n'])} runs", fontsize=10)
    first = scores.iloc[0]
    return headed(
        figure,
        f"The 90 % intervals held {percent(first['cover90'])} of {int(first['n'])} runs",
        converged="converged" not in scores or bool(scores["converged"].all()),
        simulated="simulated" in scores and bool(scores["simulated"].any()),
    )
