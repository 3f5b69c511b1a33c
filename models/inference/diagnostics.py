"""How well chains agree, and the limits that a fit must keep to be called converged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

# Vehtari et al. 2021, arXiv:1903.08008, for R-hat and effective sample size; Betancourt,
# arXiv:1701.02434, for energy.
RHAT_LIMIT = 1.01
ESS_LIMIT = 400
BFMI_LIMIT = 0.3
# A share of divergent draws: an isolated one is a numerical accident, a cluster marks a region
# that the sampler cannot enter.
DIVERGENCE_LIMIT = 0.001


@dataclass(frozen=True)
class Diagnostics:
    """How well the chains agree, the worst over all sampled variables.

    Parameters
    ----------
    rhat_max : float
        Rank-normalised split R-hat.
    ess_bulk_min, ess_tail_min : float
        Effective sample sizes.
    divergences : int
        Divergent transitions after warm-up.
    bfmi_min : float
        Bayesian fraction of missing information (energy), the lowest chain.
    draws : int
        Draws over all chains.
    """

    rhat_max: float
    ess_bulk_min: float
    ess_tail_min: float
    divergences: int
    bfmi_min: float
    draws: int

    @property
    def reasons(self) -> tuple[str, ...]:
        """What fails, one phrase each; empty when the fit converged."""
        found = []
        # Written so that a NaN fails too.
        if not self.rhat_max <= RHAT_LIMIT:
            found.append(f"R-hat {self.rhat_max:.3f} is above {RHAT_LIMIT}")
        for name, value in (("bulk", self.ess_bulk_min), ("tail", self.ess_tail_min)):
            if not value >= ESS_LIMIT:
                found.append(f"{name} ESS {value:.0f} is below {ESS_LIMIT}")
        if not self.divergences <= DIVERGENCE_LIMIT * self.draws:
            found.append(f"{self.divergences} of {self.draws} draws diverged")
        if not self.bfmi_min >= BFMI_LIMIT:
            found.append(f"energy BFMI {self.bfmi_min:.2f} is below {BFMI_LIMIT}")
        return tuple(found)

    @property
    def converged(self) -> bool:
        """Whether nothing fails."""
        return not self.reasons


def diagnose(
    draws: Mapping[str, np.ndarray], diverging: np.ndarray, energy: np.ndarray
) -> Diagnostics:
    """Return the diagnostics of draws.

    Parameters
    ----------
    draws : mapping of str to ndarray, shape (chains, draws, ...)
        Every sampled variable.
    diverging, energy : ndarray, shape (chains, draws)
        Of each transition.
    """
    from arviz_stats.base import array_stats

    chains, length = diverging.shape
    flat = np.concatenate([v.reshape(chains, length, -1) for v in draws.values()], axis=2)
    each = np.moveaxis(flat, 2, 0)
    rhat = np.array([array_stats.rhat(c, chain_axis=0, draw_axis=1) for c in each])
    bulk = np.array([array_stats.ess(c, chain_axis=0, draw_axis=1) for c in each])
    tail = np.array(
        [
            array_stats.ess(c, chain_axis=0, draw_axis=1, method="tail", prob=(0.05, 0.95))
            for c in each
        ]
    )
    return Diagnostics(
        rhat_max=float(rhat.max()),
        ess_bulk_min=float(bulk.min()),
        ess_tail_min=float(tail.min()),
        divergences=int(diverging.sum()),
        bfmi_min=float(array_stats.bfmi(energy, chain_axis=0, draw_axis=1).min()),
        draws=chains * length,
    )


def worst(several: Sequence[Diagnostics]) -> Diagnostics:
    """Return the worst of each figure over several fits."""
    return replace(
        several[0],
        rhat_max=max(d.rhat_max for d in several),
        ess_bulk_min=min(d.ess_bulk_min for d in several),
        ess_tail_min=min(d.ess_tail_min for d in several),
        divergences=sum(d.divergences for d in several),
        bfmi_min=min(d.bfmi_min for d in several),
        draws=sum(d.draws for d in several),
    )
