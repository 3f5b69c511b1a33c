"""What commands leave: sentences on standard error, tables, pictures, and the marks they bear."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tunecast.analysis.tables import banners, show, write_table
from tunecast.models.errors import TunecastError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from tunecast.models import Fit

PICTURE_SUFFIXES = (".png", ".pdf", ".svg")
# Suffixes of quantile columns, and their headings.
QUANTILES = {"05": "5 %", "25": "25 %", "50": "median", "75": "75 %", "95": "95 %"}


class NotConverged(RuntimeError):
    """A fit that did not converge: exit code 3."""


def say(line: str) -> None:
    """Say what was done or went wrong, without mixing it into an answer on standard output."""
    typer.echo(f"tunecast: {line}", err=True)


def note(line: str) -> None:
    """Say what a reader of the answer should know."""
    typer.echo(f"note: {line}", err=True)


def shows_progress(quiet: bool) -> bool:
    """Whether there is somebody to show progress to."""
    return not quiet and sys.stderr.isatty()


# --------------------------------------------------------------------------- convergence


@contextmanager
def convergence_required(consequence: str) -> Iterator[None]:
    """Turn the refusal of a fit into exit code 3, with the reasons and the way out."""
    from tunecast.models import UnconvergedError

    try:
        yield
    except UnconvergedError as error:
        note_failed_checks(error.fit)
        raise NotConverged(f"{why_unconverged(error.fit)}; {consequence}.") from error


def note_failed_checks(result: Fit) -> None:
    """Say which checks a fit fails against its own table."""
    from tunecast.models.checks.misfit import in_words

    for sentence in in_words(result.misfits):
        note(sentence)


def why_unconverged(result: Fit) -> str:
    """Return that a fit did not converge, and by which diagnostics."""
    return f"the fit did not converge ({'; '.join(result.diagnostics.reasons)})"


def marks_of(result: Fit) -> list[str]:
    """Return the lines that must stand above an answer of this fit."""
    diagnostics = result.diagnostics
    return banners(
        converged=diagnostics.converged,
        simulated=result.info["simulated"],
        reasons=diagnostics.reasons,
    )


# --------------------------------------------------------------------------- tables and pictures


def target_columns(result: Fit) -> dict[str, str]:
    """Return the columns that tell targets apart, with their headings."""
    info = result.info
    names = dict.fromkeys((*info["cell"], info["curve"], *info["factors"], info["data"]))
    return {name: name.replace("_", "\n") for name in names}


def put_table(
    frame: pd.DataFrame,
    output: Path | None,
    title: str,
    columns: Mapping[str, str],
    marks: Sequence[str],
) -> None:
    """Print a table under its marks, or write it and say so."""
    if output is None:
        show(frame, title=title, columns=columns, warnings=marks)
        return
    with writing(output):
        write_table(frame, output)
    for line in marks:
        say(line)
    say(f"wrote {output} ({len(frame)} rows).")


def put_scores(scores: pd.DataFrame, output: Path | None, plot: Path | None) -> None:
    """Print or write a table of scores, and draw its coverage if a picture is asked for."""
    marks = banners(
        converged="converged" not in scores or bool(scores["converged"].all()),
        simulated="simulated" in scores,
    )
    shown = [str(c) for c in scores if not str(c).endswith(("_low", "_high"))]
    columns = {c: c.replace("_", " ") for c in shown if c not in ("converged", "simulated")}
    put_table(scores, output, "Scores of log loss", columns, marks)
    if "misfit" in scores:
        note(
            f"the fit fails checks of its own table where runs were scored: {scores['misfit'][0]}."
        )
    if plot is not None:
        from tunecast.analysis.plots.coverage import coverage_figure

        put_figure(coverage_figure(scores), plot)


def put_figure(figure: Figure, path: Path) -> None:
    """Write a picture and say so."""
    from tunecast.analysis.plots.frame import save_figure

    with writing(path):
        save_figure(figure, path)
    say(f"wrote {path}.")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one sentence that ``path`` could not be written and what that leaves."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).rstrip(".")
        raise TunecastError(
            f"'{path}' cannot be written: {reason}; a file that was there is unchanged."
        ) from error
