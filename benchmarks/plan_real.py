"""Question: on real runs, how much of a pool must be bought to forecast what it is meant to tell?

    python benchmarks/plan_real.py rectified --starts 20 --out benchmarks/results/rectified.json
    python benchmarks/plan_real.py inside --starts 10 --out benchmarks/results/inside.json
    python benchmarks/plan_real.py parallel --out benchmarks/results/parallel.json
    python benchmarks/plan_real.py sparsity --out benchmarks/results/sparsity.json

rectified: the pool are the runs of rectified_ft up to 51,200 examples without the largest model of
each family, at a cost of N x D; scored is the CRPS of log loss of those largest models at 409,600
examples and more. A start is 5 % of the runs, drawn from the cheapest quarter; budgets are without
it.

inside: the same question one step down, with that pool for a table: bought are its runs up to 1,600
examples without its own largest models, scored those at 12,800 and more. Eight curves are few to
judge by; these are eight others.

parallel, sparsity: tables of ScaleBench (arXiv:2604.22753) with their published split, R^2 of the
loss on the target region, clipped to -1 as published. A start is the cheapest tenth of the runs,
four at least; it counts towards the budget, and what the budget leaves is spent. `parallel` costs N
a run and is fitted by A N^-alpha P^-beta + E for each group, with P the parallel size; `sparsity`
costs 6 N_active (D1 + D2), fitted by one law in P and N_active with D2 as the data axis (D1 is the
same in all). Both are tunecast's law and not those of the paper, so its figures, in PUBLISHED, are
no rerun of it.

Judged are tunecast's forecast goal, five rivals and the whole pool. Each strategy goes from budget
to budget and fits again at each (strategies.py); chains are short, of the same length for all
(refits.py). One start is one line of a JSONL file beside OUT; a killed run goes on, and a second
process with --backwards shares the work.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from data import largest_of_families, rectified_ft, scalebench
from refits import cheapest, fit_rows
from resume import append, kept, mean_and_error, missing, save
from strategies import BUDGETS, RIVALS, Market, campaign

from tunecast.models import Fit
from tunecast.models.questions.scoring import crps

JUDGED = ("forecast", *RIVALS)
# Table of arXiv:2604.22753 at its largest budget: 10 % (parallel), 50 % (sparsity). SL2 is its way.
PUBLISHED = {
    "parallel": {
        "random": 0.19, "cheapest": 0.42, "D-optimal": 0.99, "V-optimal": 0.99, "SL2": 0.99,
        "whole pool": 0.99,
    },
    "sparsity": {
        "random": 0.38, "cheapest": 0.32, "D-optimal": 0.19, "V-optimal": 0.51, "SL2": 0.53,
        "whole pool": 0.37,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """What can be bought, the runs to forecast, budgets, and whether a start counts."""

    market: Market
    test: pd.DataFrame
    budgets: tuple[float, ...]
    start_counts: bool


def problem(name: str) -> Problem:
    """Return the problem of a name."""
    ask: dict[str, Any]
    if name in ("rectified", "inside"):
        runs = rectified_ft()
        pool, test = _larger_and_longer(runs[runs["finetune_examples"] > 0], 51_200)
        if name == "inside":
            pool, test = _larger_and_longer(pool, 1_600)
        costs = pool["model_size"].to_numpy(float) * pool["finetune_examples"].to_numpy(float)
        ask = {"law": "rectified", "cell": ("task", "method", "family")}
        return Problem(Market(pool, costs, test.drop(columns="loss"), ask), test, BUDGETS, False)
    table = scalebench(name)
    if name == "parallel":
        cost = table["model_size"]
        ask = {"law": "multiplicative", "cell": ("task", "method")}
    else:
        cost = 6 * table["N_active"] * (table["D1"] + table["D2"])
        ask = {
            "law": "multiplicative",
            "cell": ("task", "method"),
            "factors": ("P", "N_active"),
        }
    train = (table["split"] == "train").to_numpy()
    pool, test = table[train].reset_index(drop=True), table[~train].reset_index(drop=True)
    budgets = BUDGETS if name == "parallel" else (*BUDGETS, 0.5)
    market = Market(pool, cost[train].to_numpy(float), test.drop(columns="loss"), ask)
    return Problem(market, test, budgets, True)


def _larger_and_longer(runs: pd.DataFrame, most: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return runs up to ``most`` examples, and those of the largest models from 8 times that."""
    unseen, size = runs["base_model"].isin(largest_of_families(runs)), runs["finetune_examples"]
    pool, test = runs[~unseen & (size <= most)], runs[unseen & (size >= 8 * most)]
    return pool.reset_index(drop=True), test.reset_index(drop=True)


def judged(fit: Fit, asked: Problem) -> dict[str, Any]:
    """Return scores of forecasts at the target region."""
    draws = fit.draws(asked.test)
    loss = asked.test["loss"].to_numpy(float)
    out = {
        "crps": float(crps(np.log(draws.loss), np.log(loss)).mean()),
        "rhat": fit.diagnostics.rhat_max,
    }
    # By group, as published, where the table has groups.
    groups = asked.test["task"].to_numpy(str)
    middle, scores = np.median(draws.expected, axis=0), []
    for group in np.unique(groups):
        at = groups == group
        rest = ((loss[at] - middle[at]) ** 2).sum()
        scores.append(max(-1.0, 1 - rest / ((loss[at] - loss[at].mean()) ** 2).sum()))
    return out | {"r2": float(np.mean(scores))}


def start(number: int, asked: Problem, settings: dict[str, Any]) -> dict[str, Any]:
    """Return how each strategy did from one start."""
    pool, costs, ask = asked.market.pool, asked.market.costs, asked.market.ask
    n = len(pool)
    rng = np.random.default_rng([settings["seed"], number])
    if asked.start_counts:
        known = cheapest(costs, max(4, n // 10))
    else:
        known = np.zeros(n, dtype=bool)
        quarter = np.flatnonzero(cheapest(costs, n // 4))
        known[rng.choice(quarter, round(0.05 * n), replace=False)] = True
    chain = {k: settings[k] for k in ("draws", "tune", "chains")}
    first = fit_rows(pool[known], ask, seed=number, **chain)
    record: dict[str, Any] = {"start": number, "known": judged(first, asked)}
    if settings["whole"]:
        record["whole pool"] = judged(fit_rows(pool, ask, seed=number, **chain), asked)
    counted = costs[known].sum() if asked.start_counts else 0.0
    budgets = [share * costs.sum() - counted for share in asked.budgets]
    for name in JUDGED:
        stages = campaign(
            name, asked.market, known, first, budgets,
            seed=number, plan_draws=settings["plan_draws"], chain=chain,
        )  # fmt: skip
        for share, (bought, fit) in zip(asked.budgets, stages, strict=True):
            new = bought & ~known
            line = judged(fit, asked) | {
                "bought": int(new.sum()),
                "spent": float(costs[new].sum() / costs.sum()),
            }
            record[f"{name} {share:g}"] = line
            print(number, name, share, {k: round(v, 4) for k, v in line.items()}, flush=True)
    return record


def main(name: str, out: Path, starts: int, backwards: bool, settings: dict[str, Any]) -> None:
    """Go through the starts, print and save the result."""
    asked, path, head = problem(name), out.with_suffix(".jsonl"), {"problem": name, **settings}
    for number in missing(path, head, "start", starts, backwards):
        append(path, start(number, asked, settings))
    done = kept(path, head, "start")
    records = [done[i] for i in sorted(done)]
    body: dict[str, Any] = {"command": "python " + " ".join(sys.argv), "starts": len(records)}
    body |= {"settings": settings, "published": PUBLISHED.get(name)}
    body["note"] = "refits are short chains; see 'rhat' for how far they are from converged"
    table = {}
    for key in [k for k in records[0] if k != "start"]:
        table[key] = {
            score: dict(zip(("mean", "error"), mean_and_error([r[key][score] for r in records]),
                            strict=True))
            for score in ("crps", "r2", "rhat")
        }  # fmt: skip
    save(out, body | {"scores": table})
    shown = {k: {s: v["mean"] for s, v in line.items()} for k, line in table.items()}
    print(pd.DataFrame(shown).T.round(4).to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=("rectified", "inside", "parallel", "sparsity"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--starts", type=int, default=1)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--tune", type=int, default=400)
    parser.add_argument("--chains", type=int, default=2)
    parser.add_argument("--plan-draws", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--whole", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--backwards", action="store_true")
    given = vars(parser.parse_args())
    name, out, starts, backwards = (given.pop(k) for k in ("name", "out", "starts", "backwards"))
    main(name, out, starts, backwards, given)
