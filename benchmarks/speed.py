"""Question: how long does a fit take, and what do the sampler's coordinates buy?

    python benchmarks/speed.py --out benchmarks/results/speed.json

Wall time of the command line, each in a process of its own: `fit` to the saved file, compilation
included, on the embedded ladder and on rectified_ft up to 25,600 examples, `forecast` from the
saved fit, `--help`. Then the effective sample size of the worst unknown per second of sampling
(compilation apart), on the second table, against the plain non-centred parametrisation of plain.py:
with pm.sample as PyMC ships it, and with the sampler that tunecast uses, which leaves the
coordinates (and the density's own compiler) as the only difference.
tunecast's seconds include its diagnostics. Where the plain chains do not find one another (R-hat
far above 1), their effective size is about one for each chain however long they run, and the ratio
grows with --plain-draws: it is then a lower bound. With --families both sample those alone.
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
import pandas as pd
import pymc as pm
from arviz_stats.base import array_stats
from data import rectified_ft
from plain import plain_model
from resume import save

from tunecast.models import load_fit
from tunecast.models.density import compiled_density
from tunecast.models.hierarchy import log_sigmoid, replay
from tunecast.models.inference import CHAINS, TUNE, question_of, sample
from tunecast.models.layout import Layout, lay_out
from tunecast.models.priors import WEAK

WHERE = "finetune_examples > 0 and finetune_examples <= 25600"
SEED = 0


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


def compared_table(families: str) -> pd.DataFrame:
    """Return the rows that both parametrisations sample."""
    runs = rectified_ft().query(WHERE)
    if families:
        runs = runs[runs["family"].isin(families.split(","))]
    return runs.reset_index(drop=True)


def least(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return smallest bulk ESS and largest R-hat of values of shape (chains, draws, ...)."""
    flat = [v.reshape(*v.shape[:2], -1) for v in values.values()]
    columns = np.moveaxis(np.concatenate(flat, axis=2), 2, 0)
    ess = [array_stats.ess(c, chain_axis=0, draw_axis=1) for c in columns]
    rhat = [array_stats.rhat(c, chain_axis=0, draw_axis=1) for c in columns]
    return {"ess_bulk_min": float(min(ess)), "rhat_max": float(max(rhat))}


def per_second(
    unknowns: Mapping[str, float], shared: Mapping[str, float], seconds: float, draws: int
) -> dict[str, Any]:
    """Return ESS per second over a model's own unknowns and over what both models have."""
    return {
        "seconds": seconds,
        "draws": draws,
        "own": dict(unknowns),
        "shared": dict(shared),
        "own_per_second": unknowns["ess_bulk_min"] / seconds,
        "shared_per_second": shared["ess_bulk_min"] / seconds,
    }


def ours(layout: Layout, draws: int, tune: int) -> dict[str, Any]:
    """Sample tunecast's coordinates."""
    compiled_density(layout, WEAK)  # so that what is timed is sampling
    started = time.perf_counter()
    posterior, diagnostics = sample(layout, WEAK, retry=False, draws=draws, tune=tune, seed=SEED)
    seconds = time.perf_counter() - started
    b = replay(layout, WEAK, posterior)
    both = {"log_E": b.level + log_sigmoid(b.share, np), "log_beta": b.rate}
    shared = least({k: v.reshape(CHAINS, -1, v.shape[-1]) for k, v in both.items()})
    own = {"ess_bulk_min": diagnostics.ess_bulk_min, "rhat_max": diagnostics.rhat_max}
    return per_second(own, shared, seconds, draws)


def plain(layout: Layout, draws: int, tune: int, sampler: str) -> dict[str, Any]:
    """Sample the plain parametrisation, by PyMC's own sampler or by nutpie."""
    with plain_model(layout) as model, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if sampler == "nutpie":
            import nutpie

            compiled = nutpie.compile_pymc_model(model)
            started = time.perf_counter()
            trace = nutpie.sample(
                compiled, draws=draws, tune=tune, chains=CHAINS, seed=SEED, progress_bar=False
            )
            seconds = time.perf_counter() - started
        else:
            trace = pm.sample(
                draws=draws, tune=tune, chains=CHAINS, cores=min(CHAINS, os.cpu_count() or 1),
                random_seed=SEED, nuts_sampler="pymc", progressbar=False,
                compute_convergence_checks=False,
            )  # fmt: skip
            seconds = float(trace["posterior"].attrs["sampling_time"])
    posterior = trace["posterior"].to_dataset()
    values = {str(k): np.asarray(v) for k, v in posterior.data_vars.items()}
    both = {name: values.pop(name) for name in ("log_E", "log_beta")}
    return per_second(least(values), least(both), seconds, draws)


def parametrisations(families: str, draws: int, plain_draws: int) -> dict[str, Any]:
    """Return ESS per second of both parametrisations, and the ratios."""
    table = compared_table(families)
    layout = lay_out(table, question_of(table, law="rectified"))
    found: dict[str, Any] = {"families": families or "all", "runs": len(table)}
    found["tunecast"] = ours(layout, draws, TUNE)
    print(f"tunecast: {found['tunecast']}", flush=True)
    for sampler in ("nutpie", "pymc"):
        got = plain(layout, plain_draws, plain_draws, sampler)
        for kind in ("own", "shared"):
            name = f"{kind}_per_second"
            got[f"{kind}_ratio"] = found["tunecast"][name] / got[name]
        found[f"plain, {sampler}"] = got
        print(f"plain, {sampler}: {got}", flush=True)
    return found


def main(out: Path, families: str, draws: int, plain_draws: int, only: str) -> None:
    """Measure, print and save; what is not measured again is kept."""
    body: dict[str, Any] = json.loads(out.read_text()) if only and out.exists() else {}
    body |= {"command": "python " + " ".join(sys.argv), "cores": os.cpu_count()}
    if only != "sampling":
        with tempfile.TemporaryDirectory() as folder:
            body["commands"] = commands(Path(folder))
        save(out, body)
    if only != "commands":
        body["sampling"] = parametrisations(families, draws, plain_draws)
        save(out, body)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed.json"))
    parser.add_argument("--families", default="", help="comma-separated; all unless given")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--plain-draws", type=int, default=200, help="as many again to warm up")
    parser.add_argument("--only", choices=("commands", "sampling"), default="")
    given = parser.parse_args()
    main(given.out, given.families, given.draws, given.plain_draws, given.only)
