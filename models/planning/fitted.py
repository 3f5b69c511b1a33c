"""What a plan asks of a fitted model, beyond what a question does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self

import numpy as np
import pandas as pd

from tunecast.models.questions.forecaster import Forecaster


class FittedModel(Forecaster, Protocol):
    """A fit, as far as a plan needs it; `tunecast.models.Fit` has it all."""

    @property
    def laws(self) -> tuple[str, ...]:
        """Names of the laws in use, several for a mixture."""

    def check_targets(self, targets: pd.DataFrame, *, who: str) -> pd.DataFrame:
        """Return the rows with every column that the model needs.

        Raises
        ------
        TunecastError
            In a sentence that calls the table ``who``, such as "targets".
        """

    def thinned(self, draws: int) -> Self:
        """Return the model with at most so many posterior draws, spread over the chains."""

    def cell_parameters(self) -> Mapping[tuple[str, ...], Mapping[str, np.ndarray]]:
        """Return posterior draws of each cell's parameters in the papers' spelling.

        By cell (its values of `Spec.cell`), by name (``A``, ``beta``, ``E``, ``D_l``,
        ``alpha:model_size``), each of shape (draws,) and in the order of `draws`. Only asked of
        fits of one law.
        """
