"""What commands read: runs, a saved fit, how to fit, and the rows that are asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecast.analysis.cli.outputs import PICTURE_SUFFIXES, note
from tunecast.analysis.tables import check_output, read_table
from tunecast.models.errors import TunecastError

if TYPE_CHECKING:
    import pandas as pd

    from tunecast.models import Fit

# The option that names a table of rows, what they are, and what to say where it is missing.
TARGETS = ("--at", "targets", "say what to forecast: --at TARGETS.csv")
CANDIDATES = ("--candidates", "runs", "say what could be run: --candidates TABLE")


def checked_runs(sources: Sequence[str], condition: str | None) -> pd.DataFrame:
    """Return the checked runs, having said what a reader of a fit to them should know."""
    from tunecast.models import read_runs, warn_about, where

    frame = read_runs(sources)
    if condition is not None:
        frame = where(frame, condition).reset_index(drop=True)
        if frame.empty:
            raise TunecastError(f"no run fulfils the condition '{condition}'.")
    for sentence in warn_about(frame):
        note(sentence)
    return frame


def fit_options(
    law: str,
    factors: str | None,
    data: str,
    cell: str | None,
    curve: str,
    priors: str,
    draws: int | None,
    tune: int | None,
    chains: int | None,
    seed: int,
) -> dict[str, Any]:
    """Return the keywords of `tunecast.models.fit`; what was not given keeps its default there."""
    from tunecast.analysis.targets import split

    given: dict[str, Any] = {
        "law": law,
        "factors": None if factors is None else split(factors),
        "data": data,
        "cell": None if cell is None else split(cell),
        "curve": curve,
        "priors": priors,
        "draws": draws,
        "tune": tune,
        "chains": chains,
        "seed": seed,
    }
    return {name: value for name, value in given.items() if value is not None}


def saved_fit(path: Path, output: Path | None, plot: Path | None) -> Fit:
    """Return a saved fit, once it is clear that its answer can be written."""
    from tunecast.models import load_fit

    check_output(output)
    check_output(plot, PICTURE_SUFFIXES)
    return load_fit(path)


def target_options(
    task: str | None,
    method: str | None,
    model_size: str | None,
    examples: str | None,
    base_model: str | None,
) -> dict[str, str | None]:
    """Return the words that describe targets, by the option that gave them."""
    return {
        "--task": task,
        "--method": method,
        "--model-size": model_size,
        "--examples": examples,
        "--base-model": base_model,
    }


def asked_rows(
    result: Fit,
    words: tuple[str, str, str],
    table: Path | None,
    options: Mapping[str, str | None],
    values: Sequence[str] | None,
    *,
    methods: bool,
) -> pd.DataFrame:
    """Return the rows of a table, or every combination of what the options list.

    ``words`` are the option that names the table, what its rows are, and what to say without it.
    """
    from tunecast.analysis.targets import grid

    given = [name for name, value in options.items() if value is not None]
    given += ["--set"] if values else []
    option, what, ask = words
    if table is not None and given:
        raise TunecastError(f"{option} names the {what} already; leave {', '.join(given)} out.")
    if table is not None:
        rows = read_table(table)
    elif options["--examples"] is None:
        raise TunecastError(f"{ask}, or --examples and the rest.")
    else:
        rows = grid(result, options, values or (), methods=methods)
    note_unseen(result, rows)
    return rows


def note_misfits(result: Fit, asked: pd.DataFrame) -> None:
    """Say which checks the fit fails where the rows of an answer lie."""
    from tunecast.models.checks.misfit import in_words
    from tunecast.models.questions.forecaster import misfits_at

    for sentence in in_words(m for at in misfits_at(result, asked) for m in at):
        note(sentence)


def note_unseen(result: Fit, targets: pd.DataFrame) -> None:
    """Say which names among the targets the fit has not seen."""
    from tunecast.analysis.targets import unseen

    for sentence in unseen(result, targets):
        note(sentence)
