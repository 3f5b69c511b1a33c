"""What cells have in common: groupings by each column, and the names of their variables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import linalg

from tunecast.models.laws import LAWS

INTERACTION = "cell"  # name of the grouping by all columns at once


@dataclass(frozen=True)
class Grouping:
    """A grouping of cells with at least two levels: ``index[k]`` is the level of cell ``k``.

    Parameters
    ----------
    column : str
        Column of the runs, or `INTERACTION`.
    name : str
        The same as a part of the names of variables and as a dimension.
    levels : tuple of str
        Its values.
    index : ndarray of int, shape (cells,)
        Level of each cell.
    cells : ndarray of int, shape (levels, most cells)
        Cells of each level, repeated where one has fewer.
    cell_weight : ndarray, shape (levels, most cells)
        One over their number, 0 where repeated.
    rotation : ndarray, shape (levels, levels)
        Orthogonal: its first row is the levels' common shift, the others are contrasts.
    """

    column: str
    name: str
    levels: tuple[str, ...]
    index: np.ndarray

    @cached_property
    def cells(self) -> np.ndarray:
        """Cells of each level."""
        order, count = np.argsort(self.index, kind="stable"), self._count
        place = np.arange(count.max()) + (np.cumsum(count) - count)[:, None]
        return order[np.minimum(place, len(order) - 1)]

    @cached_property
    def cell_weight(self) -> np.ndarray:
        """Weight of each of them in their mean."""
        count = self._count[:, None]
        return (np.arange(count.max()) < count) / count

    @cached_property
    def rotation(self) -> np.ndarray:
        """Rotation to the levels' common shift and to contrasts (Helmert's)."""
        return np.asarray(linalg.helmert(len(self.levels), full=True))

    @property
    def _count(self) -> np.ndarray:
        return np.bincount(self.index, minlength=len(self.levels))


# Dimensions and variables of the model that a column of the runs must not be taken for, and what
# the names of those of a quantity end in, after its own name.
_TAKEN = {
    *(INTERACTION, "factor", "base_model", "curve", "run", "chain", "draw", "mean", "expected"),
    *(
        "repeated_curve",
        "repeated_base_model",
        "sloped_curve",
        "curved_curve",
        "drift_term",
        "drift_task",
        "drift_curve",
    ),
    *("noise", "noise_df", "log_noise", "log_loss", "expected_log_loss", "log_relative_loss"),
    *(p.name for law in LAWS.values() for p in law.parameters),
    *(q.name for law in LAWS.values() for q in law.quantities),
}
_ENDINGS = ("_sd", "_raw")


def variable_names(columns: Iterable[str]) -> dict[str, str]:
    """Return for each column what variables and dimensions that belong to it are called.

    A column's name may hold what no variable's may, such as a slash; and it must not be that of a
    dimension or variable which means something else.
    """
    found: dict[str, str] = {}
    for column in columns:
        name = re.sub(r"\W", "_", column)
        while name in _TAKEN or name.endswith(_ENDINGS) or name in found.values():
            name += "_"
        found[column] = name
    return found


def groupings_of(cells: Sequence[tuple[str, ...]], columns: Sequence[str]) -> tuple[Grouping, ...]:
    """Return the groupings of cells by each column that tells some apart, and by all of them.

    The first column's comes after the other columns', before that of all.
    """
    names = variable_names(columns)
    found = []
    for position, column in enumerate(columns):
        levels = tuple(sorted({cell[position] for cell in cells}))
        if len(levels) > 1:
            index = np.array([levels.index(cell[position]) for cell in cells])
            found.append(Grouping(column, names[column], levels, index))
    if len(found) > 1:
        found = [*found[1:], found[0]]
        keys = tuple(" / ".join(cell) for cell in cells)
        found.append(Grouping(INTERACTION, INTERACTION, keys, np.arange(len(cells))))
    return tuple(found)
