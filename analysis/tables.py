"""Tables in and out: reading targets, writing answers, and showing them to people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from tunecast.models.errors import TunecastError
from tunecast.models.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

TABLE_SUFFIXES = (".csv", ".parquet")
SHARES = ("p_", "cover")  # columns of probabilities and shares start so
LABELS = ("task", "method", "base_model", "family")


def read_table(path: str | Path) -> pd.DataFrame:
    """Return the table in a CSV or Parquet file; labels are text whatever they look like.

    Raises
    ------
    TunecastError
        If there is no such file, it is empty, or it cannot be read.
    """
    import pandas as pd

    path = Path(path)
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise TunecastError(f"'{path}' must end in .csv or .parquet to be read as a table.")
    if not path.is_file():
        raise TunecastError(f"there is no file '{path}'.")
    try:
        if path.suffix.lower() == ".csv":
            text: dict[Any, Any] = dict.fromkeys(LABELS, str)
            frame = pd.read_csv(path, dtype=text, encoding="utf-8-sig")
        else:
            frame = pd.read_parquet(path)
    except Exception as error:  # pyarrow alone has a dozen types for a file that is not Parquet
        reason = " ".join(str(error).split()).rstrip(".")
        raise TunecastError(f"'{path}' cannot be read as {path.suffix[1:]}: {reason}.") from error
    frame.columns = pd.Index([str(name).strip() for name in frame.columns])
    if frame.empty:
        raise TunecastError(f"'{path}' has no rows.")
    return frame


def check_output(path: Path | None, suffixes: Iterable[str] = TABLE_SUFFIXES) -> None:
    """Refuse a file that could not be written in the end, before any work is done.

    Raises
    ------
    TunecastError
        If the name has another suffix, is a folder's, or lies in a folder that does not exist.
    """
    if path is None:
        return
    # A device or a pipe takes what it is given.
    special = path.exists() and not path.is_file() and not path.is_dir()
    if path.suffix.lower() not in suffixes and not special:
        raise TunecastError(f"'{path}' must end in {' or '.join(suffixes)} to be written.")
    if path.is_dir():
        raise TunecastError(f"'{path}' is a folder; give the name of a file to write.")
    if not path.parent.is_dir():
        raise TunecastError(f"the folder '{path.parent}' does not exist; make it first.")


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write ``frame`` as Parquet or CSV, by the suffix, completely or not at all."""
    if path.suffix.lower() == ".parquet":
        write_atomically(path, lambda temporary: frame.to_parquet(temporary, index=False))
    else:
        write_atomically(path, lambda temporary: frame.to_csv(temporary, index=False))


def banners(*, converged: bool, simulated: bool, reasons: Sequence[str] = ()) -> list[str]:
    """Return the lines that must stand above an answer: none for a sound one."""
    lines = []
    if not converged:
        why = f" ({'; '.join(reasons)})" if reasons else ""
        lines.append(f"NOT CONVERGED: the sampler did not reach the posterior{why}. Do not use.")
    if simulated:
        lines.append("SIMULATED: the fit saw runs that were drawn from a law, not trained.")
    return lines


def show(
    frame: pd.DataFrame,
    *,
    title: str = "",
    columns: Mapping[str, str] | None = None,
    warnings: Sequence[str] = (),
    file: TextIO | None = None,
) -> None:
    """Print a table for people, rounded, under the warnings that belong to it.

    Parameters
    ----------
    frame : DataFrame
        What to show.
    title : str, optional
        A line above it.
    columns : mapping, optional
        The columns to show and their headings, in order; those that ``frame`` lacks are skipped.
        By default all of them. A label that all rows share moves into the title, and
        a column without values is left out.
    warnings : sequence of str, optional
        From `banners`.
    file : text file, optional
        Where to; by default standard output.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    headings = columns or {str(c): str(c) for c in frame}
    shown = {c: text for c, text in headings.items() if c in frame and not _is_empty(frame[c])}
    same = [c for c in shown if len(frame) > 1 and _is_label(frame[c]) and _is_same(frame[c])]
    common = [f"{shown[c]} {readable(frame[c].iloc[0])}" for c in same]
    shown = {name: text for name, text in shown.items() if name not in same}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, text in shown.items():
        side: Literal["left", "right"] = "left" if _is_label(frame[name]) else "right"
        table.add_column(text, justify=side, no_wrap=True)
    for values in zip(*(frame[name] for name in shown), strict=True):
        cells = zip(values, shown, strict=True)
        table.add_row(*(Text(readable(value, name)) for value, name in cells))
    # Never narrower than the table: a line that wraps is ugly, a number that is cut is wrong.
    needed = Console(width=1000).measure(table).maximum
    console = Console(file=file)
    console = Console(file=file, width=max(console.width, needed))
    for line in warnings:
        console.print(Text(line, style="bold white on red"), soft_wrap=True)
    if heading := "; ".join([title, *common] if title else common):
        console.print(Text(heading, style="bold"), soft_wrap=True)
    console.print(table)


def _is_label(column: pd.Series) -> bool:
    return column.dtype.kind not in "iuf"


def _is_empty(column: pd.Series) -> bool:
    return bool((column.isna() | (column.astype(str) == "")).all())


def _is_same(column: pd.Series) -> bool:
    return bool(column.nunique(dropna=False) == 1)


def readable(value: object, name: str = "") -> str:
    """Return a cell for people: four digits, thousands apart, probabilities in per cent."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        is_missing = value is None or value != value  # NaN of any type differs from itself
        return "" if is_missing else str(value)
    if math.isnan(value):
        return ""
    if name.startswith(SHARES):
        return f"{100 * value:.0f} %"
    if abs(value) < 1e12 and (float(value).is_integer() or abs(value) >= 1e4):
        return f"{value:,.0f}"
    return f"{value:#.4g}"
