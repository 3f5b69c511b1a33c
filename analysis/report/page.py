"""The report as one self-contained HTML page, which computes its forecasts itself."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from tunecast.analysis.report.answers import answer_table
from tunecast.analysis.report.calibration import coverage_sentences
from tunecast.analysis.report.caveats import diagnostics_in_words
from tunecast.analysis.report.contents import Contents
from tunecast.analysis.report.page_data import as_script, figures_of, page_data, run_table, sliders
from tunecast.analysis.report.page_law import HELPERS
from tunecast.analysis.report.page_model import scripts
from tunecast.analysis.report.vega import plotting_library
from tunecast.analysis.tables import readable
from tunecast.models.files import write_atomically

PACKAGE = "tunecast.analysis.report"


def write_html(report: Contents, path: str | Path) -> None:
    """Write the page, whole or not at all."""
    text = html(report)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def html(report: Contents) -> str:
    """Return the report as one HTML page that needs nothing else."""
    environment = Environment(
        loader=PackageLoader(PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": readable}
    folder = files(PACKAGE) / "templates"
    figures = figures_of(report)
    return environment.get_template("report.html.j2").render(
        report=report,
        fit=report.fit,
        answer_table=answer_table,
        heads=heads,
        figures=figures,
        sliders=sliders(report),
        diagnostics=diagnostics_in_words(report.fit),
        coverage=coverage_sentences(report.checks),
        runs=run_table(report),
        page=as_script(page_data(report, figures)),
        laws=f"{HELPERS}\nconst laws = [{', '.join(scripts(report.draws))}];",
        script=(folder / "page.js").read_text(encoding="utf-8"),
        vega=plotting_library(),
        licence=(folder / "vega.LICENSE").read_text(encoding="utf-8"),
        style=(folder / "page.css").read_text(encoding="utf-8"),
    )


def heads(frame: pd.DataFrame) -> dict[str, str]:
    """Return a heading for each column of a table."""
    return {str(name): str(name).replace("_", " ") for name in frame}
