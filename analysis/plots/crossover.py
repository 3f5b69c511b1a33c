"""Where the curves of two methods first cross."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tunecast.analysis.labels import percent, short
from tunecast.analysis.plots.forecast import forecast_figure
from tunecast.analysis.plots.panels import unit_of

if TYPE_CHECKING:
    from tunecast.models import Fit


def plot_crossover(ax: Axes, answer: Mapping[Hashable, Any]) -> Axes:
    """Draw where two curves first cross as a bar along the data axis of a forecast.

    Parameters
    ----------
    ax : Axes
        An Axes whose horizontal axis is the data size.
    answer : mapping
        The row of `Fit.crossover`.

    Returns
    -------
    Axes
        ``ax``; untouched but for a sentence if hardly any draw crosses.
    """
    crosses = 1 - float(answer["p_none"])
    base = ax.get_xaxis_transform()  # data size across, share of the height up
    bottom, top = ax.get_ylim()
    is_log = ax.get_yscale() == "log"
    ax.set_ylim(bottom * (bottom / top) ** 0.2 if is_log else bottom - 0.2 * (top - bottom))
    text = f"first crossing: probability {percent(crosses)}"
    if crosses >= 0.05 and math.isfinite(float(answer["first_q50"])):
        left, right = ax.get_xlim()
        ends = [float(np.clip(answer[f"first_{q}"], left, right)) for q in ("q05", "q95")]
        ax.plot(ends, [0.05, 0.05], color="black", linewidth=1.2, transform=base)
        if "first_q25" in answer:
            mid = [float(np.clip(answer[f"first_{q}"], left, right)) for q in ("q25", "q75")]
            ax.plot(mid, [0.05, 0.05], color="black", linewidth=4, transform=base)
        ax.plot([answer["first_q50"]], [0.05], "o", color="white", mec="black", transform=base)
        low, middle, high = (short(float(answer[f"first_{q}"])) for q in ("q05", "q50", "q95"))
        text += f", then at {middle} (90 %: {low} to {high})"
    ax.text(0.02, 0.09, text, transform=ax.transAxes, fontsize=8)
    return ax


def crossover_figure(fit: Fit, target: pd.DataFrame, answer: pd.DataFrame) -> Figure:
    """Return the forecast curves of two methods with the place where they first cross.

    Parameters
    ----------
    fit : Fit
        What to forecast from.
    target : DataFrame
        One row without a method: the task, the factors and, if known, the base model.
    answer : DataFrame
        The row of `Fit.crossover`, with the methods ``a`` and ``b``.
    """
    data, row = fit.info["data"], answer.iloc[0]
    ends = [float(row[q]) for q in ("first_q05", "first_q95") if math.isfinite(float(row[q]))]
    same_task = fit.runs["task"] == target["task"].iloc[0]
    sizes = [*ends, float(fit.runs.loc[same_task, data].max())]
    both = pd.MultiIndex.from_product([[row["a"], row["b"]], sizes], names=["method", data])
    targets = both.to_frame(index=False).assign(
        **{str(c): target[c].iloc[0] for c in target if c not in ("method", data)}
    )
    crosses = 1 - row["p_none"]
    where = f", at about {short(row['first_q50'])} {unit_of(data)}" if crosses > 0.5 else ""
    title = f"{row['a']} and {row['b']} cross with probability {percent(crosses)}{where}"
    figure = forecast_figure(fit, targets, title=title)
    plot_crossover(figure.axes[0], row.to_dict())
    return figure
