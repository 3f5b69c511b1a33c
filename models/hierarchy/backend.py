"""What the declarations of the model are made with.

`tunecast.models.hierarchy.model.hierarchy` calls a backend for each unknown, for what follows from
them, and for the likelihood. With a geometry an unknown is made of a raw variable in its
coordinate, named ``<unknown>_raw``; without one the unknown is the variable (of a scale its
logarithm, ``log_<unknown>``), and the textbook model comes out. Those that compute with NumPy are
in `tunecast.models.hierarchy.numpy_backends`, PyMC's in `tunecast.models.hierarchy.pymc_model`, the
compiled one in `tunecast.models.compile`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from tunecast.models.hierarchy.geometry import Geometry
from tunecast.models.hierarchy.table import Table
from tunecast.models.laws.law import by_factor, published
from tunecast.models.laws.positive import NumPy


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
        coordinate = self.geometry.coordinate(name, self.values, self.xp)
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
