"""Pictures of answers: forecasts with intervals, which method is best, where curves cross.

The functions ``plot_*`` take an Axes and a table and return the Axes. The functions ``*_figure``
ask a fit for what the picture needs and return a Figure. Nothing here touches pyplot, so no state
leaks and no display is needed.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from tunecast.models.errors import TunecastError
from tunecast.models.files import write_atomically

if TYPE_CHECKING:
    from tunecast.models import Fit

# Okabe and Ito's colours, which people with any colour vision tell apart; yellow, too pale for a
# line on white, is left out.
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_USUAL = {"fmt": _PALETTE[0], "lora": _PALETTE[1], "prompt": _PALETTE[2]}
_GREY = "#666666"
_ALARM = "#B00020"

MAX_PANELS = 6
_GRID_POINTS = 49  # along the data axis: smooth to the eye at six decades

_AXIS = {
    "finetune_examples": "fine-tuning examples",
    "model_size": "parameters",
    "pretrain_tokens": "pre-training tokens",
    "pet_params": "trainable parameters",
}
LOSS = "test loss (nats per target token)"


def colours(methods: Sequence[str]) -> dict[str, str]:
    """Return a colour for each method: always the same for the usual three."""
    free = [c for c in _PALETTE if c not in {_USUAL.get(method) for method in methods}]
    others = [method for method in dict.fromkeys(methods) if method not in _USUAL]
    chosen = {method: free[i % len(free)] for i, method in enumerate(others)}
    return {method: _USUAL.get(method) or chosen[method] for method in dict.fromkeys(methods)}


def axis_name(column: str) -> str:
    """Return what a column is called on an axis."""
    return _AXIS.get(column, column.replace("_", " "))


def short(value: float) -> str:
    """Return a count with at most three digits and its thousands as k, M, B or T."""
    for power, suffix in ((12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if abs(value) >= 0.9995 * 10**power:
            return f"{float(f'{value:.3g}') / 10**power:g}{suffix}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """Return a share of one in whole per cent."""
    return f"{100 * share:.0f} %"


# --------------------------------------------------------------------------- on one Axes


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
    seen = _together(runs, context)
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
    _loss_axis(ax, curves, _together(runs, heldout))
    ax.set_xlim(*_with_room(curves[data]))
    _shade_beyond(ax, seen, data)
    _label_ends(ax, curves, data, shades)
    ax.set_xlabel(axis_name(data))
    ax.set_ylabel(LOSS)
    _tidy(ax)
    return ax


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
        _shade_beyond(ax, seen, data, on_top=True)
    ax.set_xlabel(axis_name(data))
    ax.set_ylabel("probability of the lowest loss")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: percent(share)))
    _tidy(ax)
    return ax


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
    ax.plot([0, 100], [0, 100], color=_GREY, linewidth=1)
    low = np.array([100 * scores[f"cover{n}_low"] for n in nominal])
    high = np.array([100 * scores[f"cover{n}_high"] for n in nominal])
    ax.vlines(nominal, low, high, color=_PALETTE[0], linewidth=2, alpha=0.5)
    ax.plot(nominal, observed, "o", color=_PALETTE[0])
    ax.set(xlim=(40, 100), ylim=(0, 102))
    ax.set_xlabel("interval (%)")
    ax.set_ylabel("runs inside it (%)")
    _tidy(ax)
    return ax


# --------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class _Panel:
    """One picture: everything that its curves share."""

    shared: Mapping[str, Any]  # column -> value, such as the task and the model size
    methods: tuple[str, ...]
    sizes: np.ndarray  # along the data axis
    runs: pd.DataFrame  # fitted, on these curves
    context: pd.DataFrame  # fitted, of the same task
    heldout: pd.DataFrame | None
    title: str

    def targets(self, data: str) -> pd.DataFrame:
        """Return a row for each method and data size."""
        grid = pd.MultiIndex.from_product([self.methods, self.sizes], names=["method", data])
        return grid.to_frame(index=False).assign(**self.shared)


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
    panels = list(_panels(fit, targets, heldout))
    figure, axes = blank(len(panels))
    for ax, panel in zip(axes, panels, strict=True):
        curves = fit.forecast(panel.targets(data))
        plot_forecast(
            ax, curves, data=data, runs=panel.runs, context=panel.context, heldout=panel.heldout
        )
        ax.set_title(panel.title, fontsize=10)
    caption = textwrap.fill(_caption(panels), 85 * min(len(panels), 3))
    figure.supxlabel(caption, fontsize=8, color=_GREY)
    return finished(figure, fit, title or _finding(fit, targets, heldout))


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
    panels = list(_panels(fit, targets.merge(pd.DataFrame({"method": names}), how="cross")))
    figure, axes = blank(len(panels))
    for ax, panel in zip(axes, panels, strict=True):
        grid = panel.targets(data).drop(columns="method").drop_duplicates(ignore_index=True)
        seen = _together(panel.runs, panel.context)
        plot_best(ax, fit.compare(grid, methods=methods), data=data, seen=seen)
        ax.set_title(panel.title, fontsize=10)
    if title is None:
        last = targets.sort_values(data).tail(1)
        best = fit.compare(last, methods=methods).sort_values("p_best").iloc[-1]
        title = (
            f"{_place(last, data, several=len(panels) > 1)}, {best['method']} is best "
            f"with probability {percent(best['p_best'])}"
        )
    return finished(figure, fit, title)


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
    where = f", at about {short(row['first_q50'])} {_unit(data)}" if crosses > 0.5 else ""
    title = f"{row['a']} and {row['b']} cross with probability {percent(crosses)}{where}"
    figure = forecast_figure(fit, targets, title=title)
    plot_crossover(figure.axes[0], row.to_dict())
    return figure


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
    return _headed(
        figure,
        f"The 90 % intervals held {percent(first['cover90'])} of {int(first['n'])} runs",
        converged="converged" not in scores or bool(scores["converged"].all()),
        simulated="simulated" in scores and bool(scores["simulated"].any()),
    )


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, PDF or SVG, by the suffix, completely or not at all."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))


# --------------------------------------------------------------------------- helpers


def _panels(
    fit: Fit, targets: pd.DataFrame, heldout: pd.DataFrame | None = None
) -> Iterator[_Panel]:
    data, curve, factors = fit.info["data"], fit.info["curve"], list(fit.info["factors"])
    cell = [name for name in fit.info["cell"] if name != "method"]
    keys = [name for name in dict.fromkeys([*cell, *factors, curve]) if name in targets]
    groups = list(targets.groupby(keys, sort=False, dropna=False))
    if len(groups) > MAX_PANELS:
        raise TunecastError(
            f"a picture holds at most {MAX_PANELS} panels, one for each task and model, "
            f"and these targets need {len(groups)}; draw fewer of them."
        )
    for values, rows in groups:
        # NaN, for a base model not seen yet, differs from itself.
        shared = {k: v for k, v in zip(keys, values, strict=True) if v == v and v is not None}
        methods = tuple(dict.fromkeys(rows["method"]))
        related = fit.runs[fit.runs["method"].isin(methods)]
        related = related[_agrees(related, {k: v for k, v in shared.items() if k in cell})]
        fitted = _agrees(related, shared)
        apart = None
        if heldout is not None:
            apart = heldout[_agrees(heldout, shared) & heldout["method"].isin(methods).to_numpy()]
        ends = [table[data] for table in (related, rows, apart) if table is not None]
        every = np.concatenate([np.asarray(end, dtype=float) for end in ends])
        every = every[every > 0]
        yield _Panel(
            shared=shared,
            methods=methods,
            sizes=np.geomspace(every.min(), every.max(), _GRID_POINTS),
            runs=related[fitted],
            context=related[~fitted],
            heldout=apart,
            title=_panel_title(shared, curve, factors),
        )


def _agrees(table: pd.DataFrame, values: Mapping[str, Any]) -> np.ndarray:
    agrees = np.ones(len(table), dtype=bool)
    for name, value in values.items():
        agrees &= (table[name] == value).to_numpy()
    return agrees


def _panel_title(shared: Mapping[str, Any], curve: str, factors: Sequence[str]) -> str:
    # A family named as well as its base model would say the same twice.
    parts = [str(v) for k, v in shared.items() if k not in factors and k not in (curve, "family")]
    if curve in shared:
        parts.append(str(shared[curve]))
    parts += [f"{short(shared[k])} {_AXIS.get(k, k)}" for k in factors if k in shared]
    return ", ".join(parts)


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
        f"{_place(best, data, several=several)}, {answer['method']} {what}: "
        f"{answer['loss_q50']:.3g} nats (90 %: {answer['loss_q05']:.3g} to "
        f"{answer['loss_q95']:.3g})"
    )


def _place(target: pd.DataFrame, data: str, *, several: bool) -> str:
    row = target.iloc[0]
    whose = f" of {row['task']}" if several and "task" in target else ""
    return f"At {short(float(row[data]))} {_unit(data)}{whose}"


def _unit(data: str) -> str:
    return "examples" if data == "finetune_examples" else data.replace("_", " ")


def _together(*tables: pd.DataFrame | None) -> pd.DataFrame:
    found = [table for table in tables if table is not None and len(table)]
    return pd.concat(found) if found else pd.DataFrame({"method": []})


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


def _shade_beyond(ax: Axes, seen: pd.DataFrame, data: str, *, on_top: bool = False) -> None:
    if not len(seen):
        return
    left, right = ax.get_xlim()
    seen_low, seen_high = float(seen[data].min()), float(seen[data].max())
    for low, high in ((left, seen_low), (seen_high, right)):
        # The room beside the outermost run is no extrapolation worth the name.
        if high / low < (right / left) ** 0.05:
            continue
        if on_top:
            inner = seen_low if low == left else seen_high
            ax.axvline(inner, color="white", linewidth=1.5, linestyle="--")
        else:
            ax.axvspan(low, high, color="black", alpha=0.06, linewidth=0, zorder=0)
        ax.text(
            math.sqrt(low * high),
            0.985,
            "beyond\nthe data",
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=8,
            color="white" if on_top else _GREY,
        )


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


def _inside(x: float, every: np.ndarray) -> float:
    """Return ``x`` moved away from the ends of a log axis, so that a label has room."""
    low, high = math.log(every[0]), math.log(every[-1])
    return math.exp(min(max(math.log(x), low + 0.1 * (high - low)), high - 0.1 * (high - low)))


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
    if ax.get_xscale() == "log":
        low, high = ax.get_xlim()
        if math.log10(high / low) < 2.5:
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        ax.xaxis.set_minor_formatter(NullFormatter())


def blank(num_panels: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many empty panels, three in a row."""
    columns = min(num_panels, 3)
    rows = math.ceil(num_panels / columns)
    figure = Figure(figsize=(1.2 + 4.6 * columns, 0.9 + 3.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(num_panels)]
    return figure, axes


def finished(figure: Figure, fit: Fit, finding: str) -> Figure:
    """Write the finding above a figure, and the marks of the fit behind it."""
    return _headed(
        figure, finding, converged=fit.diagnostics.converged, simulated=fit.info["simulated"]
    )


def _headed(figure: Figure, finding: str, *, converged: bool, simulated: bool) -> Figure:
    """Write the finding above the panels, and what must not be missed above it and across each."""
    words = [] if converged else ["NOT CONVERGED"]
    words += ["SIMULATED"] if simulated else []
    width = int(11 * figure.get_figwidth())  # characters of bold 11 point text
    lines = [f"{', '.join(words)}"] if words else []
    figure.suptitle(
        "\n".join([*lines, *textwrap.wrap(finding, width)]),
        fontweight="bold",
        fontsize=11,
        color="black" if converged else _ALARM,
    )
    for ax in figure.axes if words else ():
        ax.text(
            0.5,
            0.5,
            "\n".join(words),
            transform=ax.transAxes,
            ha="center",
            va="center",
            rotation=20,
            fontsize=min(26, 120 * ax.get_position().width),
            fontweight="bold",
            color=_ALARM,
            alpha=0.25,
            in_layout=False,  # or narrow panels would shrink to make room for it
            clip_on=True,
        )
    return figure


def _caption(panels: Sequence[_Panel]) -> str:
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
