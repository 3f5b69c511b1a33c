"""Backends: what the declarations of the model make.

`tunecast.models.hierarchy.model.hierarchy` calls a backend for each unknown, for what follows from
them, and for the likelihood. Here are those that compute with NumPy, and PyMC's; the compiled one
is in `tunecast.models.compile`. With a geometry an unknown is made of a raw variable in its
coordinate, named ``<unknown>_raw``; without one the unknown is the variable, and the textbook model
comes out.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from tunecast.models.hierarchy.estimates import estimate
from tunecast.models.hierarchy.geometry import Geometry
from tunecast.models.hierarchy.model import hierarchy
from tunecast.models.hierarchy.priors import Priors
from tunecast.models.hierarchy.table import Table
from tunecast.models.laws.law import by_factor, published
from tunecast.models.laws.positive import NumPy

type Point = Mapping[str, np.ndarray]


class Backend(ABC):
    """What makes random variables of the model's declarations.

    Parameters
    ----------
    table : Table
        The runs of which the model is declared.
    geometry : Geometry or None
        How unknowns are sampled.

    Attributes
    ----------
    xp : namespace
        What to compute with: NumPy's names, or ``pytensor.tensor``, ...
    values, dims : dict
        Every unknown and everything that follows from them by name, and the dims of each.
    """

    xp: Any = NumPy

    def __init__(self, table: Table, geometry: Geometry | None) -> None:
        self.table, self.geometry = table, geometry
        self.values: dict[str, Any] = {}
        self.dims: dict[str, tuple[str, ...]] = {}

    def normal(self, name: str, mu: Any, sigma: Any, *dims: str) -> Any:
        """Declare an unknown with a normal prior and return it."""
        return self._unknown(name, None, mu, sigma, dims)

    def student_t(self, name: str, nu: float, mu: Any, sigma: Any, *dims: str) -> Any:
        """Declare an unknown with a Student-t prior and return it."""
        return self._unknown(name, nu, mu, sigma, dims)

    def lognormal(self, name: str, mu: Any, sigma: Any, *dims: str) -> Any:
        """Declare a positive unknown, whose logarithm has a normal prior, and return it."""
        # With a geometry non-centred: learned scales are all that is declared so.
        if self.geometry is None:
            log = self.draw(f"log_{name}", None, mu, sigma, dims)
        else:
            log = mu + sigma * self.draw(raw(name), None, 0.0, 1.0, dims)
        return self.deterministic(name, self.xp.exp(log), *dims)

    def deterministic(self, name: str, value: Any, *dims: str) -> Any:
        """Name what follows from unknowns, and return it."""
        self.values[name], self.dims[name] = value, dims
        return value

    def published(self, cell: Mapping[str, Any]) -> None:
        """Name the law's parameters of each cell in the published spelling, from its quantities."""
        t = self.table
        refs = {k: t.log_x_ref[i] for i, k in enumerate(t.factors)}
        found = published(t.law, by_factor(t.law, cell, t.factors), t.log_d_ref, refs, self.xp)
        for name, value in found.items():
            if name in self.values:  # alpha is one of the quantities
                continue
            if not isinstance(value, dict):
                self.deterministic(name, value, "cell")
            elif value:
                whole = [part[..., None, :] for part in value.values()]
                self.deterministic(name, self.xp.concatenate(whole, axis=-2), "factor", "cell")

    def observe(  # noqa: B027 - most backends have no use for it
        self, name: str, value: Any, nu: Any, mu: Any, sigma: Any, *dims: str
    ) -> None:
        """Declare that a value was observed, with Student-t noise."""

    @abstractmethod
    def draw(
        self, name: str, df: float | None, location: Any, scale: Any, dims: tuple[str, ...]
    ) -> Any:
        """Return the variable of this name: normal where ``df`` is None, else Student-t."""

    def _unknown(
        self, name: str, df: float | None, location: Any, scale: Any, dims: tuple[str, ...]
    ) -> Any:
        if self.geometry is None:
            return self.deterministic(name, self.draw(name, df, location, scale, dims), *dims)
        coordinate = self.geometry.coordinate(name, location, self.values, self.xp)
        value = coordinate.unknown(
            lambda at, width: self.draw(raw(name), df, at, width, dims), location, scale, self.xp
        )
        return self.deterministic(name, value, *dims)

    def shape(self, dims: tuple[str, ...]) -> tuple[int, ...]:
        """Return the sizes of dims."""
        return tuple(len(self.table.coords[d]) for d in dims)


def raw(name: str) -> str:
    """Return the name of the variable in whose coordinate an unknown is sampled."""
    return f"{name}_raw"


def geometry_of(table: Table, priors: Priors) -> Geometry:
    """Return the coordinates in which the posterior of a table is sampled."""
    return Geometry(table, estimate(table, priors))


class Replay(Backend):
    """What saved draws say: each variable is looked up.

    Parameters
    ----------
    draws : mapping of str to ndarray, shape (draws, ...)
        Raw variables by name.
    """

    def __init__(self, table: Table, geometry: Geometry | None, draws: Point) -> None:
        super().__init__(table, geometry)
        self.draws = draws

    def draw(
        self, name: str, df: float | None, location: Any, scale: Any, dims: tuple[str, ...]
    ) -> Any:
        """Return the draws of this name."""
        return self.draws[name]


class Simulation(Backend):
    """Draws from the prior.

    Parameters
    ----------
    size, seed : int
        Number of draws, and where their randomness comes from.
    """

    def __init__(self, table: Table, geometry: Geometry | None, size: int, seed: int) -> None:
        super().__init__(table, geometry)
        self.size, self.rng = size, np.random.default_rng(seed)
        self.draws: dict[str, np.ndarray] = {}

    def draw(
        self, name: str, df: float | None, location: Any, scale: Any, dims: tuple[str, ...]
    ) -> Any:
        """Return new draws."""
        shape = (self.size, *self.shape(dims))
        z = self.rng.standard_normal(shape) if df is None else self.rng.standard_t(df, shape)
        self.draws[name] = location + scale * z
        return self.draws[name]

    def observe(self, name: str, value: Any, nu: Any, mu: Any, sigma: Any, *dims: str) -> None:
        """Draw what might have been observed."""
        z = self.rng.standard_t(np.broadcast_to(nu[:, None], mu.shape))
        self.deterministic(name, mu + sigma * z, *dims)


# What may be sampled in units of what its runs say.
ESTIMATED = tuple(map(raw, ("log_beta_curve", "log_loss_ref_curve", "base_model_effect")))


class Start(Backend):
    """A point to start a chain from, in raw variables.

    Where runs give an estimate, there; else at the prior's location. Around it evenly within one
    prior scale and at most 1, so that chains which agree did not start together.
    """

    def __init__(self, table: Table, geometry: Geometry, seed: int) -> None:
        super().__init__(table, geometry)
        self.rng = np.random.default_rng(seed)
        self.point: dict[str, np.ndarray] = {}

    def draw(
        self, name: str, df: float | None, location: Any, scale: Any, dims: tuple[str, ...]
    ) -> Any:
        """Return the value to start from."""
        centre = 0.0 if name in ESTIMATED else location
        jitter = np.minimum(scale, 1.0) * self.rng.uniform(-1, 1, self.shape(dims))
        self.point[name] = np.asarray(jitter + centre)
        return self.point[name]


class LogDensity(Backend):
    """The log density of variables and data at one point, as terms that add up.

    Parameters
    ----------
    point : mapping of str to ndarray
        The variables by name.
    """

    def __init__(self, table: Table, geometry: Geometry | None, point: Point) -> None:
        super().__init__(table, geometry)
        self.point, self.terms = point, []  # type: tuple[Point, list[Any]]

    def draw(
        self, name: str, df: float | None, location: Any, scale: Any, dims: tuple[str, ...]
    ) -> Any:
        """Add the density of this variable's value and return it."""
        value = self.point[name]
        self.terms.append(log_density_of(value, df, location, scale, self.xp))
        return value

    def observe(self, name: str, value: Any, nu: Any, mu: Any, sigma: Any, *dims: str) -> None:
        """Add the density of what was observed."""
        self.terms.append(log_density_of(value, nu, mu, sigma, self.xp))


def log_density_of(x: Any, df: Any, location: Any, scale: Any, xp: Any) -> Any:
    """Return the log density of each element, normal where ``df`` is None, else Student-t."""
    z, log_scale = (x - location) / scale, xp.log(scale)
    if df is None:
        return -0.5 * (z * z) - log_scale - 0.5 * math.log(2 * math.pi)
    half = 0.5 * df
    bulk = xp.log_gamma(half + 0.5) - xp.log_gamma(half) - 0.5 * xp.log(math.pi * df)
    return bulk - log_scale - (half + 0.5) * xp.log(1.0 + z * z / df)


# --------------------------------------------------------------------------- what they answer


def replay(table: Table, priors: Priors, draws: Point, geometry: Geometry | None) -> Replay:
    """Return every unknown, and what follows from them, behind saved draws of raw variables."""
    found = Replay(table, geometry, draws)
    with np.errstate(over="ignore"):  # where beta is near 0, D_l is beyond any number, honestly
        hierarchy(found, table, priors)
    return found


def simulate_prior(
    table: Table, priors: Priors, size: int, seed: int, geometry: Geometry | None
) -> Simulation:
    """Return draws of everything from the prior, data included.

    Serves prior predictive checks and simulation-based calibration.
    """
    found = Simulation(table, geometry, size, seed)
    with np.errstate(over="ignore"):
        hierarchy(found, table, priors)
    return found


def starting_point(
    table: Table, priors: Priors, seed: int, geometry: Geometry
) -> dict[str, np.ndarray]:
    """Return a value of every raw variable to start a chain from, in the order of declaration."""
    start = Start(table, geometry, seed)
    with np.errstate(over="ignore"):
        hierarchy(start, table, priors)
    return start.point


def log_density(table: Table, priors: Priors, point: Point, geometry: Geometry | None) -> float:
    """Return the log of the unnormalised posterior density of one value of every variable."""
    found = LogDensity(table, geometry, point)
    with np.errstate(over="ignore"):
        hierarchy(found, table, priors)
    return float(sum(np.sum(term) for term in found.terms))
