"""Posterior predictive draws: known, unseen and partly seen targets alike.

A forecast is made by the model itself (`tunecast.models.hierarchy.model`), declared once more over
the targets: what the fit knows of a target is looked up in its draws, and whatever it does not know
(an unseen task, method or base model, a new curve's deviations) is drawn from the prior that the
fitted hierarchy has for it. Every draw of something new is keyed by its name, so two targets that
share an unseen base model share its effect, and the expected loss of a target does not depend on
which others were asked for with it; run noise is keyed by the position of the target. Beyond the
data drifts go on (`tunecast.models.hierarchy.drift`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from tunecast.models.hierarchy.backend import Backend
from tunecast.models.hierarchy.drift import Continuation, Innovation
from tunecast.models.hierarchy.keyed import Keyed
from tunecast.models.hierarchy.model import hierarchy
from tunecast.models.hierarchy.numpy_backends import log_density_of
from tunecast.models.hierarchy.priors import Priors
from tunecast.models.hierarchy.table import Table
from tunecast.models.hierarchy.targets import curve_labels, index_targets, known_curves
from tunecast.models.laws.positive import MAX_LOG, NumPy

CHUNK = 256  # targets at a time, so that memory does not grow with their number


@dataclass(frozen=True)
class Draws:
    """Posterior predictive draws for a table of targets.

    Parameters
    ----------
    loss : ndarray, shape (draws, targets)
        Loss of a new run, in nats per target token.
    expected : ndarray, shape (draws, targets)
        The same without run noise: the median of many such runs.
    extrapolation : ndarray, shape (targets,)
        How many times beyond the data the target lies, the largest over the data size (of its
        curve, or of its cell for a new one) and the factors (of all curves); 1 inside.
    scale : ndarray, shape (draws, targets)
        Scale of run noise, Student-t on log loss.
    df : ndarray, shape (draws,)
        Its degrees of freedom.
    """

    loss: np.ndarray
    expected: np.ndarray
    extrapolation: np.ndarray
    scale: np.ndarray
    df: np.ndarray

    def log_density(self, log_loss: np.ndarray) -> np.ndarray:
        """Return the log posterior predictive density of log losses, shape (targets,).

        Exact, given the draws: their mixture of Student-t distributions of a run's log loss.

        Parameters
        ----------
        log_loss : ndarray, shape (targets,)
            Log losses that were reached.
        """
        mean, df = np.log(self.expected), self.df[:, None]
        each = log_density_of(log_loss, df, mean, self.scale, NumPy)
        return logsumexp(each, axis=0) - np.log(len(each))


class Predictive(Backend):
    """The model over targets: what a fit has drawn is looked up, the rest is drawn anew.

    Parameters
    ----------
    table : Table
        The targets.
    fitted : Table
        What was fitted.
    values : mapping of str to ndarray, shape (draws, ...)
        Everything that the fit has drawn, by name.
    keyed : Keyed
        Where what is drawn anew comes from.
    by_size : bool
        Whether a new curve's deviations depend on its factors; else all sizes of a new base model
        have the same.
    """

    def __init__(
        self,
        table: Table,
        fitted: Table,
        values: Mapping[str, np.ndarray],
        keyed: Keyed,
        by_size: bool = True,
    ) -> None:
        super().__init__(table, None)
        self.fitted, self.known, self.keyed = fitted, values, keyed
        groupings = {g.name: g for g in fitted.groupings}
        columns = {g.name: fitted.spec.cell.index(g.column) for g in table.groupings
                   if g.column in fitted.spec.cell}  # fmt: skip
        # The one level that the fit saw of a column is part of its global mean.
        self.seen = {
            name: fitted.cells[0][position]
            for name, position in columns.items()
            if name not in groupings
        }
        curves = curve_labels(table)
        labels: dict[str, list[object]] = {
            "base_model": list(table.base_models),
            "task": list(table.tasks),
            "curve": [label if by_size else label[:2] for label in curves],
        }
        labels |= {g.name: list(g.levels) for g in table.groupings}
        places: dict[str, dict[object, int]] = {
            "base_model": {name: i for i, name in enumerate(fitted.base_models)},
            "task": {name: i for i, name in enumerate(fitted.tasks)},
        }
        places |= {g.name: {level: i for i, level in enumerate(g.levels)} for g in fitted.groupings}
        self.labels = labels
        # For each dimension, which of its labels the fit knows, and where.
        self.found = {
            dim: np.array([places.get(dim, {}).get(label, -1) for label in names])
            for dim, names in labels.items()
        }
        of_fit = known_curves(fitted)
        self.found["curve"] = np.array([of_fit.get(label, -1) for label in curves])

    def lognormal(self, name: str, mu: Any, sigma: Any, *dims: str) -> Any:
        """Return the fit's draws of a scale, or draws from its prior."""
        if name in self.known:
            return self.deterministic(name, self.known[name], *dims)
        return super().lognormal(name, mu, sigma, *dims)

    def draw(
        self, name: str, df: float | None, location: np.ndarray, scale: np.ndarray,
        dims: tuple[str, ...],
    ) -> np.ndarray:  # fmt: skip
        """Return the fit's draws of what it knows, and draws from the prior of what it does not."""
        dim = dims[-1] if dims else ""
        if dim in ("", "factor"):
            if name in self.known:
                return self.known[name]
            return location + scale * self.keyed.draws(df, name, shape=self.shape(dims))
        labels, lead = self.labels[dim], self.shape(dims[:-1])
        # A fit of one task knows the task, but has no effects of tasks.
        found = self.found[dim] if name in self.known else np.full(len(labels), -1)
        shown = self.fitted.shown(name)
        if shown is not None:
            found = np.where(found >= 0, shown.places[found], -1)
        z = np.zeros((self.keyed.size, *lead, len(labels)))
        for i in np.flatnonzero(found < 0):
            if labels[i] != self.seen.get(dim):
                z[..., i] = self.keyed.draws(df, name, labels[i], shape=lead)
        value = location + scale * z
        if (found >= 0).any():
            value[..., found >= 0] = self.known[name][..., found[found >= 0]]
        return value

    def published(self, cell: Mapping[str, np.ndarray]) -> None:
        """Leave out what no forecast depends on."""


class Predictor:
    """Posterior predictive draws for targets, from one law's fit.

    Parameters
    ----------
    table : Table
        What was fitted.
    priors : mapping
        Its prior table.
    values : mapping of str to ndarray, shape (draws, ...)
        Everything that was drawn, by name.
    seed : int
        Seed of everything drawn anew.
    by_size : bool
        See `Predictive`.
    innovation : callable, optional
        See `tunecast.models.hierarchy.drift.Continuation`.
    """

    def __init__(
        self,
        table: Table,
        priors: Priors,
        values: Mapping[str, np.ndarray],
        seed: int,
        *,
        by_size: bool = True,
        innovation: Innovation | None = None,
    ) -> None:
        self.table, self.priors, self.values, self.by_size = table, priors, values, by_size
        self.keyed = Keyed(seed, len(values["base_model_sd"]))
        scales = {kind: values[f"{kind}_sd"] for kind in ("drift_task", "drift_curve")}
        self.drift = Continuation(scales, self.keyed, innovation)

    def hierarchy(self, targets: pd.DataFrame) -> Predictive:
        """Return the model over checked targets: every quantity of their cells and curves."""
        table = index_targets(targets, self.table)
        found = Predictive(table, self.table, self.values, self.keyed, self.by_size)
        hierarchy(found, table, self.priors)
        return found

    def draws(self, targets: pd.DataFrame) -> Draws:
        """Return posterior predictive draws for checked targets (see `check_targets`)."""
        size, n = self.keyed.size, len(targets)
        mean, scale, beyond = np.empty((size, n)), np.empty((size, n)), np.empty(n)
        for start in range(0, n, CHUNK):
            part = slice(start, min(start + CHUNK, n))
            found = self.hierarchy(targets.iloc[part])
            mean[:, part] = found.values["expected_log_loss"] + self._continued(found.table)
            scale[:, part] = found.values["scale"]
            beyond[part] = self._extrapolation(found.table)
        noise = scale * np.stack([self.run_noise(j) for j in range(n)], axis=1)
        loss, expected = (np.exp(np.clip(v, -MAX_LOG, MAX_LOG)) for v in (mean + noise, mean))
        return Draws(loss, expected, beyond, scale, self.values["noise_df"])

    def run_noise(self, target: int) -> np.ndarray:
        """Return standard draws of the run noise of a target, by its position, shape (draws,)."""
        return self.keyed.rng("run noise", target).standard_t(self.values["noise_df"])

    def _continued(self, table: Table) -> np.ndarray:
        """Return what drifts beyond the data add to each target, but for their coefficients."""
        total = np.zeros((self.keyed.size, len(table.run_curve)))
        labels = curve_labels(table)
        for i, (c, at) in enumerate(zip(table.run_curve, table.doublings, strict=True)):
            t, own = table.curve_task[c], labels[c]
            total[:, i] = self.drift.beyond(
                "drift_task", table.tasks[t], float(at),
                float(table.task_low[t]), float(table.task_high[t]),
            ) + self.drift.beyond(
                "drift_curve", own if self.by_size else own[:2], float(at),
                float(table.curve_low[c]), float(table.curve_high[c]),
            )  # fmt: skip
        return total

    def _extrapolation(self, table: Table) -> np.ndarray:
        """Return how many times beyond the fitted runs each target lies."""
        curve, seen = table.run_curve, self.table.curve_x
        at = table.doublings
        far = np.maximum(at - table.curve_high[curve], table.curve_low[curve] - at) * np.log(2)
        if seen.shape[1]:
            x = table.curve_x[curve]
            beyond = np.maximum(x - seen.max(axis=0), seen.min(axis=0) - x)
            far = np.maximum(far, beyond.max(axis=1))
        return np.exp(np.maximum(far, 0.0))
