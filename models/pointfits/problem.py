"""A law, runs, and the sum of Huber losses to minimise over a law's parameters.

*Coordinates.* The search runs over ``log A``, ``log E``, ``log beta``, ``log D_l`` and ``alpha``,
with ``D`` and ``X`` divided by their geometric means. Amplitudes are then losses in the middle of
the data instead of numbers like 1e5; :meth:`Law.to_published` converts them exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tunecast.models.laws import Law, Parameter
from tunecast.models.pointfits.dual import Dual

type Array = npt.NDArray[np.float64]
type Indices = npt.NDArray[np.intp]
type Residuals = Literal["loss", "log"]
type Name = tuple[str, str | None]  # of a parameter, with the factor if it has one for each

# Bounds of the search. Wide enough that only a fit that the data do not determine touches them: E
# at its lower end is zero for every purpose, and so is a data size e^-70 of the middle of the data.
BETA = (1e-4, 5.0)
ALPHA = (-5.0, 5.0)
# In log data size. A narrower break is a kink to any spacing of data sizes, and (D / D_b)^(1 / f)
# would be beyond any number before the bound of D_b.
WIDTH = (0.12, 5.0)
LOG_DATA_SIZE = (-70.0, 25.0)
LOG_AMPLITUDE = (-40.0, 40.0)  # of the largest loss
SMALLEST_E = 1e-8  # of the smallest loss


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

    def bounds(self) -> tuple[Array, Array]:
        """Return the lower and upper bounds, each of shape (parameters,)."""
        lower = np.array([coordinate.lower for coordinate in self.coordinates])
        return lower, np.array([coordinate.upper for coordinate in self.coordinates])

    def parameters(self, theta: Array, dual: bool = False) -> dict[str, Any]:
        """Return the law's keywords in scaled units for coordinates (batch, parameters)."""
        position = {(c.name, c.factor): i for i, c in enumerate(self.coordinates)}
        values = {
            name: self._value(theta, position[name], dual)
            if name in position
            else self.fixed_value(name)
            for name in parameter_names(self.law, self.factors)
        }
        return _by_factor(self.law, values)

    def _value(self, theta: Array, i: int, dual: bool) -> Any:
        positive = self.coordinates[i].positive
        value = np.exp(theta[:, [i]]) if positive else theta[:, [i]]
        if not dual:
            return value
        slope = (np.arange(theta.shape[1]) == i)[:, None, None].astype(float)
        return Dual(value, slope * value if positive else slope)

    def fixed_value(self, name: Name) -> float:
        """Return a parameter that is not estimated, in scaled units."""
        parameter, factor = name
        value = self.fixed[parameter] if factor is None else self.fixed[parameter][factor]
        (declared,) = (p for p in self.law.parameters if p.name == parameter)
        return float(value / self.D_ref if declared.is_data_size else value)

    def published(self, theta: Array) -> dict[str, Any]:
        """Return the parameters in the published spelling, each of shape (batch,)."""
        values: dict[Name, Any] = {
            (c.name, c.factor): np.exp(theta[:, i]) if c.positive else theta[:, i]
            for i, c in enumerate(self.coordinates)
        }
        for name in parameter_names(self.law, self.factors):
            if name not in values:
                values[name] = np.full(len(theta), self.fixed_value(name))
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


def scaled_problem(
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
    D_ref = _geometric_mean(D)
    X_ref = {factor: _geometric_mean(values) for factor, values in X.items()}
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
        coordinates=_coordinates(law, factors, fixed, loss),
    )


def parameter_names(law: Law, factors: Iterable[str]) -> list[Name]:
    """Return all parameters in the law's order, one for each factor where they have one."""
    return [
        (parameter.name, factor)
        for parameter in law.parameters
        for factor in (factors if parameter.per_factor else (None,))
    ]


def _coordinates(
    law: Law, factors: tuple[str, ...], fixed: Mapping[str, Any], loss: Array
) -> tuple[Coordinate, ...]:
    top = float(np.log(loss.max()))
    amplitude = (top + LOG_AMPLITUDE[0], top + LOG_AMPLITUDE[1])
    floor = float(np.log(loss.min())) + math.log(SMALLEST_E), top

    def bounds(parameter: Parameter) -> tuple[float, float]:
        if parameter.name == "E":
            return floor
        if parameter.is_data_size:
            return LOG_DATA_SIZE
        if parameter.name == "f":
            return math.log(WIDTH[0]), math.log(WIDTH[1])
        if parameter.is_exponent:
            positive = parameter.support == "positive"
            return (math.log(BETA[0]), math.log(BETA[1])) if positive else ALPHA
        return amplitude

    by_name = {parameter.name: parameter for parameter in law.parameters}
    return tuple(
        Coordinate(name, factor, by_name[name].support == "positive", *bounds(by_name[name]))
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


def _geometric_mean(values: Array) -> float:
    """Return it of the positive values, so that runs without data do not count."""
    return float(np.exp(np.log(values[values > 0]).mean()))
