"""Some of a table's curves, or base models: those that show something of their own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Subset:
    """Curves that show something of their own.

    Parameters
    ----------
    name : str
        Of the dimension that they are, where they are not all.
    curves : ndarray of int
        Which they are.
    count : int
        Number of all curves.
    whole : str
        Name of the dimension of all.
    """

    name: str
    curves: np.ndarray
    count: int
    whole: str = "curve"

    @property
    def every(self) -> bool:
        """Whether all curves are among them."""
        return len(self.curves) == self.count

    @property
    def some(self) -> bool:
        """Whether any is."""
        return len(self.curves) > 0

    @property
    def dim(self) -> str:
        """Name of their dimension."""
        return self.whole if self.every else self.name

    @cached_property
    def places(self) -> np.ndarray:
        """Where among them each curve is, -1 where it is not."""
        found = np.full(self.count, -1)
        found[self.curves] = np.arange(len(self.curves))
        return found
