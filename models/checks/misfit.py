"""A misfit: a check that a cell or a whole table fails, in a sentence that a fit keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# Over all cells of a table, of each family of checks (of the table, and after sampling): of a
# hundred tables to which a law applies, one at most is said to misfit.
FALSE_ALARMS = 0.01

RISES = "rises with data"
CHECKPOINTS = "checkpoints"
DATA_SIZE = "data size"
REPLICATES = "replicates"
SURFACE = "size and data"
ONE_CURVE = "one curve"

SAID = 3  # misfits of a kind that are said in full


@dataclass(frozen=True)
class Misfit:
    """A check that a table fails, or one cell of it.

    Parameters
    ----------
    kind : str
        What does not fit: `RISES`, `CHECKPOINTS`, `DATA_SIZE`, `REPLICATES`, `SURFACE` or
        `ONE_CURVE`.
    cell : tuple of str, or None
        Levels of the cell columns; None where it concerns the whole table.
    sentence : str
        What was found, in which cell, and what was expected.

    Examples
    --------
    >>> from tunecast.models.checks.misfit import Misfit
    >>> Misfit("checkpoints", None, "40 of 40 rows look like checkpoints of one run.").kind
    'checkpoints'
    """

    kind: str
    cell: tuple[str, ...] | None
    sentence: str


def kept(misfits: Iterable[Misfit]) -> list[dict[str, Any]]:
    """Return misfits as a fit's file keeps them."""
    return [asdict(m) for m in misfits]


def misfits_in(info: Mapping[str, Any]) -> tuple[Misfit, ...]:
    """Return the misfits that were kept with a fit; none where nothing was checked."""
    return tuple(
        Misfit(m["kind"], None if m["cell"] is None else tuple(m["cell"]), m["sentence"])
        for m in info.get("misfits", ())
    )


def name_of(cell: Sequence[str]) -> str:
    """Return what sentences call a cell."""
    return " / ".join(cell)


def percent(log_ratio: float) -> str:
    """Return by how much a ratio is above 1, from its logarithm.

    Examples
    --------
    >>> from tunecast.models.checks.misfit import percent
    >>> percent(0.02)
    '2 %'
    """
    return f"{100 * np.expm1(log_ratio):.2g} %"


def in_words(misfits: Iterable[Misfit]) -> list[str]:
    """Return a sentence for each misfit; of one kind in many cells, the first few and their count.

    Examples
    --------
    >>> from tunecast.models.checks.misfit import Misfit, in_words
    >>> many = [Misfit("data size", (c,), f"{c} misfits.") for c in "abcde"]
    >>> in_words(many)[-1]
    'The same check (data size) fails in 2 more cells: d, e.'
    """
    by_kind: dict[str, list[Misfit]] = {}
    for misfit in dict.fromkeys(misfits):
        by_kind.setdefault(misfit.kind, []).append(misfit)
    said = []
    for kind, found in by_kind.items():
        said += [m.sentence for m in found[:SAID]]
        if more := [name_of(m.cell or ("the whole table",)) for m in found[SAID:]]:
            cells = "cells" if len(more) > 1 else "cell"
            said.append(
                f"The same check ({kind}) fails in {len(more)} more {cells}: {', '.join(more)}."
            )
    return said


def in_brief(misfits: Iterable[Misfit]) -> str:
    """Return which checks fail, and in how many cells.

    Examples
    --------
    >>> from tunecast.models.checks.misfit import Misfit, in_brief
    >>> in_brief([Misfit("data size", (c,), "") for c in "ab"] + [Misfit("checkpoints", None, "")])
    'data size (2 cells), checkpoints (the table)'
    """
    cells: dict[str, list[tuple[str, ...] | None]] = {}
    for misfit in misfits:
        cells.setdefault(misfit.kind, []).append(misfit.cell)
    counted = {
        kind: "the table" if None in found else f"{len(found)} cell{'s' if len(found) > 1 else ''}"
        for kind, found in cells.items()
    }
    return ", ".join(f"{kind} ({count})" for kind, count in counted.items())


def concerning(
    misfits: Sequence[Misfit], cells: Sequence[tuple[str, ...]], asked: Sequence[str | None]
) -> tuple[Misfit, ...]:
    """Return the misfits that concern what is asked of one cell.

    Those of the whole table concern every cell, and a fitted cell its own. A cell that was not
    fitted is forecast from those that share most levels with it: where more than half of them fail
    some check, it is expected to fail too.

    Parameters
    ----------
    misfits : sequence of Misfit
        Of a fit.
    cells : sequence of tuple of str
        All cells that were fitted.
    asked : sequence of str or None
        Level of each cell column; None where the question leaves it out, which any level meets.

    Examples
    --------
    >>> from tunecast.models.checks.misfit import Misfit, concerning
    >>> cells = [("cola", "fmt"), ("cola", "lora"), ("sst2", "fmt"), ("sst2", "lora")]
    >>> rises = [Misfit("rises with data", c, "It rises.") for c in cells[::2]]
    >>> [m.kind for m in concerning(rises, cells, ("rte", "fmt"))]
    ['rises with data', 'rises with data']
    >>> concerning(rises, cells, ("cola", "lora"))
    ()
    """
    shared = [sum(a is None or a == b for a, b in zip(asked, c, strict=True)) for c in cells]
    near = {c for c, n in zip(cells, shared, strict=True) if n == max(shared)}
    fails = near & {m.cell for m in misfits}
    known = max(shared) == len(asked)
    expected = fails if known or len(fails) > len(near) / 2 else set()
    return tuple(m for m in misfits if m.cell is None or m.cell in expected)
