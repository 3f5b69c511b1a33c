"""What the rest of a sweep will cost, in FLOP and seconds."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import torch

from tunecast.training.base_models import Hub, Rung
from tunecast.training.budget import Budget
from tunecast.training.devices import best_device
from tunecast.training.loading import outline
from tunecast.training.methods import FMT
from tunecast.training.recipes import Recipe
from tunecast.training.sweep.jobs import Job, jobs_of, rows_of

# The share of a matrix multiplication's speed that training reaches, where no row tells it.
UTILISATION = 0.5


def expected_flops(job: Job, budget: Budget) -> float:
    """Return the FLOP to expect of a job's runs, none stopping early and no example short.

    Six for each parameter and token with full tuning and four with a frozen base (Kaplan 2020,
    arXiv:2001.08361, and the gradient of the weights left out); the vocabulary head of our own
    models, which their size leaves out, at the target tokens. Adapters and attention are left out.
    """
    cell, task = job.cell, job.cell.task
    if isinstance(cell.base, Rung):
        head = cell.base.width * cell.base.pretraining.vocabulary
        example = cell.base.size * (task.max_source + task.max_target) + head * task.max_target
    else:
        example = hub_size(cell.base) * (task.max_source + task.max_target)
    each = 6 if isinstance(cell.method, FMT) else 4
    shown = budget.passes(cell.examples) * cell.examples
    runs = len(job.rates) + len(job.seeds) - 1
    return float(each * example * shown * runs)


def hub_size(base: Hub) -> int:
    """Return the parameters of a model of the hub from its configuration alone."""
    return int(outline(base.path, base.name).num_parameters())


def speed(done: pd.DataFrame) -> float:
    """Return the FLOP a second of one worker: of the table's runs, or else of a short trial."""
    if {"train_flops", "gpu_seconds"} <= set(done) and (done["gpu_seconds"] > 0).any():
        rates = done["train_flops"] / done["gpu_seconds"].where(done["gpu_seconds"] > 0)
        return float(rates.median())
    device = best_device()
    side = 8192 if device == "cuda" else 512
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a = torch.ones(side, side, device=device, dtype=dtype)
    a @ a
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 0.3:
        (a @ a).sum().item()
        count += 1
    return UTILISATION * 2 * side**3 * count / (time.perf_counter() - started)


def forecast_cost(recipe: Recipe, table: str | Path, workers: int) -> pd.DataFrame:
    """Return the cells still to be run with the FLOP and seconds to expect.

    Parameters
    ----------
    recipe : Recipe
        What is to be run.
    table : str or Path
        The run table; what it holds is not run again, and tells the speed.
    workers : int
        How many run side by side.

    Returns
    -------
    DataFrame
        One row for each cell: task, base_model, method, finetune_examples, runs, flops, seconds.
    """
    jobs = jobs_of(recipe, table)
    per_second = speed(rows_of(table)) * workers
    rows = []
    for job in jobs:
        flops = expected_flops(job, recipe.budget)
        cell = job.cell
        rows.append(
            {
                "task": cell.task.name,
                "base_model": cell.base.name,
                "method": cell.method.label,
                "method_setting": cell.method.setting,
                "finetune_examples": cell.examples,
                "runs": len(job.seeds),
                "flops": flops,
                "seconds": flops / per_second,
            }
        )
    names = "task base_model method method_setting finetune_examples runs flops seconds"
    return pd.DataFrame(rows, columns=names.split())
