"""Question: where the truth is known, do intervals and p_best at 16B mean what they say?

    python benchmarks/worlds.py --worlds 200 --out benchmarks/results/worlds.json

Each world draws the parameters of the published laws anew within their rounding (Zhang et al. 2024,
Table 4), then the effects of checkpoints and curves and the noise of runs, on its design. The
runs of 1B to 8B are fitted; those of 16B, a checkpoint that no fit has seen, are forecast. A world
depends on (seed, number) alone. Each is one line of a JSONL file beside OUT, so a killed run goes
on where it stopped.

Every row of a world errs together (two 16B checkpoints serve all of them), so bands come from
worlds: the mean over rows of each world with the standard error between worlds; and, exactly
binomial, one row from each world. Negative controls, which must fail: the same intervals at half
their width, and p_best with the methods exchanged. Fits that fail their diagnostics count like all
others, and their share is reported. It says how forecasts do when the law is right, and nothing on
whether it is.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from refits import fit_rows
from resume import mean_and_error, repeat, save
from scipy.stats import binom

from tunecast.models.laws.published import LANGUAGE_MODEL, PRINTED, ByCell, Row
from tunecast.models.laws.simulate import (
    BASE_MODEL_EFFECT,
    CURVE_EFFECT,
    RUN_NOISE,
    published_loss,
    simulate,
)
from tunecast.models.pointfits import fit_point
from tunecast.models.questions.compare import compare
from tunecast.models.questions.scoring import BAND, COVERAGES, crps

HELD_OUT = 16e9
TASKS = tuple(LANGUAGE_MODEL)
METHODS = ("fmt", "lora", "prompt")  # in the order of `compare`
# Where the methods are compared, in fine-tuning examples: from the adapters' range to full
# fine-tuning's. In between, one of the two is extrapolated.
EXAMPLES = (1e4, 3e4, 1e5, 3e5, 1e6, 3e6)
SHRINK = 0.5
CLOSE = 0.02  # comparisons won by less than this in log loss are scored apart
ALARM = 1e-4  # a calibrated forecaster fails a line of the table as rarely as this
SEED = 0


def rounded(value: float, rng: np.random.Generator) -> float:
    """Return a number, uniform among those that print as this one with two digits."""
    unit = 10.0 ** np.floor(np.log10(abs(value)) - 1)
    while True:
        drawn = float(value + unit * rng.uniform(-0.5, 0.5))
        if float(f"{drawn:.2g}") == value:
            return drawn


def laws_of_a_world(rng: np.random.Generator) -> ByCell:
    """Return the published parameters of each cell, each anew within its rounding."""
    names = ("A_m", "alpha_m", "beta", "E")
    laws: dict[tuple[str, str], Row] = {}
    for cell, row in PRINTED.items():
        laws[cell] = replace(row, **{name: rounded(getattr(row, name), rng) for name in names})
    return laws


def split(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the runs to fit and those to forecast."""
    held_out = runs["model_size"] == HELD_OUT
    return runs[~held_out].reset_index(drop=True), runs[held_out].reset_index(drop=True)


def comparison_targets() -> pd.DataFrame:
    """Return the targets at which the methods are compared: each task, each data size, at 16B."""
    rows = [
        {
            "task": task,
            "base_model": f"{LANGUAGE_MODEL[task]}-16b",
            "model_size": HELD_OUT,
            "finetune_examples": examples,
        }
        for task in TASKS
        for examples in EXAMPLES
    ]
    return pd.DataFrame(rows)


def true_losses(laws: ByCell, test: pd.DataFrame) -> np.ndarray:
    """Return expected log losses, shape (targets, methods), with the effects of the 16B runs."""
    effect = np.log(test["expected_loss"] / published_loss(test, laws))
    by_curve = effect.groupby([test["task"], test["method"]]).mean()
    losses = [
        np.log(published_loss(comparison_targets().assign(method=m), laws))
        + by_curve.reindex([(task, m) for task in comparison_targets()["task"]]).to_numpy()
        for m in METHODS
    ]
    return np.array(losses).T


def point_winners(train: pd.DataFrame) -> np.ndarray:
    """Return the winner at each target by a least-fuss fit of each cell on its own."""
    targets, losses = comparison_targets(), []
    for method in METHODS:
        column = np.empty(len(targets))
        for task in TASKS:
            rows = train[(train["task"] == task) & (train["method"] == method)]
            fitted = fit_point(rows, law="multiplicative", factors=["model_size"])
            at = (targets["task"] == task).to_numpy()
            here = targets[at]
            column[at] = fitted.predict(here["finetune_examples"], here)
        losses.append(column)
    return np.argmin(losses, axis=0)


def world(number: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what one world says: hits of each interval, p_best, the winners, diagnostics."""
    rng = np.random.default_rng([settings["seed"], number])
    laws = laws_of_a_world(rng)
    runs = simulate(
        rng,
        noise=settings["noise"],
        base_effect=settings["base_effect"],
        curve_effect=settings["curve_effect"],
        laws=laws,
    )
    train, test = split(runs)
    # A task settles the language pair, so the pair is no column of its own here.
    ask = {"law": settings["law"], "cell": ("task", "method")}
    chain = {name: settings[name] for name in ("draws", "tune", "chains", "target_accept")}
    started = time.perf_counter()
    fit = fit_rows(train, ask, seed=int(rng.integers(2**31)), **chain)
    seconds = time.perf_counter() - started
    x = np.log(fit.draws(test).loss)
    y = np.log(test["loss"].to_numpy(float))
    table = compare(fit, comparison_targets())
    p_best = table["p_best"].to_numpy().reshape(-1, len(METHODS))
    truth = true_losses(laws, test)
    assert tuple(table["method"][: len(METHODS)]) == METHODS
    return {
        "number": number,
        "hits": hits(x, y),
        "hits_shrunk": hits(np.median(x, axis=0) + SHRINK * (x - np.median(x, axis=0)), y),
        "crps": float(crps(x, y).mean()),
        "sd": float(x.std(axis=0).mean()),
        "error": float(np.abs(np.median(x, axis=0) - y).mean()),
        "p_best": p_best.round(6).tolist(),
        "truth": truth.argmin(axis=1).tolist(),
        "margin": np.diff(np.sort(truth, axis=1)[:, :2], axis=1)[:, 0].round(6).tolist(),
        "point": point_winners(train).tolist(),
        "converged": fit.diagnostics.converged,
        "diagnostics": asdict(fit.diagnostics),
        "seconds": seconds,
    }


def hits(x: np.ndarray, y: np.ndarray) -> dict[str, list[int]]:
    """Return, for each nominal coverage, which rows lie in the central interval."""
    found = {}
    for nominal in COVERAGES:
        low, high = np.quantile(x, [(1 - nominal) / 2, (1 + nominal) / 2], axis=0)
        found[f"{nominal:g}"] = ((low <= y) & (y <= high)).astype(int).tolist()
    return found


def coverage(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return a line for each nominal coverage: over worlds, and for one row of each world."""
    lines = []
    n = len(records)
    for nominal in COVERAGES:
        by_world = np.array([r[kind][f"{nominal:g}"] for r in records])  # (worlds, rows)
        mean, error = mean_and_error(by_world.mean(axis=1))
        # Row i of world i, spread over the table: independent from world to world.
        rows = [(7 * r["number"]) % by_world.shape[1] for r in records]
        count = int(by_world[np.arange(n), rows].sum())
        tails = (binom.cdf(count, n, nominal), binom.sf(count - 1, n, nominal))
        low, high = binom.interval(BAND, n, nominal)
        lines.append(
            {
                "nominal": nominal,
                "coverage": mean,
                "standard_error": error,
                "low": mean - 1.96 * error,
                "high": mean + 1.96 * error,
                "one_row": count / n,
                "one_row_low": low / n,
                "one_row_high": high / n,
                "one_row_p": min(1.0, 2 * float(min(tails))),
            }
        )
    return lines


def too_narrow(lines: list[dict[str, Any]]) -> bool:
    """Whether one row of each world falls outside its intervals too often for chance."""
    below = [line for line in lines if line["one_row"] < line["nominal"]]
    return min((line["one_row_p"] for line in below), default=1.0) < ALARM / len(lines)


def too_wide(lines: list[dict[str, Any]]) -> bool:
    """Whether one row of each world falls inside its intervals too often for chance."""
    above = [line for line in lines if line["one_row"] > line["nominal"]]
    return min((line["one_row_p"] for line in above), default=1.0) < ALARM / len(lines)


def brier(p: np.ndarray, winner: np.ndarray) -> np.ndarray:
    """Return the Brier score over the methods, 0 to 2, for p of shape (..., methods)."""
    return ((p - np.eye(len(METHODS))[winner]) ** 2).sum(axis=-1)


def winners(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return Brier scores of p_best and its rivals, over all targets and by data size."""
    p = np.array([r["p_best"] for r in records])  # (worlds, targets, methods)
    truth = np.array([r["truth"] for r in records])
    point = np.eye(len(METHODS))[np.array([r["point"] for r in records])]
    rivals = {
        "p_best": p,
        "always_a_third": np.full_like(p, 1 / len(METHODS)),
        "point_fit": point,
        "methods_exchanged": np.roll(p, 1, axis=-1),
    }
    scores = {name: brier(q, truth) for name, q in rivals.items()}
    out: dict[str, Any] = {}
    for name, score in scores.items():
        mean, error = mean_and_error(score.mean(axis=1))
        out[name] = {"brier": mean, "standard_error": error}
        if name != "p_best":
            # The same worlds on both sides, so the difference is surer than either score.
            gap, gap_error = mean_and_error((score - scores["p_best"]).mean(axis=1))
            out[name] |= {"minus_p_best": gap, "minus_p_best_error": gap_error}
    sizes = comparison_targets()["finetune_examples"].to_numpy()
    out["by_examples"] = [
        {"examples": size} | {n: float(s[:, sizes == size].mean()) for n, s in scores.items()}
        for size in EXAMPLES
    ]
    close = np.array([r["margin"] for r in records]) < CLOSE
    out["close"] = {"margin": CLOSE, "share": float(close.mean())}
    out["close"] |= {n: float(s[close].mean()) for n, s in scores.items() if close.any()}
    out["reliability"] = reliability(p, truth)
    out["share_of_wins"] = dict(
        zip(METHODS, np.bincount(truth.ravel(), minlength=len(METHODS)) / truth.size, strict=True)
    )
    return out


def reliability(p: np.ndarray, truth: np.ndarray) -> list[dict[str, float]]:
    """Return, for bins of p_best, its mean, how often the method won, and the error of that."""
    won = np.eye(len(METHODS))[truth]
    edges = np.array([0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1 + 1e-9])
    lines = []
    for low, high in itertools.pairwise(edges):
        inside = (p >= low) & (p < high)
        if not inside.any():
            continue
        # Contests of a world err together: the error of the mean difference is between worlds.
        differs = np.where(inside, won - p, 0).sum(axis=(1, 2))
        error = np.sqrt((differs**2).sum()) / inside.sum()
        line = {"p_best": p[inside].mean(), "won": won[inside].mean(), "won_error": error}
        lines.append({"low": low, "high": min(high, 1.0), "n": int(inside.sum()), **line})
    return lines


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the result over worlds, controls included."""
    lines = coverage(records, "hits")
    control = coverage(records, "hits_shrunk")
    converged = np.array([r["converged"] for r in records])
    best = winners(records)
    result: dict[str, Any] = {
        "worlds": len(records),
        "converged": float(converged.mean()),
        "rhat_max": sorted(r["diagnostics"]["rhat_max"] for r in records),
        "ess_bulk_min": sorted(r["diagnostics"]["ess_bulk_min"] for r in records),
        "coverage": lines,
        "crps": mean_and_error([r["crps"] for r in records])[0],
        "predictive_sd": mean_and_error([r["sd"] for r in records])[0],
        "absolute_error": mean_and_error([r["error"] for r in records])[0],
        "seconds_per_world": mean_and_error([r["seconds"] for r in records])[0],
        "winners": best,
        "too_narrow": too_narrow(lines),
        "too_wide": too_wide(lines),
        "control_half_width": {"coverage": control, "too_narrow": too_narrow(control)},
        "control_methods_exchanged": {
            "worse_than_a_third": best["methods_exchanged"]["brier"]
            > best["always_a_third"]["brier"]
        },
    }
    if converged.any() and not converged.all():
        good = [r for r in records if r["converged"]]
        result["coverage_of_converged"] = coverage(good, "hits")
    return result


def run(path: Path, worlds: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records of all worlds, making those that the file lacks."""
    return repeat(path, worlds, settings, world)


def main(out: Path, worlds: int, settings: dict[str, Any]) -> None:
    """Run the worlds, print and save the result."""
    records = run(out.with_suffix(".jsonl"), worlds, settings)
    result = summarise(records)
    save(out, {"command": "python " + " ".join(sys.argv), "settings": settings, **result})
    table = pd.DataFrame(result["coverage"]).set_index("nominal")
    table["half_width"] = [r["one_row"] for r in result["control_half_width"]["coverage"]]
    print(table.round(4).to_string())
    scores = pd.DataFrame({k: v for k, v in result["winners"].items() if "brier" in v}).T
    print(scores.round(4).to_string())
    print(
        f"converged {result['converged']:.0%} of {worlds}, too narrow: {result['too_narrow']}, "
        f"too wide: {result['too_wide']}"
    )
    if not result["control_half_width"]["too_narrow"]:
        print("half the width is not too narrow: the worlds are too few, or the intervals too wide")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/worlds.json"))
    parser.add_argument("--worlds", type=int, default=200)
    parser.add_argument("--law", default="multiplicative", help="the law fitted; the truth's too")
    parser.add_argument("--draws", type=int, default=1600)
    parser.add_argument("--tune", type=int, default=500)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--target-accept", type=float, default=0.95)
    parser.add_argument("--noise", type=float, default=RUN_NOISE)
    parser.add_argument("--base-effect", type=float, default=BASE_MODEL_EFFECT)
    parser.add_argument("--curve-effect", type=float, default=CURVE_EFFECT)
    parser.add_argument("--seed", type=int, default=SEED)
    given = vars(parser.parse_args())
    main(given.pop("out"), given.pop("worlds"), given)
