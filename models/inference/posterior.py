"""The posterior of one law: its draws, and everything that follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from tunecast.models.hierarchy.geometry import Geometry
from tunecast.models.hierarchy.numpy_backends import Replay, geometry_of, replay
from tunecast.models.hierarchy.predict import Predictor
from tunecast.models.hierarchy.priors import Priors
from tunecast.models.hierarchy.table import Table
from tunecast.models.hierarchy.unsampled import complete
from tunecast.models.laws.quantities import BY_FACTOR


def spread_out(n: int, count: int) -> np.ndarray:
    """Return at most ``count`` of the positions 0 to ``n - 1``, evenly spread over them."""
    return np.linspace(0, n - 1, min(n, count)).astype(int)


@dataclass(frozen=True)
class Posterior:
    """Posterior draws of one law, and its weight where a fit has several.

    Parameters
    ----------
    table : Table
        The runs that were fitted.
    priors : mapping of str to Prior
        Prior table.
    draws : mapping of str to ndarray, shape (chains, draws, ...)
        Every variable that was sampled, in the coordinate of the geometry.
    statistics : mapping of str to ndarray, shape (chains, draws)
        What the sampler says of each transition.
    weight : float
        1 unless the law was ``auto``.
    """

    table: Table
    priors: Priors
    draws: Mapping[str, np.ndarray]
    statistics: Mapping[str, np.ndarray] = field(default_factory=dict)
    weight: float = 1.0

    @property
    def law(self) -> str:
        """Name of the law."""
        return self.table.spec.law

    @property
    def chains(self) -> tuple[int, int]:
        """Number of chains, and of draws of each."""
        first = next(iter(self.draws.values()))
        return first.shape[0], first.shape[1]

    @property
    def size(self) -> int:
        """Number of draws over all chains."""
        chains, draws = self.chains
        return chains * draws

    @cached_property
    def geometry(self) -> Geometry:
        """The coordinates that were sampled."""
        return geometry_of(self.table, self.priors)

    @cached_property
    def replayed(self) -> Replay:
        """Every unknown and what follows from it by name, draws of all chains first."""
        flat = {k: v.reshape(self.size, *v.shape[2:]) for k, v in self.draws.items()}
        return complete(replay(self.table, self.priors, flat, self.geometry))

    @property
    def values(self) -> Mapping[str, np.ndarray]:
        """Every unknown and what follows from it by name, shape (draws of all chains, ...)."""
        return self.replayed.values

    def parameters(self, cell: int) -> dict[str, np.ndarray]:
        """Return draws of a cell's parameters in the published spelling, shape (draws,) each.

        Those of which there is one for each factor are named ``alpha:model_size`` and so on.
        """
        law = self.table.law
        return self._of_cell({p.name: p.per_factor for p in law.parameters}, cell)

    def factor_exponents(self, cell: int) -> dict[str, np.ndarray]:
        """Return draws of gamma and delta of a cell, shape (draws,) each.

        By them the whole loss and beta fall with a factor, beyond the published law.
        """
        return self._of_cell({q.name: True for q in BY_FACTOR}, cell)

    def _of_cell(self, per_factor: Mapping[str, bool], cell: int) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for name, several in per_factor.items():
            if not several:
                found[name] = self.values[name][:, cell]
                continue
            for i, factor in enumerate(self.table.factors):
                found[f"{name}:{factor}"] = self.values[name][:, i, cell]
        return found

    def predictor(self, seed: int, **options: Any) -> Predictor:
        """Return what makes posterior predictive draws for targets."""
        return Predictor(self.table, self.priors, self.values, seed, **options)

    def taken(self, positions: np.ndarray) -> Posterior:
        """Return the posterior with some of its draws, by their position over all chains."""
        flat = {k: v.reshape(1, self.size, *v.shape[2:]) for k, v in self.draws.items()}
        statistics = {k: v.reshape(1, self.size) for k, v in self.statistics.items()}
        return replace(
            self,
            draws={k: v[:, positions] for k, v in flat.items()},
            statistics={k: v[:, positions] for k, v in statistics.items()},
        )

    def share(self, draws: int) -> np.ndarray:
        """Return positions of the draws that stand for the law where all laws have ``draws``."""
        return spread_out(self.size, max(round(self.weight * draws), 1))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be computed again."""
        return {k: v for k, v in self.__dict__.items() if k not in ("geometry", "replayed")}
