"""What cells have in common: groupings by each column, and the names of their variables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

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
    """

    column: str
    name: str
    levels: tuple[str, ...]
    index: np.ndarray


# Dimensions and variables of the model that a column of the runs must not be taken for, and what
# the names of those of a quantity end in, after its own name.
_TAKEN = {
    *(INTERACTION, "factor", "base_model", "curve", "run", "chain", "draw", "mean", "expected"),
    *("repeated_curve", "repeated_base_model", "sloped_curve", "curved_curve"),
    *("drift", "drift_term", "drift_task", "drift_curve", "scale"),
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
    """Return the groupings of cells by each column that tells some apart, and by all of them."""
    names = variable_names(columns)
    found = []
    for position, column in enumerate(columns):
        levels = tuple(sorted({cell[position] for cell in cells}))
        if len(levels) > 1:
            index = np.array([levels.index(cell[position]) for cell in cells])
            found.append(Grouping(column, names[column], levels, index))
    if len(found) > 1:
        keys = tuple(" / ".join(cell) for cell in cells)
        found.append(Grouping(INTERACTION, INTERACTION, keys, np.arange(len(cells))))
    return tuple(found)
