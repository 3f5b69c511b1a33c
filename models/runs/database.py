"""Run tables in a database: SQLite on one machine, PostgreSQL for a team.

The table is made from the declaration of `Run`, one column for each field. Further columns are kept
as JSON in one column of text, so that two writers never race to alter the table. `read_runs` and
`append_run` come here for every URL; what is imported here is in the extra ``database``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pandas as pd

from tunecast.models.errors import TunecastError, one_line
from tunecast.models.runs.columns import REQUIRED, Run
from tunecast.models.runs.sources import shown

try:
    import sqlalchemy as sa
    from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
    from sqlalchemy.pool import NullPool
except ImportError:
    raise TunecastError(
        "a run table in a database needs sqlalchemy: pip install 'tunecast[database]'."
    ) from None

NAME = "tunecast_runs"
# Seconds that a writer to SQLite waits for the others.
PATIENCE = 60.0


def _declared() -> sa.Table:
    types = {str: sa.Text, float: sa.Double, int: sa.BigInteger}
    hints = get_type_hints(Run)
    columns = []
    for item in fields(Run):
        (kind,) = set(getattr(hints[item.name], "__args__", (hints[item.name],))) - {type(None)}
        empty = item.name not in REQUIRED or item.name == "loss"  # rows not done have none
        columns.append(
            sa.Column(item.name, types[kind](), nullable=empty, unique=item.name == "run_id")
        )
    # SQLite counts up a column of this type alone.
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    return sa.Table(
        NAME,
        sa.MetaData(),
        sa.Column("row_number", number, primary_key=True),
        *columns,
        sa.Column("extra", sa.Text(), nullable=False),
    )


TABLE = _declared()


# --------------------------------------------------------------------------- connections


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        kind = parsed.get_backend_name()
        if kind not in ("sqlite", "postgresql"):
            raise TunecastError(
                f"'{shown(url)}' is of kind '{kind}', but a run table can be in sqlite:///FILE "
                "or postgresql+psycopg://USER@HOST/DATABASE alone."
            )
        if kind == "sqlite" and parsed.database in (None, "", ":memory:"):
            raise TunecastError(f"'{shown(url)}' names no file; write sqlite:///FILE.")
        wait = {"timeout": PATIENCE} if kind == "sqlite" else {}
        # A connection each time: workers are processes, and a sweep idles for hours.
        return sa.create_engine(parsed, poolclass=NullPool, connect_args=wait)
    except (ArgumentError, ValueError) as error:
        if isinstance(error, TunecastError):
            raise
        raise TunecastError(
            f"'{shown(url)}' cannot be read as a URL such as sqlite:///FILE or "
            "postgresql+psycopg://USER@HOST/DATABASE."
        ) from None
    except ImportError as error:
        raise TunecastError(
            f"'{shown(url)}' needs {error.name}: pip install 'tunecast[database]'."
        ) from None


@contextmanager
def _database(url: str, what: str) -> Iterator[sa.Engine]:
    """Open a database; say in one sentence that it could not be read or written."""
    engine = _engine(url)
    try:
        yield engine
    except SQLAlchemyError as error:
        reason = one_line(error.orig if isinstance(error, DBAPIError) and error.orig else error)
        password = engine.url.password
        if password:
            reason = reason.replace(str(password), "***")
        raise TunecastError(f"'{shown(url)}' cannot be {what}: {reason}.") from None


def sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite database, None for a server's.

    Raises
    ------
    TunecastError
        If the URL is not one of a run table.
    """
    engine = _engine(url)
    return Path(str(engine.url.database)) if engine.dialect.name == "sqlite" else None


def _is_there(engine: sa.Engine, url: str) -> bool:
    """Whether the database has the table.

    Raises
    ------
    TunecastError
        If it has one that lacks columns.
    """
    if engine.dialect.name == "sqlite" and not Path(str(engine.url.database)).exists():
        return False  # to connect would make the file
    inspector = sa.inspect(engine)
    if not inspector.has_table(NAME):
        return False
    held = {column["name"] for column in inspector.get_columns(NAME)}
    if missing := [name for name in TABLE.columns.keys() if name not in held]:
        raise TunecastError(f"table '{NAME}' in '{shown(url)}' has no column '{missing[0]}'.")
    return True


# --------------------------------------------------------------------------- rows


def has_rows(url: str) -> bool:
    """Return whether a database has a run table with rows."""
    with _database(url, "read") as engine:
        if not _is_there(engine, url):
            return False
        with engine.connect() as connection:
            return connection.execute(sa.select(TABLE.c.row_number).limit(1)).first() is not None


def load(url: str) -> pd.DataFrame:
    """Return the rows of a database, unchecked, in the order in which they came.

    Raises
    ------
    TunecastError
        If it cannot be read or has no run table.
    """
    with _database(url, "read") as engine:
        if not _is_there(engine, url):
            raise TunecastError(f"'{shown(url)}' has no table '{NAME}'.")
        with engine.connect() as connection:
            query = sa.select(TABLE).order_by(TABLE.c.row_number)
            rows = [dict(row) for row in connection.execute(query).mappings()]
    further = pd.DataFrame.from_records([json.loads(row.pop("extra")) for row in rows])
    declared = pd.DataFrame(rows, columns=[item.name for item in fields(Run)])
    return declared.join(further)


def append(url: str, run: Mapping[str, object], extra: Mapping[str, object]) -> None:
    """Add one row in one transaction, making the table if there is none.

    Raises
    ------
    TunecastError
        If the table holds a run of this ``run_id``, or the database refuses.
    """
    row = {**run, "run_id": str(run["run_id"]).strip()}
    others = json.dumps({name: _plain(value) for name, value in extra.items()})
    with _database(url, "written") as engine:
        if not _is_there(engine, url):
            _make(engine)
        try:
            with engine.begin() as connection:
                connection.execute(sa.insert(TABLE).values({**row, "extra": others}))
        except IntegrityError:
            same = sa.select(TABLE.c.run_id).where(TABLE.c.run_id == row["run_id"])
            with engine.connect() as connection:
                if connection.execute(same).first() is None:
                    raise
            raise TunecastError(f"'{shown(url)}' already has a run {run['run_id']!r}.") from None


def _make(engine: sa.Engine) -> None:
    try:
        TABLE.metadata.create_all(engine)
    except DBAPIError:
        # Another writer may have made it between the look and the making.
        if not sa.inspect(engine).has_table(NAME):
            raise


def _plain(value: object) -> object:
    """Return what JSON has for a value: text for what it does not know, null for an empty one."""
    value = value.item() if isinstance(value, np.generic) else value
    if value == "" or (isinstance(value, float) and value != value):
        return None
    return value if isinstance(value, bool | int | float | str | None) else str(value)


# --------------------------------------------------------------------------- claims


@contextmanager
def claimed_of(url: str, names: Sequence[str]) -> Iterator[frozenset[str]]:
    """Claim names on a PostgreSQL server and give those that nobody else has.

    A claim is a lock of the server's session: it ends with the process, however that ends.
    """
    keys = {_key(name): name for name in names}
    with _database(url, "written") as engine, engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        one = sa.text("SELECT pg_try_advisory_lock(:key)")
        got = [key for key in keys if connection.execute(one, {"key": key}).scalar()]
        yield frozenset(keys[key] for key in got)


def _key(name: str) -> int:
    digest = hashlib.sha256(f"tunecast {name}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)
