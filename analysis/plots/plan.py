"""Pictures of a plan: what each candidate would tell for its cost, and where it stands."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from tunecast.analysis.labels import axis_name, colours, percent, short
from tunecast.analysis.plots.frame import GREY, finished
from tunecast.models.errors import TunecastError

if TYPE_CHECKING:
    from tunecast.models import Fit, Plan

MAX_METHODS = 4  # heat maps side by side
CELLS = 7  # along an axis of a heat map, more would carry no labels


def plan_figure(fit: Fit, plan: Plan) -> Figure:
    """Return gain against cost, chosen runs marked, and a heat map of the gain for each method.

    Parameters
    ----------
    fit : Fit
        What was planned with.
    plan : Plan
        From `tunecast.models.plan`.

    Raises
    ------
    TunecastError
        If the candidates have more than four methods.
    """
    methods = list(dict.fromkeys(plan.candidates["method"].astype(str)))
    if len(methods) > MAX_METHODS:
        raise TunecastError(
            f"a picture holds at most {MAX_METHODS} methods and the candidates have "
            f"{len(methods)}; draw fewer of them."
        )
    factor = next((f for f in ("model_size", *fit.info["factors"]) if f in plan.candidates), None)
    maps = methods if factor is not None and plan.candidates[factor].notna().all() else []
    figure = Figure(figsize=(5.4 + 3.1 * len(maps), 4.3), layout="constrained")
    FigureCanvasAgg(figure)
    widths = [1.5, *[1.0] * len(maps)]
    axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    plot_gain(axes[0], plan.candidates)
    mesh: QuadMesh | None = None
    for ax, method in zip(axes[1:], maps, strict=True):
        rows = plan.candidates[plan.candidates["method"] == method]
        top = float(plan.candidates["gain"].max())
        assert factor is not None
        mesh = plot_map(ax, rows, factor, fit.info["data"], top=top)
        ax.set_title(method, fontsize=10)
    if mesh is not None:
        figure.colorbar(mesh, ax=list(axes[1:]), label="gain of the run alone (nats)", pad=0.01)
    figure.supxlabel(
        "numbers: the order in which to run; dots and colours: each run alone, before any other",
        fontsize=8,
        color=GREY,
    )
    return finished(figure, fit, _finding(plan))


def plot_gain(ax: Axes, candidates: pd.DataFrame) -> Axes:
    """Draw the gain of each candidate against its cost, with the rank of those chosen."""
    for method, colour in colours(list(candidates["method"].astype(str))).items():
        rows = candidates[candidates["method"] == method]
        ax.scatter(rows["cost"], rows["gain"], s=16, color=colour, alpha=0.6, lw=0, label=method)
    chosen = candidates[candidates["rank"].notna()]
    ax.scatter(chosen["cost"], chosen["gain"], s=60, fc="none", ec="black", lw=1.1, zorder=3)
    top = max(float(candidates["gain"].max()), 1e-6)
    ax.set_ylim(-0.04 * top, 1.15 * top)
    _scatter_axis(ax, candidates["cost"].to_numpy(float))
    _write_ranks(ax, chosen, "cost", "gain")
    ax.axhline(0, color="black", lw=0.6)
    ax.set_xlabel("cost")
    ax.set_ylabel("gain of the run alone (nats)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    return ax


def plot_map(ax: Axes, rows: pd.DataFrame, factor: str, data: str, *, top: float) -> QuadMesh:
    """Draw the gain over model size and data size, and the ranks of the runs chosen.

    Where several candidates share a place, the best is shown; places without one stay blank.
    """
    table = rows.pivot_table(index=factor, columns=data, values="gain", aggfunc="max")
    table = table.sort_index().sort_index(axis=1)
    x, y = np.arange(table.shape[1]), np.arange(table.shape[0])
    mesh = ax.pcolormesh(
        np.append(x, len(x)) - 0.5,
        np.append(y, len(y)) - 0.5,
        np.ma.masked_invalid(table.to_numpy(float)),
        cmap="viridis",
        vmin=0,
        vmax=max(top, 1e-6),
    )
    chosen = rows[rows["rank"].notna()].groupby([data, factor], sort=False)["rank"]
    columns, sizes = table.columns.to_list(), table.index.to_list()
    for place, ranks in chosen:
        at, size = np.asarray(place, dtype=float)
        i, j = columns.index(at), sizes.index(size)
        text = ",".join(str(r) for r in sorted(ranks))
        bright = table.to_numpy(float)[j, i] > 0.6 * top
        ax.text(
            float(i), float(j), text, ha="center", va="center", fontsize=8, fontweight="bold",
            color="black" if bright else "white",
        )  # fmt: skip
    for axis, values in ((ax.xaxis, table.columns), (ax.yaxis, table.index)):
        step = math.ceil(len(values) / CELLS)
        names = [short(float(v)) for v in values]
        axis.set_major_locator(FixedLocator(list(range(0, len(names), step))))
        axis.set_major_formatter(
            FuncFormatter(lambda at, _, names=names: names[round(at)] if at < len(names) else "")
        )
    ax.tick_params(axis="x", rotation=45)
    ax.set_xlabel(axis_name(data))
    ax.set_ylabel(axis_name(factor))
    return mesh


def _scatter_axis(ax: Axes, costs: np.ndarray) -> None:
    if costs.max() > 3 * costs.min():
        ax.set_xscale("log")
    else:
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _write_ranks(ax: Axes, chosen: pd.DataFrame, x: str, y: str) -> None:
    """Write ranks beside their points, those of points that coincide in one word."""
    places: list[tuple[float, float, float, float, list[int]]] = []
    inverse = ax.transData
    for _, row in chosen.sort_values("rank").iterrows():
        px, py = inverse.transform((float(row[x]), float(row[y])))
        for qx, qy, _, _, ranks in places:
            if abs(px - qx) < 14 and abs(py - qy) < 10:
                ranks.append(int(row["rank"]))
                break
        else:
            places.append((px, py, float(row[x]), float(row[y]), [int(row["rank"])]))
    for _, _, at_x, at_y, ranks in places:
        ax.annotate(
            ",".join(map(str, ranks)), (at_x, at_y), xytext=(5, 4), textcoords="offset points",
            fontsize=8, fontweight="bold",
        )  # fmt: skip


def _finding(plan: Plan) -> str:
    runs = plan.runs
    last, n = runs.iloc[-1], len(runs)
    head = f"{n} run{'s' if n > 1 else ''} for {short(float(last['cumulative_cost']))}"
    if plan.goal == "winner":
        return (
            f"{head}: the right winner is named with probability "
            f"{percent(last['p_right_after'])} instead of {percent(last['p_right_before'])}"
        )
    if "width_after" in runs:
        return (
            f"{head}: 90 % intervals at the targets narrow from "
            f"{last['width_before']:.2g} to {last['width_after']:.2g} nats"
        )
    return f"{head} tell {last['cumulative_gain']:.2g} nats about the parameters of each cell"
