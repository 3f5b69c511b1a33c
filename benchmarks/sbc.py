"""Question: is the posterior that is sampled the posterior of the model that is written down?

    python benchmarks/sbc.py --simulations 100 --out benchmarks/results/sbc.json

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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from resume import repeat, save
from scipy.stats import chi2, norm
from scipy.stats import t as student_t

from tunecast.models.hierarchy import Belief, replay, simulate_prior
from tunecast.models.inference import question_of, sample
from tunecast.models.layout import Layout, lay_out
from tunecast.models.priors import WEAK, PriorTable

BINS = 10
RANKED = 99  # posterior draws that a rank is taken among: ranks 0 to 99, ten to a bin
SHRINK = 0.7
ALARM = 1e-4  # over all quantities and both tests: a right posterior fails as rarely as this
SEED = 0

NARROW: PriorTable = {
    **WEAK,
    "level": replace(WEAK["level"], scale=0.3, effect=0.1),
    "share": replace(WEAK["share"], scale=0.7, effect=0.3),
    "rate": replace(WEAK["rate"], scale=0.4, effect=0.2),
    "alpha": replace(WEAK["alpha"], scale=0.1, effect=0.05),
    "onset": replace(WEAK["onset"], scale=0.7, effect=0.2),
    "split": replace(WEAK["split"], scale=0.5, effect=0.2),
    "base_effect": replace(WEAK["base_effect"], scale=0.3),
    "noise": replace(WEAK["noise"], scale=0.3, effect=0.2, scatter=0.3),
    "noise_df": replace(WEAK["noise_df"], scale=0.5),
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


def laid_out(frame: pd.DataFrame, law: str) -> Layout:
    """Return the layout of a table of the design."""
    return lay_out(frame, question_of(frame, law=law))


def quantities(layout: Layout, b: Belief) -> dict[str, np.ndarray]:
    """Return what is ranked, shape (draws,) each: positive ones as logarithms."""
    noise = b.noise[:, layout.row_curve]
    z = (layout.log_loss - b.mean) / noise
    likelihood = student_t.logpdf(z, b.noise_df[:, None]) - np.log(noise)
    found = {f"global {name}": values.reshape(len(b.base_sd)) for name, values in b.roots.items()}
    found |= {f"scatter {name}": np.log(values) for name, values in b.scatter.items()}
    found |= {
        "sd of tasks' levels": np.log(b.effect_sd["task", "level"]),
        "sd of methods' rates": np.log(b.effect_sd["method", "rate"]),
        "sd of base models": np.log(b.base_sd),
        "effect of a base model": b.base[:, 0],
        "share of a cell": b.cell["share"][:, 0],
        "level of a curve": b.level[:, 0],
        "rate of a curve": b.rate[:, -1],
        "mean of a row": b.mean[:, -1],
        "noise of a curve": np.log(b.noise[:, 0]),
        "degrees of freedom": np.log(b.noise_df - 2),
        "log likelihood": likelihood.sum(axis=1),
    }
    return found


def simulation(number: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the ranks of one simulation, those of the control, and diagnostics."""
    rng = np.random.default_rng([settings["seed"], number])
    frame = design()
    first = laid_out(frame, settings["law"])
    _, true = simulate_prior(first, NARROW, 1, seed=int(rng.integers(2**62)))
    scale = true.noise[0, first.row_curve]
    noise = scale * rng.standard_t(true.noise_df[0], size=len(scale))
    layout = laid_out(frame.assign(loss=np.exp(true.mean[0] + noise)), settings["law"])
    started = time.perf_counter()
    posterior, diagnostics = sample(
        layout,
        NARROW,
        retry=False,
        seed=int(rng.integers(2**31)),
        **{name: settings[name] for name in ("draws", "tune", "chains", "target_accept")},
    )
    seconds = time.perf_counter() - started
    # Evenly spaced over all chains: as nearly independent as so many draws can be.
    n = len(next(iter(posterior.values())))
    at = np.linspace(0, n - 1, RANKED).round().astype(int)
    few = {name: values[at] for name, values in posterior.items()}
    drawn, truth = quantities(layout, replay(layout, NARROW, few)), quantities(layout, true)
    ranks, shrunk = {}, {}
    for name, values in drawn.items():
        ranks[name] = int((values < truth[name][0]).sum())
        near = values.mean() + SHRINK * (values - values.mean())
        shrunk[name] = int((near < truth[name][0]).sum())
    return {
        "number": number,
        "ranks": ranks,
        "ranks_shrunk": shrunk,
        "converged": diagnostics.converged,
        "diagnostics": asdict(diagnostics),
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
