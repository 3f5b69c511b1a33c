"""The bootstrap of a point fit: refits to resampled runs or residuals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.laws import get_law
from tunecast.models.pointfits.fit import PointFit
from tunecast.models.pointfits.inputs import (
    Factors,
    checked_problem,
    factor_values,
    finished_runs,
    size_codes,
)
from tunecast.models.pointfits.problem import Array, Indices, Problem
from tunecast.models.pointfits.search import minimise

MAX_REDRAWS = 1000  # of a resample that does not determine the law; nearly always one is enough


@dataclass(frozen=True, slots=True, eq=False)
class Bootstrap:
    """Refits of a law to resampled runs.

    Parameters
    ----------
    fit : PointFit
        The fit to the runs as they are.
    parameters : dict
        Draws of each parameter in the published spelling, each of shape (replicates,).
    seed : int
        Replicate ``i`` follows from ``(seed, i)`` and does not depend on how many there are.
    converged : int
        Refits that converged; the others are kept, because to drop the hard resamples would
        narrow the intervals.
    """

    fit: PointFit
    parameters: dict[str, Any]
    seed: int
    converged: int

    @property
    def replicates(self) -> int:
        """How many refits there are."""
        return len(self.parameters["E"])

    def mean(self, D: npt.ArrayLike, X: Factors | None = None) -> Array:
        """Return draws of the expected loss in nats, shape (replicates, points)."""
        column = {
            name: {k: v[:, None] for k, v in value.items()}
            if isinstance(value, Mapping)
            else value[:, None]
            for name, value in self.parameters.items()
        }
        law, sizes = get_law(self.fit.law), np.atleast_1d(np.asarray(D, dtype=float))
        return np.asarray(law(sizes, factor_values(self.fit.factors, X), **column), dtype=float)

    def new_run(
        self, D: npt.ArrayLike, X: Factors | None = None, *, draws: int | None = None
    ) -> Array:
        """Return draws of the loss that one new run would show, in nats.

        To the expected loss comes a residual drawn from those of the fit, on the fit's own scale,
        widened by ``sqrt(n / (n - p))`` because fitting ``p`` parameters to ``n`` runs shrinks
        them.

        Parameters
        ----------
        D, X
            As in :meth:`mean`.
        draws : int, optional
            Number of draws, by default one a replicate; beyond that the replicates are used again
            with other residuals.

        Returns
        -------
        ndarray, shape (draws, points)
        """
        mean = self.mean(D, X)
        number = self.replicates if draws is None else draws
        pool = _widened(self.fit.residuals, self.fit.num_free)
        noise = np.stack(
            [_rng(self.seed, i, "noise").choice(pool, mean.shape[1]) for i in range(number)]
        )
        mean = mean[np.arange(number) % self.replicates]
        return mean * np.exp(noise) if self.fit.scale == "log" else mean + noise


def bootstrap(
    frame: pd.DataFrame,
    fit: PointFit,
    *,
    replicates: int,
    seed: int,
    cluster: str | Sequence[str] | None = None,
    resample: Literal["runs", "residuals"] = "runs",
) -> Bootstrap:
    """Return refits of a law to resampled runs, each started from the point fit.

    Parameters
    ----------
    frame : DataFrame
        The runs that ``fit`` was made from.
    fit : PointFit
        What `fit_point` returned for them.
    replicates : int
        Number of refits.
    seed : int
        Replicate ``i`` follows from ``(seed, i)`` alone.
    cluster : str or sequence of str, optional
        Columns whose combinations are drawn whole, such as ``base_model``: the runs of one curve
        err together.
    resample : {"runs", "residuals"}
        Draw runs with replacement, or keep every run's sizes and draw the residuals, centred and
        widened by ``sqrt(n / (n - p))``. The latter suits small grids, which lose their shape when
        runs are drawn. Draws of runs that do not determine the law are drawn again.

    Returns
    -------
    Bootstrap

    Raises
    ------
    TunecastError
        When ``fit`` belongs to other runs, residuals are to be drawn by cluster or there are none
        to spare, or the clusters are too few to determine the law.
    """
    if replicates < 1:
        raise TunecastError(f"replicates must be at least 1, got {replicates}")
    law = get_law(fit.law)
    problem = checked_problem(frame, law, fit.factors, fit.data, fit.delta, fit.scale, fit.fixed)
    theta = problem.coordinates_of(fit.parameters)
    residuals = -problem.residuals(theta[None])[0]
    if residuals.shape != fit.residuals.shape or not np.allclose(
        residuals, fit.residuals, rtol=0, atol=1e-6
    ):
        raise TunecastError(
            "the fit was not made from these runs: give bootstrap the frame that fit_point had"
        )
    if resample == "residuals":
        if cluster is not None:
            raise TunecastError("residuals are drawn one by one: with a cluster, resample runs")
        resampled = _with_residuals(problem, fit, replicates, seed)
    else:
        resampled = _with_runs(problem, _cluster_codes(frame, cluster), replicates, seed)
    refits, _, converged = minimise(resampled, np.tile(theta, (replicates, 1)))
    return Bootstrap(fit, problem.published(refits), seed, int(converged.sum()))


def _rng(seed: int, replicate: int, use: Literal["rows", "noise"]) -> np.random.Generator:
    """Return the generator of one replicate: nothing else enters it."""
    return np.random.default_rng([seed, replicate, ("rows", "noise").index(use)])


def _widened(residuals: Array, num_free: int) -> Array:
    return residuals * math.sqrt(len(residuals) / max(len(residuals) - num_free, 1))


def _with_residuals(problem: Problem, fit: PointFit, replicates: int, seed: int) -> Problem:
    """Return the problem with losses for each replicate: fitted ones plus resampled residuals."""
    runs = len(fit.residuals)
    if runs <= fit.num_free:
        raise TunecastError(
            f"no residuals to draw: {runs} runs determine {fit.num_free} parameters exactly"
        )
    pool = _widened(fit.residuals - fit.residuals.mean(), fit.num_free)
    drawn = np.stack([_rng(seed, i, "rows").choice(pool, runs) for i in range(replicates)])
    if fit.scale == "log":
        return replace(problem, loss=problem.loss * np.exp(drawn - fit.residuals))
    fitted = problem.loss - fit.residuals
    # A loss is positive: a residual that would make it negative leaves a tenth of the fitted one.
    return replace(problem, loss=np.maximum(fitted + drawn, 0.1 * fitted))


def _with_runs(problem: Problem, clusters: Indices | None, replicates: int, seed: int) -> Problem:
    """Return the problem with weights: how often each run occurs in each replicate."""
    if clusters is None:
        clusters = np.arange(len(problem.loss))
    sizes = size_codes(problem)
    counts = [_counts(problem, clusters, sizes, _rng(seed, i, "rows")) for i in range(replicates)]
    return replace(problem, weights=np.stack(counts))


def _counts(problem: Problem, clusters: Indices, sizes: Indices, rng: np.random.Generator) -> Array:
    number = int(clusters.max()) + 1
    for _ in range(MAX_REDRAWS):
        drawn = np.bincount(rng.integers(number, size=number), minlength=number)
        count = drawn[clusters].astype(float)
        if _determines(problem, count > 0, sizes):
            return count
    raise TunecastError(
        f"too few clusters ({number}) to resample: hardly any draw determines the "
        f"{len(problem.coordinates)} parameters of law '{problem.law.name}'"
    )


def _determines(problem: Problem, kept: npt.NDArray[np.bool_], sizes: Indices) -> bool:
    enough = len(np.unique(sizes[kept])) >= len(problem.coordinates)
    asked = {c.factor for c in problem.coordinates if c.name == "alpha" and c.factor is not None}
    return enough and all(np.ptp(problem.X[factor][kept]) > 0 for factor in asked)


def _cluster_codes(frame: pd.DataFrame, cluster: str | Sequence[str] | None) -> Indices | None:
    if cluster is None:
        return None
    names = [cluster] if isinstance(cluster, str) else list(cluster)
    for name in names:
        if name not in frame:
            raise TunecastError(f"missing column '{name}': the runs have {list(frame.columns)}")
    codes = finished_runs(frame).groupby(names, dropna=False).ngroup()
    return np.asarray(codes, dtype=np.intp)
