"""What a checked run table holds: counts by status, and a digest of its content."""

from __future__ import annotations

import hashlib
import json
import numbers
from typing import Any

import numpy as np
import pandas as pd

from tunecast.models.runs.columns import STATUSES


def describe(frame: pd.DataFrame) -> dict[str, int]:
    """Return how many rows of a checked table have each status, for every status."""
    return {status: int((frame["status"] == status).sum()) for status in STATUSES}


def digest(frame: pd.DataFrame) -> str:
    """Return a SHA-256 of the table's content, 64 hexadecimal digits.

    The order of rows and of columns, the index and the way a number is stored (integer or
    float, CSV or Parquet) do not change it, nor does a column that is empty throughout; any value
    or a column's name does.
    """
    names = sorted(str(name) for name in frame.columns[frame.notna().any()])
    columns = [[_canonical(value) for value in frame[name]] for name in names]
    rows = sorted(json.dumps(row) for row in zip(*columns, strict=True))
    return hashlib.sha256(json.dumps([names, rows]).encode()).hexdigest()


def _canonical(value: Any) -> object:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    return float(value) if isinstance(value, numbers.Real) else str(value)
