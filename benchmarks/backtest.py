"""Question: do forecasts hold on real runs that no forecaster saw, and whose are best?

    python benchmarks/backtest.py [--out benchmarks/results/backtest.json] [--only tunecast]

Splits of the rectified_ft table (both tasks together): cuts at 1,600, 6,400, 25,600 and 102,400
examples with everything above scored, each with all models, and with the largest model of four
families unseen (then the unseen models are scored apart too); and the published split of
revisiting_nsl. Every forecaster gets the same rows. Scores are on log loss. About 25 minutes on
two cores.

The forecasters: tunecast with its defaults; an unpooled Bayesian fit, each curve on its own; least
squares by curve and by group with bootstrap; simple-scaling-laws with its new-run intervals.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from baselines import group_least_squares, per_curve_least_squares, simple_scaling_laws
from data import largest_of_families, rectified_ft, revisiting_nsl
from ensembles import score_samples
from resume import save
from unpooled import unpooled

from tunecast.models import Fit, fit

CUTS = (1_600, 6_400, 25_600, 102_400)
SEED = 0

Split = tuple[str, pd.DataFrame, pd.DataFrame]


def splits() -> Iterator[Split]:
    """Yield name, training rows and rows to score."""
    runs = rectified_ft()
    runs = runs[runs["finetune_examples"] > 0]
    largest = largest_of_families(runs)
    unseen = runs["base_model"].isin(largest)
    for cut in CUTS:
        below = runs["finetune_examples"] <= cut
        yield f"all models, D <= {cut}", runs[below], runs[~below]
        test = runs[~below].assign(seen=lambda frame: ~frame["base_model"].isin(largest))
        yield f"largest unseen, D <= {cut}", runs[below & ~unseen], test
    curves = revisiting_nsl()
    yield "revisiting_nsl", curves[curves["is_train"] == 1], curves[curves["is_train"] == 0]


def tunecast_fit(train: pd.DataFrame, law: str) -> Fit:
    """Return a fit with the defaults; a table without sizes has no factor."""
    factors = None if "model_size" in train else ()
    cell = ("task", "method", "family") if "family" in train else ("task", "method")
    return fit(
        train, law=law, factors=factors, cell=cell, seed=SEED, progress=False,
        allow_unconverged=True, retry=False,
    )  # fmt: skip


def forecasters(only: str) -> dict[str, Callable[[pd.DataFrame, pd.DataFrame], np.ndarray]]:
    """Return the peers by name, each a function of training rows and rows to forecast."""
    peers: dict[str, Callable[..., np.ndarray]] = {
        "least squares by curve": per_curve_least_squares,
        "least squares by group": group_least_squares,
        "simple-scaling-laws multiplicative": simple_scaling_laws("multiplicative-power"),
        "simple-scaling-laws separable": simple_scaling_laws("separable"),
        "unpooled": unpooled,
    }
    return {
        name: functools.partial(peer, seed=SEED, draws=1000)
        for name, peer in peers.items()
        if not only or only in name
    }


def score(draws: np.ndarray, test: pd.DataFrame) -> list[dict[str, Any]]:
    """Return scores over all rows and by task and, where models are unseen, by that.

    Peers have samples and no density, so everybody's log score is that of a kernel estimate.
    """
    by = [c for c in ("task", "seen") if c in test]
    groups = test[by].astype(str).reset_index(drop=True)
    rows = score_samples(draws, test["loss"].to_numpy(float), groups).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def main(out: Path, only: str = "", law: str = "rectified") -> None:
    """Run every split and every forecaster, print and save the scores."""
    rows: list[dict[str, Any]] = json.loads(out.read_text())["scores"] if out.exists() else []
    there = {(row["split"], row["forecaster"]) for row in rows}
    for name, train, test in splits():
        train, test = train.reset_index(drop=True), test.reset_index(drop=True)
        started = time.perf_counter()
        if only in ("", "tunecast") and (name, "tunecast") not in there:
            result = tunecast_fit(train, law)
            draws = result.draws(test).loss
            seconds = time.perf_counter() - started
            about = vars(result.diagnostics) | {"converged": result.diagnostics.converged}
            rows += _rows(name, "tunecast", draws, test, seconds, about)
        for peer, forecast in forecasters(only).items():
            if (name, peer) in there:
                continue
            started = time.perf_counter()
            try:
                draws = forecast(train, test)
            except ValueError as error:
                print(f"{name}: {peer} cannot: {error}", flush=True)
                continue
            rows += _rows(name, peer, draws, test, time.perf_counter() - started, {})
        save(out, body_of(rows))
    print(averages(rows).round(4).to_string())


def _rows(
    split: str,
    forecaster: str,
    draws: np.ndarray,
    test: pd.DataFrame,
    seconds: float,
    about: dict[str, Any],
) -> list[dict[str, Any]]:
    scored = score(draws, test)
    head = scored[0]
    print(
        f"{split:28} {forecaster:36} n {head['n']:4} CRPS {head['crps']:.4f} "
        f"log score {head['log_score']:6.3f} cover90 {head['cover90']:.3f} {seconds:6.1f} s "
        f"{ {k: round(v, 3) for k, v in about.items()} or '' }",
        flush=True,
    )
    extra = {"split": split, "forecaster": forecaster, "seconds": seconds, "diagnostics": about}
    return [extra | record for record in scored]


def averages(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return means over splits for each forecaster, and the lowest coverage of a split."""
    table = pd.DataFrame(rows)
    table = table[table["group"] == "all"]
    return table.groupby("forecaster", sort=False).agg(
        splits=("crps", "size"), crps=("crps", "mean"), log_score=("log_score", "mean"),
        cover90=("cover90", "mean"), lowest_cover90=("cover90", "min"), seconds=("seconds", "mean"),
    )  # fmt: skip


def body_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is saved: the scores, and the command that made them."""
    return {
        "command": "python " + " ".join(sys.argv),
        "python": platform.python_version(),
        "averages": averages(rows).to_dict(orient="index"),
        "scores": rows,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/backtest.json"))
    parser.add_argument("--only", default="", help="part of a forecaster's name")
    parser.add_argument("--law", default="rectified")
    given = parser.parse_args()
    main(given.out, given.only, given.law)
