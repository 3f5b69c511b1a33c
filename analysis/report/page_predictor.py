"""Curves as arrays that a page can hold, with drifts that go on from one pool of innovations.

They predict as `tunecast.models.hierarchy.predict.Predictor` does, with two liberties that a
picture needs. The own deviations of a new curve do not change with its size: at any one size they
have the same distribution, and along the sizes a draw is a smooth curve. And every curve and task
reads the same standard-normal innovations, each from another draw on: within a draw they are as
independent as new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tunecast.analysis.report.page_law import cell_quantities, curve_quantities
from tunecast.analysis.report.strata import Stratum
from tunecast.models.hierarchy.drift import KNOT
from tunecast.models.hierarchy.predict import Predictive, Predictor
from tunecast.models.hierarchy.targets import check_targets
from tunecast.models.inference.posterior import Posterior
from tunecast.models.laws.law import by_factor, expected_at
from tunecast.models.laws.positive import NumPy


@dataclass(frozen=True)
class PageCurve:
    """One curve, in arrays with a value for each draw.

    Parameters
    ----------
    quantities : tuple of ndarray
        In the order of `curve_quantities`; of a new curve, what they add to what its cell expects.
    noise : ndarray
        Scale of run noise.
    seen, task_seen : tuple of float
        Log2 of the smallest and the largest data size of the curve, and of its task.
    drift, task_drift : ndarray, shape (draws, TERMS)
        Coefficients of the curve's own drift, and of that of its task.
    reference : float
        Log2 of the data size of the reference.
    shifts : tuple of int
        From which draw on the pool of innovations is read for the curve's task and for the curve.
    cell : tuple of ndarray
        Quantities of its cell, in the order of `cell_quantities`; none for a known curve.
    """

    quantities: tuple[np.ndarray, ...]
    noise: np.ndarray
    seen: tuple[float, float]
    task_seen: tuple[float, float]
    drift: np.ndarray
    task_drift: np.ndarray
    reference: float
    shifts: tuple[int, int]
    cell: tuple[np.ndarray, ...] = ()


class PagePredictor:
    """Predictions from some draws of one law.

    Parameters
    ----------
    posterior : Posterior
        The draws to keep.
    seed : int
        Seed of everything drawn anew.
    strata : sequence of Stratum
        What can be asked about.
    """

    def __init__(self, posterior: Posterior, seed: int, strata: Sequence[Stratum]) -> None:
        self.table, self.law, self.size = posterior.table, posterior.table.law, posterior.size
        values = {name: _single(value) for name, value in posterior.values.items()}
        self.predictor = Predictor(
            self.table, posterior.priors, values, seed, by_size=False, innovation=self._innovation
        )
        low = np.log2(min(s.asked[0] for s in strata))
        high = np.log2(max(s.asked[1] for s in strata))
        self.first_knot = int(np.floor(low / KNOT)) - 1
        count = int(np.ceil(high / KNOT)) + 1 - self.first_knot
        rng = self.predictor.keyed.rng("drift pool")
        # The last two are of what the terms leave of the slope at the low and at the high end.
        self.pool = _single(rng.standard_normal((count + 2, self.size)))
        walks: list[tuple[str, object]] = [("drift_task", task) for task in self.table.tasks]
        for base in ("", *self.table.base_models):
            for s in strata:
                cells = (s.cell(self.table.spec, method) for method in s.methods)
                walks += [("drift_curve", (cell, base)) for cell in cells]
        # Innovations owe nothing to the draws, so a shift by one already makes them others.
        self._shift = {walk: i % self.size for i, walk in enumerate(dict.fromkeys(walks))}

    def new_curve(self, cell: tuple[str, ...], task: str) -> PageCurve:
        """Return a curve of a base model not seen yet."""
        factors = self.table.factors
        found = self._model(cell, task, "", self.table.x_ref)
        own = {q.name: found.values[q.name] for q in self.law.quantities}
        at = expected_at(
            self.law, by_factor(self.law, own, factors), dict.fromkeys(factors, 0.0), NumPy
        )
        added = [
            value - at[name][:, 0]
            for name, value in zip(curve_quantities(self.law), self._quantities(found), strict=True)
        ]
        cells = [
            own[name][:, factors.index(factor), 0] if factor else own[name][:, 0]
            for name, factor in cell_quantities(self.law, factors)
        ]
        return self._curve(found, added, cells)

    def known_curve(
        self, cell: tuple[str, ...], task: str, base: str, factors: Sequence[float]
    ) -> PageCurve:
        """Return the curve of a base model that has runs, though perhaps none in this cell."""
        found = self._model(cell, task, base, factors)
        return self._curve(found, self._quantities(found), ())

    def drift_scale(self, kind: str) -> np.ndarray:
        """Return the scale of ``drift_task`` or ``drift_curve``, per doubling."""
        return self.predictor.drift.scales[kind]

    def run_noise(self) -> np.ndarray:
        """Return the standard noise of the first new run, a value for each draw."""
        return self.predictor.run_noise(0)

    def _model(
        self, cell: tuple[str, ...], task: str, base: str, factors: Sequence[float]
    ) -> Predictive:
        spec = self.table.spec
        row: dict[str, object] = {
            "task": task,
            **dict(zip(spec.cell, cell, strict=True)),
            spec.curve: base,
        }
        row |= dict(zip(spec.factors, map(float, factors), strict=True)) | {spec.data: 1.0}
        return self.predictor.hierarchy(check_targets(pd.DataFrame([row]), self.table))

    def _quantities(self, found: Predictive) -> list[np.ndarray]:
        """Return the quantities of the one curve of a model."""
        values = found.values
        names = [
            f"{name}_curve" if f"{name}_curve" in values else f"{name}_expected"
            for name in curve_quantities(self.law)
        ]
        return [values[name][:, 0] for name in names]

    def _curve(
        self, found: Predictive, quantities: Sequence[np.ndarray], cell: Sequence[np.ndarray]
    ) -> PageCurve:
        table = found.table
        whose = "drift_curve", (table.cells[0], table.base_models[0])
        return PageCurve(
            quantities=tuple(quantities),
            noise=found.values["noise"][:, 0],
            seen=(float(table.curve_low[0]), float(table.curve_high[0])),
            task_seen=(float(table.task_low[0]), float(table.task_high[0])),
            drift=found.values["drift_curve"][:, :, 0],
            task_drift=found.values["drift_task"][:, :, 0],
            reference=float(table.log2_d_ref[0]),
            shifts=(self._shift["drift_task", table.tasks[0]], self._shift[whose]),
            cell=tuple(cell),
        )

    def _innovation(self, kind: str, whose: object, what: object) -> np.ndarray:
        if isinstance(what, float):
            row = round((what - KNOT / 2) / KNOT) - self.first_knot
        else:
            row = -2 if what == "low" else -1
        return np.roll(self.pool[row], -self._shift[kind, whose])


def _single(values: np.ndarray) -> np.ndarray:
    """Round to single precision, in which a page holds numbers."""
    with np.errstate(over="ignore"):  # a pre-learned data size may be any number; none is asked for
        return np.asarray(values, dtype=np.float32).astype(float)
