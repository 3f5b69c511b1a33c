"""Which runs, curves, cells, base models and tasks a fit has, as index arrays.

A *cell* (task x method by default) has its own A, E, alpha and beta. A *curve* is a cell's runs of
one base model at one value of each factor: loss against data size. The arrays depend on the runs
and the specification alone, so a saved fit rebuilds them from its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from tunecast.models.hierarchy.drift import TERMS, basis
from tunecast.models.hierarchy.groupings import Grouping, groupings_of
from tunecast.models.hierarchy.refusals import refuse_too_few
from tunecast.models.hierarchy.subset import Subset
from tunecast.models.laws import Law, get_law
from tunecast.models.laws.quantities import Quantity
from tunecast.models.runs import read_runs


@dataclass(frozen=True)
class Spec:
    """What a model is asked: which law, over which columns.

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


def spec_of(
    runs: pd.DataFrame,
    *,
    law: str,
    factors: Sequence[str] | None = None,
    data: str = "finetune_examples",
    cell: Sequence[str] | None = None,
    curve: str = "base_model",
) -> Spec:
    """Return the specification with its defaults filled in from the runs.

    Factors default to the model size (none for a law without alpha, or where all runs have the
    same), cells to task x method, and by family too where the runs have several: their losses do
    not compare.

    Raises
    ------
    TunecastError
        When there is no such law.
    """
    if not get_law(law).has("alpha"):
        factors = ()
    elif factors is None:
        varies = "model_size" not in runs or runs["model_size"].nunique() != 1
        factors = ("model_size",) if varies else ()
    if cell is None:
        several = "family" in runs and runs["family"].nunique() > 1
        cell = ("task", "method", "family") if several else ("task", "method")
    return Spec(law, tuple(factors), data, tuple(cell), curve)


def checked_runs(
    runs: pd.DataFrame | str | Path | Sequence[str | Path],
    *,
    law: str | None,
    factors: Sequence[str] | None,
    data: str,
    cell: Sequence[str] | None,
    curve: str,
) -> pd.DataFrame:
    """Return a run table, checked for all columns that a law over these columns needs.

    Parameters
    ----------
    runs : DataFrame, path, or name of an embedded table
        What `tunecast.models.read_runs` takes.
    law : str or None
        Its name; None for any law.
    factors, data, cell, curve
        See `Spec`; what is None has the default of `spec_of`.

    Raises
    ------
    TunecastError
        One sentence for each fault.
    """
    names = tuple(factors or ())
    if factors is None and (law is None or get_law(law).has("alpha")):
        names = ("model_size",)
    return read_runs(runs, columns=(*names, data), labels=[curve, *(cell or ())])


def usable(runs: pd.DataFrame, data: str) -> pd.DataFrame:
    """Return the runs of a checked table that a law describes.

    A law in D says nothing of D = 0, so zero-shot runs stay out; so do runs that are not done.
    """
    done = runs[runs["status"] == "done"]
    return done[done[data] > 0].reset_index(drop=True)


@dataclass(frozen=True)
class Table:
    """Index arrays of a table of runs; see the module for the words.

    Parameters
    ----------
    spec : Spec
        What is asked.
    cells : tuple of tuple of str
        Levels of the cell columns, one tuple a cell.
    groupings : tuple of Grouping
        Cell columns with two levels or more, in the order asked; when there are several, last
        comes their interaction, whose levels are the cells.
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
    task_low, task_high : ndarray, shape (tasks,)
        The same over each task.
    curve_runs, curve_sizes : ndarray of int, shape (curves,)
        Number of each curve's runs, and of their different data sizes: what it shows of its own.
    x_ref : tuple of float
        Reference value of each factor, in its unit.
    log2_d_ref : ndarray, shape (cells,)
        Log2 of each cell's reference data size: the middle of its range.
    run_curve : ndarray of int, shape (runs,)
        Curve of each run.
    log_u : ndarray, shape (runs,)
        Natural log of the data size over its cell's reference.
    log_loss : ndarray, shape (runs,)
        Log of the loss.
    run_ids : tuple of str
        Name of each run.
    one_curve_per_base_model : bool
        Whether no base model serves two curves, so that its effect is the curve's own.
    """

    spec: Spec
    cells: tuple[tuple[str, ...], ...]
    groupings: tuple[Grouping, ...]
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
    task_low: np.ndarray
    task_high: np.ndarray
    curve_runs: np.ndarray
    curve_sizes: np.ndarray
    x_ref: tuple[float, ...]
    log2_d_ref: np.ndarray
    run_curve: np.ndarray
    log_u: np.ndarray
    log_loss: np.ndarray
    run_ids: tuple[str, ...]
    one_curve_per_base_model: bool

    @property
    def law(self) -> Law:
        """The law that is asked for."""
        return get_law(self.spec.law)

    @property
    def factors(self) -> tuple[str, ...]:
        """Names of the factors."""
        return self.spec.factors

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """What is sampled of the law: without factors, nothing that there is one of for each."""
        return tuple(q for q in self.law.quantities if self.factors or not q.per_factor)

    @cached_property
    def repeated(self) -> Subset:
        """Curves whose own loss shows apart from run noise: of two runs or more."""
        return Subset("repeated_curve", np.flatnonzero(self.curve_runs > 1), len(self.curve_runs))

    @cached_property
    def repeated_base(self) -> Subset:
        """Base models of two runs or more."""
        runs = np.bincount(self.curve_base, self.curve_runs)
        return Subset("repeated_base_model", np.flatnonzero(runs > 1), len(runs), "base_model")

    @cached_property
    def slopes(self) -> Subset:
        """Curves that show a slope: of two data sizes or more."""
        return Subset("sloped_curve", np.flatnonzero(self.curve_sizes > 1), len(self.curve_sizes))

    @cached_property
    def curvatures(self) -> Subset:
        """Curves that show a curvature: of three data sizes or more."""
        return Subset("curved_curve", np.flatnonzero(self.curve_sizes > 2), len(self.curve_sizes))

    @cached_property
    def showing(self) -> dict[int, Subset]:
        """Curves that show a quantity, by how many data sizes that takes."""
        return {2: self.slopes, 3: self.curvatures}

    def shown(self, name: str) -> Subset | None:
        """Return the curves that have an unknown of their own of this name; None for all."""
        if name in ("log_noise_curve", "drift_curve"):
            return self.curvatures
        shown_by = {f"{q.name}_curve": q.shown_by for q in self.quantities}
        # Of a curve's own loss, a forecast is given what runs alone show of it too.
        return None if name == "log_loss_ref_curve" else self.showing.get(shown_by.get(name, 0))

    @cached_property
    def run_alone(self) -> np.ndarray:
        """1 for runs that are all that there is of their curve, else 0, shape (runs,)."""
        return (self.repeated.places < 0).astype(float)[self.run_curve]

    @cached_property
    def curve_of_repeated_base(self) -> np.ndarray:
        """Curve of each base model of two runs or more, where each has one."""
        return self.base_curve[self.repeated_base.curves]

    @cached_property
    def run_task(self) -> np.ndarray:
        """Task of each run."""
        return self.curve_task[self.run_curve]

    @cached_property
    def run_curved(self) -> np.ndarray:
        """Place of each run's curve among those that show a curvature; 0 where it shows none."""
        return np.maximum(self.curvatures.places, 0)[self.run_curve]

    @property
    def doublings(self) -> np.ndarray:
        """Log2 of the data size of each run."""
        return self.log_u / np.log(2) + self.log2_d_ref[self.curve_cell[self.run_curve]]

    @cached_property
    def task_drift_basis(self) -> np.ndarray:
        """What the coefficients of each run's task's drift add to it, shape (TERMS, runs)."""
        k = self.run_task
        return basis(self.doublings, self.task_low[k], self.task_high[k])

    @cached_property
    def curve_drift_basis(self) -> np.ndarray:
        """What those of its curve's own drift add, 0 where it shows no curvature."""
        c = self.run_curve
        shown = self.curvatures.places[c] >= 0
        return basis(self.doublings, self.curve_low[c], self.curve_high[c]) * shown

    @cached_property
    def base_curve(self) -> np.ndarray:
        """Curve of each base model, where each has one, shape (base_models,)."""
        return np.argsort(self.curve_base)

    @property
    def log_d_ref(self) -> np.ndarray:
        """Natural log of each cell's reference data size, shape (cells,)."""
        return self.log2_d_ref * np.log(2)

    @property
    def log_x_ref(self) -> np.ndarray:
        """Natural log of the reference value of each factor, shape (factors,)."""
        return np.log(np.array(self.x_ref, dtype=float))

    @cached_property
    def coords(self) -> dict[str, list[str]]:
        """Labels of each dimension of the model's variables."""
        names = [
            " / ".join((*self.cells[k], self.base_models[m]))
            for k, m in zip(self.curve_cell, self.curve_base, strict=True)
        ]
        if len(set(names)) < len(names):  # one base model at several values of a factor
            values = np.exp(self.log_x_ref + self.curve_x)
            rows = [", ".join(f"{v:.6g}" for v in row) for row in values]
            names = [f"{name} / {value}" for name, value in zip(names, rows, strict=True)]
        return {
            "factor": list(self.factors),
            "cell": [" / ".join(cell) for cell in self.cells],
            "task": list(self.tasks),
            "base_model": list(self.base_models),
            **{
                s.dim: [names[c] for c in s.curves] for s in (self.repeated, *self.showing.values())
            },
            self.repeated_base.dim: [self.base_models[m] for m in self.repeated_base.curves],
            "curve": names,
            "drift_term": [str(k + 1) for k in range(TERMS)],
            "run": list(self.run_ids),
            **{grouping.name: list(grouping.levels) for grouping in self.groupings},
        }


def _codes(values: pd.Series) -> tuple[np.ndarray, list[str]]:
    codes, levels = pd.factorize(values.astype(str), sort=True)
    return np.asarray(codes), [str(level) for level in levels]


def _extremes(values: np.ndarray, group: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.full(n, np.inf), np.full(n, -np.inf)
    np.minimum.at(low, group, values)
    np.maximum.at(high, group, values)
    return low, high


def index_runs(runs: pd.DataFrame, spec: Spec, *, check: bool = True) -> Table:
    """Return the index arrays of usable runs (done, data size above 0) for a specification.

    Parameters
    ----------
    runs : DataFrame
        The runs.
    spec : Spec
        What is asked of them.
    check : bool
        Whether to refuse runs that say nothing of some part of the law. What they say nothing of
        keeps to its prior otherwise.

    Raises
    ------
    TunecastError
        When there are too few runs, sizes or curves for the law asked for.
    """
    if check:
        refuse_too_few(runs, spec.data, spec.factors)
    cell_names = runs[list(spec.cell)].astype(str).agg("\x1f".join, axis=1)
    run_cell, cell_keys = _codes(cell_names)
    cells = tuple(tuple(key.split("\x1f")) for key in cell_keys)
    base, base_models = _codes(runs[spec.curve])
    task, tasks = _codes(runs["task"])

    factors = [np.log(runs[name].to_numpy(float)) for name in spec.factors]
    curve_names = cell_names + "\x1f" + runs[spec.curve].astype(str)
    for values in factors:
        curve_names = curve_names + "\x1f" + pd.Series(values, index=runs.index).map(repr)
    run_curve, _ = _codes(curve_names)
    n_curves = int(run_curve.max()) + 1
    first = np.unique(run_curve, return_index=True)[1]

    x = np.log2(runs[spec.data].to_numpy(float))
    cell_low, cell_high = _extremes(x, run_cell, len(cells))
    curve_low, curve_high = _extremes(x, run_curve, n_curves)
    task_low, task_high = _extremes(x, task, len(tasks))
    sizes = np.unique(np.stack([run_curve, np.round(x, 9)]), axis=1)[0].astype(int)
    # The middle of the data, on the log scale, is where loss and slope are least correlated.
    log2_d_ref = (cell_low + cell_high) / 2
    x_ref = tuple(float(np.exp(np.median(f[first]))) for f in factors)
    curve_x = np.array([f[first] - np.log(r) for f, r in zip(factors, x_ref, strict=True)])
    return Table(
        spec=spec,
        cells=cells,
        groupings=groupings_of(cells, spec.cell),
        tasks=tuple(tasks),
        base_models=tuple(base_models),
        curve_cell=run_cell[first],
        curve_base=base[first],
        curve_task=task[first],
        curve_x=curve_x.reshape(len(spec.factors), n_curves).T,
        curve_low=curve_low,
        curve_high=curve_high,
        cell_low=cell_low,
        cell_high=cell_high,
        task_low=task_low,
        task_high=task_high,
        curve_runs=np.bincount(run_curve),
        curve_sizes=np.bincount(sizes, minlength=n_curves),
        x_ref=x_ref,
        log2_d_ref=log2_d_ref,
        run_curve=run_curve,
        log_u=(x - log2_d_ref[run_cell]) * np.log(2),
        log_loss=np.log(runs["loss"].to_numpy(float)),
        run_ids=tuple(runs["run_id"].astype(str)),
        one_curve_per_base_model=len(base_models) == n_curves,
    )
