"""Backends that compute with NumPy: replayed draws, the prior, starting points, log density."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tunecast.models.hierarchy.backend import Backend, raw
from tunecast.models.hierarchy.estimates import estimate
from tunecast.models.hierarchy.geometry import Geometry
from tunecast.models.hierarchy.model import hierarchy
from tunecast.models.hierarchy.priors import Priors
from tunecast.models.hierarchy.table import Table

type Point = Mapping[str, Any]


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
ESTIMATED = (
    *map(raw, ("log_beta_curve", "log_loss_ref_curve", "base_model_effect")),
    *map(raw, ("drift_task", "drift_curve")),
)


class InitialPoint(Backend):
    """A point to start a chain from, in raw variables.

    Where runs give an estimate, there; else at the prior's location. Around it evenly within one
    prior scale and at most 1, so that chains which agree did not start together.
    """

    def __init__(self, table: Table, geometry: Geometry | None, seed: int) -> None:
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
        self.point = point
        self.terms: list[Any] = []

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
    table: Table, priors: Priors, seed: int, geometry: Geometry | None
) -> dict[str, np.ndarray]:
    """Return a value of every raw variable to start a chain from, in the order of declaration."""
    start = InitialPoint(table, geometry, seed)
    with np.errstate(over="ignore"):
        hierarchy(start, table, priors)
    return start.point


def log_density(table: Table, priors: Priors, point: Point, geometry: Geometry | None) -> float:
    """Return the log of the unnormalised posterior density of one value of every variable."""
    found = LogDensity(table, geometry, point)
    with np.errstate(over="ignore"):
        hierarchy(found, table, priors)
    return float(sum(np.sum(term) for term in found.terms))
