"""Claims: what keeps several sweeps from making the same runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tunecast.models.errors import TunecastError
from tunecast.models.files import locked
from tunecast.models.runs import is_url


@contextmanager
def claimed(table: str | Path, cells: Sequence[str] = ()) -> Iterator[frozenset[str]]:
    """Keep other sweeps from a table; the claim ends with the process, however it ends.

    A file, SQLite's too, belongs to one sweep. Several sweeps may write to a server, each its own
    cells: those that another sweep makes at the time are not in what is given.

    Parameters
    ----------
    table : str or Path
        The run table.
    cells : sequence of str
        Names of the cells to make.

    Raises
    ------
    TunecastError
        If another sweep has a file, or it cannot be written.
    """
    if is_url(table):
        # Here, so that files need no SQLAlchemy.
        from tunecast.models.runs.database import claimed_of, sqlite_file

        file = sqlite_file(str(table))
        if file is None:
            with claimed_of(str(table), cells) as granted:
                yield granted
            return
    else:
        file = Path(table)
        if file.is_dir() or file.suffix.lower() not in (".csv", ".parquet"):
            raise TunecastError(
                f"'{table}' must be a .csv or .parquet file, or the URL of a database, to hold a "
                "run table."
            )
    with _claimed_file(file):
        yield frozenset(cells)


@contextmanager
def _claimed_file(table: Path) -> Iterator[None]:
    folder = table.resolve().parent
    if not folder.is_dir():
        raise TunecastError(f"'{table}' cannot be written: there is no folder '{folder}'.")
    if table.exists() and not os.access(table, os.W_OK):
        raise TunecastError(f"'{table}' cannot be written: it is read-only.")
    with ExitStack() as held:
        try:
            held.enter_context(locked(table, what="sweep", wait=False))
        except BlockingIOError:
            raise TunecastError(f"another sweep is writing '{table}'.") from None
        except OSError as error:
            raise TunecastError(f"'{table}' cannot be written: {error.strerror}.") from error
        yield
