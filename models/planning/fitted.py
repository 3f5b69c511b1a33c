"""What a plan asks of a fitted model, as a protocol: planning knows nothing else of a fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

import numpy as np
import pandas as pd


class Columns(Protocol):
    """Which columns of a run table a model uses."""

    @property
    def cell(self) -> tuple[str, ...]:
        """Columns whose combinations are the cells, each with parameters of its own."""

    @property
    def factors(self) -> tuple[str, ...]:
        """Columns that serve as factors X."""

    @property
    def data(self) -> str:
        """Column that serves as the data axis D."""

    @property
    def curve(self) -> str:
        """Column that names the base model."""


class Diagnostics(Protocol):
    """Whether the posterior draws can be trusted."""

    @property
    def converged(self) -> bool:
        """Whether nothing fails."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """What fails, one phrase each."""


class PredictiveDraws(Protocol):
    """Joint posterior predictive draws of the losses of some runs."""

    @property
    def expected(self) -> np.ndarray:
        """Expected loss in nats, shape (draws, runs)."""

    @property
    def scale(self) -> np.ndarray:
        """Scale of run noise, Student-t on log loss, shape (draws, runs)."""

    @property
    def df(self) -> np.ndarray:
        """Its degrees of freedom, shape (draws,)."""


class FittedModel(Protocol):
    """A fit, as far as a plan needs it."""

    @property
    def runs(self) -> pd.DataFrame:
        """The runs that were fitted, with their ``method`` and what they cost, if known."""

    @property
    def info(self) -> Mapping[str, Any]:
        """Facts about the fit: its ``seed``, and ``simulated`` if its runs are."""

    @property
    def question(self) -> Columns:
        """Columns in use: those of the law with the most factors if there are several laws."""

    @property
    def laws(self) -> tuple[str, ...]:
        """Names of the laws in use, several for a mixture."""

    @property
    def diagnostics(self) -> Diagnostics:
        """Of the sampling."""

    def check_targets(self, targets: pd.DataFrame, *, who: str) -> pd.DataFrame:
        """Return the rows with every column that the model needs.

        Raises
        ------
        TunecastError
            In a sentence that calls the table ``who``, such as "targets".
        """

    def draws(self, targets: pd.DataFrame, *, seed: int | None = None) -> PredictiveDraws:
        """Return draws for checked rows, joint over them.

        What is new, such as a checkpoint without runs, is drawn by its name and the seed, so that
        rows which share it share the draw.
        """

    def thinned(self, draws: int) -> Self:
        """Return the model with at most so many posterior draws, spread over the chains."""

    def cell_parameters(self) -> Mapping[tuple[str, ...], Mapping[str, np.ndarray]]:
        """Return posterior draws of each cell's parameters in the papers' spelling.

        By cell (its values of `Columns.cell`), by name (``A``, ``beta``, ``E``, ``D_l``,
        ``alpha:model_size``), each of shape (draws,) and in the order of `draws`. Only asked of
        fits of one law.
        """
