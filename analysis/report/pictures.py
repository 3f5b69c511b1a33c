"""The pictures of a Markdown report: maps of the best method, checks, and parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from tunecast.analysis.labels import BLUE, VERMILION, axis_name, colours
from tunecast.analysis.plots.frame import MAX_PANELS, blank, finished
from tunecast.analysis.report.calibration import predictive_check
from tunecast.analysis.report.contents import Contents
from tunecast.analysis.report.figures.intervals import FAR
from tunecast.analysis.report.parameters import parameter_rows
from tunecast.analysis.report.strata import Stratum, factors_of
from tunecast.models.questions.crossover import crossings

GREY = "#6a6a6a"
MAP_COLUMNS, MAP_ROWS = 30, 16


@dataclass(frozen=True)
class BestMap:
    """Which method is probably best, on a grid of data sizes and values of the first factor.

    Parameters
    ----------
    data_edges, factor_edges : ndarray
        Where the columns and the rows of the grid end.
    places : DataFrame
        Its cells row by row: where each is, the ``method`` and ``p_best``.
    crossing : ndarray, shape (rows, 3)
        5, 50 and 95 % of the first crossing of the two leading methods; NaN where most draws have
        none.
    """

    data_edges: np.ndarray
    factor_edges: np.ndarray
    places: pd.DataFrame
    crossing: np.ndarray


def best_on_grid(report: Contents, stratum: Stratum) -> BestMap:
    """Return the probably best method over all that can be asked about a stratum."""
    spec, runs = report.fit.spec, report.fit.runs
    first, *rest = spec.factors
    (left, right), (low, high) = stratum.asked, factors_of(report.fit)[0].asked
    x = np.geomspace(left, right, MAP_COLUMNS + 1)
    y = np.geomspace(low, high, MAP_ROWS + 1)
    sizes, data = np.meshgrid(np.sqrt(y[1:] * y[:-1]), np.sqrt(x[1:] * x[:-1]), indexing="ij")
    places = pd.DataFrame({first: sizes.ravel(), spec.data: data.ravel()})
    places = places.assign(**stratum.labels, **{f: float(runs[f].median()) for f in rest})
    losses = np.stack([report.draws.expected(places.assign(method=m)) for m in stratum.methods])
    wins = np.stack([(losses.argmin(axis=0) == i).mean(axis=0) for i in range(len(losses))])
    places["method"] = np.array(stratum.methods)[wins.argmax(axis=0)]
    places["p_best"] = wins.max(axis=0)
    leaders = wins.sum(axis=1).argsort()[::-1][:2]
    gap = (losses[leaders[0]] - losses[leaders[1]]).reshape(-1, MAP_ROWS, MAP_COLUMNS)
    band = np.array([_first_crossing(np.log(data[0]), gap[:, i]) for i in range(MAP_ROWS)])
    return BestMap(x, y, places, band)


def map_figure(report: Contents, stratum: Stratum) -> tuple[Figure, pd.DataFrame]:
    """Return the map of the probably best method in a stratum, and its numbers."""
    spec, runs = report.fit.spec, report.fit.runs
    first, shades = spec.factors[0], colours(report.methods)
    found = best_on_grid(report, stratum)
    figure, (ax,) = blank(1)
    even = 1 / len(stratum.methods)
    sure = (found.places["p_best"].to_numpy() - even) / (1 - even)
    strength = (0.12 + 0.83 * np.clip(sure, 0, 1))[:, None]
    inks = np.array([to_rgb(shades[m]) for m in found.places["method"]])
    mixed = (strength * inks + 1 - strength).reshape(MAP_ROWS, MAP_COLUMNS, 3)
    ax.pcolormesh(found.data_edges, found.factor_edges, mixed)
    sizes = found.places[first].to_numpy()[::MAP_COLUMNS]
    for values, style in zip(found.crossing.T, (":", "-", ":"), strict=True):
        ax.plot(values, sizes, color="black", linestyle=style, linewidth=1.2)
    ax.set_xscale("log")
    ax.set_yscale("log")
    own = runs["task"].astype(str) == stratum.labels["task"]
    ax.scatter(runs.loc[own, spec.data], runs.loc[own, first], s=8, color="black")
    for method in dict.fromkeys(found.places["method"]):
        name = _cut(method, 30).replace("$", r"\$")
        ax.scatter([], [], marker="s", color=shades[method], label=name)
    ax.legend(loc="upper right", fontsize=8, title="probably best")
    ax.set_xlabel(axis_name(spec.data))
    ax.set_ylabel(axis_name(first))
    ax.set_title(_cut(stratum.name, 80), fontsize=10, parse_math=False)
    return finished(figure, report.fit, "Which method is probably best"), found.places


def _first_crossing(x: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Return 5, 50 and 95 % of the first crossing, NaN if less than half of the draws cross."""
    count, first = crossings(x, gap)
    if (count > 0).mean() < 0.5:
        return np.full(3, np.nan)
    return np.exp(np.quantile(first[count > 0], [0.05, 0.5, 0.95]))


def checks_figure(report: Contents) -> Figure:
    """Return coverage, PIT histogram and posterior predictive check side by side."""
    figure, (coverage, pit, ppc) = blank(3)
    for shift, check in enumerate(report.checks):
        rows = pd.DataFrame(check.coverage())
        at = np.arange(len(rows)) + 0.2 * shift
        coverage.vlines(at, rows["low"], rows["high"], color=GREY, linewidth=6, alpha=0.35)
        coverage.scatter(at, rows["actual"], label=check.name, zorder=3)
        coverage.set_xticks(np.arange(len(rows)), [f"{n} %" for n in rows["nominal"]])
    for i, nominal in enumerate(rows["nominal"]):
        coverage.hlines(nominal / 100, i - 0.3, i + 0.6, color="black", linestyle=":")
    coverage.set_ylim(0, 1.02)
    coverage.set_xlabel("nominal interval")
    coverage.set_ylabel("share of runs inside")
    coverage.legend(fontsize=7, loc="lower right")
    bins, low, high = report.checks[0].histogram()
    pit.axhspan(low, high, color=GREY, alpha=0.2)
    pit.bar(
        [b["from"] for b in bins], [b["count"] for b in bins], 1 / len(bins), align="edge",
        color=BLUE, edgecolor="white",
    )  # fmt: skip
    pit.set_xlabel("share of the forecast below the run")
    pit.set_ylabel("runs")
    residuals, reach = predictive_check(report.fit)
    frame = pd.DataFrame(residuals)
    ppc.fill_between(frame["at"], frame["q05"], frame["q95"], color=GREY, alpha=0.3, linewidth=0)
    ppc.step(frame["at"], frame["observed"], where="post", color=BLUE)
    ppc.set_xlim(*reach)
    ppc.set_xlabel("log loss less its expectation")
    ppc.set_ylabel("share of runs below")
    return finished(figure, report.fit, "Where runs fell in their forecasts")


def parameters_figure(report: Contents) -> Figure:
    """Return the prior and the posterior of each parameter, cell by cell."""
    drawn = parameter_rows(report.parameters.rows)[:MAX_PANELS]
    figure, axes = blank(len(drawn))
    for ax, (name, rows, logarithmic) in zip(axes, drawn, strict=True):
        _intervals(ax, pd.DataFrame(rows), logarithmic)
        ax.set_title(name.removeprefix("parameter-").replace("-", " of ").replace("_", " "))
    finding = "Priors (grey), posteriors (blue), published (diamonds)"
    return finished(figure, report.fit, finding)


def _intervals(ax: Axes, rows: pd.DataFrame, logarithmic: bool) -> None:
    at = np.arange(len(rows))[::-1]
    low, high = rows["prior_q05"], rows["prior_q95"]
    if logarithmic:
        low, high = (
            low.clip(lower=rows["q05"].min() / FAR),
            high.clip(upper=rows["q95"].max() * FAR),
        )
        ax.set_xscale("log")
    ax.hlines(at, low, high, color=GREY, linewidth=9, alpha=0.3)
    ax.hlines(at, rows["q05"], rows["q95"], color=BLUE, linewidth=1.5)
    ax.hlines(at, rows["q25"], rows["q75"], color=BLUE, linewidth=4)
    ax.scatter(rows["q50"], at, color="white", edgecolor=BLUE, zorder=3, s=20)
    published = [math.nan if p is None else p for p in rows["published"]]
    ax.scatter(published, at, marker="D", color=VERMILION, zorder=4, s=22)
    ax.set_yticks(at, [_cut(c, 30) for c in rows["cell"]], fontsize=7, parse_math=False)


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
