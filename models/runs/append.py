"""Writing a run table: one row at a time, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.files import locked, write_atomically
from tunecast.models.runs.columns import COLUMNS, Run
from tunecast.models.runs.sources import is_url
from tunecast.models.runs.table import load


def append_run(path: str | Path, run: Run, *, extra: Mapping[str, object] | None = None) -> None:
    """Add one row to a run table, making the table if there is none.

    A file is replaced in one step, so that a reader never sees half a row, and processes that
    append to the same file wait for each other. Rows that are there keep their text (CSV) or
    their types (Parquet). A database takes each row in a transaction of its own.

    Parameters
    ----------
    path : str or Path
        A ``.csv`` or ``.parquet`` file, or the URL of a database.
    run : Run
        The new row.
    extra : mapping, optional
        Values of further columns, such as a learning rate; they must not repeat a declared name.

    Raises
    ------
    TunecastError
        If the table holds a run of this ``run_id``, cannot be read, or has another suffix.
    OSError
        If the disk refuses; the table is then as it was.
    """
    clash = sorted(COLUMNS.keys() & (extra or {}).keys())
    if clash:
        raise TunecastError(f"extra columns must not repeat declared ones: {', '.join(clash)}.")
    if is_url(path):
        from tunecast.models.runs import database  # here, so that files need no SQLAlchemy

        return database.append(str(path), asdict(run), extra or {})
    path = Path(path)
    row = {**asdict(run), **(extra or {})}
    append = {".csv": _append_csv, ".parquet": _append_parquet}.get(path.suffix.lower())
    if append is None:
        raise TunecastError(f"'{path}' must end in .csv or .parquet to hold a run table.")
    with locked(path):
        append(path, row)


def _append_csv(path: Path, row: Mapping[str, object]) -> None:
    words = {name: "" if value is None else str(value) for name, value in row.items()}
    new = pd.DataFrame([words])
    if path.exists() and path.stat().st_size > 0:
        # As text, so that the numbers that are there keep their digits.
        old = load(path, dtype=str, na_filter=False)
        _refuse_repetition(path, old, row)
        new = pd.concat([old, new], ignore_index=True).fillna("")
    write_atomically(path, lambda temporary: new.to_csv(temporary, index=False))


def _append_parquet(path: Path, row: Mapping[str, object]) -> None:
    new = pd.DataFrame([{name: value for name, value in row.items() if value is not None}])
    if path.exists() and path.stat().st_size > 0:
        old = load(path)
        _refuse_repetition(path, old, row)
        new = pd.concat([old, new], ignore_index=True)
    write_atomically(path, lambda temporary: new.to_parquet(temporary, index=False))


def _refuse_repetition(path: Path, table: pd.DataFrame, row: Mapping[str, object]) -> None:
    if "run_id" not in table:
        raise TunecastError(f"'{path}' has no column 'run_id', so it is not a run table.")
    if (table["run_id"].astype(str).str.strip() == str(row["run_id"]).strip()).any():
        raise TunecastError(f"'{path}' already has a run {row['run_id']!r}.")
