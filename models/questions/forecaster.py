"""What a question is asked of: whatever makes posterior predictive draws for targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pandas as pd

from tunecast.models.checks.misfit import Misfit, concerning, misfits_in
from tunecast.models.errors import TunecastError
from tunecast.models.hierarchy.predict import Draws
from tunecast.models.hierarchy.table import Spec
from tunecast.models.inference.diagnostics import Diagnostics

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Forecaster(Protocol):
    """What a question needs; `tunecast.models.Fit` has it."""

    @property
    def runs(self) -> pd.DataFrame:
        """The runs that were fitted."""

    @property
    def info(self) -> Mapping[str, Any]:
        """Where the draws come from: at least ``seed``; ``simulated`` and ``misfits``, if any."""

    @property
    def diagnostics(self) -> Diagnostics:
        """Of the sampling."""

    @property
    def spec(self) -> Spec:
        """Columns that targets have."""

    def draws(self, targets: pd.DataFrame, *, seed: int | None = None) -> Draws:
        """Return posterior predictive draws for a table of targets."""


def misfits_at(fit: Forecaster, asked: pd.DataFrame) -> list[tuple[Misfit, ...]]:
    """Return, for each row of targets, the checks that the fit fails where the row lies.

    See `tunecast.models.checks.misfit.concerning` for cells that were not fitted.
    """
    misfits = misfits_in(fit.info)
    if not misfits:
        return [()] * len(asked)
    columns = list(fit.spec.cell)
    cells = list(fit.runs[columns].astype(str).drop_duplicates().itertuples(index=False, name=None))
    levels = asked.reindex(columns=columns).astype(object)
    rows = [
        tuple(None if pd.isna(v) or v == "" else str(v) for v in row)
        for row in levels.itertuples(index=False, name=None)
    ]
    found = {row: concerning(misfits, cells, row) for row in set(rows)}
    return [found[row] for row in rows]


def marked(
    table: pd.DataFrame, fit: Forecaster, misfits: Sequence[Sequence[Misfit]] | None = None
) -> pd.DataFrame:
    """Return an answer with the marks that it must carry, in place.

    Parameters
    ----------
    table : DataFrame
        The answer.
    fit : Forecaster
        Where it is from.
    misfits : sequence of sequence of Misfit, optional
        For each row, what concerns it; by default, the row holds its cell.
    """
    table["converged"] = fit.diagnostics.converged
    if fit.info.get("simulated"):
        table["simulated"] = True
    found = misfits_at(fit, table) if misfits is None else misfits
    kinds = ["; ".join(dict.fromkeys(m.kind for m in row)) for row in found]
    if any(kinds):
        table["misfit"] = kinds
    return table


def methods_of(fit: Forecaster) -> list[str]:
    """Return the methods in the runs of a fit."""
    return sorted(fit.runs["method"].astype(str).unique())


def check_method(fit: Forecaster, method: str) -> None:
    """Refuse a method that the runs do not have, or that the fit does not tell from others.

    Raises
    ------
    TunecastError
        One sentence that lists those they have.
    """
    if "method" not in fit.spec.cell:
        raise TunecastError(
            f"the fit has one curve for all methods (its cells are by {', '.join(fit.spec.cell)}): "
            "expected cells that tell methods apart"
        )
    known = methods_of(fit)
    if method not in known:
        raise TunecastError(f"unknown method '{method}': the runs have {', '.join(known)}")
