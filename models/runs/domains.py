"""Which values a column of a table takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True, slots=True)
class Domain:
    """Which values a column takes.

    Parameters
    ----------
    expected : str
        Completes the sentence "must be ...".
    accepts : callable
        Takes the column's present values, as float64 or as text, and returns a boolean array.
    numeric : bool
        Whether the values are numbers.
    """

    expected: str
    accepts: Callable[[pd.Series], Any]
    numeric: bool = True


def one_of(choices: Sequence[str]) -> Domain:
    """Return the domain that consists of the words ``choices``."""
    return Domain("one of " + ", ".join(choices), lambda x: x.isin(list(choices)), numeric=False)


LABEL = Domain("a label", lambda x: x != "", numeric=False)
FINITE = Domain("a finite number", np.isfinite)
POSITIVE = Domain("a finite number > 0", lambda x: np.isfinite(x) & (x > 0))
NON_NEGATIVE = Domain("a finite number >= 0", lambda x: np.isfinite(x) & (x >= 0))
WHOLE = Domain("a whole number >= 0", lambda x: np.isfinite(x) & (x >= 0) & (x == np.floor(x)))
