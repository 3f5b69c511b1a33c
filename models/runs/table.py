"""Reading a run table: files, frames, embedded tables and databases, checked at the border."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tunecast.models.errors import TunecastError, one_line
from tunecast.models.runs.checks import checked, faults_of_shape
from tunecast.models.runs.columns import DOMAINS, REQUIRED
from tunecast.models.runs.sources import embedded_file, embedded_tables, is_url, shown


def has_runs(source: str | Path) -> bool:
    """Return whether a file or database holds rows yet, rather than waits for its first.

    Raises
    ------
    TunecastError
        If a database cannot be asked.
    """
    if is_url(source):
        from tunecast.models.runs import database

        return database.has_rows(str(source))
    return Path(source).exists() and Path(source).stat().st_size > 0


def read_runs(
    source: str | Path | pd.DataFrame | Sequence[str | Path],
    *,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> pd.DataFrame:
    """Return a checked run table, one row for each run, in the order given.

    Parameters
    ----------
    source : str, Path, DataFrame or sequence of str or Path
        A CSV or Parquet file, the bare name of an embedded table such as ``"ladder"``, the URL of
        a database, a frame, or several files, names and URLs, which are put one below the other.
        A frame is not changed. A URL is ``"sqlite:///FILE"`` or
        ``"postgresql+psycopg://USER@HOST/DATABASE"``.
    columns : sequence of str, optional
        Columns that the fit uses as factors or as the data axis: each must exist and hold a
        finite number in every ``done`` row. A column declared as text may be named too; it must
        hold a label.
    labels : sequence of str, optional
        Columns that group runs into cells or curves: each must exist and hold a label in every
        ``done`` row, whatever it looks like.

    Returns
    -------
    DataFrame
        All rows, failed and diverged ones included, and all columns, extra ones unchanged.
        Labels are text. Numbers are float64, so that products of sizes and tokens cannot
        overflow; ``seed`` is the exception where it is complete. Defaults are filled in:
        ``status`` "done", ``origin`` "measured", ``base_model`` the row's own ``run_id``.
        ``loss`` and ``loss_se`` of rows that are not done are emptied: a run that blew up has
        not measured anything.

    Raises
    ------
    TunecastError
        With one sentence for every fault found.
    """
    if isinstance(source, pd.DataFrame):
        tables = {"the table": _tidy(source)}
    else:
        sources = [source] if isinstance(source, str | Path) else list(source)
        tables = _load_all(sources)
    faults = [
        fault for name, table in tables.items() for fault in faults_of_shape(table, name=name)
    ]
    if faults:
        raise TunecastError(*faults)
    places = [
        f"row {row}" if len(tables) == 1 else f"row {row} of '{name}'"
        for name, table in tables.items()
        for row in range(1, len(table) + 1)
    ]
    frame = pd.concat(tables.values(), ignore_index=True)
    return checked(frame, places, DOMAINS, REQUIRED, numeric=columns, labels=labels)


def _load_all(sources: Sequence[str | Path]) -> dict[str, pd.DataFrame]:
    if not sources:
        raise TunecastError("no run table was given.")
    tables: dict[str, pd.DataFrame] = {}
    faults: list[str] = []
    for source in sources:
        name = shown(source)
        if name in tables:
            faults.append(f"'{name}' is given twice.")
            continue
        try:
            tables[name] = load(source)
        except TunecastError as error:
            faults.extend(error.args)
    if faults:
        raise TunecastError(*faults)
    return tables


def load(source: str | Path, **csv_options: Any) -> pd.DataFrame:
    """Return the rows of one file, embedded table or database, unchecked."""
    if isinstance(source, str) and source in embedded_tables():
        with embedded_file(source) as path:
            return _tidy(_read_csv(path, **csv_options))
    if is_url(source):
        from tunecast.models.runs import database  # here, so that files need no SQLAlchemy

        return _tidy(database.load(str(source)))
    path = Path(source)
    is_csv = path.suffix.lower() == ".csv"
    if path.is_dir():
        raise TunecastError(f"'{source}' is a folder, not a run table.")
    if not path.exists():
        known = ", ".join(embedded_tables())
        raise TunecastError(f"there is no file '{source}', and no embedded table ({known}).")
    if not is_csv and path.suffix.lower() != ".parquet":
        raise TunecastError(f"'{source}' must end in .csv or .parquet to be read as a run table.")
    try:
        return _tidy(_read_csv(path, **csv_options) if is_csv else pd.read_parquet(path))
    except pd.errors.EmptyDataError:
        raise TunecastError(f"'{source}' is empty.") from None
    except pd.errors.ParserWarning:
        raise TunecastError(f"'{source}' has rows with more fields than its header.") from None
    except Exception as error:  # pyarrow alone has a dozen types for a file that is not Parquet
        suffix = path.suffix[1:]
        raise TunecastError(f"'{source}' cannot be read as {suffix}: {one_line(error)}.") from error


def _read_csv(path: Path, **options: Any) -> pd.DataFrame:
    # pandas would rename a repeated column and drop surplus fields, each without an error.
    with path.open(newline="", encoding="utf-8-sig") as text:
        header = next((row for row in csv.reader(text) if row), [])
    text_columns = {
        name: str
        for name in header
        if name.strip() in DOMAINS and not DOMAINS[name.strip()].numeric
    }
    options = {"dtype": text_columns, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = pd.read_csv(
            path,
            encoding="utf-8-sig",
            index_col=False,
            low_memory=False,
            **options,
        )
    frame.columns = pd.Index(header)
    return frame


def _tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a copy with plain text column names; a named index becomes columns."""
    named = [name for name in frame.index.names if name is not None and name not in frame]
    tidy = frame.reset_index(level=named) if named else frame.copy()
    tidy.columns = pd.Index([str(name).strip() for name in tidy.columns])
    return tidy.reset_index(drop=True)
