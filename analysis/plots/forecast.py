"""Forecast curves against data size, with the runs beside them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from tunecast.analysis.labels import LOSS, axis_name, colours
from tunecast.analysis.plots.axes import shade_beyond, tidy
from tunecast.analysis.plots.frame import GREY, blank, finished
from tunecast.analysis.plots.panels import Panel, joined, panels_of, place_in_words

if TYPE_CHECKING:
    from tunecast.models import Fit


def plot_forecast(
    ax: Axes,
    curves: pd.DataFrame,
    *,
    data: str = "finetune_examples",
    runs: pd.DataFrame | None = None,
    context: pd.DataFrame | None = None,
    heldout: pd.DataFrame | None = None,
) -> Axes:
    """Draw forecasts against data size: median, 50 % and 90 % band of a new run, by method.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    curves : DataFrame
        From `Fit.forecast`, several data sizes for each ``method``.
    data : str, optional
        The column of the data axis.
    runs : DataFrame, optional
        The runs that were fitted and belong on these curves, drawn as dots.
    context : DataFrame, optional
        The other fitted runs of the same task, drawn faintly: they say where the data axis was
        seen. A curve is dashed where its method was not.
    heldout : DataFrame, optional
        Runs that the fit has not seen, drawn as open diamonds.

    Returns
    -------
    Axes
        ``ax``.
    """
    seen = joined(runs, context)
    shades = colours(list(curves["method"]))
    for method, curve in curves.groupby("method", sort=False):
        curve = curve.sort_values(data)
        colour, x = shades[str(method)], curve[data].to_numpy(float)
        for low, high, alpha in (("q05", "q95", 0.15), ("q25", "q75", 0.25)):
            band = curve[f"loss_{low}"], curve[f"loss_{high}"]
            ax.fill_between(x, *band, color=colour, alpha=alpha, linewidth=0)
        median = curve["loss_q50"].to_numpy(float)
        ax.plot(x, median, color=colour, linewidth=1.2, linestyle=(0, (3, 2)))
        inside = _within(x, seen[seen["method"] == method], data)
        ax.plot(x[inside], median[inside], color=colour, linewidth=1.8)
    for method, c in shades.items():
        styles: tuple[tuple[pd.DataFrame | None, dict[str, Any]], ...] = (
            (context, {"color": c, "s": 10, "alpha": 0.55, "linewidths": 0, "zorder": 2.5}),
            (runs, {"color": c, "s": 20, "ec": "white", "linewidths": 0.5, "zorder": 3}),
            (heldout, {"fc": "white", "ec": c, "s": 30, "marker": "D", "zorder": 4}),
        )
        for table, style in styles:
            if table is not None:
                points = table[table["method"] == method]
                ax.scatter(points[data], points["loss"], **style)
    ax.set_xscale("log")
    _loss_axis(ax, curves, joined(runs, heldout))
    ax.set_xlim(*_with_room(curves[data]))
    shade_beyond(ax, seen, data)
    _label_ends(ax, curves, data, shades)
    ax.set_xlabel(axis_name(data))
    ax.set_ylabel(LOSS)
    tidy(ax)
    return ax


def _within(x: np.ndarray, seen: pd.DataFrame, data: str) -> np.ndarray:
    if not len(seen):
        return np.zeros(len(x), dtype=bool)
    # The ends of a grid in log space miss the data by a rounding error.
    return (x >= seen[data].min() * (1 - 1e-9)) & (x <= seen[data].max() * (1 + 1e-9))


def _with_room(x: pd.Series) -> tuple[float, float]:
    low, high = float(x.min()), float(x.max())
    room = (high / low) ** 0.03 if high > low else 2.0
    return low / room, high * room


def _loss_axis(ax: Axes, curves: pd.DataFrame, points: pd.DataFrame) -> None:
    """Show the curves and their own points whole; what else is drawn may be cut off."""
    every = [curves["loss_q05"], curves["loss_q95"]]
    every += [points["loss"]] if len(points) else []
    losses = np.concatenate([np.asarray(values, dtype=float) for values in every])
    drawn = ax.dataLim.intervaly
    low, high = losses.min(), losses.max()
    room = 0.5 * (high - low)
    low, high = max(drawn[0], low - room), min(drawn[1], high + room)
    if high / low > 2:
        ax.set_yscale("log")
        # Round losses, for there are too few powers of ten among them.
        ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_ylim(low / (high / low) ** 0.04, high * (high / low) ** 0.04)
    else:
        ax.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))


def _label_ends(ax: Axes, curves: pd.DataFrame, data: str, shades: Mapping[str, str]) -> None:
    """Write each method at the right end of its curve, apart from one another."""
    last = curves.sort_values(data).groupby("method", sort=False).tail(1)
    points = ax.transData.transform(last[[data, "loss_q50"]].to_numpy(float))
    wanted = ax.transAxes.inverted().transform(points)[:, 1]
    order = np.argsort(wanted)
    places = np.array(wanted[order])
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + 0.06)
    ends = np.column_stack([np.ones_like(places), places])
    # Back to losses, so that the labels stay at their curves when the limits change.
    losses = ax.transData.inverted().transform(ax.transAxes.transform(ends))[:, 1]
    for method, loss in zip(last["method"].to_numpy()[order], losses, strict=True):
        ax.annotate(
            str(method),
            (1, float(loss)),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=shades[str(method)],
            fontweight="bold",
            annotation_clip=False,
        )


def forecast_figure(
    fit: Fit,
    targets: pd.DataFrame,
    *,
    heldout: pd.DataFrame | None = None,
    title: str | None = None,
) -> Figure:
    """Return the forecast curves on which ``targets`` lie, a panel for each model and task.

    Parameters
    ----------
    fit : Fit
        What to forecast from.
    targets : DataFrame
        As `Fit.forecast` takes them. The curves run from the smallest data size of the fitted
        runs to the largest of these and of the targets.
    heldout : DataFrame, optional
        Runs that the fit has not seen, drawn where they belong to a panel.
    title : str, optional
        The finding; by default it is read from the forecasts.

    Raises
    ------
    TunecastError
        If the targets would need more than six panels.
    """
    data = fit.info["data"]
    if "method" not in targets:  # as a forecast allows when the fit has one
        targets = targets.assign(method=fit.runs["method"].iloc[0])
    panels = list(panels_of(fit, targets, heldout))
    figure, axes = blank(len(panels))
    for ax, panel in zip(axes, panels, strict=True):
        curves = fit.forecast(panel.targets(data))
        plot_forecast(
            ax, curves, data=data, runs=panel.runs, context=panel.context, heldout=panel.heldout
        )
        ax.set_title(panel.title, fontsize=10)
    caption = textwrap.fill(_caption(panels), 85 * min(len(panels), 3))
    figure.supxlabel(caption, fontsize=8, color=GREY)
    return finished(figure, fit, title or _finding(fit, targets, heldout))


def _finding(fit: Fit, targets: pd.DataFrame, heldout: pd.DataFrame | None) -> str:
    data = fit.info["data"]
    if heldout is not None and len(heldout):
        band = fit.forecast(heldout.drop(columns="loss"))
        loss = heldout["loss"].to_numpy(float)
        inside = (loss >= band["loss_q05"].to_numpy()) & (loss <= band["loss_q95"].to_numpy())
        return f"{inside.sum()} of {len(loss)} held-out runs lie in the 90 % intervals"
    # Every method of the targets at the furthest of them: a lowest one needs all to be asked.
    furthest = targets.loc[[targets[data].idxmax()]].drop(columns="method")
    methods = targets[["method"]].drop_duplicates()
    best = fit.forecast(furthest.merge(methods, how="cross")).sort_values("loss_q50").head(1)
    answer = best.iloc[0]
    several = "task" in targets and targets["task"].nunique() > 1
    what = "has the lowest median" if len(methods) > 1 else "has the median"
    return (
        f"{place_in_words(best, data, several=several)}, {answer['method']} {what}: "
        f"{answer['loss_q50']:.3g} nats (90 %: {answer['loss_q05']:.3g} to "
        f"{answer['loss_q95']:.3g})"
    )


def _caption(panels: Sequence[Panel]) -> str:
    """Explain the marks that are there."""
    marks = [
        "lines: median, dashed where the method has no data",
        "bands: 50 % and 90 % of a new run",
    ]
    if any(len(panel.runs) for panel in panels):
        marks.append("dots: fitted runs")
    if any(len(panel.context) for panel in panels):
        marks.append("faint dots: fitted runs of other models")
    if any(panel.heldout is not None and len(panel.heldout) for panel in panels):
        marks.append("diamonds: runs the fit has not seen")
    return "; ".join(marks)
