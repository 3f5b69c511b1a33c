"""Point fits the way the papers make them: the baseline that a Bayesian fit has to beat.

Huber loss, a grid of starts, intervals from a bootstrap. Letters as in
:mod:`tunecast.models.laws`: ``L`` loss in nats per target token, ``D`` data size, ``X`` a factor.

The *sum* of the Huber losses is minimised, never their mean. L-BFGS as it is commonly set stops
when the objective changes by less than an absolute amount once it is below one. With
``delta = 1e-3`` the sum is of the order of 1e-3 and the mean a hundred times smaller, so the mean
stops far from its minimum; that is how the intervals of Hoffmann et al. came out too narrow [3]_.
The search of :mod:`tunecast.models.pointsearch` stops by relative change, which removes the trap.

References
----------
.. [1] Zhang et al. 2024, arXiv:2402.17193, section 3 and eq. 2.
.. [2] Hoffmann et al. 2022, arXiv:2203.15556, appendix D.3.
.. [3] Besiroglu et al. 2024, Chinchilla Scaling: A Replication Attempt, arXiv:2404.10102.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.laws import Law, get_law
from tunecast.models.pointsearch import (
    Array,
    Indices,
    Problem,
    Residuals,
    minimise,
    parameter_names,
    search,
    stack,
    state,
)

#: Values of each factor by its name: a mapping or a frame.
type Factors = Mapping[str, npt.ArrayLike] | pd.DataFrame

AGREEMENT = 1e-3  # starts whose objectives are this close, relatively, found the same minimum


# --------------------------------------------------------------------------- results


@dataclass(frozen=True, slots=True, eq=False)
class PointFit:
    """A law fitted to runs by Huber loss or least squares.

    Parameters
    ----------
    law : str
        Name of the law.
    factors : tuple of str
        Columns used as ``X``.
    data : str
        Column used as ``D``.
    parameters : dict
        The parameters in the published spelling (raw units of ``D`` and ``X``); a mapping by
        factor for those per factor.
    objective : float
        Sum over runs of the Huber losses, in squared units of the residuals.
    residuals : ndarray, shape (runs,)
        Observed minus fitted, in nats or, with ``scale`` "log", in log nats.
    scale : {"loss", "log"}
        What the residuals are differences of.
    delta : float
        Where the Huber loss turns from square to absolute; infinity for least squares.
    fixed : dict
        Parameters that were given and not estimated.
    starts, converged, agreeing : int
        How many starts were followed, how many converged, and how many ended within 0.1 % of the
        best objective. Few that agree mean a rough surface.
    at_bound : tuple of str
        Parameters that ended on the edge of the search box: the data do not determine them.
        ``E`` there means zero.
    """

    law: str
    factors: tuple[str, ...]
    data: str
    parameters: dict[str, Any]
    objective: float
    residuals: Array
    scale: Residuals
    delta: float
    fixed: dict[str, Any]
    starts: int
    converged: int
    agreeing: int
    at_bound: tuple[str, ...]

    @property
    def num_free(self) -> int:
        """How many parameters were estimated."""
        held = sum(len(v) if isinstance(v, Mapping) else 1 for v in self.fixed.values())
        return len(parameter_names(get_law(self.law), self.factors)) - held

    def predict(self, D: npt.ArrayLike, X: Factors | None = None) -> Array:
        """Return the fitted loss, in nats per target token.

        Parameters
        ----------
        D : array_like
            Data sizes.
        X : mapping of str to array_like or DataFrame, optional
            Values of each factor; what the fit does not use is ignored.

        Raises
        ------
        TunecastError
            When a factor of the fit is missing.
        """
        law = get_law(self.law)
        return np.asarray(law(_floats(D), _factors(self, X), **self.parameters), dtype=float)


@dataclass(frozen=True, slots=True, eq=False)
class TwoStageFit:
    """Zhang et al.'s two stages: ``beta`` and ``E`` once, then each factor on its own.

    Parameters
    ----------
    beta, E : float
        Estimated in the first stage from the runs of all factors of ``shared_by`` together.
    shared_by : tuple of str
        The factors whose runs took part in the first stage.
    objective : float
        The first stage's sum of Huber losses.
    fits : dict of str to PointFit
        The second stage, one fit for each factor with ``beta`` and ``E`` fixed.
    """

    beta: float
    E: float
    shared_by: tuple[str, ...]
    objective: float
    fits: dict[str, PointFit]


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
        law, sizes = get_law(self.fit.law), np.atleast_1d(_floats(D))
        return np.asarray(law(sizes, _factors(self.fit, X), **column), dtype=float)

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
            with fresh residuals.

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


# --------------------------------------------------------------------------- what users call


def fit_point(
    frame: pd.DataFrame,
    *,
    law: str,
    factors: Sequence[str] = (),
    data: str = "finetune_examples",
    delta: float = 1e-3,
    residuals: Residuals = "loss",
    starts: int = 32,
    fixed: Mapping[str, Any] | None = None,
) -> PointFit:
    """Return the law that minimises the sum of Huber losses over the runs.

    The problem is ``min sum_i Huber_delta(r_i)`` with ``r_i`` the difference between fitted and
    observed ``L`` [1]_ or ``log L`` [2]_.

    Parameters
    ----------
    frame : DataFrame
        One row for each run: the columns ``loss``, ``data`` and ``factors``. Rows whose ``status``
        is not ``done`` are left out if there is such a column.
    law : str
        Name of a law of :data:`tunecast.models.laws.LAWS`.
    factors : sequence of str
        Columns to use as ``X``.
    data : str
        Column to use as ``D``.
    delta : float
        Where the Huber loss turns from square to absolute, in units of the residual;
        ``math.inf`` gives least squares.
    residuals : {"loss", "log"}
        Differences of losses in nats, or of their logarithms.
    starts : int
        How many starts of the grid to follow, the best ones first.
    fixed : mapping, optional
        Parameters to hold at a value in the published spelling: any of ``beta``, ``E``, ``D_l``
        and, as a mapping by factor, ``alpha``.

    Returns
    -------
    PointFit

    Raises
    ------
    TunecastError
        When the law is unknown, a column is missing or not numeric, a value is outside the law's
        domain, or there are too few runs or distinct values for what is to be estimated.
    """
    if starts < 1:
        raise TunecastError(f"starts must be at least 1, got {starts}")
    problem = _problem(
        frame, get_law(law), tuple(factors), data, delta, residuals, dict(fixed or {})
    )
    ends, objectives, converged = search(problem, starts)
    best = int(np.argmin(objectives))
    theta, objective = ends[best], float(objectives[best])
    lower, upper = problem.bounds()
    on_edge = np.minimum(theta - lower, upper - theta) < 1e-6
    return PointFit(
        law=law,
        factors=problem.factors,
        data=data,
        parameters=_scalars(problem.published(theta[None])),
        objective=objective,
        residuals=-problem.residuals(theta[None])[0],
        scale=residuals,
        delta=delta,
        fixed=problem.fixed,
        starts=len(ends),
        converged=int(converged.sum()),
        agreeing=int((objectives <= objective * (1 + AGREEMENT) + 1e-18).sum()),
        at_bound=tuple(
            c.name if c.factor is None else f"{c.name}[{c.factor}]"
            for c, edge in zip(problem.coordinates, on_edge, strict=True)
            if edge
        ),
    )


def fit_two_stage(
    runs: Mapping[str, pd.DataFrame],
    *,
    law: str = "multiplicative",
    shared_by: Sequence[str] = ("model_size", "pretrain_tokens"),
    data: str = "finetune_examples",
    delta: float = 1e-3,
    residuals: Residuals = "loss",
    starts: int = 32,
) -> TwoStageFit:
    """Return the fits of arXiv:2402.17193, eq. 2: ``beta`` and ``E`` shared between the factors.

    First stage: over the runs of every factor in ``shared_by``, one ``beta`` and one ``E`` for
    all, ``A`` and ``alpha`` (and ``B`` in the additive form) for each. Second stage: for every
    factor, ``beta`` and ``E`` stay and the rest is estimated again from that factor's runs alone.
    Zhang et al. keep the size of the adapter out of the first stage, because the loss hardly
    depends on it.

    Parameters
    ----------
    runs : mapping of str to DataFrame
        For each factor, the runs in which it was varied. A run may occur under several factors.
    law : {"multiplicative", "additive"}
        The joint form.
    shared_by : sequence of str
        Factors that take part in the first stage; those that ``runs`` lacks are ignored.
    data, delta, residuals, starts
        As in :func:`fit_point`.

    Returns
    -------
    TwoStageFit

    Raises
    ------
    TunecastError
        As in :func:`fit_point`, and when the law is not one of the two or no factor is shared.
    """
    if law not in ("multiplicative", "additive"):
        raise TunecastError(f"no two-stage fit of law '{law}': expected multiplicative or additive")
    shared = tuple(factor for factor in runs if factor in shared_by)
    if not shared:
        raise TunecastError(
            f"no runs for the first stage: expected some of {list(shared_by)}, got {list(runs)}"
        )
    first = stack(
        [_problem(runs[k], get_law(law), (k,), data, delta, residuals, {}) for k in shared]
    )
    ends, objectives, _ = search(first, starts)
    best = int(np.argmin(objectives))
    estimates = first.parameters(ends[best : best + 1])
    fixed = {name: float(estimates[name][0, 0]) for name in ("beta", "E")}
    fits = {
        factor: fit_point(
            frame,
            law=law,
            factors=(factor,),
            data=data,
            delta=delta,
            residuals=residuals,
            starts=starts,
            fixed=fixed,
        )
        for factor, frame in runs.items()
    }
    return TwoStageFit(fixed["beta"], fixed["E"], shared, float(objectives[best]), fits)


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
        What :func:`fit_point` returned for them.
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
    problem = _problem(frame, law, fit.factors, fit.data, fit.delta, fit.scale, fit.fixed)
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
        resampled = _with_runs(problem, _clusters(frame, cluster), replicates, seed)
    refits, _, converged = minimise(resampled, np.tile(theta, (replicates, 1)))
    return Bootstrap(fit, problem.published(refits), seed, int(converged.sum()))


# --------------------------------------------------------------------------- resampling


def _rng(seed: int, replicate: int, use: Literal["rows", "noise"]) -> np.random.Generator:
    """Return the generator of one replicate: nothing else enters it."""
    return np.random.default_rng([seed, replicate, ("rows", "noise").index(use)])


def _widened(residuals: Array, num_free: int) -> Array:
    return residuals * math.sqrt(len(residuals) / max(len(residuals) - num_free, 1))


def _with_residuals(problem: Problem, fit: PointFit, replicates: int, seed: int) -> Problem:
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


def _with_runs(problem: Problem, clusters: Indices, replicates: int, seed: int) -> Problem:
    """Return the problem with weights: how often each run occurs in each replicate."""
    if len(clusters) == 0:
        clusters = np.arange(len(problem.loss))
    point = _points(problem)
    counts = [_counts(problem, clusters, point, _rng(seed, i, "rows")) for i in range(replicates)]
    return replace(problem, weights=np.stack(counts))


def _counts(problem: Problem, clusters: Indices, point: Indices, rng: np.random.Generator) -> Array:
    number = int(clusters.max()) + 1
    for _ in range(1000):  # nearly always one draw is enough
        drawn = np.bincount(rng.integers(number, size=number), minlength=number)
        count = drawn[clusters].astype(float)
        if _determines(problem, count > 0, point):
            return count
    raise TunecastError(
        f"too few clusters ({number}) to resample: hardly any draw determines the "
        f"{len(problem.coordinates)} parameters of law '{problem.law.name}'"
    )


def _determines(problem: Problem, kept: npt.NDArray[np.bool_], point: Indices) -> bool:
    enough = len(np.unique(point[kept])) >= len(problem.coordinates)
    asked = {c.factor for c in problem.coordinates if c.name == "alpha" and c.factor is not None}
    return enough and all(np.ptp(problem.X[factor][kept]) > 0 for factor in asked)


def _clusters(frame: pd.DataFrame, cluster: str | Sequence[str] | None) -> Indices:
    if cluster is None:
        return np.array([], dtype=np.intp)
    names = [cluster] if isinstance(cluster, str) else list(cluster)
    for name in names:
        if name not in frame:
            raise TunecastError(f"missing column '{name}': the runs have {list(frame.columns)}")
    codes = _done(frame).groupby(names, dropna=False).ngroup()
    return np.asarray(codes, dtype=np.intp)


# --------------------------------------------------------------------------- checks


def _problem(
    frame: pd.DataFrame,
    law: Law,
    factors: tuple[str, ...],
    data: str,
    delta: float,
    scale: Residuals,
    fixed: dict[str, Any],
) -> Problem:
    """Return the checked problem of a run table."""
    if not delta > 0:
        raise TunecastError(f"delta must be positive, got {delta}")
    if scale not in ("loss", "log"):
        raise TunecastError(f"residuals must be 'loss' or 'log', got '{scale}'")
    if factors and not any(parameter.per_factor for parameter in law.parameters):
        raise TunecastError(f"law '{law.name}' takes no factors, got {list(factors)}")
    _check_fixed(law, factors, fixed)
    runs = _done(frame)
    loss, D = _column(runs, "loss"), _column(runs, data)
    X = {factor: _column(runs, factor) for factor in factors}
    for name, values in (("loss", loss), *X.items()):
        _check_rows(values > 0, f"'{name}' must be positive")
    if law.has("D_l"):  # the only law that is finite without data
        _check_rows(D >= 0, f"'{data}' must not be negative")
    else:
        _check_rows(D > 0, f"'{data}' must be positive for law '{law.name}'")
    if not (D > 0).any():
        raise TunecastError(f"too few runs: none has a positive '{data}'")
    problem = state(law, D, X, loss, delta=delta, scale=scale, fixed=fixed)
    _check_enough(problem, data)
    return problem


def _check_fixed(law: Law, factors: tuple[str, ...], fixed: Mapping[str, Any]) -> None:
    # An amplitude's unit depends on the exponents, so to hold it while they move means nothing.
    allowed = [name for name in ("alpha", "beta", "E", "D_l") if law.has(name)]
    for name, value in fixed.items():
        if name not in allowed:
            raise TunecastError(
                f"cannot fix '{name}' of law '{law.name}': expected some of {allowed}"
            )
        if name == "alpha":
            unknown = sorted(set(value) - set(factors))
            if unknown:
                raise TunecastError(
                    f"cannot fix alpha of {unknown}: the factors are {list(factors)}"
                )
        elif not value > 0:
            raise TunecastError(f"fixed '{name}' must be positive, got {value}")


def _check_enough(problem: Problem, data: str) -> None:
    runs, free = len(problem.loss), len(problem.coordinates)
    points = len(np.unique(_points(problem)))
    if points < free:
        raise TunecastError(
            f"too few runs: law '{problem.law.name}' has {free} free parameters here and the "
            f"{runs} runs lie at {points} different sizes"
        )
    for coordinate in problem.coordinates:
        name, factor = coordinate.name, coordinate.factor
        if name == "beta":
            column, values = data, problem.D * problem.D_ref
        elif name == "alpha" and factor is not None:
            column, values = factor, problem.X[factor] * problem.X_ref[factor]
        else:
            continue
        if np.ptp(values) <= 1e-12 * values.max():
            raise TunecastError(
                f"'{column}' has one value only ({values[0]:g}), so its exponent {name} cannot be "
                "estimated: leave the column out or fix the exponent"
            )


def _check_rows(good: npt.NDArray[np.bool_], must: str) -> None:
    bad = np.flatnonzero(~good)
    if len(bad):
        raise TunecastError(
            f"{must}: {len(bad)} of {len(good)} runs, the first in row {bad[0] + 1}"
        )


def _column(frame: pd.DataFrame, name: str) -> Array:
    if name not in frame:
        raise TunecastError(f"missing column '{name}': the runs have {list(frame.columns)}")
    try:
        values = frame[name].to_numpy(dtype=float)
    except (TypeError, ValueError):
        raise TunecastError(f"column '{name}' is not numeric") from None
    _check_rows(np.isfinite(values), f"'{name}' must be finite")
    return values


# --------------------------------------------------------------------------- small parts


def _done(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["status"] == "done"] if "status" in frame else frame


def _factors(fit: PointFit, X: Factors | None) -> dict[str, Array]:
    for factor in fit.factors:
        if X is None or factor not in X:
            raise TunecastError(
                f"missing factor '{factor}': the fit has factors {list(fit.factors)}"
            )
    return {} if X is None else {factor: _floats(X[factor]) for factor in fit.factors}


def _points(problem: Problem) -> Indices:
    """Return for each run the number of its combination of sizes: replicates share one."""
    sizes = np.stack([problem.D, *problem.X.values()], axis=1)
    return np.unique(sizes, axis=0, return_inverse=True)[1].ravel()


def _floats(values: npt.ArrayLike) -> Array:
    return np.asarray(values, dtype=float)


def _scalars(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {k: float(v[0]) for k, v in value.items()}
        if isinstance(value, Mapping)
        else float(value[0])
        for name, value in parameters.items()
    }
