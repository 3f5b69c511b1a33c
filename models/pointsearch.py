"""The search behind :mod:`tunecast.models.pointfit`: a law, runs, and the least sum of losses.

*Coordinates.* The search runs over ``log A``, ``log E``, ``log beta``, ``log D_l`` and ``alpha``,
with ``D`` and ``X`` divided by their geometric means. Amplitudes are then losses in the middle of
the data instead of numbers like 1e5; :meth:`Law.to_published` converts them exactly.

*Exact slopes from the one definition of the law.* A law uses ``+ * / **`` alone, so numbers that
carry their slopes (:class:`Dual`) differentiate it without a second copy of the formula.

*All starts and all resamples at once.* Each of these problems is tiny, so they are solved as one
batch by damped Gauss-Newton steps. The papers use L-BFGS from one start after another; the minimum
is the same (``tests/test_pointfit.py`` holds one against the other), found in a fraction of the
time and without a stopping rule that depends on the size of the objective.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from tunecast.models.laws import Law

type Array = npt.NDArray[np.float64]
type Indices = npt.NDArray[np.intp]
type Residuals = Literal["loss", "log"]
type Name = tuple[str, str | None]  # of a parameter, with the factor if it has one for each

# The box. Wide enough that only a fit that the data do not determine touches it: E at its lower
# end is zero for every purpose, and so is D_l (e^-70 of the middle of the data).
BETA = (1e-4, 5.0)
ALPHA = (-5.0, 5.0)
LOG_D_L = (-70.0, 25.0)
LOG_AMPLITUDE = (-40.0, 40.0)  # of the largest loss
SMALLEST_E = 1e-8  # of the smallest loss

# The grid of starts. The floor's share of the lowest loss decides which basin a start falls into.
E_SHARES = (0.02, 0.4, 0.75, 0.93)
BETAS = (0.03, 0.1, 0.25, 0.6, 1.2)
ALPHAS = (0.0, 0.08, 0.25, 0.6)

STEPS = 300
QUIET_STEPS = 5  # this many steps in a row without a relative gain of 1e-9 count as converged


class Dual:
    """A number with its slopes: ``+ * / **`` on it differentiate whatever formula uses them.

    ``value`` has shape (batch, runs); ``slope`` has one axis more in front, for the parameters.
    Only the operations that occur in laws are defined.
    """

    __slots__ = ("slope", "value")
    __array_ufunc__ = None  # an array on the left leaves the operation to us

    def __init__(self, value: Any, slope: Any) -> None:
        self.value = value
        self.slope = slope

    def __neg__(self) -> Dual:
        return Dual(-self.value, -self.slope)

    def __add__(self, other: Any) -> Dual:
        if isinstance(other, Dual):
            return Dual(self.value + other.value, self.slope + other.slope)
        return Dual(self.value + other, self.slope)

    def __mul__(self, other: Any) -> Dual:
        if isinstance(other, Dual):
            slope = self.slope * other.value + self.value * other.slope
            return Dual(self.value * other.value, slope)
        return Dual(self.value * other, self.slope * other)

    def __rtruediv__(self, other: Any) -> Dual:
        value = other / self.value
        return Dual(value, self.slope * (-value / self.value))

    def __pow__(self, power: Any) -> Dual:
        if not isinstance(power, Dual):
            return Dual(self.value**power, self.slope * (power * self.value ** (power - 1)))
        value = self.value**power.value
        slope = power.slope * np.log(self.value) + self.slope * (power.value / self.value)
        return Dual(value, slope * value)

    def __rpow__(self, base: Any) -> Dual:
        value = base**self.value
        # 0 ** beta is 0 for every positive beta: its slope is 0, not 0 times log 0.
        log_base = np.log(np.where(np.asarray(base) > 0, base, 1.0))
        return Dual(value, self.slope * (value * log_base))

    __radd__ = __add__
    __rmul__ = __mul__


@dataclass(frozen=True, slots=True)
class Coordinate:
    """One direction of the search: a parameter, or its logarithm if it is positive."""

    name: str
    factor: str | None
    positive: bool
    lower: float
    upper: float


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Runs in scaled units and what to estimate from them.

    Parameters
    ----------
    law, factors
        The law and the columns that are its ``X``.
    D, X, D_ref, X_ref
        Data sizes and factors, divided by their references.
    loss, weights : ndarray, shape (runs,) or (batch, runs)
        Observed losses in nats, and how often each run counts.
    delta, scale
        Where the Huber loss turns absolute, and what the residuals are differences of.
    fixed : dict
        Parameters that are not estimated, in the published spelling.
    coordinates : tuple of Coordinate
        The directions of the search.
    index : dict
        For each estimated parameter the coordinate that each run uses: an array of length one if
        all use the same, one entry for each run if they differ (see :func:`stack`).
    """

    law: Law
    factors: tuple[str, ...]
    D: Array
    X: dict[str, Array]
    D_ref: float
    X_ref: dict[str, float]
    loss: Array
    weights: Array
    delta: float
    scale: Residuals
    fixed: dict[str, Any]
    coordinates: tuple[Coordinate, ...]
    index: dict[Name, Indices]

    def bounds(self) -> tuple[Array, Array]:
        """Return the lower and upper ends of the box, each of shape (parameters,)."""
        lower = np.array([coordinate.lower for coordinate in self.coordinates])
        return lower, np.array([coordinate.upper for coordinate in self.coordinates])

    def parameters(self, theta: Array, dual: bool = False) -> dict[str, Any]:
        """Return the law's keywords in scaled units for coordinates (batch, parameters)."""
        values = {
            name: self._value(theta, self.index[name], dual)
            if name in self.index
            else _scaled(self.fixed, name, self.D_ref)
            for name in parameter_names(self.law, self.factors)
        }
        return _by_factor(self.law, values)

    def _value(self, theta: Array, index: Indices, dual: bool) -> Any:
        positive = self.coordinates[index[0]].positive
        value = np.exp(theta[:, index]) if positive else theta[:, index]
        if not dual:
            return value
        slope = (np.arange(theta.shape[1])[:, None] == index)[:, None, :].astype(float)
        return Dual(value, slope * value if positive else slope)

    def published(self, theta: Array) -> dict[str, Any]:
        """Return the parameters in the published spelling, each of shape (batch,)."""
        values: dict[Name, Any] = {
            (c.name, c.factor): np.exp(theta[:, i]) if c.positive else theta[:, i]
            for i, c in enumerate(self.coordinates)
        }
        for name in parameter_names(self.law, self.factors):
            if name not in values:
                values[name] = np.full(len(theta), _scaled(self.fixed, name, self.D_ref))
        return self.law.to_published(self.D_ref, self.X_ref, **_by_factor(self.law, values))

    def coordinates_of(self, published: Mapping[str, Any]) -> Array:
        """Return the coordinates of published parameters: the reverse of :meth:`published`."""
        inverse = {factor: 1 / reference for factor, reference in self.X_ref.items()}
        scaled = self.law.to_published(1 / self.D_ref, inverse, **published)
        values = [
            scaled[c.name] if c.factor is None else scaled[c.name][c.factor]
            for c in self.coordinates
        ]
        theta = [
            math.log(value) if c.positive else value
            for value, c in zip(values, self.coordinates, strict=True)
        ]
        return np.clip(theta, *self.bounds())

    def residuals(self, theta: Array) -> Array:
        """Return fitted minus observed, shape (batch, runs)."""
        return self._difference(self.law(self.D, self.X, **self.parameters(theta)))

    def linearised(self, theta: Array) -> tuple[Array, Array]:
        """Return the residuals (batch, runs) and their slopes (parameters, batch, runs)."""
        fitted = self.law(self.D, self.X, **self.parameters(theta, dual=True))
        residual = self._difference(fitted.value)
        slope = fitted.slope / fitted.value if self.scale == "log" else fitted.slope
        return residual, np.broadcast_to(slope, (theta.shape[1], *residual.shape))

    def _difference(self, fitted: Array) -> Array:
        return np.log(fitted / self.loss) if self.scale == "log" else fitted - self.loss

    def objective(self, residual: Array) -> Array:
        """Return the sum of Huber losses over the runs, shape (batch,)."""
        size = np.abs(residual)
        squared = np.minimum(size, self.delta)
        return (self.weights * squared * (size - squared / 2)).sum(axis=-1)

    def subset(self, members: Indices) -> Problem:
        """Return the given members of a batch."""
        return replace(
            self,
            loss=self.loss[members] if self.loss.ndim == 2 else self.loss,
            weights=self.weights[members] if self.weights.ndim == 2 else self.weights,
        )


def state(
    law: Law,
    D: Array,
    X: Mapping[str, Array],
    loss: Array,
    *,
    delta: float,
    scale: Residuals,
    fixed: dict[str, Any],
) -> Problem:
    """Return the problem of fitting ``law`` to runs, in scaled units.

    ``D``, each of ``X`` and ``loss`` have shape (runs,) and lie in the law's domain.
    """
    factors = tuple(X)
    D_ref, X_ref = _middle(D), {factor: _middle(values) for factor, values in X.items()}
    coordinates = _coordinates(law, factors, fixed, loss)
    return Problem(
        law=law,
        factors=factors,
        D=D / D_ref,
        X={factor: values / X_ref[factor] for factor, values in X.items()},
        D_ref=D_ref,
        X_ref=X_ref,
        loss=loss,
        weights=np.ones_like(loss),
        delta=delta,
        scale=scale,
        fixed=fixed,
        coordinates=coordinates,
        index={(c.name, c.factor): np.array([i]) for i, c in enumerate(coordinates)},
    )


def stack(parts: list[Problem]) -> Problem:
    """Return one problem whose parts share ``beta`` and ``E`` and keep the rest to themselves.

    All parts have one factor, here called ``X``, in units of each part's own reference. Which
    coordinate a run uses depends on its part.
    """
    part_of_run = np.repeat(np.arange(len(parts)), [len(part.D) for part in parts])
    coordinates: list[Coordinate] = []
    index: dict[Name, Indices] = {}
    for position, own in enumerate(parts[0].coordinates):
        factor = None if own.factor is None else "X"
        shared = own.name in ("beta", "E")
        index[own.name, factor] = len(coordinates) + (np.array([0]) if shared else part_of_run)
        coordinates += [
            replace(part.coordinates[position], factor=factor)
            for part in (parts[:1] if shared else parts)
        ]
    return replace(
        parts[0],
        factors=("X",),
        D=np.concatenate([part.D for part in parts]),
        X={"X": np.concatenate([part.X[part.factors[0]] for part in parts])},
        X_ref={"X": 1.0},
        loss=np.concatenate([part.loss for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
        coordinates=tuple(coordinates),
        index=index,
    )


def parameter_names(law: Law, factors: Iterable[str]) -> list[Name]:
    """Return all parameters in the law's order, one for each factor where they have one."""
    return [
        (parameter.name, factor)
        for parameter in law.parameters
        for factor in (factors if parameter.per_factor else (None,))
    ]


# --------------------------------------------------------------------------- the search


def search(problem: Problem, starts: int) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Return where each of the best starts ended: coordinates, objectives, and if it converged.

    The grid is screened by its objective. The starts with different floors ``E`` take turns, so
    that none of the basins is left out.
    """
    grid = _grid(problem)
    order = np.argsort(problem.objective(problem.residuals(grid)), kind="stable")
    floor = [i for i, coordinate in enumerate(problem.coordinates) if coordinate.name == "E"]
    levels = np.unique(grid[order][:, floor], axis=0, return_inverse=True)[1].ravel()
    turn = pd.Series(levels).groupby(levels).cumcount().to_numpy()
    order = order[np.argsort(turn, kind="stable")]
    return minimise(problem, grid[order[:starts]])


def minimise(problem: Problem, theta: Array) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Return the minima that damped, reweighted Gauss-Newton steps reach from ``theta``.

    Huber's loss enters by the weights ``min(1, delta / |r|)``; only steps that lower its sum are
    taken. Each member of the batch has its own damping and stops on its own, so its result does
    not depend on its company.

    Parameters
    ----------
    problem : Problem
        One problem, or a batch with its own losses or weights.
    theta : ndarray, shape (batch, parameters)
        Starts.

    Returns
    -------
    theta, objective, converged : ndarray
        Of shapes (batch, parameters), (batch,) and (batch,).
    """
    theta = theta.copy()
    value = problem.objective(problem.residuals(theta))
    damping = np.full(len(theta), 1e-3)
    quiet = np.zeros(len(theta), dtype=int)
    # A sum below this is zero: residuals a ten-millionth of the Huber threshold or of a nat.
    nothing = (1e-7 * min(problem.delta, 1.0)) ** 2
    active = np.arange(len(theta))
    for _ in range(STEPS):
        if not len(active):
            break
        part = problem.subset(active)
        proposal = _step(part, theta[active], damping[active])
        new = part.objective(part.residuals(proposal))
        gain = value[active] - new
        small = gain <= 1e-9 * value[active] + nothing
        better = gain > 0
        theta[active[better]] = proposal[better]
        value[active[better]] = new[better]
        scaled = np.where(better, damping[active] / 5, damping[active] * 4)
        damping[active] = np.clip(scaled, 1e-12, 1e12)
        quiet[active] = np.where(small, quiet[active] + 1, 0)
        active = active[quiet[active] < QUIET_STEPS]
    return theta, value, quiet >= QUIET_STEPS


def _step(problem: Problem, theta: Array, damping: Array) -> Array:
    """Return where one damped step leads, shape (batch, parameters)."""
    residual, slope = problem.linearised(theta)
    size = np.maximum(np.abs(residual), np.finfo(float).tiny)
    weight = problem.weights * np.minimum(1.0, problem.delta / size)
    J = slope.transpose(1, 2, 0)  # (batch, runs, parameters)
    gradient = (J * (weight * residual)[..., None]).sum(axis=1)
    curvature = J.transpose(0, 2, 1) @ (J * weight[..., None])
    lower, upper = problem.bounds()
    # A coordinate that presses against its bound stays there and leaves the others free.
    pressed = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
    gradient[pressed] = 0.0
    curvature[pressed[:, :, None] | pressed[:, None, :]] = 0.0
    diagonal = np.einsum("bii->bi", curvature)  # a view: writing to it writes to the matrix
    largest = diagonal.max(axis=1, keepdims=True)
    diagonal += damping[:, None] * diagonal + 1e-14 * largest + np.finfo(float).tiny
    diagonal[pressed] = 1.0
    step = -np.linalg.solve(curvature, gradient[..., None])[..., 0]
    # At most a factor e^2 in a positive parameter: the linear picture is local.
    return np.clip(theta + np.clip(step, -2.0, 2.0), lower, upper)


def _grid(problem: Problem) -> Array:
    """Return all starts, shape (starts, parameters): the axes crossed, amplitudes to match."""
    law, loss, fixed = problem.law, problem.loss, problem.fixed
    log_D = np.log(problem.D[problem.D > 0])
    levels: dict[str, Any] = {
        "E": np.log(np.multiply(E_SHARES, loss.min())),
        "beta": np.log(BETAS),
        "D_l": [log_D.min() - 2, log_D.min(), log_D.mean(), log_D.max()],
        "alpha": ALPHAS,
    }
    # Beyond two factors all alphas start alike: the grid must not grow without bound.
    few = len(problem.factors) <= 2
    keys = [(c.name, c.factor if few else None) for c in problem.coordinates]
    axes = {key: levels[key[0]] for key in keys if key[0] in levels}
    points = np.array(list(itertools.product(*axes.values())))
    columns = dict(zip(axes, points.T, strict=True))

    def positive(name: str) -> Array | float:
        key = (name, None)
        return np.exp(columns[key]) if key in columns else _scaled(fixed, key, problem.D_ref)

    decay = {name: positive(name) for name in ("beta", "D_l") if law.has(name)}
    # In the middle of the data, where D = X = 1 in scaled units, the law passes through the mean.
    above = np.maximum(loss.mean() - positive("E"), 0.05 * loss.mean()) / law.decay(1.0, **decay)
    terms = 1 + len(problem.factors) if law.has("B") else 1
    amplitude = np.broadcast_to(np.log(above / terms), len(points))
    grid = np.stack([columns.get(key, amplitude) for key in keys], axis=1)
    return np.clip(grid, *problem.bounds())


# --------------------------------------------------------------------------- small parts


def _coordinates(
    law: Law, factors: tuple[str, ...], fixed: Mapping[str, Any], loss: Array
) -> tuple[Coordinate, ...]:
    top = float(np.log(loss.max()))
    amplitude = (top + LOG_AMPLITUDE[0], top + LOG_AMPLITUDE[1])
    boxes = {
        "alpha": ALPHA,
        "beta": (math.log(BETA[0]), math.log(BETA[1])),
        "E": (float(np.log(loss.min())) + math.log(SMALLEST_E), top),
        "D_l": LOG_D_L,
    }
    positive = {parameter.name: parameter.support == "positive" for parameter in law.parameters}
    return tuple(
        Coordinate(name, factor, positive[name], *boxes.get(name, amplitude))
        for name, factor in parameter_names(law, factors)
        if name not in fixed or (factor is not None and factor not in fixed[name])
    )


def _by_factor(law: Law, values: Mapping[Name, Any]) -> dict[str, Any]:
    """Return a law's keywords: a mapping by factor for the parameters that have one for each."""
    result: dict[str, Any] = {parameter.name: {} for parameter in law.parameters}
    for (name, factor), value in values.items():
        if factor is None:
            result[name] = value
        else:
            result[name][factor] = value
    return result


def _scaled(fixed: Mapping[str, Any], name: Name, D_ref: float) -> float:
    parameter, factor = name
    value = fixed[parameter] if factor is None else fixed[parameter][factor]
    return float(value / D_ref if parameter == "D_l" else value)


def _middle(values: Array) -> float:
    return float(np.exp(np.log(values[values > 0]).mean()))
