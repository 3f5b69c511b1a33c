"""Question: does the one compiled model of masked.py forecast what a fit of the same rows does?

    python benchmarks/masked_check.py --out benchmarks/results/masked_check.json

Both fit the runs of a simulated world (worlds.py): the whole pool, and what a random choice buys
for a tenth of its cost. Compared are median and 90 % width of the log losses expected at 16B.
Differences are in Monte Carlo errors, which come from chains that differ by their seed alone.
With the whole pool the two are one model in two coordinates; with a part, their priors are stated
at other reference points. Control, which must fail: the same comparison with half of the rows.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from masked import masked
from plan_worlds import START, costs_of, of_task
from resume import save
from strategies import within
from worlds import METHODS, TASKS, contests, laws_of_a_world

from tunecast.models.fits import Fit, Member
from tunecast.models.inference import compile_model, question_of, sample
from tunecast.models.layout import lay_out
from tunecast.models.priors import WEAK
from tunecast.models.simulate import simulate

ALARM = 4.0  # Monte Carlo errors; among 36 figures of a right pair, one in 400 exceeds them


def figures(fits: list[Fit], targets: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return median and 90 % width of each target, and Monte Carlo errors, shape (2, targets)."""
    found = []
    for one in fits:
        low, middle, high = np.quantile(np.log(one.draws(targets).expected), [0.05, 0.5, 0.95], 0)
        found.append([middle, high - low])
    each = np.array(found)
    return each.mean(axis=0), each.std(axis=0, ddof=1) / np.sqrt(len(each))


def compared(
    a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]
) -> dict[str, float]:
    """Return how far two lots of figures lie apart, in widths and in Monte Carlo errors."""
    (median, width), (other, its) = a[0], b[0]
    # Few chains know an error badly, so errors are pooled over the targets, each as its width.
    error = np.hypot(a[1], b[1])
    pooled = its * np.sqrt(((error / its) ** 2).mean(axis=1, keepdims=True))
    z = (a[0] - b[0]) / pooled
    return {
        "median_off_in_widths": float(np.abs((median - other) / its).max()),
        "width_ratio_low": float((width / its).min()),
        "width_ratio_high": float((width / its).max()),
        "largest_z": float(np.abs(z).max()),
        "rms_z": float(np.sqrt((z**2).mean())),
    }


def main(out: Path, settings: dict[str, int]) -> None:
    """Fit both ways, compare, print and save."""
    rng = np.random.default_rng([settings["seed"], 0])
    pool, _ = of_task(simulate(rng, laws=laws_of_a_world(rng)), TASKS[0])
    costs, losses = costs_of(pool), pool["loss"].to_numpy(float)
    some = np.zeros(len(pool), dtype=bool)
    some[np.argsort(costs, kind="stable")[: round(START * len(pool))]] = True
    some[within(rng.permutation(len(pool)), costs, 0.1 * costs.sum())] = True
    half = some & (np.arange(len(pool)) % 2 == 0)
    every = contests()[contests()["task"] == TASKS[0]]
    targets = pd.concat([every.assign(method=m) for m in METHODS], ignore_index=True)
    model = masked(pool, law="multiplicative", cell=("task", "method"))
    chain = {"draws": settings["draws"], "tune": settings["tune"]}
    seeds = range(1, settings["chains"] + 1)
    body: dict[str, Any] = {"command": "python " + " ".join(sys.argv), "settings": settings}
    for name, bought in (("whole pool", np.ones(len(pool), dtype=bool)), ("a tenth", some)):
        began = time.perf_counter()
        here = [model.fit(losses, bought, chains=1, seed=s, **chain) for s in seeds]
        seconds = time.perf_counter() - began
        ours = figures(here, targets)
        runs = pool[bought].reset_index(drop=True)
        layout = lay_out(runs, question_of(runs, law="multiplicative", cell=("task", "method")))
        compiled, plain = compile_model(layout, WEAK), []
        began = time.perf_counter()
        for s in seeds:
            posterior, found = sample(
                layout, WEAK, compiled=compiled, chains=2, seed=s, retry=False,
                draws=settings["draws"], tune=settings["tune"],
            )  # fmt: skip
            plain.append(Fit((Member(layout, WEAK, posterior, 1.0),), runs, here[0].info, found))
        body[name] = {
            "rows": int(bought.sum()),
            "seconds": {"masked": seconds, "fit": time.perf_counter() - began},
            "rhat": {
                "masked": [f.diagnostics.rhat_max for f in here],
                "fit": [f.diagnostics.rhat_max for f in plain],
            },
            **compared(ours, figures(plain, targets)),
        }
        print(name, body[name], flush=True)
        if name == "a tenth":
            other = [model.fit(losses, half, chains=1, seed=s, **chain) for s in seeds]
            body["control: half of them"] = compared(ours, figures(other, targets))
            print(body["control: half of them"])
    body["agree"] = body["whole pool"]["largest_z"] < ALARM
    body["control_fails"] = body["control: half of them"]["largest_z"] > ALARM
    save(out, body)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/masked_check.json"))
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--tune", type=int, default=400)
    parser.add_argument("--chains", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    given = vars(parser.parse_args())
    main(given.pop("out"), given)
