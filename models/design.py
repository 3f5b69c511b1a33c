"""A fit as plans ask for it: what `Fit` lacks of `tunecast.models.planning.FittedModel`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from tunecast.models.fits import Fit, Member, published_parameters
from tunecast.models.planning import Plan, plans
from tunecast.models.predict import check_targets, spread_out


@dataclass(frozen=True)
class PlannableFit(Fit):
    """A fit with the methods that plans call."""

    @property
    def laws(self) -> tuple[str, ...]:
        """Names of the laws in use."""
        return tuple(member.layout.question.law for member in self.members)

    def check_targets(self, targets: pd.DataFrame, *, who: str) -> pd.DataFrame:
        """See `tunecast.models.predict.check_targets`."""
        return check_targets(targets, self.widest.layout, who)

    def thinned(self, draws: int) -> PlannableFit:
        """Return the fit with at most so many draws of each law, spread over the chains."""
        members: list[Member] = []
        for member in self.members:
            size = len(next(iter(member.posterior.values())))
            if size > draws:
                at = spread_out(size, draws)
                member = replace(member, posterior={k: v[at] for k, v in member.posterior.items()})
            members.append(member)
        return replace(self, members=tuple(members), _predictors={})

    def cell_parameters(self) -> Mapping[tuple[str, ...], Mapping[str, np.ndarray]]:
        """Return draws of the published parameters of each cell, for a fit of one law."""
        (member,) = self.members
        cells = member.layout.cells
        return {cell: published_parameters(member, k) for k, cell in enumerate(cells)}


def plannable(fit: Fit) -> PlannableFit:
    """Return the fit with the methods that plans call."""
    return PlannableFit(fit.members, fit.runs, fit.info, fit.diagnostics)


def plan(fit: Fit, candidates: pd.DataFrame, **options: Any) -> Plan:
    """See `tunecast.models.planning.plan`."""
    return plans.plan(plannable(fit), candidates, **options)
