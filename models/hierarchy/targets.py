"""What is asked of a fit: targets, checked and completed by what the fitted table knows of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.hierarchy.groupings import INTERACTION, Grouping, variable_names
from tunecast.models.hierarchy.table import Table


def check_targets(targets: pd.DataFrame, table: Table, who: str = "targets") -> pd.DataFrame:
    """Return targets with every column that the fit needs, or say in one sentence what is wrong.

    A missing or empty base model means an unseen one. A base model that the table holds brings
    its factor values; cell columns beyond task and method may be left out where the table has one
    value of them for the base model or in all. ``who`` is what the sentences call the targets.

    Raises
    ------
    TunecastError
        When a needed column is missing, or a number is not above 0.
    """
    spec = table.spec
    targets = targets.reset_index(drop=True).copy()
    if targets.empty:
        raise TunecastError(f"there are no {who}: expected at least one row")
    for name in ("task", "method"):
        if name not in targets and name in spec.cell:
            seen = {cell[spec.cell.index(name)] for cell in table.cells}
            if len(seen) > 1:
                raise TunecastError(f"the {who} lack the column '{name}'")
            targets[name] = next(iter(seen))
    if "task" not in targets:
        targets["task"] = table.tasks[0]
    if spec.curve not in targets:
        targets[spec.curve] = ""
    base = targets[spec.curve].astype(object)
    targets[spec.curve] = base.where(base.notna(), "").astype(str)
    for position, name in enumerate(spec.cell):
        targets[name] = _filled_cell(targets, table, position, name, who)
    for name in (*spec.factors, spec.data):
        targets[name] = _filled_number(targets, table, name, who)
    return targets


def _filled_cell(
    targets: pd.DataFrame, table: Table, position: int, name: str, who: str
) -> pd.Series:
    given = targets[name] if name in targets else pd.Series(pd.NA, index=targets.index)
    by_base: dict[str, set[str]] = {}
    for c, k in enumerate(table.curve_cell):
        base = table.base_models[table.curve_base[c]]
        by_base.setdefault(base, set()).add(table.cells[k][position])
    every = {cell[position] for cell in table.cells}
    values = []
    for value, base in zip(given, targets[table.spec.curve], strict=True):
        known = by_base.get(base, every)
        if pd.isna(value) or value == "":
            if len(known) != 1:
                raise TunecastError(
                    f"the {who} need a '{name}' (one of {', '.join(sorted(known)[:6])}, "
                    "or a new one)"
                )
            value = next(iter(known))
        values.append(str(value))
    return pd.Series(values, index=targets.index)


def _filled_number(targets: pd.DataFrame, table: Table, name: str, who: str) -> pd.Series:
    values = targets[name] if name in targets else pd.Series(np.nan, index=targets.index)
    try:
        values = pd.to_numeric(values).astype(float)
    except (ValueError, TypeError):
        raise TunecastError(f"the {who}' '{name}' holds text, expected numbers") from None
    if name in table.factors:
        i = table.factors.index(name)
        known: Mapping[str, float] = {
            table.base_models[m]: table.x_ref[i] * float(np.exp(table.curve_x[c, i]))
            for c, m in enumerate(table.curve_base)
        }
        values = values.fillna(targets[table.spec.curve].map(known))
    bad = ~(values > 0) | np.isinf(values)
    if bad.any():
        got = values[bad].iloc[0]
        what = "missing" if np.isnan(got) else f"{got:g}"
        raise TunecastError(
            f"the {who}' '{name}' is {what} in row {int(np.flatnonzero(bad)[0]) + 1}: "
            "expected a number above 0"
        )
    return values


# --------------------------------------------------------------------------- as a table


def index_targets(targets: pd.DataFrame, fitted: Table) -> Table:
    """Return the index arrays of checked targets, measured from the fitted table's references.

    Cells and curves may be new. A new cell takes the reference data size and range of those that
    share most of its levels; a new curve the range of its cell, a new task that of all tasks.
    """
    spec = fitted.spec
    labels = targets[list(spec.cell)].astype(str).itertuples(index=False, name=None)
    cells, run_cell = _distinct(list(labels))
    tasks, run_task = _distinct(list(targets["task"].astype(str)))
    bases, run_base = _distinct(list(targets[spec.curve].astype(str)))
    x = np.log(targets[list(spec.factors)].to_numpy(float)) - fitted.log_x_ref
    places = [(k, m, t, *row) for k, m, t, row in zip(
        run_cell, run_base, run_task, np.round(x, 9).tolist(), strict=True)]  # fmt: skip
    curves, run_curve = _distinct(places)
    first = np.unique(run_curve, return_index=True)[1]
    near = [_like(cell, fitted) for cell in cells]
    ref = np.array([np.median(fitted.log2_d_ref[k]) for k in near])
    doublings = np.log2(targets[spec.data].to_numpy(float))
    cell_low = np.array([fitted.cell_low[k].min() for k in near])
    cell_high = np.array([fitted.cell_high[k].max() for k in near])
    task_low, task_high = _task_ranges(tasks, fitted)
    curve_cell = run_cell[first]
    low, high = cell_low[curve_cell], cell_high[curve_cell]
    known = known_curves(fitted)
    for c, (k, m, _, *at) in enumerate(curves):
        own = known.get((cells[k], bases[m], tuple(at)))
        if own is not None:
            low[c], high[c] = fitted.curve_low[own], fitted.curve_high[own]
    return Table(
        spec=spec,
        cells=tuple(cells),
        groupings=_groupings(cells, fitted),
        tasks=tuple(tasks),
        base_models=tuple(bases),
        curve_cell=curve_cell,
        curve_base=run_base[first],
        curve_task=run_task[first],
        curve_x=x[first],
        curve_low=low,
        curve_high=high,
        cell_low=cell_low,
        cell_high=cell_high,
        task_low=task_low,
        task_high=task_high,
        # Whatever the fitted runs show, a forecast has deviations of its own.
        curve_runs=np.full(len(curve_cell), 3),
        curve_sizes=np.full(len(curve_cell), 3),
        x_ref=fitted.x_ref,
        log2_d_ref=ref,
        run_curve=run_curve,
        log_u=(doublings - ref[run_cell]) * np.log(2),
        log_loss=np.full(len(targets), np.nan),
        run_ids=tuple(map(str, range(len(targets)))),
        one_curve_per_base_model=fitted.one_curve_per_base_model,
    )


def _task_ranges(tasks: list[str], fitted: Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the range of data sizes of each task: as fitted, or of a new one that of all runs."""
    places = {name: i for i, name in enumerate(fitted.tasks)}
    every = np.arange(len(fitted.tasks))
    known = [np.array([places[name]]) if name in places else every for name in tasks]
    low = np.array([fitted.task_low[k].min() for k in known])
    return low, np.array([fitted.task_high[k].max() for k in known])


type CurveLabel = tuple[tuple[str, ...], str, tuple[float, ...]]


def known_curves(table: Table) -> dict[CurveLabel, int]:
    """Return the curves of a table by what tells them apart: cell, base model and factors."""
    return {label: c for c, label in enumerate(curve_labels(table))}


def curve_labels(table: Table) -> list[CurveLabel]:
    """Return cell, base model and log factors of each curve."""
    return [
        (table.cells[k], table.base_models[m], tuple(np.round(x, 9).tolist()))
        for k, m, x in zip(table.curve_cell, table.curve_base, table.curve_x, strict=True)
    ]


def _distinct[T](values: list[T]) -> tuple[list[T], np.ndarray]:
    """Return distinct values in order of appearance, and which one each is."""
    order = {value: i for i, value in enumerate(dict.fromkeys(values))}
    return list(order), np.array([order[value] for value in values])


def _like(cell: tuple[str, ...], fitted: Table) -> np.ndarray:
    """Return the fitted cells that share most levels with a cell: itself, where it is one."""
    shared = np.array([sum(map(str.__eq__, cell, other)) for other in fitted.cells])
    return np.flatnonzero(shared == shared.max())


def _groupings(cells: list[tuple[str, ...]], fitted: Table) -> tuple[Grouping, ...]:
    """Return the groupings of targets' cells: as fitted, and by columns whose levels are new.

    The one level seen of a column that is no grouping of the fit is part of the global mean.
    """
    known = {g.name for g in fitted.groupings}
    names = variable_names(fitted.spec.cell)
    found = []
    for position, column in enumerate(fitted.spec.cell):
        levels, index = _distinct([cell[position] for cell in cells])
        seen = fitted.cells[0][position]
        if names[column] in known or levels != [seen]:
            found.append(Grouping(column, names[column], tuple(levels), index))
    if INTERACTION in known:
        keys = tuple(" / ".join(cell) for cell in cells)
        found.append(Grouping(INTERACTION, INTERACTION, keys, np.arange(len(cells))))
    return tuple(found)
