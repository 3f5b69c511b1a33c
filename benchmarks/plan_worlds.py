"""Question: does a plan by information name the right winner sooner than other ways to spend?

    python benchmarks/plan_worlds.py --worlds 100 --seed 1 --out benchmarks/results/plan_worlds.json

Each world draws laws, checkpoints and noise as worlds.py does, of one task: worlds 0, 3, 6 ... are
of the first task, and so on. The pool are its runs of 1B to 8B, at a cost of 6ND with one token an
example. The cheapest 5 % of them are known at the start; each strategy then buys for 1 % of the
pool's cost, fits again, and goes on to 5 and to 10 % likewise (strategies.py). Every such fit is
judged at the six data sizes of 16B that the plans were asked about: how often the method of the
highest p_best is the true winner, what choosing it costs in nats, and the CRPS of the losses
expected. "whole pool" is what all runs together reach.

Which way the checkpoint of 16B deviates, no run of the pool can tell, and which of two close
methods wins there is mostly that. So each fit is judged against many such checkpoints of its world,
drawn anew, and the mean is taken: the same rates as against one, with less chance in them.

Refits are short chains, the same length for all strategies (refits.py). A world depends on (seed,
number) alone, and is one line of a JSONL file beside OUT; a killed run goes on, and a second
process with --backwards shares the work.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from refits import cheapest, fit_rows
from resume import append, kept, mean_and_error, missing, save
from strategies import BUDGETS, STRATEGIES, Market, campaign
from worlds import METHODS, TASKS, comparison_targets, laws_of_a_world, split

from tunecast.models import Fit
from tunecast.models.laws.published import ByCell
from tunecast.models.laws.simulate import (
    BASE_MODEL_EFFECT,
    CURVE_EFFECT,
    published_loss,
    simulate,
)
from tunecast.models.questions.scoring import crps

START = 0.05  # the cheapest share of runs that is known
ASK = {"law": "multiplicative", "cell": ("task", "method")}
CHECKPOINTS = 200  # of 16B, that each fit is judged against


def costs_of(pool: pd.DataFrame) -> np.ndarray:
    """Return 6ND, one token an example."""
    return 6 * pool["model_size"].to_numpy(float) * pool["finetune_examples"].to_numpy(float)


def checkpoints(laws: ByCell, places: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Return expected log losses for checkpoints drawn anew, shape (checkpoints, places, methods).

    All places are of one task and one model size.
    """
    law = np.array([np.log(published_loss(places.assign(method=m), laws)) for m in METHODS]).T
    shared = BASE_MODEL_EFFECT * rng.standard_normal((CHECKPOINTS, 1, 1))
    return law + shared + CURVE_EFFECT * rng.standard_normal((CHECKPOINTS, 1, len(METHODS)))


def judged(fit: Fit, places: pd.DataFrame, truth: np.ndarray) -> dict[str, Any]:
    """Return right winners, regret in nats and CRPS of expected log losses."""
    x = np.log(fit.draws(with_methods(places)).expected)
    # Not by `compare`: a method of which nothing was bought is a candidate for winning too.
    best = x.reshape(len(x), len(METHODS), -1).argmin(axis=1)
    named = np.array([np.bincount(b, minlength=len(METHODS)).argmax() for b in best.T])
    losses = np.exp(truth)
    regret = losses[:, np.arange(len(named)), named] - losses.min(axis=2)
    return {
        "right": float((named == truth.argmin(axis=2)).mean()),
        "regret": float(regret.mean()),
        "crps": float(np.mean([crps(x, y.T.ravel()).mean() for y in truth])),
        "rhat": fit.diagnostics.rhat_max,
        "divergences": fit.diagnostics.divergences,
    }


def task_of(number: int) -> str:
    """Return the task of a world."""
    return TASKS[number % len(TASKS)]


def world(number: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Return how each strategy did at each budget in one world."""
    rng = np.random.default_rng([settings["seed"], number])
    laws = laws_of_a_world(rng)
    task = task_of(number)
    runs = simulate(rng, laws=laws)
    pool, _ = split(runs[runs["task"] == task].reset_index(drop=True))
    places = comparison_targets().query("task == @task").reset_index(drop=True)
    truth = checkpoints(laws, places, rng)
    costs = costs_of(pool)
    known = cheapest(costs, round(START * len(pool)))
    chain = {name: settings[name] for name in ("draws", "tune", "chains")}
    seed = int(rng.integers(2**31))
    start = fit_rows(pool[known], ASK, seed=seed, **chain)
    record: dict[str, Any] = {
        "world": number,
        "start": judged(start, places, truth),
        "whole pool": judged(fit_rows(pool, ASK, seed=seed, **chain), places, truth),
    }
    # What a plan is judged at is what it was asked about.
    market = Market(pool, costs, with_methods(places), ASK)
    for name in STRATEGIES:
        stages = campaign(
            name, market, known, start, [share * costs.sum() for share in BUDGETS],
            seed=seed, plan_draws=settings["plan_draws"], chain=chain,
        )  # fmt: skip
        for share, (bought, fit) in zip(BUDGETS, stages, strict=True):
            new = bought & ~known
            record[f"{name} {share:g}"] = judged(fit, places, truth) | {
                "bought": int(new.sum()),
                "spent": float(costs[new].sum() / costs.sum()),
            }
    return record


def with_methods(places: pd.DataFrame) -> pd.DataFrame:
    """Return the places once for each method."""
    return pd.concat([places.assign(method=m) for m in METHODS], ignore_index=True)


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over worlds with standard errors, and differences from each rival."""
    out: dict[str, Any] = {"worlds": len(records)}
    for key in [k for k in records[0] if k != "world"]:
        out[key] = {}
        for score in ("right", "regret", "crps", "rhat", "bought", "spent"):
            if score in records[0][key]:
                mean, error = mean_and_error([r[key][score] for r in records])
                out[key][score] = {"mean": mean, "error": error}
    out["paired"] = {}
    for share in BUDGETS:
        for goal, score in (("winner", "right"), ("winner", "regret"), ("forecast", "crps")):
            for rival in STRATEGIES:
                if rival == goal:
                    continue
                gaps = [
                    r[f"{goal} {share:g}"][score] - r[f"{rival} {share:g}"][score] for r in records
                ]
                mean, error = mean_and_error(gaps)
                name = f"{score} at {share:g}: {goal} minus {rival}"
                out["paired"][name] = {"mean": mean, "error": error}
    return out


def main(out: Path, worlds: int, backwards: bool, settings: dict[str, Any]) -> None:
    """Run the worlds, print and save the result."""
    path = out.with_suffix(".jsonl")
    for number in missing(path, settings, "world", worlds, backwards):
        append(path, world(number, settings))
        # A long run shows what it has so far.
        save(out, _body(kept(path, settings, "world"), settings))
    body = _body(kept(path, settings, "world"), settings)
    save(out, body)
    rows = {
        k: {s: v["mean"] for s, v in line.items()}
        for k, line in body.items()
        if isinstance(line, dict) and "right" in line
    }
    print(pd.DataFrame(rows).T.round(4).to_string())


def _body(done: dict[int, dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "command": "python " + " ".join(sys.argv),
        "settings": settings,
        "note": "refits are short chains; see 'rhat' for how far they are from converged",
        **summarise([done[number] for number in sorted(done)]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/plan_worlds.json"))
    parser.add_argument("--worlds", type=int, default=100)
    parser.add_argument("--draws", type=int, default=750)
    parser.add_argument("--tune", type=int, default=300)
    parser.add_argument("--chains", type=int, default=2)
    parser.add_argument("--plan-draws", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backwards", action="store_true")
    given = vars(parser.parse_args())
    main(given.pop("out"), given.pop("worlds"), given.pop("backwards"), given)
