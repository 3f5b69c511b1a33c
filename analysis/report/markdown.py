"""A report as Markdown with pictures and LaTeX tables, for a repository or a paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from tunecast.analysis.plots.forecast import forecast_figure
from tunecast.analysis.plots.frame import MAX_PANELS, save_figure
from tunecast.analysis.report.answers import answer_table
from tunecast.analysis.report.calibration import coverage_sentences
from tunecast.analysis.report.caveats import diagnostics_in_words
from tunecast.analysis.report.contents import Contents
from tunecast.analysis.report.pictures import checks_figure, map_figure, parameters_figure
from tunecast.analysis.tables import readable
from tunecast.models.files import write_atomically

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def write_markdown(report: Contents, path: Path) -> None:
    """Write the report, and beside it a folder ``NAME_files`` of its pictures and tables."""
    folder = path.with_name(f"{path.stem}_files")
    folder.mkdir(exist_ok=True)
    text = _text(report, folder)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _text(report: Contents, folder: Path) -> str:
    fit = report.fit
    parts = ["# What fine-tuning will reach"]
    if not fit.diagnostics.converged:
        reasons = "; ".join(fit.diagnostics.reasons)
        parts.append(f"> **THIS FIT DID NOT CONVERGE ({reasons}). Do not rely on any number.**")
    parts.append("## The answer")
    for i, answer in enumerate(report.answers, 1):
        parts.append(f"### {plain(answer.place)}")
        parts += [plain(sentence) for sentence in answer.sentences]
        parts.append(_table(answer_table(answer), folder, f"forecast-{i}"))
    if report.unanswered:
        parts.append(f"{report.unanswered} more settings with runs are not answered here.")
    parts.append(_list(report.warnings))
    targets = pd.concat([a.forecasts for a in report.answers[:MAX_PANELS]], ignore_index=True)
    asked = [c for c in targets if c in {*fit.runs.columns} - {"loss", "loss_se"}]
    parts.append("## What if")
    parts.append(_picture(forecast_figure(fit, targets[asked]), folder, "forecast"))
    parts.append("## Which method is best where")
    for i, stratum in enumerate(report.strata[:MAX_PANELS], 1):
        if len(stratum.methods) > 1 and fit.spec.factors:
            figure, table = map_figure(report, stratum)
            parts.append(_picture(figure, folder, f"map-{i}"))
            _save_csv(table, folder / f"map-{i}.csv")
    parts.append("## Why trust it")
    parts += coverage_sentences(report.checks)
    parts.append(_picture(checks_figure(report), folder, "checks"))
    parts.append(_list(diagnostics_in_words(fit)))
    parts.append(_picture(parameters_figure(report), folder, "parameters"))
    parts.append(_table(report.parameters.rows.drop(columns="method"), folder, "parameters"))
    parts.append(_list(report.parameters.tied))
    if report.track is not None:
        parts += ["## Track record", _table(report.track, folder, "track-record")]
    if report.plan is not None:
        parts += ["## What next", _table(report.plan, folder, "plan")]
    parts.append("## Provenance")
    parts.append(_list([f"{name}: {value}" for name, value in report.provenance]))
    parts.append("\n".join(f"    {line}" for line in report.commands))
    parts.append(_table(report.priors, folder, "priors"))
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
