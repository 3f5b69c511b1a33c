"""Where a run table is: a file, a table that comes with the package, or a database."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path


def _folder() -> Traversable:
    return files("tunecast.models").joinpath("data")


def embedded_tables() -> tuple[str, ...]:
    """Return the names of the tables that come with the package."""
    names = (entry.name for entry in _folder().iterdir())
    return tuple(sorted(name.removesuffix(".csv") for name in names if name.endswith(".csv")))


def embedded_file(name: str) -> AbstractContextManager[Path]:
    """Return a context that gives the CSV file of an embedded table."""
    return as_file(_folder().joinpath(f"{name}.csv"))


def is_url(source: str | Path) -> bool:
    """Return whether a run table is in a database rather than in a file."""
    return isinstance(source, str) and "://" in source


def shown(source: str | Path) -> str:
    """Return the name of a run table for people: a URL without its password."""
    if not is_url(source):
        return str(source)
    hidden = re.sub(r"(://[^:@/]*):.*@", r"\1:***@", str(source))
    return re.sub(r"(?i)(password=)[^&]*", r"\1***", hidden)
