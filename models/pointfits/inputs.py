"""From run tables and values of factors to arrays: checked at the border, one sentence a fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.laws import Law
from tunecast.models.pointfits.problem import Array, Indices, Problem, Residuals, scaled_problem

#: Values of each factor by its name: a mapping or a frame.
type Factors = Mapping[str, npt.ArrayLike] | pd.DataFrame


def finished_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose ``status`` is ``done``, or all if there is no such column."""
    return frame[frame["status"] == "done"] if "status" in frame else frame


def factor_values(factors: Sequence[str], X: Factors | None) -> dict[str, Array]:
    """Return the values of the factors of a fit; others are ignored.

    Raises
    ------
    TunecastError
        When one of them is missing.
    """
    for factor in factors:
        if X is None or factor not in X:
            raise TunecastError(f"missing factor '{factor}': the fit has factors {list(factors)}")
    return {} if X is None else {factor: np.asarray(X[factor], dtype=float) for factor in factors}


def size_codes(problem: Problem) -> Indices:
    """Return for each run the number of its combination of sizes: replicates share one."""
    sizes = np.stack([problem.D, *problem.X.values()], axis=1)
    return np.unique(sizes, axis=0, return_inverse=True)[1].ravel()


def checked_problem(
    frame: pd.DataFrame,
    law: Law,
    factors: tuple[str, ...],
    data: str,
    delta: float,
    scale: Residuals,
    fixed: dict[str, Any],
) -> Problem:
    """Return the problem of fitting a law to a run table.

    Raises
    ------
    TunecastError
        When a column is missing or not numeric, a value is outside the law's domain, or there are
        too few runs or distinct values for what is to be estimated.
    """
    if not delta > 0:
        raise TunecastError(f"delta must be positive, got {delta}")
    if scale not in ("loss", "log"):
        raise TunecastError(f"residuals must be 'loss' or 'log', got '{scale}'")
    if factors and not any(parameter.per_factor for parameter in law.parameters):
        raise TunecastError(f"law '{law.name}' takes no factors, got {list(factors)}")
    _check_fixed(law, factors, fixed)
    runs = finished_runs(frame)
    loss, D = _column(runs, "loss"), _column(runs, data)
    X = {factor: _column(runs, factor) for factor in factors}
    for name, values in (("loss", loss), *X.items()):
        _check_rows(values > 0, f"'{name}' must be positive")
    if law.has("D_l"):  # the only law that is finite without data
        _check_rows(D >= 0, f"'{data}' must not be negative")
    else:
        _check_rows(D > 0, f"'{data}' must be positive for law '{law.name}'")
    if not (D > 0).any():
        raise TunecastError(f"too few runs: none has a positive '{data}'")
    problem = scaled_problem(law, D, X, loss, delta=delta, scale=scale, fixed=fixed)
    _check_enough(problem, data)
    return problem


def _check_fixed(law: Law, factors: tuple[str, ...], fixed: Mapping[str, Any]) -> None:
    # An amplitude's unit depends on the exponents, so to hold it while they move means nothing.
    allowed = [name for name in ("alpha", "beta", "E", "D_l") if law.has(name)]
    for name, value in fixed.items():
        if name not in allowed:
            raise TunecastError(
                f"cannot fix '{name}' of law '{law.name}': expected some of {allowed}"
            )
        if name == "alpha":
            unknown = sorted(set(value) - set(factors))
            if unknown:
                raise TunecastError(
                    f"cannot fix alpha of {unknown}: the factors are {list(factors)}"
                )
        elif not value > 0:
            raise TunecastError(f"fixed '{name}' must be positive, got {value}")


def _check_enough(problem: Problem, data: str) -> None:
    runs, free = len(problem.loss), len(problem.coordinates)
    sizes = len(np.unique(size_codes(problem)))
    if sizes < free:
        raise TunecastError(
            f"too few runs: law '{problem.law.name}' has {free} free parameters here and the "
            f"{runs} runs lie at {sizes} different sizes"
        )
    for coordinate in problem.coordinates:
        name, factor = coordinate.name, coordinate.factor
        if name == "beta":
            column, values = data, problem.D * problem.D_ref
        elif name == "alpha" and factor is not None:
            column, values = factor, problem.X[factor] * problem.X_ref[factor]
        else:
            continue
        if np.ptp(values) <= 1e-12 * values.max():
            raise TunecastError(
                f"'{column}' has one value only ({values[0]:g}), so its exponent {name} cannot be "
                "estimated: leave the column out or fix the exponent"
            )


def _check_rows(good: npt.NDArray[np.bool_], must: str) -> None:
    bad = np.flatnonzero(~good)
    if len(bad):
        raise TunecastError(
            f"{must}: {len(bad)} of {len(good)} runs, the first in row {bad[0] + 1}"
        )


def _column(frame: pd.DataFrame, name: str) -> Array:
    if name not in frame:
        raise TunecastError(f"missing column '{name}': the runs have {list(frame.columns)}")
    try:
        values = frame[name].to_numpy(dtype=float)
    except (TypeError, ValueError):
        raise TunecastError(f"column '{name}' is not numeric") from None
    _check_rows(np.isfinite(values), f"'{name}' must be finite")
    return values
