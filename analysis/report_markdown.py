"""A report as Markdown with pictures and LaTeX tables, for a repository or a paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from tunecast.analysis import trust
from tunecast.analysis.plots import (
    MAX_PANELS,
    axis_name,
    blank,
    colours,
    finished,
    forecast_figure,
    save_figure,
)
from tunecast.analysis.report import Contents, answer_table, coverage_sentences, parameter_rows
from tunecast.analysis.tables import readable
from tunecast.analysis.thinned import (
    DATA_BELOW,
    DATA_BEYOND,
    FACTOR_BELOW,
    FACTOR_BEYOND,
    Setting,
)
from tunecast.models.files import write_atomically
from tunecast.models.questions import crossings

BLUE, GREY = "#0072B2", "#6a6a6a"
MAP_COLUMNS, MAP_ROWS = 30, 16
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def write_markdown(told: Contents, path: Path) -> None:
    """Write the report, and beside it a folder ``NAME_files`` of its pictures and tables."""
    folder = path.with_name(f"{path.stem}_files")
    folder.mkdir(exist_ok=True)
    text = _text(told, folder)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _text(told: Contents, folder: Path) -> str:
    fit = told.fit
    parts = ["# What fine-tuning will reach"]
    if not fit.diagnostics.converged:
        reasons = "; ".join(fit.diagnostics.reasons)
        parts.append(f"> **THIS FIT DID NOT CONVERGE ({reasons}). Do not rely on any number.**")
    parts.append("## The answer")
    for i, answer in enumerate(told.answers, 1):
        parts.append(f"### {plain(answer.place)}")
        parts += [plain(sentence) for sentence in answer.sentences]
        parts.append(_table(answer_table(answer), folder, f"forecast-{i}"))
    if told.unanswered:
        parts.append(f"{told.unanswered} more settings with runs are not answered here.")
    parts.append(_list(told.warnings))
    targets = pd.concat([a.forecasts for a in told.answers[:MAX_PANELS]], ignore_index=True)
    asked = [c for c in targets if c in {*fit.runs.columns} - {"loss", "loss_se"}]
    parts.append("## What if")
    parts.append(_picture(forecast_figure(fit, targets[asked]), folder, "forecast"))
    parts.append("## Which method is best where")
    for i, setting in enumerate(told.thinned.settings[:MAX_PANELS], 1):
        if len(setting.methods) > 1 and fit.question.factors:
            figure, table = _map(told, setting)
            finished(figure, fit, "Which method is probably best")
            parts.append(_picture(figure, folder, f"map-{i}"))
            _save_csv(table, folder / f"map-{i}.csv")
    parts.append("## Why trust it")
    parts += coverage_sentences(told)
    calibration = finished(_checks(told), fit, "Where runs fell in their forecasts")
    parts.append(_picture(calibration, folder, "checks"))
    parts.append(_list(trust.diagnostics_in_words(fit)))
    learned = finished(
        _parameters(told), fit, "Priors (grey), posteriors (blue), published (diamonds)"
    )
    parts.append(_picture(learned, folder, "parameters"))
    parts.append(_table(told.parameters.rows.drop(columns="method"), folder, "parameters"))
    parts.append(_list(told.parameters.tied))
    if told.track is not None:
        parts += ["## Track record", _table(told.track, folder, "track-record")]
    if told.plan is not None:
        parts += ["## What next", _table(told.plan, folder, "plan")]
    parts.append("## Provenance")
    parts.append(_list([f"{name}: {value}" for name, value in told.provenance]))
    parts.append("\n".join(f"    {line}" for line in told.commands))
    parts.append(_table(told.priors, folder, "priors"))
    return "\n\n".join(part for part in parts if part) + "\n"


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {plain(sentence)}" for sentence in sentences)


def plain(text: str) -> str:
    """Return text that Markdown shows as it is, whatever characters it holds."""
    one_line = " ".join(text.split())
    escaped = "".join(f"\\{c}" if c in "\\`*_[]<>#|~" else c for c in one_line)
    return escaped.replace("&", "&amp;")


def latex(frame: pd.DataFrame) -> str:
    """Return a table for LaTeX with the rules of booktabs."""

    def row(values: Sequence[object]) -> str:
        cells = ["".join(_TEX.get(c, c) for c in str(v)) for v in values]
        return " & ".join(cells) + r" \\"

    sides = "".join("r" if c.dtype.kind in "iuf" else "l" for _, c in frame.items())
    lines = [rf"\begin{{tabular}}{{{sides}}}", r"\toprule", row(list(frame.columns)), r"\midrule"]
    for record in frame.to_dict("records"):
        lines.append(row([readable(v, str(k)) for k, v in record.items()]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _table(frame: pd.DataFrame, folder: Path, name: str) -> str:
    """Return a table, having written it for LaTeX and as CSV too."""
    text = latex(frame)
    write_atomically(folder / f"{name}.tex", lambda path: path.write_text(text, encoding="utf-8"))
    _save_csv(frame, folder / f"{name}.csv")
    lines = [[plain(str(c)) for c in frame.columns], ["---"] * len(frame.columns)]
    for record in frame.to_dict("records"):
        lines.append([plain(readable(v, str(k))) for k, v in record.items()])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _save_csv(frame: pd.DataFrame, path: Path) -> None:
    write_atomically(path, lambda temporary: frame.to_csv(temporary, index=False))


def _picture(figure: Figure, folder: Path, name: str) -> str:
    save_figure(figure, folder / f"{name}.png")
    return f"![{name}](<{folder.name}/{name}.png>)"


def _map(told: Contents, setting: Setting) -> tuple[Figure, pd.DataFrame]:
    """Return the map of one setting and its numbers."""
    question, runs = told.fit.question, told.fit.runs
    first, *rest = question.factors
    seen = runs[first].astype(float)
    x = np.geomspace(setting.low / DATA_BELOW, setting.high * DATA_BEYOND, MAP_COLUMNS + 1)
    y = np.geomspace(seen.min() / FACTOR_BELOW, seen.max() * FACTOR_BEYOND, MAP_ROWS + 1)
    sizes, data = np.meshgrid(np.sqrt(y[1:] * y[:-1]), np.sqrt(x[1:] * x[:-1]), indexing="ij")
    places = pd.DataFrame({first: sizes.ravel(), question.data: data.ravel()})
    places = places.assign(**setting.labels, **{f: float(runs[f].median()) for f in rest})
    losses = np.stack([told.thinned.expected(places.assign(method=m)) for m in setting.methods])
    wins = np.stack([(losses.argmin(axis=0) == i).mean(axis=0) for i in range(len(losses))])
    places["method"] = np.array(setting.methods)[wins.argmax(axis=0)]
    places["p_best"] = wins.max(axis=0)
    shades = colours(told.methods)
    figure, (ax,) = blank(1)
    sure = (places["p_best"].to_numpy() - 1 / len(wins)) / (1 - 1 / len(wins))
    strength = (0.12 + 0.83 * np.clip(sure, 0, 1))[:, None]
    inks = np.array([to_rgb(shades[m]) for m in places["method"]])
    mixed = (strength * inks + 1 - strength).reshape(MAP_ROWS, MAP_COLUMNS, 3)
    ax.pcolormesh(x, y, mixed)
    leaders = wins.sum(axis=1).argsort()[::-1][:2]
    gap = (losses[leaders[0]] - losses[leaders[1]]).reshape(-1, MAP_ROWS, MAP_COLUMNS)
    band = np.array([_first_crossing(np.log(data[0]), gap[:, i]) for i in range(MAP_ROWS)])
    for values, style in zip(band.T, (":", "-", ":"), strict=True):
        ax.plot(values, sizes[:, 0], color="black", linestyle=style, linewidth=1.2)
    ax.set_xscale("log")
    ax.set_yscale("log")
    own = runs["task"].astype(str) == setting.labels["task"]
    ax.scatter(runs.loc[own, question.data], runs.loc[own, first], s=8, color="black")
    for method in dict.fromkeys(places["method"]):
        ax.scatter(
            [], [], marker="s", color=shades[method], label=_cut(method, 30).replace("$", r"\$")
        )
    ax.legend(loc="upper right", fontsize=8, title="probably best")
    ax.set_xlabel(axis_name(question.data))
    ax.set_ylabel(axis_name(first))
    ax.set_title(_cut(setting.name, 80), fontsize=10, parse_math=False)
    return figure, places


def _first_crossing(x: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Return 5, 50 and 95 % of the first crossing, NaN if less than half of the draws cross."""
    count, first = crossings(x, gap)
    if (count > 0).mean() < 0.5:
        return np.full(3, np.nan)
    return np.exp(np.quantile(first[count > 0], [0.05, 0.5, 0.95]))


def _checks(told: Contents) -> Figure:
    figure, (coverage, pit, ppc) = blank(3)
    for shift, check in enumerate(told.checks):
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
    bins, low, high = told.checks[0].histogram()
    pit.axhspan(low, high, color=GREY, alpha=0.2)
    pit.bar(
        [b["from"] for b in bins], [b["count"] for b in bins], 1 / len(bins), align="edge",
        color=BLUE, edgecolor="white",
    )  # fmt: skip
    pit.set_xlabel("share of the forecast below the run")
    pit.set_ylabel("runs")
    residuals, reach = trust.predictive_check(told.fit)
    frame = pd.DataFrame(residuals)
    ppc.fill_between(frame["at"], frame["q05"], frame["q95"], color=GREY, alpha=0.3, linewidth=0)
    ppc.step(frame["at"], frame["observed"], where="post", color=BLUE)
    ppc.set_xlim(*reach)
    ppc.set_xlabel("log loss less its expectation")
    ppc.set_ylabel("share of runs below")
    return figure


def _parameters(told: Contents) -> Figure:
    drawn = parameter_rows(told.parameters.rows)[:MAX_PANELS]
    figure, axes = blank(len(drawn))
    for ax, (name, rows, logarithmic) in zip(axes, drawn, strict=True):
        _intervals(ax, pd.DataFrame(rows), logarithmic)
        ax.set_title(name.removeprefix("parameter-").replace("-", " of ").replace("_", " "))
    return figure


def _intervals(ax: Axes, rows: pd.DataFrame, logarithmic: bool) -> None:
    at = np.arange(len(rows))[::-1]
    low, high = rows["prior_q05"], rows["prior_q95"]
    if logarithmic:
        low, high = (
            low.clip(lower=rows["q05"].min() / 300),
            high.clip(upper=rows["q95"].max() * 300),
        )
        ax.set_xscale("log")
    ax.hlines(at, low, high, color=GREY, linewidth=9, alpha=0.3)
    ax.hlines(at, rows["q05"], rows["q95"], color=BLUE, linewidth=1.5)
    ax.hlines(at, rows["q25"], rows["q75"], color=BLUE, linewidth=4)
    ax.scatter(rows["q50"], at, color="white", edgecolor=BLUE, zorder=3, s=20)
    published = [math.nan if p is None else p for p in rows["published"]]
    ax.scatter(published, at, marker="D", color="#D55E00", zorder=4, s=22)
    ax.set_yticks(at, [_cut(c, 30) for c in rows["cell"]], fontsize=7, parse_math=False)


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
