"""The draws that a page holds: a few hundred of a fit's, and what can be asked of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from tunecast.analysis.report.page_predictor import PagePredictor
from tunecast.analysis.report.strata import Stratum, strata_of
from tunecast.models import Fit

DRAWS = 500


@dataclass(frozen=True)
class PageDraws:
    """Some of a fit's draws, which answer as all of them do but for the last digits.

    Parameters
    ----------
    fit : Fit
        The fit.
    size : int, optional
        How many draws to keep over all its laws.
    """

    fit: Fit
    size: int = DRAWS

    @cached_property
    def strata(self) -> tuple[Stratum, ...]:
        """See `strata_of`."""
        return strata_of(self.fit)

    @cached_property
    def predictors(self) -> tuple[PagePredictor, ...]:
        """One for each law in use."""
        seed = int(self.fit.info["seed"])
        return tuple(
            PagePredictor(posterior.taken(posterior.share(self.size)), seed, self.strata)
            for posterior in self.fit.posteriors
        )

    def expected(self, targets: pd.DataFrame) -> np.ndarray:
        """Return draws of the expected loss, shape (draws, targets)."""
        ready = self.fit.check_targets(targets)
        return np.concatenate([p.predictor.draws(ready).expected for p in self.predictors])

    def base_models(self, stratum: Stratum) -> list[str]:
        """Return the base models with runs in a stratum, in the order of the first factor."""
        return self._base_models[stratum.name]

    @cached_property
    def _base_models(self) -> dict[str, list[str]]:
        spec, runs = self.fit.spec, self.fit.runs
        if spec.factors:
            runs = runs.sort_values(spec.factors[0], kind="stable")
        found: dict[str, list[str]] = {}
        for stratum in self.strata:
            here = np.ones(len(runs), dtype=bool)
            for column, value in stratum.labels.items():
                here &= (runs[column].astype(str) == value).to_numpy()
            found[stratum.name] = list(dict.fromkeys(runs.loc[here, spec.curve].astype(str)))
        return found
