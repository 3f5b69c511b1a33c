"""Question: are gains right, do both estimators agree on a real posterior, and how fast are they?

    python benchmarks/plan.py FIT.nc [--out benchmarks/results/plan.json]

FIT.nc is a fit of the ladder without its largest model. Four parts:

* closed form: a linear-Gaussian outcome with a nuisance, 50 sets of draws for each estimator,
  beside pyro's nested Monte Carlo (with M' draws of the nuisance) on the same model at several
  sizes: error against seconds. Without pyro and torch that part is left out, and said to be.
* agreement: both estimators for runs on two checkpoints, known and new, with the posterior of FIT.
* speed: one step for 125 to 4,000 candidates with 2,000 draws, for each goal, drawing included, and
  a batch of 20 out of 1,000; peak memory; a figure of seconds against candidates beside OUT.
* ends: what was asked of each, and whether it was reached.

Some minutes on one core.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from resume import save

from tunecast.models import Fit, load_fit
from tunecast.models.files import write_atomically
from tunecast.models.planning import plan
from tunecast.models.planning.batch import greedy_batch
from tunecast.models.planning.candidates import (
    comparison_rows,
    complete_candidates,
    complete_targets,
)
from tunecast.models.planning.goals import GOALS, ContinuousGoal, Goal, make_goal
from tunecast.models.planning.nested import NestedMonteCarlo
from tunecast.models.planning.outcomes import Outcomes, joint_predictive_draws
from tunecast.models.planning.regression import conditional_gains, gain_estimator

SEED = 0
NUISANCE, NOISE = 0.8, 0.5  # of an outcome y = g + NUISANCE u + NOISE e; all standard normal
TRUTH = 0.5 * np.log(1 + 1 / (NUISANCE**2 + NOISE**2))
SETS = 50
POOLS = (125, 250, 500, 1000, 2000, 4000)
DRAWS = 2000
STEP_SECONDS, BATCH_SECONDS, MEMORY_GIB = 10.0, 60.0, 2.0


def closed_form() -> dict[str, Any]:
    """Return error and calibration of each estimator over independent sets of draws."""
    found: dict[str, Any] = {"truth": TRUTH}
    for name in ("regression", "nested"):
        gains, errors, began = [], [], time.perf_counter()
        for seed in range(SETS):
            rng = np.random.default_rng([SEED, seed])
            g, u = rng.standard_normal((2, DRAWS))
            outcomes = Outcomes(
                (g + NUISANCE * u)[:, None], np.full((DRAWS, 1), NOISE), np.full(DRAWS, np.inf)
            )
            goal = ContinuousGoal((g[:, None],))
            estimate = (
                conditional_gains(outcomes, goal, [0], seed)[0]
                if name == "regression"
                else NestedMonteCarlo(outcomes, goal, np.random.default_rng([seed, 1])).gain(0)
            )
            gains.append(estimate.gain)
            errors.append(estimate.mcse)
        found[name] = _accuracy(np.array(gains), time.perf_counter() - began)
        z = (np.array(gains) - TRUTH) / np.array(errors)
        found[name]["within_two_own_errors"] = float((np.abs(z) < 2).mean())
    return found


def _accuracy(gains: np.ndarray, seconds: float) -> dict[str, float]:
    n = len(gains)
    return {
        "mean": float(gains.mean()),
        "error_of_mean": float(gains.std(ddof=1) / np.sqrt(n)),
        "relative_bias": float(gains.mean() / TRUTH - 1),
        "rmse": float(np.sqrt(((gains - TRUTH) ** 2).mean())),
        "seconds_each": seconds / n,
    }


def pyro_nested() -> dict[str, Any]:
    """Return the same for pyro.contrib.oed's nested Monte Carlo at several sizes."""
    try:
        import pyro
        import torch
        from pyro.contrib.oed.eig import nmc_eig
        from pyro.distributions import Normal
    except ImportError as error:
        return {"left_out": f"{error.name} is not installed"}
    torch.set_num_threads(1)

    def model(design: Any) -> Any:
        with pyro.plate_stack("plate", design.shape):
            g = pyro.sample("g", Normal(torch.zeros_like(design), 1.0))
            u = pyro.sample("u", Normal(torch.zeros_like(design), 1.0))
            return pyro.sample("y", Normal(g + NUISANCE * u, NOISE))

    found: dict[str, Any] = {"version": pyro.__version__}
    for n, m in ((100, 10), (500, 25), (2000, 50), (5000, 70), (20000, 140)):
        gains, began = [], time.perf_counter()
        for seed in range(SETS):
            pyro.set_rng_seed(seed)
            value = nmc_eig(model, torch.ones(1), "y", "g", N=n, M=m, M_prime=m)
            gains.append(float(value))
        found[f"N {n}, M {m}"] = _accuracy(np.array(gains), time.perf_counter() - began)
    return found


def agreement(fit: Fit) -> dict[str, Any]:
    """Return both estimates for every run of a small pool, at two goals, and how they differ."""
    task = str(fit.runs["task"].iloc[0])
    largest = float(fit.runs["model_size"].max())
    place = {"task": task, "model_size": 2 * largest, "finetune_examples": 6000.0}
    known = fit.runs["base_model"].iloc[int(fit.runs["model_size"].argmax())]
    rows = [
        {**place, "method": method, "base_model": base, "model_size": size, "finetune_examples": d}
        for method in ("fmt", "lora", "prompt")
        for base, size in ((known, largest), ("", 2 * largest))
        for d in (200.0, 2000.0, 20000.0)
    ]
    targets = complete_targets(fit, pd.DataFrame([place]))
    completed = complete_candidates(fit, pd.DataFrame(rows))
    outcomes, at_targets = joint_predictive_draws(fit, completed, targets, SEED)
    comparisons = comparison_rows(fit.spec, targets)
    goals: dict[str, Goal] = {
        name: make_goal(fit, name, targets, at_targets, comparisons)
        for name in ("winner", "forecast")
    }
    found: dict[str, Any] = {}
    for name, goal in goals.items():
        nested = NestedMonteCarlo(outcomes, goal, np.random.default_rng([SEED, 1]))
        lines = []
        for i, row in enumerate(rows):
            exact, bound = nested.gain(i), conditional_gains(outcomes, goal, [i], SEED)[0]
            lines.append(
                {
                    **{k: row[k] for k in ("method", "base_model", "finetune_examples")},
                    "nested": exact.gain, "nested_se": exact.mcse, "ess": exact.ess,
                    "regression": bound.gain, "regression_se": bound.mcse,
                }
            )  # fmt: skip
        table = pd.DataFrame(lines)
        gap = table["regression"] - table["nested"]
        error = np.hypot(table["regression_se"], table["nested_se"])
        found[name] = {
            "mean_nested": table["nested"].mean(),
            "mean_regression": table["regression"].mean(),
            "within_two_errors": float((gap.abs() < 2 * error).mean()),
            "rank_correlation": float(table["nested"].corr(table["regression"], "spearman")),
            "lowest_z": float(
                min((table[e] / table[f"{e}_se"]).min() for e in ("nested", "regression"))
            ),
            "runs": lines,
        }
    return found


def candidates(fit: Fit, n: int) -> pd.DataFrame:
    """Return n runs spread over methods, new sizes and data sizes."""
    rng = np.random.default_rng(SEED)
    sizes = np.geomspace(1e5, 1e7, 20)
    return pd.DataFrame(
        {
            "task": fit.runs["task"].iloc[0],
            "method": np.array(["fmt", "lora", "prompt"])[np.arange(n) % 3],
            "model_size": sizes[rng.integers(0, len(sizes), n)],
            "finetune_examples": np.exp(rng.uniform(np.log(60), np.log(1e5), n)),
        }
    )


def speed(fit: Fit) -> dict[str, Any]:
    """Return seconds of one step by goal and number of candidates, and of a batch of 20."""
    few = fit.thinned(DRAWS)
    targets = pd.DataFrame(
        {"task": [fit.runs["task"].iloc[0]], "model_size": [1e7], "finetune_examples": [1e5]}
    )
    at = complete_targets(fit, targets)
    comparisons = comparison_rows(fit.spec, at)
    found: dict[str, Any] = {"draws": few.posteriors[0].size, "step": {}, "batch": {}}
    for name in GOALS:
        found["step"][name] = {}
        for n in POOLS:
            pool, began = candidates(fit, n), time.perf_counter()
            fresh = few.thinned(DRAWS)  # the same draws, but nothing kept from the pool before
            completed = complete_candidates(fresh, pool)
            outcomes, at_targets = joint_predictive_draws(fresh, completed, at, SEED)
            asked = make_goal(fresh, name, None, at_targets, comparisons)
            if name == "winner":
                gain_estimator(outcomes, asked, np.random.default_rng(SEED)).approximate_gains()
            start = gain_estimator(outcomes, asked.surrogate(), np.random.default_rng(SEED))
            # One run by each of both rules, as a plan does it.
            greedy_batch(start, np.arange(1.0, n + 1), np.inf, 1, np.arange(n))
            found["step"][name][n] = time.perf_counter() - began
            print(name, n, round(found["step"][name][n], 2), "s", flush=True)
        slope = np.polyfit(np.log(POOLS), np.log(list(found["step"][name].values())), 1)[0]
        found["step"][name]["exponent"] = float(slope)
        began = time.perf_counter()
        given = None if name == "parameters" else targets
        answer = plan(fit, candidates(fit, 1000), goal=name, targets=given, draws=DRAWS,
                      allow_unconverged=True)  # fmt: skip
        found["batch"][name] = {
            "seconds": time.perf_counter() - began,
            "runs": len(answer.runs),
            "share_of_best": answer.batch.share_of_best,
        }
        print(name, "batch", found["batch"][name], flush=True)
    found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return found


def figure(timed: dict[str, Any]) -> Figure:
    """Return seconds against candidates, with a line of slope 1."""
    fig = Figure(figsize=(5, 3.6), layout="constrained")
    FigureCanvasAgg(fig)
    ax = fig.add_subplot()
    for name, steps in timed["step"].items():
        ax.plot(POOLS, [steps[n] for n in POOLS], marker="o", ms=4, label=name)
    top = max(steps[POOLS[-1]] for steps in timed["step"].values())
    ax.plot(POOLS, [top * n / POOLS[-1] for n in POOLS], color="grey", ls=":", label="linear")
    ax.set(xscale="log", yscale="log", xlabel="candidates", ylabel="seconds")
    ax.set_title(f"One step with {timed['draws']:,} draws is linear in candidates", fontsize=10)
    ax.set_xticks(POOLS, [f"{n:,}" for n in POOLS], minor=False)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return fig


def main(fit_path: Path, out: Path) -> None:
    """Measure, print and save."""
    fit = load_fit(fit_path)
    body: dict[str, Any] = {"command": "python " + " ".join(sys.argv)}
    body["closed_form"] = closed_form()
    print(body["closed_form"], flush=True)
    body["pyro"] = pyro_nested()
    print(body["pyro"], flush=True)
    body["agreement"] = agreement(fit)
    body["speed"] = speed(fit)
    steps = [s[1000] for s in body["speed"]["step"].values()]
    batches = [b["seconds"] for b in body["speed"]["batch"].values()]
    body["reached"] = {
        "closed_form_within_2_percent": all(
            abs(body["closed_form"][n]["relative_bias"]) < 0.02 for n in ("regression", "nested")
        ),
        "step_of_1000": max(steps) <= STEP_SECONDS,
        "batch_of_20": max(batches) <= BATCH_SECONDS,
        # The measurements before it share the process, so this is from above.
        "memory": body["speed"]["peak_gib"] <= MEMORY_GIB,
    }
    save(out, body)
    drawn = figure(body["speed"])
    write_atomically(out.with_suffix(".png"), lambda path: drawn.savefig(path, dpi=110))
    for name in ("agreement", "reached"):
        told = {
            k: {i: v for i, v in x.items() if i != "runs"} if isinstance(x, dict) else x
            for k, x in body[name].items()
        }
        print(name, told)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fit", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/plan.json"))
    given = parser.parse_args()
    main(given.fit, given.out)
