"""Question: is the posterior that is sampled the posterior of the model that is written down?

    python benchmarks/sbc.py --simulations 100 --out benchmarks/results/sbc.json [--law kaplan]

Simulation-based calibration: draw every unknown from the prior, a table from them, the posterior
from the table; then the rank of what was drawn among posterior draws is uniform. It checks prior,
likelihood, coordinates, sampler and the replay of saved draws against one another, on a table of
2 tasks x 2 methods x 3 sizes x 5 data sizes. Simulation number i depends on (seed, i) alone, and
is one line of a JSONL file beside OUT, so a killed run goes on where it stopped.

The prior is narrower than the default, for the simulation and for the fit alike: under the default
some tables have losses that no file could hold, and to draw those again would change the prior and
so bias the ranks.

Two tests of each quantity: chi-square over ten bins of the rank, for any departure; and the sum of
squared normal scores, for draws too narrow or too wide, where it is much the stronger. By the
former alone, standard deviations 0.7 of the truth show in 100 simulations one time in four. The
negative control is that: the same draws pulled towards their mean by 0.7, which must fail.

References
----------
.. [1] Talts et al. 2018, arXiv:1804.06788; for the log likelihood, Modrak et al. 2023,
   arXiv:2211.02383.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from resume import repeat, save
from scipy.stats import chi2, norm
from scipy.stats import t as student_t

from tunecast.models.hierarchy.numpy_backends import simulate_prior
from tunecast.models.hierarchy.priors import WEAK, Priors
from tunecast.models.hierarchy.table import Table, index_runs, spec_of
from tunecast.models.inference.posterior import Posterior, spread_out
from tunecast.models.inference.sampling import sample

BINS = 10
RANKED = 99  # posterior draws that a rank is taken among: ranks 0 to 99, ten to a bin
SHRINK = 0.7
ALARM = 1e-4  # over all quantities and both tests: a right posterior fails as rarely as this
SEED = 0

NARROW: Priors = {
    **WEAK,
    "log_loss_ref": replace(WEAK["log_loss_ref"], scale=0.3, effect=0.1),
    "logit_floor": replace(WEAK["logit_floor"], scale=0.7, effect=0.3),
    "log_beta": replace(WEAK["log_beta"], scale=0.4, effect=0.2),
    "alpha": replace(WEAK["alpha"], scale=0.1, effect=0.05),
    "logit_data_share": replace(WEAK["logit_data_share"], scale=0.7, effect=0.2),
    "log_A_over_E": replace(WEAK["log_A_over_E"], scale=0.5, effect=0.2),
    "log_ratio": replace(WEAK["log_ratio"], scale=0.7, effect=0.2),
    "alpha_over_beta": replace(WEAK["alpha_over_beta"], scale=0.5, effect=0.2),
    "log_break": replace(WEAK["log_break"], scale=0.7, effect=0.3),
    "log_steeper": replace(WEAK["log_steeper"], scale=0.3, effect=0.1),
    "log_width": replace(WEAK["log_width"], scale=0.3, effect=0.1),
    "base_model": replace(WEAK["base_model"], scale=0.3),
    "noise": replace(WEAK["noise"], scale=0.3, effect=0.2, scatter=0.3),
    "noise_df": replace(WEAK["noise_df"], scale=0.5),
    "drift_task": replace(WEAK["drift_task"], scale=0.3),
    "drift_curve": replace(WEAK["drift_curve"], scale=0.3),
}


def design() -> pd.DataFrame:
    """Return the runs of a small table, with losses that only set the sampler's coordinates."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "run_id": f"{task}/{method}/{size:g}/{examples}",
            "task": task,
            "method": method,
            "base_model": f"{size:g}",
            "model_size": size,
            "finetune_examples": float(examples),
            "status": "done",
        }
        for task in ("one", "two")
        for method in ("fmt", "lora")
        for size in (1e8, 4e8, 1.6e9)
        for examples in (1_000, 4_000, 16_000, 64_000, 256_000)
    ]
    frame = pd.DataFrame(rows)
    curve = (frame["model_size"] / 4e8) ** -0.05 * (frame["finetune_examples"] / 16_000) ** -0.03
    return frame.assign(loss=2 * curve * np.exp(0.005 * rng.standard_normal(len(frame))))


def indexed(frame: pd.DataFrame, law: str) -> Table:
    """Return the index arrays of a table of the design."""
    return index_runs(frame, spec_of(frame, law=law))


def quantities(table: Table, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what is ranked, shape (draws,) each: positive ones as logarithms."""
    scale, df = values["scale"], values["noise_df"]
    z = (table.log_loss - values["expected_log_loss"]) / scale
    likelihood = student_t.logpdf(z, df[:, None]) - np.log(scale)
    found = {
        f"global {q.name}": values[f"{q.name}_mean"].reshape(len(df)) for q in table.quantities
    }
    found |= {
        f"sd of curves' {q.name}": np.log(values[f"{q.name}_curve_sd"])
        for q in table.quantities
        if f"{q.name}_curve_sd" in values
    }
    if "logit_floor" in values:
        found["logit_floor of a cell"] = values["logit_floor"][:, 0]
    found |= {
        "sd of tasks' log_loss_ref": np.log(values["log_loss_ref_task_sd"]),
        "sd of methods' log_beta": np.log(values["log_beta_method_sd"]),
        "sd of base models": np.log(values["base_model_sd"]),
        "effect of a base model": values["base_model_effect"][:, 0],
        "log_loss_ref of a curve": values["log_loss_ref_curve"][:, 0],
        "log_beta of a curve": values["log_beta_curve"][:, -1],
        "sd of tasks' drift": np.log(values["drift_task_sd"]),
        "sd of curves' drift": np.log(values["drift_curve_sd"]),
        "drift of a task": values["drift_task"][:, 0, 0],
        "drift of a curve": values["drift_curve"][:, -1, -1],
        "expected log loss of a run": values["expected_log_loss"][:, -1],
        "noise of a curve": np.log(values["noise"][:, 0]),
        "degrees of freedom": np.log(df - 2),
        "log likelihood": likelihood.sum(axis=1),
    }
    return found


def simulation(number: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the ranks of one simulation, those of the control, and diagnostics."""
    rng = np.random.default_rng([settings["seed"], number])
    frame = design()
    first = indexed(frame, settings["law"])
    true = simulate_prior(first, NARROW, 1, int(rng.integers(2**62)), None)
    table = indexed(frame.assign(loss=np.exp(true.values["log_loss"][0])), settings["law"])
    started = time.perf_counter()
    found = sample(
        table,
        NARROW,
        retry=False,
        seed=int(rng.integers(2**31)),
        **{name: settings[name] for name in ("draws", "tune", "chains", "target_accept")},
    )
    seconds = time.perf_counter() - started
    # Evenly spaced over all chains: as nearly independent as so many draws can be.
    posterior = Posterior(table, NARROW, found.draws)
    few = posterior.taken(spread_out(posterior.size, RANKED))
    drawn, truth = quantities(table, few.values), quantities(table, true.values)
    ranks, shrunk = {}, {}
    for name, values in drawn.items():
        ranks[name] = int((values < truth[name][0]).sum())
        near = values.mean() + SHRINK * (values - values.mean())
        shrunk[name] = int((near < truth[name][0]).sum())
    return {
        "number": number,
        "ranks": ranks,
        "ranks_shrunk": shrunk,
        "converged": found.diagnostics.converged,
        "diagnostics": asdict(found.diagnostics),
        "seconds": seconds,
    }


def uniformity(records: list[dict[str, Any]], kind: str) -> pd.DataFrame:
    """Return p-values of both tests for each quantity; dispersion 1 is right, above too narrow."""
    ranks = pd.DataFrame([record[kind] for record in records])
    n = len(ranks)
    # Normal scores of uniform ranks, and what their mean square is for a uniform rank.
    scores = norm.ppf((np.arange(RANKED + 1) + 0.5) / (RANKED + 1))
    usual = float((scores**2).mean())
    rows = {}
    for name in ranks:
        values = ranks[name].to_numpy()
        counts = np.bincount(values * BINS // (RANKED + 1), minlength=BINS)
        statistic = ((counts - n / BINS) ** 2 / (n / BINS)).sum()
        dispersion = float((scores[values] ** 2).mean()) / usual
        p = min(1.0, 2 * min(chi2.sf(n * dispersion, n), chi2.cdf(n * dispersion, n)))
        rows[name] = {
            "p_bins": float(chi2.sf(statistic, BINS - 1)),
            "dispersion": dispersion,
            "p_dispersion": float(p),
            "counts": counts.tolist(),
        }
    return pd.DataFrame(rows).T


def fails(table: pd.DataFrame) -> bool:
    """Whether the smallest p-value is too small for chance, over all quantities and both tests."""
    p = table[["p_bins", "p_dispersion"]].to_numpy(float)
    return float(p.min()) < ALARM / p.size


def run(path: Path, simulations: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records of all simulations, making those that the file lacks."""
    return repeat(path, simulations, settings, simulation)


def main(out: Path, simulations: int, settings: dict[str, Any]) -> None:
    """Run the simulations, print and save the result."""
    records = run(out.with_suffix(".jsonl"), simulations, settings)
    table, control = uniformity(records, "ranks"), uniformity(records, "ranks_shrunk")
    body = {
        "command": "python " + " ".join(sys.argv),
        "settings": settings,
        "simulations": simulations,
        "converged": float(np.mean([r["converged"] for r in records])),
        "ess_bulk_min": sorted(r["diagnostics"]["ess_bulk_min"] for r in records),
        "seconds_per_simulation": float(np.mean([r["seconds"] for r in records])),
        "quantities": table.to_dict("index"),
        "fails": fails(table),
        "control": {"quantities": control.to_dict("index"), "fails": fails(control)},
    }
    save(out, body)
    table["control"] = control["p_dispersion"]
    print(table.drop(columns="counts").astype(float).round(5).to_string())
    print(f"converged {body['converged']:.0%} of {simulations}, fails: {body['fails']}")
    if not fails(control):
        print("the negative control passed, so these simulations are too few to tell anything")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sbc.json"))
    parser.add_argument("--simulations", type=int, default=100)
    parser.add_argument("--law", default="rectified")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--tune", type=int, default=800)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--target-accept", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=SEED)
    given = vars(parser.parse_args())
    main(given.pop("out"), given.pop("simulations"), given)
