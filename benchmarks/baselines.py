"""What a careful user would do without this package, as forecasters to be beaten.

Question: how good are forecasts from least squares and from simple-scaling-laws on the same runs?
Every forecaster has one signature,

    forecast(train, test, *, seed, draws=400, fallbacks=None) -> ndarray, shape (draws, len(test))

and returns draws of the LOSS in nats that one new run would show at each row of ``test``. Frames
have the columns of a run table: ``task, method, base_model, finetune_examples, loss`` and, where
known, ``family`` and ``model_size``. ``loss`` of ``test`` is never read.

No failure is hidden. Where a forecaster cannot do what its name says for some rows, it does the
next simpler thing and says so: a :class:`Fallback` goes to the list ``fallbacks`` if the caller
gives one, else they are summed up in one warning.

Zero-shot rows (``finetune_examples`` 0) of ``train`` are left out, and in ``test`` they are an
error: a power law has no value there.

    python benchmarks/baselines.py [SMALLEST [LARGEST]]

scores them all on the rectified_ft table, fitted on sizes between the two (0 and 25,600) and
tested above, in about three minutes on one core.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from data import FAMILIES, rectified_ft

from tunecast.models.pointfits import bootstrap, fit_point

type Array = npt.NDArray[np.float64]

#: A loss is positive, but a package that fits it on the raw scale may draw below zero far outside
#: the data. Such draws are set to this value, in nats, so that log losses exist.
SMALLEST_LOSS = 0.01

CURVE = ("task", "method", "base_model")
GROUP = ("task", "method", "family")


@dataclass(frozen=True, slots=True)
class Fallback:
    """A group of runs for which a forecaster could not do what its name says.

    Parameters
    ----------
    forecaster, group : str
        Who, and for which runs.
    used : str
        What it did instead.
    reason : str
        Why.
    rows : int
        How many rows of ``test`` were forecast that way.
    """

    forecaster: str
    group: str
    used: str
    reason: str
    rows: int


class FallbackWarning(UserWarning):
    """Some rows were forecast by something simpler than the forecaster's name says."""


class Forecaster(Protocol):
    """What every baseline is; see the top of the module."""

    def __call__(
        self,
        train: pd.DataFrame,
        test: pd.DataFrame,
        *,
        seed: int,
        draws: int = 400,
        fallbacks: list[Fallback] | None = None,
    ) -> Array: ...


# --------------------------------------------------------------------------- least squares


def per_curve_least_squares(
    train: pd.DataFrame,
    test: pd.DataFrame,
    *,
    seed: int,
    draws: int = 400,
    fallbacks: list[Fallback] | None = None,
    law: str = "power",
    replicates: int = 100,
) -> Array:
    """Each curve on its own: ``A D^-beta + E`` by least squares on log loss, residual bootstrap.

    A curve is one (task, method, base_model). To each refit comes a resampled residual for the
    noise of the new run. A curve that is absent from ``train`` (an unseen base model) or has too
    few runs falls back to :func:`group_least_squares`, which uses the model size.
    """
    name = "per_curve_least_squares"
    result = np.empty((draws, len(test)))
    notes: list[Fallback] = []
    known = {key: rows for key, rows in _groups(_usable(train), CURVE)}
    left: list[int] = []
    for key, rows in _positions(test, CURVE):
        try:
            result[:, rows] = _least_squares(
                known.get(key, _NO_RUNS), test.iloc[rows], law, (), seed, key, draws, replicates
            )
        except ValueError as error:
            notes.append(Fallback(name, key, "group_least_squares", str(error), len(rows)))
            left.extend(rows)
    if left:
        result[:, left] = group_least_squares(
            train, test.iloc[left], seed=seed, draws=draws, fallbacks=notes, replicates=replicates
        )
    _report(notes, fallbacks)
    return result


def group_least_squares(
    train: pd.DataFrame,
    test: pd.DataFrame,
    *,
    seed: int,
    draws: int = 400,
    fallbacks: list[Fallback] | None = None,
    replicates: int = 100,
    law: str = "multiplicative",
) -> Array:
    """Each family jointly: ``A N^-alpha D^-beta + E`` by least squares on log loss, bootstrap.

    With the law ``additive`` it is ``A N^-alpha + B D^-beta + E``. A group is one (task, method,
    family), or (task, method) if there is no ``family``. With a single size in ``train``, or none
    known, the size is dropped and the law is a power law in ``D``. A family absent from ``train``
    falls back to all runs of its task and method, on ``D`` alone because losses do not compare
    across tokenizers.
    """
    result = np.empty((draws, len(test)))
    notes: list[Fallback] = []
    usable = _usable(train)
    known = {key: rows for key, rows in _groups(usable, GROUP)}
    for key, rows in _positions(test, GROUP):
        at = test.iloc[rows]
        try:
            runs = known.get(key, _NO_RUNS)
            factors = _size_factor(runs, at)
            result[:, rows] = _least_squares(
                runs, at, law if factors else "power", factors, seed, key, draws, replicates
            )
        except ValueError as error:
            result[:, rows] = _pooled(usable, at, seed, draws, replicates)
            notes.append(
                Fallback("group_least_squares", key, "task and method", str(error), len(rows))
            )
    _report(notes, fallbacks)
    return result


def _least_squares(
    runs: pd.DataFrame,
    at: pd.DataFrame,
    law: str,
    factors: Sequence[str],
    seed: int,
    key: str,
    draws: int,
    replicates: int,
) -> Array:
    if not len(runs):
        raise ValueError("no runs in train")
    fit = fit_point(runs, law=law, factors=factors, delta=math.inf, residuals="log")
    # Residuals rather than runs: dropping one of four sizes at random leaves nothing to fit.
    refits = bootstrap(
        runs,
        fit,
        replicates=min(replicates, draws),
        seed=_seed(seed, key),
        resample="residuals",
    )
    X = {factor: at[factor].to_numpy(dtype=float) for factor in factors}
    return refits.new_run(at["finetune_examples"].to_numpy(dtype=float), X, draws=draws)


def _pooled(
    usable: pd.DataFrame, at: pd.DataFrame, seed: int, draws: int, replicates: int
) -> Array:
    """The last resort: a power law through all runs of the task and method, else of all tasks."""
    same = (usable["task"] == at["task"].iloc[0]) & (usable["method"] == at["method"].iloc[0])
    for runs in (usable[same], usable):
        try:
            return _least_squares(runs, at, "power", (), seed, "pooled", draws, replicates)
        except ValueError as error:
            reason = error
    raise ValueError(f"no forecast is possible from these runs: {reason}")


# --------------------------------------------------------------------------- simple-scaling-laws


def simple_scaling_laws(
    law: Literal["multiplicative-power", "separable"] = "multiplicative-power",
    *,
    by: Literal["group", "curve"] = "group",
    n_draws: int = 200,
) -> Forecaster:
    """Return a forecaster that uses the package simple-scaling-laws as its README says.

    Parameters
    ----------
    law : {"multiplicative-power", "separable"}
        ``E + A N^-alpha D^-beta``, or the package's default ``E + A N^-alpha + B D^-beta``.
    by : {"group", "curve"}
        Fit each (task, method, family) jointly in model size and ``D``, or each curve on ``D``
        alone, where both laws are the power law.
    n_draws : int
        Bootstrap refits for each group; the package's default of 1000 takes five times as long.

    Notes
    -----
    The package keeps its bootstrap refits, and ``ScalingLawModel.target_draws(kind="new-run")``
    is the documented primitive from which ``predict`` takes its quantiles: one value for each
    refit, training-run noise included. Those draws are used as they are and used again with fresh
    noise if more are asked for. The loss is fitted on its own scale, as the package does with
    every loss; draws below :data:`SMALLEST_LOSS` are set to it. Each run is one ``training_run_id``
    with one evaluation. Groups with a single size are fitted on ``D`` alone (the package drops a
    constant predictor itself). Where the fit fails or warns that it is a constant, the group is
    forecast by :func:`group_least_squares` and reported.
    """
    families = {
        "multiplicative-power": "multiplicative-power",
        "separable": "separable-power",
    }
    if law not in families:
        raise ValueError(f"unknown law '{law}': expected one of {', '.join(families)}")
    name = f"simple_scaling_laws[{law}, {by}]"
    columns = GROUP if by == "group" else CURVE

    def forecast(
        train: pd.DataFrame,
        test: pd.DataFrame,
        *,
        seed: int,
        draws: int = 400,
        fallbacks: list[Fallback] | None = None,
    ) -> Array:
        import polars  # noqa: F401
        import simple_scaling_laws  # noqa: F401  that it is not there is no failure of its own

        result = np.empty((draws, len(test)))
        notes: list[Fallback] = []
        known = {key: rows for key, rows in _groups(_usable(train), columns)}
        left: list[int] = []
        for key, rows in _positions(test, columns):
            runs, at = known.get(key, _NO_RUNS), test.iloc[rows]
            try:
                sized = by == "group" and bool(_size_factor(runs, at))
                result[:, rows] = _peer_draws(
                    families[law], runs, at, sized, _seed(seed, key), draws, n_draws
                )
            except Exception as error:  # whatever a peer raises is its failure, to be counted
                reason = f"{type(error).__name__}: {error}"
                notes.append(Fallback(name, key, "group_least_squares", reason, len(rows)))
                left.extend(rows)
        if left:
            result[:, left] = group_least_squares(
                train, test.iloc[left], seed=seed, draws=draws, fallbacks=notes
            )
        _report(notes, fallbacks)
        return result

    return forecast


def _peer_draws(
    law: str,
    runs: pd.DataFrame,
    at: pd.DataFrame,
    sized: bool,
    seed: int,
    draws: int,
    n_draws: int,
) -> Array:
    import polars as pl
    import simple_scaling_laws as peer

    if not len(runs):
        raise ValueError("no runs in train")

    def predictors(frame: pd.DataFrame) -> dict[str, Any]:
        columns = {"dataset_size__examples": frame["finetune_examples"].to_numpy(dtype=float)}
        if sized:
            columns["model_size__params"] = frame["model_size"].to_numpy(dtype=float)
        return columns

    table = {
        "training_run_id": [str(i) for i in range(len(runs))],
        "test_loss__nats": runs["loss"].to_numpy(dtype=float),
        **predictors(runs),
    }
    model = peer.fit(pl.DataFrame(table), law=law, n_draws=n_draws, seed=seed)
    if any(note.code == "constant_target" for note in model.warnings):
        raise ValueError("the package could only fit a constant")
    log_x = model.fitting_predictors(model.prepare_points(pl.DataFrame(predictors(at))))
    rng = np.random.default_rng(seed)
    rounds = [
        model.target_draws("test_loss__nats", log_x, kind="new-run", rng=rng)
        for _ in range(-(-draws // n_draws))
    ]
    values = np.concatenate(rounds)[:draws]
    if not np.isfinite(values).all():
        raise ValueError("the package's draws are not all finite")
    return np.maximum(values, SMALLEST_LOSS)


# --------------------------------------------------------------------------- shared parts

_NO_RUNS = pd.DataFrame({"finetune_examples": [], "loss": []})


def _usable(train: pd.DataFrame) -> pd.DataFrame:
    keep = train["finetune_examples"] > 0
    if "status" in train:
        keep &= train["status"] == "done"
    return train[keep]


def _keys(frame: pd.DataFrame, columns: Sequence[str]) -> pd.Series[str]:
    present = [column for column in columns if column in frame]
    return frame[present].astype(str).agg("/".join, axis=1)


def _groups(frame: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    if len(frame):
        for key, rows in frame.groupby(_keys(frame, columns), sort=True):
            yield str(key), rows


def _positions(frame: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """The row positions of each group, whatever the frame's index is."""
    if not (frame["finetune_examples"] > 0).all():
        raise ValueError("these forecasters need finetune_examples > 0 in every row of test")
    if len(frame):
        for key, rows in frame.reset_index(drop=True).groupby(_keys(frame, columns).to_numpy()):
            yield str(key), rows.index.tolist()


def _size_factor(runs: pd.DataFrame, at: pd.DataFrame) -> tuple[str, ...]:
    known = "model_size" in runs and "model_size" in at
    if not known or runs["model_size"].isna().any() or at["model_size"].isna().any():
        return ()
    return ("model_size",) if runs["model_size"].nunique() > 1 else ()


def _seed(seed: int, key: str) -> int:
    """A seed for one group that does not depend on which other groups there are."""
    return (seed * 1_000_003 + zlib.crc32(key.encode())) % 2**32


def _report(notes: list[Fallback], fallbacks: list[Fallback] | None) -> None:
    if fallbacks is not None:
        fallbacks.extend(notes)
    elif notes:
        rows = sum(note.rows for note in notes)
        shown = "; ".join(f"{note.forecaster} on {note.group}: {note.reason}" for note in notes[:3])
        warnings.warn(
            FallbackWarning(f"{len(notes)} groups ({rows} rows) fell back, such as {shown}"),
            stacklevel=3,
        )


# --------------------------------------------------------------------------- a quick look


def scores(log_draws: Array, log_loss: Array) -> dict[str, float]:
    """Return CRPS, RMSE of the median and coverage of the 90 % interval, on log loss."""
    draws = np.sort(log_draws, axis=0)
    m = len(draws)
    # E|X - y| - E|X - X'| / 2; the second mean from the order statistics.
    weight = (2 * np.arange(1, m + 1) - m - 1)[:, None]
    spread = (weight * draws).sum(axis=0) / m**2
    crps = np.abs(draws - log_loss).mean(axis=0) - spread
    low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95], axis=0)
    return {
        "crps": float(crps.mean()),
        "rmse": float(np.sqrt(np.mean((middle - log_loss) ** 2))),
        "cov90": float(np.mean((low <= log_loss) & (log_loss <= high))),
    }


FORECASTERS: dict[str, Callable[..., Array]] = {
    "per_curve_least_squares": per_curve_least_squares,
    "group_least_squares": group_least_squares,
    "simple_scaling_laws[multiplicative-power]": simple_scaling_laws("multiplicative-power"),
    "simple_scaling_laws[separable]": simple_scaling_laws("separable"),
    "simple_scaling_laws[multiplicative-power, curve]": simple_scaling_laws(by="curve"),
}


def main(smallest: float = 0.0, largest: float = 25_600.0) -> None:
    """Print the scores of every baseline, fitted on ``smallest < D <= largest``."""
    runs = rectified_ft()
    families = runs["family"].isin(FAMILIES)
    D = runs["finetune_examples"]
    for title, rows in (("all 60 curves", D >= 0), ("four families", families)):
        train = runs[rows & (D > smallest) & (largest >= D)]
        test = runs[rows & (largest < D)]
        print(f"{title}: {len(train)} rows to fit, {len(test)} to forecast")
        for name, forecast in FORECASTERS.items():
            start, fallbacks = time.perf_counter(), list[Fallback]()
            draws = forecast(train, test, seed=0, fallbacks=fallbacks)
            result = scores(np.log(draws), np.log(test["loss"].to_numpy(dtype=float)))
            figures = "  ".join(f"{key} {value:.3f}" for key, value in result.items())
            seconds = time.perf_counter() - start
            clipped = int((draws <= SMALLEST_LOSS).sum())
            print(
                f"  {name:50} {figures}  {seconds:5.1f} s, {len(fallbacks)} fallbacks, "
                f"{clipped} draws at the smallest loss"
            )


if __name__ == "__main__":
    main(*(float(value) for value in sys.argv[1:3]))
