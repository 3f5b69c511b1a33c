"""Which method is best, with what probability, against data size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tunecast.analysis.labels import axis_name, colours, percent
from tunecast.analysis.plots.axes import shade_beyond, tidy
from tunecast.analysis.plots.frame import blank, finished
from tunecast.analysis.plots.panels import joined, panels_of, place_in_words

if TYPE_CHECKING:
    from tunecast.models import Fit


def plot_best(
    ax: Axes,
    compared: pd.DataFrame,
    *,
    data: str = "finetune_examples",
    seen: pd.DataFrame | None = None,
) -> Axes:
    """Draw the probability that each method is the best one against data size, stacked to 1.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    compared : DataFrame
        From `Fit.compare`, several data sizes.
    data : str, optional
        The column of the data axis.
    seen : DataFrame, optional
        The fitted runs of the task: what lies beyond them is marked.

    Returns
    -------
    Axes
        ``ax``.
    """
    table = compared.pivot_table(index=data, columns="method", values="p_best").sort_index()
    methods = [m for m in dict.fromkeys(compared["method"]) if m in table]
    shades = colours(methods)
    x, floor = table.index.to_numpy(float), np.zeros(len(table))
    for method in methods:
        share = table[method].to_numpy(float)
        ax.fill_between(
            x, floor, floor + share, color=shades[method], alpha=0.75, linewidth=0.5, ec="white"
        )
        widest = int(share.argmax())
        if share[widest] > 0.12:
            # The middle of the stretch where the share is near its widest, not the first of it.
            near = np.flatnonzero(share > 0.9 * share[widest])
            at = int(near[len(near) // 2])
            ax.text(
                _inside(x[at], x),
                floor[at] + share[at] / 2,
                method,
                color="white",
                ha="center",
                va="center",
                fontweight="bold",
            )
        floor = floor + share
    ax.set_xscale("log")
    ax.set_xlim(x[0], x[-1])
    ax.set_ylim(0, 1)
    if seen is not None:
        shade_beyond(ax, seen, data, on_top=True)
    ax.set_xlabel(axis_name(data))
    ax.set_ylabel("probability of the lowest loss")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: percent(share)))
    tidy(ax)
    return ax


def _inside(x: float, every: np.ndarray) -> float:
    """Return ``x`` moved away from the ends of a log axis, so that a label has room."""
    low, high = math.log(every[0]), math.log(every[-1])
    return math.exp(min(max(math.log(x), low + 0.1 * (high - low)), high - 0.1 * (high - low)))


def best_figure(
    fit: Fit,
    targets: pd.DataFrame,
    *,
    methods: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Return the probability that each method is best, a panel for each model and task.

    Parameters
    ----------
    fit : Fit
        What to compare with.
    targets : DataFrame
        As `Fit.compare` takes them.
    methods : sequence of str, optional
        Which methods; by default all.
    title : str, optional
        The finding; by default it is read from the comparison at the last target.
    """
    data = fit.info["data"]
    targets = targets.drop(columns="method", errors="ignore")
    names = list(methods or dict.fromkeys(fit.runs["method"]))
    panels = list(panels_of(fit, targets.merge(pd.DataFrame({"method": names}), how="cross")))
    figure, axes = blank(len(panels))
    for ax, panel in zip(axes, panels, strict=True):
        grid = panel.targets(data).drop(columns="method").drop_duplicates(ignore_index=True)
        seen = joined(panel.runs, panel.context)
        plot_best(ax, fit.compare(grid, methods=methods), data=data, seen=seen)
        ax.set_title(panel.title, fontsize=10)
    if title is None:
        last = targets.sort_values(data).tail(1)
        best = fit.compare(last, methods=methods).sort_values("p_best").iloc[-1]
        title = (
            f"{place_in_words(last, data, several=len(panels) > 1)}, {best['method']} is best "
            f"with probability {percent(best['p_best'])}"
        )
    return finished(figure, fit, title)
