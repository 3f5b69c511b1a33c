"""One forecaster on one table of the zoo, in a process of its own: what `zoo.py` starts.

    python benchmarks/zoo_one.py "three_sizes" "tunecast" answer.json

writes whether there is a forecast, how far beyond the data it goes, and its scores.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from baselines import (
    Fallback,
    Forecaster,
    group_least_squares,
    per_curve_least_squares,
    simple_scaling_laws,
)
from conformal import split_conformal
from ensembles import score_samples
from resume import save
from zoo_averages import DISTANCES
from zoo_simulated import SIMULATED
from zoo_tables import REAL, Entry, Table

from tunecast.models import fit
from tunecast.models.errors import TunecastError, one_line
from tunecast.models.hierarchy.numpy_backends import simulate_prior
from tunecast.models.hierarchy.predict import Predictor
from tunecast.models.hierarchy.priors import WEAK
from tunecast.models.hierarchy.table import Table as Indexed
from tunecast.models.hierarchy.table import checked_runs, index_runs, spec_of, usable
from tunecast.models.hierarchy.targets import check_targets

TUNECAST = "tunecast"
PEERS: Mapping[str, Forecaster] = {
    "least squares by curve": per_curve_least_squares,
    "least squares": group_least_squares,
    "least squares additive": partial(group_least_squares, law="additive"),
    "least squares + conformal": split_conformal(group_least_squares),
    "simple-scaling-laws multiplicative": simple_scaling_laws("multiplicative-power"),
    "simple-scaling-laws separable": simple_scaling_laws("separable"),
}
ENTRIES: Mapping[str, Entry] = {entry.name: entry for entry in (*REAL, *SIMULATED)}
DONE = "done"
SEED, DRAWS = 0, 1000
NEAR, FAR = 2.0, 8.0
KEPT = ("group", "n", "crps", "rmse", "bias", "log_score", "cover50", "cover90")


def indexed(table: Table) -> Indexed:
    """Return what tunecast makes of the training rows, too few or not."""
    ask: dict[str, Any] = {
        "factors": None, "data": "finetune_examples", "cell": None, "curve": "base_model",
        **table.options,
    }  # fmt: skip
    rows = usable(checked_runs(table.train, law="rectified", **ask), ask["data"])
    return index_runs(rows, spec_of(rows, law="rectified", **ask), check=False)


def beyond(runs: Indexed, test: pd.DataFrame) -> np.ndarray:
    """Return how many times beyond the data each row lies, as tunecast's forecasts tell it.

    It follows from the tables alone, so draws from the prior will do.
    """
    prior = simulate_prior(runs, WEAK, 2, SEED, None)
    draws = Predictor(runs, WEAK, prior.values, SEED).draws(check_targets(test, runs))
    return draws.extrapolation


def as_peers_read(table: Table, rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with the data axis, one size, and base models in the columns that peers know.

    Where base models have no names, a curve is that of a size.
    """
    frame = rows.copy()
    if "data" in table.options:
        frame["finetune_examples"] = frame[table.options["data"]]
    factors = table.options.get("factors", ("model_size",))
    if factors:
        frame["model_size"] = frame[factors[-1]]
    if "base_model" not in frame or frame["base_model"].isna().all():
        frame["base_model"] = frame["model_size"].astype(str)
    return frame


def forecast_by_peer(name: str, table: Table) -> tuple[np.ndarray, dict[str, Any]]:
    """Return draws of a new run's loss, and how many rows were forecast by something simpler.

    Raises
    ------
    ValueError
        When all were.
    """
    train, test = (as_peers_read(table, rows) for rows in (table.train, table.test))
    fallbacks: list[Fallback] = []
    draws = PEERS[name](train, test, seed=SEED, draws=DRAWS, fallbacks=fallbacks)
    reasons = sorted({note.reason for note in fallbacks})
    # A row may fall back twice, from a curve to a group and on.
    first = {note.forecaster for note in fallbacks[:1]}
    rows = sum(note.rows for note in fallbacks if note.forecaster in first)
    if rows >= len(test):
        raise ValueError(reasons[0])
    return draws, {"fallback_rows": rows, "fallback_reasons": reasons}


def forecast_by_tunecast(table: Table) -> tuple[np.ndarray, dict[str, Any]]:
    """Return draws of a new run's loss by a fit with default options, and its diagnostics."""
    # A fit that failed its diagnostics is scored too, and marked.
    result = fit(table.train, **table.options, progress=False, allow_unconverged=True)
    about = {"converged": result.diagnostics.converged, "diagnostics": asdict(result.diagnostics)}
    return result.draws(table.test.drop(columns="loss")).loss, about


def scores(table: Table, draws: np.ndarray, far: np.ndarray) -> list[dict[str, Any]]:
    """Return scores on log loss over all rows, by distance, and by what the table asks."""
    if not (np.isfinite(draws).all() and (draws > 0).all()):
        raise ValueError("draws of the loss are not all finite and above 0")
    groups = table.test[list(table.by)].reset_index(drop=True)
    groups["distance"] = np.select([far <= NEAR, far <= FAR], DISTANCES[:2], DISTANCES[2])
    observed = table.test["loss"].to_numpy(float)
    rows = score_samples(draws, observed, groups).to_dict("records")
    return [{name: row[name] for name in KEPT} for row in rows]


def answer(name: str, forecaster: str) -> dict[str, Any]:
    """Return the outcome of a forecaster on a table: its scores, or one sentence why not."""
    table = ENTRIES[name].table()
    found: dict[str, Any] = {"train": len(table.train), "test": len(table.test)}
    try:
        runs = indexed(table)
        found["curves"] = len(runs.curve_cell)
        far = beyond(runs, table.test)
        if forecaster == TUNECAST:
            draws, about = forecast_by_tunecast(table)
        else:
            draws, about = forecast_by_peer(forecaster, table)
        return found | {"outcome": DONE} | about | {"scores": scores(table, draws, far)}
    except Exception as error:  # a crash on one table is a result too
        # Peers have no error of their own for what they cannot use.
        refused = TunecastError if forecaster == TUNECAST else ValueError
        said = one_line(error)
        if isinstance(error, refused):
            return found | {"outcome": f"refused: {said}"}
        return found | {"outcome": f"error: {type(error).__name__}: {said}"}


def main(name: str, forecaster: str, out: Path) -> None:
    save(out, answer(name, forecaster))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
