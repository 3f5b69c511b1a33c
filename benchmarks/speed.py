"""Question: how long does a fit take, and what do the sampler's coordinates buy?

    python benchmarks/speed.py --out benchmarks/results/speed.json

*Commands*: wall time of the command line, each in a process of its own: `fit` to the saved file,
compilation included, on the embedded ladder and on rectified_ft up to 25,600 examples (FLAN and
Gigaword), `forecast` from the saved fit, `--help`.

*Ablation*: the same posterior of the second table, sampled four ways: (a) in the coordinates of
`tunecast.models.hierarchy.geometry`; (b) without them, in the centred form of the textbook; (c) the
same with nutpie's low-rank mass matrix; (d) the textbook model by `pm.sample` as PyMC ships it. The
first three share the compiled density, so that coordinates and mass matrix are all that differs.
Each doubles its draws, with as many to warm up, until R-hat is 1.05 at most over A, E, beta, alpha
and the curves' quantities, or its time is over; what did not get there is reported so, and has no
figure. The figure is the smallest effective sample size over the same quantities per second of the
last sampling, warm-up included and compilation apart, over three seeds. A seed of a way is one line
of a JSONL file beside OUT, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import nutpie
import pymc as pm
from arviz_stats.base import array_stats
from data import rectified_ft
from resume import append, kept, missing, save

from tunecast.models import load_fit
from tunecast.models.compile.density import compiled_density
from tunecast.models.hierarchy.numpy_backends import geometry_of, replay
from tunecast.models.hierarchy.priors import WEAK
from tunecast.models.hierarchy.pymc_model import build
from tunecast.models.hierarchy.table import Table, index_runs, spec_of
from tunecast.models.inference.sampling import CHAINS, STEP_JITTER, TARGET_ACCEPT

WHERE = "finetune_examples > 0 and finetune_examples <= 25600"
LOW_RANK, PM_SAMPLE = "no geometry, low-rank mass matrix", "no geometry, pm.sample"
WAYS = ("geometry", "no geometry", LOW_RANK, PM_SAMPLE)
SEEDS = 3
RHAT = 1.05
FIRST = 500  # draws of each chain
COMPARED = ("A", "E", "alpha", "beta", "logit_floor_curve", "log_beta_curve", "log_loss_ref_curve")


def tunecast(*arguments: str) -> float:
    """Return the wall time of one command, in seconds; 3 (not converged, but saved) is let by."""
    command = [sys.executable, "-m", "tunecast.analysis.cli", *arguments]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode not in (0, 3):
        raise RuntimeError(f"tunecast {' '.join(arguments)} failed: {done.stderr}")
    return seconds


def commands(folder: Path) -> dict[str, Any]:
    """Return wall times of fits, a forecast and the help, with the fits' diagnostics."""
    table, ladder, large = folder / "runs.csv", folder / "ladder.nc", folder / "large.nc"
    rectified_ft().to_csv(table, index=False)
    found: dict[str, Any] = {}
    fits: Mapping[str, tuple[Path, tuple[str, ...]]] = {
        "ladder": (ladder, ("ladder",)),
        "rectified_ft": (large, (str(table), "--where", WHERE)),
    }
    for name, (out, arguments) in fits.items():
        seconds = tunecast("fit", *arguments, "-o", str(out), "--allow-unconverged")
        fit = load_fit(out)
        about = asdict(fit.diagnostics) | {"converged": fit.diagnostics.converged}
        found[name] = {"seconds": seconds, "runs": len(fit.runs), **about}
        print(f"fit {name}: {seconds:.1f} s, {about}", flush=True)
    target = ("--task", load_fit(ladder).runs["task"].iloc[0], "--method", "lora")
    size = ("--model-size", "1e9", "--examples", "1e5", "-o", str(folder / "forecast.csv"))
    found["forecast"] = tunecast("forecast", str(ladder), *target, *size)
    found["help"] = tunecast("--help")
    print(f"forecast {found['forecast']:.2f} s, --help {found['help']:.2f} s", flush=True)
    return found


# --------------------------------------------------------------------------- ablation


def sampled(compiled: Any, way: str, seed: int, draws: int) -> tuple[dict[str, np.ndarray], float]:
    """Return draws of the sampled variables, shape (chains, draws, ...), and the seconds taken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if way == PM_SAMPLE:
            with compiled:
                trace = pm.sample(
                    draws=draws, tune=draws, chains=CHAINS, cores=min(CHAINS, os.cpu_count() or 1),
                    random_seed=seed, nuts_sampler="pymc", progressbar=False,
                    compute_convergence_checks=False,
                )  # fmt: skip
            seconds = float(trace["posterior"].attrs["sampling_time"])
        else:
            started = time.perf_counter()
            trace = nutpie.sample(
                compiled, draws=draws, tune=draws, chains=CHAINS, seed=seed, progress_bar=False,
                target_accept=TARGET_ACCEPT, step_size_jitter=STEP_JITTER,
                adaptation="low_rank" if way == LOW_RANK else "diag",
            )  # fmt: skip
            seconds = time.perf_counter() - started
    posterior = trace["posterior"].to_dataset()
    return {str(name): np.asarray(values) for name, values in posterior.data_vars.items()}, seconds


def worst(values: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Return smallest bulk ESS and largest R-hat of values of shape (chains, draws, ...)."""
    flat = [v.reshape(*v.shape[:2], -1) for v in values.values()]
    each = np.moveaxis(np.concatenate(flat, axis=2), 2, 0)
    ess = [array_stats.ess(c, chain_axis=0, draw_axis=1) for c in each]
    rhat = [array_stats.rhat(c, chain_axis=0, draw_axis=1) for c in each]
    return float(min(ess)), float(max(rhat))


def compared(table: Table, way: str, draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the quantities that all ways are compared by, shape (chains, draws, ...)."""
    if way == PM_SAMPLE:
        return {name: draws[name] for name in COMPARED}
    chains, length = next(iter(draws.values())).shape[:2]
    flat = {k: v.reshape(-1, *v.shape[2:]) for k, v in draws.items()}
    geometry = geometry_of(table, WEAK) if way == "geometry" else None
    values = replay(table, WEAK, flat, geometry).values
    return {
        name: values[name].reshape(chains, length, *values[name].shape[1:]) for name in COMPARED
    }


def one(table: Table, way: str, seed: int, limit: float) -> dict[str, Any]:
    """Sample until the chains agree, or for so many seconds in all."""
    if way == PM_SAMPLE:
        compiled = build(table, WEAK, None)
    else:
        compiled = compiled_density(table, WEAK, geometry=way == "geometry")
    draws, spent = FIRST, 0.0
    while True:
        got, seconds = sampled(compiled, way, seed, draws)
        spent += seconds
        ess, rhat = worst(compared(table, way, got))
        reached = rhat <= RHAT
        told = f"{draws} draws, {seconds:.0f} s, ESS {ess:.0f}, R-hat {rhat:.3f}"
        print(f"{way}, seed {seed}: {told}", flush=True)
        # The next try takes about twice as long.
        if reached or spent + 2 * seconds > limit:
            break
        draws *= 2
    return {
        "way": way, "seed": seed, "draws": draws, "seconds": seconds, "ess": ess, "rhat": rhat,
        "reached": reached, "ess_per_second": ess / seconds if reached else None,
    }  # fmt: skip


def ablation(path: Path, limit: float) -> dict[str, Any]:
    """Return effective samples a second of each way over the seeds."""
    runs = rectified_ft().query(WHERE).reset_index(drop=True)
    table = index_runs(runs, spec_of(runs, law="rectified"))
    jobs = [(way, seed) for seed in range(SEEDS) for way in WAYS]
    settings = {"where": WHERE, "limit": limit, "ways": list(WAYS)}
    for number in missing(path, settings, "number", len(jobs), False):
        append(path, {"number": number, **one(table, *jobs[number], limit)})
    found: dict[str, Any] = {"runs": len(runs), "seeds": SEEDS, "limit": limit, "ways": {}}
    for way in WAYS:
        lines = [r for r in kept(path, settings, "number").values() if r["way"] == way]
        rates = [line["ess_per_second"] for line in lines if line["reached"]]
        found["ways"][way] = {
            "reached": len(rates),
            "lowest": min(rates, default=None),
            "highest": max(rates, default=None),
            "rhat": [line["rhat"] for line in lines],
            "seconds": [line["seconds"] for line in lines],
            "draws": [line["draws"] for line in lines],
        }
    return found


def main(out: Path, limit: float, only: str) -> None:
    """Measure, print and save; what is not measured again is kept."""
    body: dict[str, Any] = json.loads(out.read_text()) if only and out.exists() else {}
    body |= {"command": "python " + " ".join(sys.argv), "cores": os.cpu_count()}
    if only != "ablation":
        with tempfile.TemporaryDirectory() as folder:
            body["commands"] = commands(Path(folder))
        save(out, body)
    if only != "commands":
        body["ablation"] = ablation(out.with_suffix(".jsonl"), limit)
        save(out, body)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed.json"))
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for a way and seed")
    parser.add_argument("--only", choices=("commands", "ablation"), default="")
    given = parser.parse_args()
    main(given.out, given.limit, given.only)
