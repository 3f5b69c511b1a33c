"""Which rows, curves, cells, base models and tasks a fit has, as plain arrays.

A *cell* (task x method by default) has its own A, E, alpha and beta. A *curve* is a cell's runs of
one base model at one value of each factor: loss against data size. The layout depends on the table
and the question alone, so a saved fit rebuilds it from its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tunecast.models.errors import TunecastError

CELL = "cell"  # name of the column of interactions


@dataclass(frozen=True)
class Question:
    """What a fit was asked: which law, over which columns.

    Parameters
    ----------
    law : str
        Name in `tunecast.models.laws.LAWS`.
    factors : tuple of str
        Columns that serve as factors X.
    data : str
        Column that serves as the data axis D.
    cell : tuple of str
        Columns whose combinations are the cells.
    curve : str
        Column that names the base model.
    """

    law: str
    factors: tuple[str, ...]
    data: str
    cell: tuple[str, ...]
    curve: str


@dataclass(frozen=True)
class Column:
    """One cell column with at least two levels: ``index[k]`` is the level of cell ``k``."""

    name: str
    levels: tuple[str, ...]
    index: np.ndarray


@dataclass(frozen=True)
class Layout:
    """Index arrays of a table of runs; see the module for the words.

    Parameters
    ----------
    question : Question
        What is asked.
    cells : tuple of tuple of str
        Levels of the cell columns, one tuple a cell.
    columns : tuple of Column
        Cell columns with two levels or more, in the order asked; when there are several, last
        comes their interaction, named `CELL`.
    tasks, base_models : tuple of str
        Levels of the task column and of the curve column.
    curve_cell, curve_base, curve_task : ndarray of int, shape (curves,)
        Parents of each curve.
    curve_x : ndarray, shape (curves, factors)
        Log of each factor over its reference value.
    curve_low, curve_high : ndarray, shape (curves,)
        Log2 of the smallest and the largest data size of each curve.
    cell_low, cell_high : ndarray, shape (cells,)
        The same over each cell.
    x_ref : tuple of float
        Reference value of each factor, in its unit.
    log2_d_ref : ndarray, shape (cells,)
        Log2 of each cell's reference data size: the middle of its range.
    row_curve : ndarray of int, shape (rows,)
        Curve of each row.
    log_u : ndarray, shape (rows,)
        Natural log of the data size over its cell's reference.
    log_loss : ndarray, shape (rows,)
        Log of the loss.
    mean_log_loss : ndarray, shape (curves,)
        Mean log loss of each curve's rows.
    slope, slope_error : ndarray, shape (curves,)
        Least-squares slope of log loss in log data size, and its standard error (infinite where
        there is none).
    bend : ndarray, shape (cells,)
        Least-squares bend of log loss at the reference: minus its second derivative in log data
        size over its squared slope.

    Means, slopes and bends choose the sampler's coordinates, so draws are read with those that
    they were sampled with.
    """

    question: Question
    cells: tuple[tuple[str, ...], ...]
    columns: tuple[Column, ...]
    tasks: tuple[str, ...]
    base_models: tuple[str, ...]
    curve_cell: np.ndarray
    curve_base: np.ndarray
    curve_task: np.ndarray
    curve_x: np.ndarray
    curve_low: np.ndarray
    curve_high: np.ndarray
    cell_low: np.ndarray
    cell_high: np.ndarray
    x_ref: tuple[float, ...]
    log2_d_ref: np.ndarray
    row_curve: np.ndarray
    log_u: np.ndarray
    log_loss: np.ndarray
    mean_log_loss: np.ndarray
    slope: np.ndarray
    slope_error: np.ndarray
    bend: np.ndarray

    @property
    def one_curve_per_base_model(self) -> bool:
        """Whether no base model serves two curves, so that its effect is the curve's own."""
        return len(self.base_models) == len(self.curve_cell)

    @property
    def cell_task(self) -> np.ndarray:
        """Task of each cell, shape (cells,)."""
        task = np.zeros(len(self.cells), dtype=int)
        task[self.curve_cell] = self.curve_task
        return task


def _codes(values: pd.Series) -> tuple[np.ndarray, list[str]]:
    codes, levels = pd.factorize(values.astype(str), sort=True)
    return np.asarray(codes), [str(level) for level in levels]


def _extremes(values: np.ndarray, group: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.full(n, np.inf), np.full(n, -np.inf)
    np.minimum.at(low, group, values)
    np.maximum.at(high, group, values)
    return low, high


def lay_out(runs: pd.DataFrame, question: Question, *, thin: bool = False) -> Layout:
    """Return the layout of usable rows (done, data size above 0) for a question.

    Parameters
    ----------
    runs : DataFrame
        The rows.
    question : Question
        What is asked of them.
    thin : bool
        Let tables by that say nothing of some part of the law: it keeps to its prior.

    Raises
    ------
    TunecastError
        When there are too few rows, sizes or curves for the law asked for.
    """
    if not thin:
        _refuse_thin_tables(runs, question)
    cell_names = runs[list(question.cell)].astype(str).agg("\x1f".join, axis=1)
    row_cell, cell_keys = _codes(cell_names)
    cells = tuple(tuple(key.split("\x1f")) for key in cell_keys)
    base, base_models = _codes(runs[question.curve])
    task, tasks = _codes(runs["task"])

    factors = [np.log(runs[name].to_numpy(float)) for name in question.factors]
    curve_names = cell_names + "\x1f" + runs[question.curve].astype(str)
    for values in factors:
        curve_names = curve_names + "\x1f" + pd.Series(values, index=runs.index).map(repr)
    row_curve, _ = _codes(curve_names)
    n_curves = int(row_curve.max()) + 1
    first = np.unique(row_curve, return_index=True)[1]

    x = np.log2(runs[question.data].to_numpy(float))
    cell_low, cell_high = _extremes(x, row_cell, len(cells))
    curve_low, curve_high = _extremes(x, row_curve, n_curves)
    # The middle of the data, on the log scale, is where level and slope are least correlated.
    log2_d_ref = (cell_low + cell_high) / 2
    x_ref = tuple(float(np.exp(np.median(f[first]))) for f in factors)
    curve_x = np.array([f[first] - np.log(r) for f, r in zip(factors, x_ref, strict=True)])
    loss = runs["loss"].to_numpy(float)
    log_u = (x - log2_d_ref[row_cell]) * np.log(2)
    slope, slope_error = _least_squares_slope(np.log(loss), log_u, row_curve, n_curves)
    return Layout(
        question=question,
        cells=cells,
        columns=_columns(cells, question.cell),
        tasks=tuple(tasks),
        base_models=tuple(base_models),
        curve_cell=row_cell[first],
        curve_base=base[first],
        curve_task=task[first],
        curve_x=curve_x.reshape(len(question.factors), n_curves).T,
        curve_low=curve_low,
        curve_high=curve_high,
        cell_low=cell_low,
        cell_high=cell_high,
        x_ref=x_ref,
        log2_d_ref=log2_d_ref,
        row_curve=row_curve,
        log_u=log_u,
        log_loss=np.log(loss),
        mean_log_loss=np.bincount(row_curve, np.log(loss)) / np.bincount(row_curve),
        slope=slope,
        slope_error=slope_error,
        bend=_least_squares_bend(np.log(loss), log_u, row_curve, row_cell[first]),
    )


def _least_squares_slope(
    log_loss: np.ndarray, log_u: np.ndarray, at: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return slope of log loss in log data size for each of n curves, and its standard error."""
    count = np.bincount(at, minlength=n)
    x = log_u - (np.bincount(at, log_u, n) / count)[at]
    y = log_loss - (np.bincount(at, log_loss, n) / count)[at]
    width = np.bincount(at, x * x, n)
    some = np.where(width > 0, width, 1.0)
    slope = np.bincount(at, x * y, n) / some
    residual = np.bincount(at, (y - slope[at] * x) ** 2, n) / np.maximum(count - 2, 1)
    # Two points lie on their line: then, and where a fit is lucky, assume the table's usual noise.
    usual = np.median(residual[count > 2]) if (count > 2).any() else 1e-4
    error = np.sqrt(np.maximum(residual, usual / 4) / some)
    return slope, np.where((count > 1) & (width > 0), error, np.inf)


def _least_squares_bend(
    log_loss: np.ndarray, log_u: np.ndarray, at: np.ndarray, cell: np.ndarray
) -> np.ndarray:
    """Return each cell's bend, from one parabola with a level for each curve, within 0.2 to 50."""
    bend = np.ones(cell.max() + 1)  # 1 means none: what runs without a bend to see are given
    for k in range(len(bend)):
        rows = cell[at] == k
        t = log_u[rows]
        curves, own = np.unique(at[rows], return_inverse=True)
        design = np.column_stack([np.eye(len(curves))[own], t, t * t / 2])
        slope, second = np.linalg.lstsq(design, log_loss[rows], rcond=None)[0][-2:]
        if len(np.unique(t)) > 2 and slope != 0:
            bend[k] = np.clip(-second / slope**2, 0.2, 50.0)
    return bend


def _columns(cells: Sequence[tuple[str, ...]], names: Sequence[str]) -> tuple[Column, ...]:
    found = []
    for position, name in enumerate(names):
        levels = tuple(sorted({cell[position] for cell in cells}))
        if len(levels) > 1:
            index = np.array([levels.index(cell[position]) for cell in cells])
            found.append(Column(name, levels, index))
    if len(found) > 1:
        keys = tuple(" / ".join(cell) for cell in cells)
        found.append(Column(CELL, keys, np.arange(len(cells))))
    return tuple(found)


def _refuse_thin_tables(runs: pd.DataFrame, question: Question) -> None:
    n = len(runs)
    if n < 2:
        raise TunecastError(
            f"the table has {n} usable run{'s' if n != 1 else ''} (status done, "
            f"{question.data} above 0): a fit needs at least two curves of three data sizes"
        )
    for name in question.factors:
        values = runs[name]
        if not (values > 0).all():
            raise TunecastError(
                f"factor '{name}' must be above 0 on every run used, and is "
                f"{values[~(values > 0)].iloc[0]} on {int((~(values > 0)).sum())} of them"
            )
        if values.nunique() == 1:
            raise TunecastError(
                f"every run has {name} = {values.iloc[0]:g}: its exponent alpha cannot be "
                "learned from one value; leave the factor out (law power, or factors none)"
            )
    if runs[question.data].nunique() < 3:
        sizes = sorted(runs[question.data].unique())
        raise TunecastError(
            f"the runs used have {len(sizes)} value(s) of {question.data} "
            f"({', '.join(f'{s:g}' for s in sizes)}): the law needs at least three"
        )
    keys = [*question.cell, question.curve, *question.factors]
    if runs[keys].drop_duplicates().shape[0] < 2:
        raise TunecastError(
            "the table holds one curve only: a hierarchy has nothing to pool; "
            "use the point fit (tunecast.models.fit_point), or add another base model or method"
        )
