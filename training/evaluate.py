"""The loss of a model: of each target token, and its mean over examples with a standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from tunecast.training.batches import Batch, Pool, collate, pool_of, to_device
from tunecast.training.devices import autocast
from tunecast.training.examples import Example
from tunecast.training.stacked import Stack
from tunecast.training.tuned import Tuned

# Examples of each run in an evaluation batch.
EVALUATION_BATCH = 64


class Diverged(ArithmeticError):
    """A loss that is not a number, or infinite."""


def losses(model: Tuned | Stack, batch: Batch) -> torch.Tensor:
    """Return the cross-entropy of every target token in nats, shape (targets,)."""
    with autocast(batch.ids.device.type):
        logits = model.logits(batch.ids, batch.positions, batch.counts)
    return torch.nn.functional.cross_entropy(logits.float(), batch.labels, reduction="none")


def evaluate(tuned: Tuned, examples: Sequence[Example], device: str) -> tuple[float, float]:
    """Return the mean loss over target tokens and its standard error over examples.

    The error is that of a ratio of sums: tokens of one example are not independent.

    Parameters
    ----------
    tuned : Tuned
        What is judged.
    examples : sequence of Example
        By what.
    device : str
        Where the model is.

    Raises
    ------
    Diverged
        If the loss is not finite.
    """
    pool = pool_of(examples)
    (sums,) = sums_of(tuned, pool, device, runs=1)
    return ratio(sums, pool.targets)


@torch.no_grad()
def sums_of(model: Tuned | Stack, pool: Pool, device: str, runs: int) -> np.ndarray:
    """Return the loss of each example in nats for each run, shape (runs, examples)."""
    module = model.tuned.model if isinstance(model, Stack) else model.model
    module.eval()
    order = np.argsort(pool.lengths, kind="stable")
    parts = [order[k : k + EVALUATION_BATCH] for k in range(0, len(order), EVALUATION_BATCH)]
    totals = []
    for batch in to_device([collate(pool, [part] * runs) for part in parts], device):
        total = torch.zeros(len(batch.ids), device=device, dtype=torch.float64)
        total.index_add_(0, batch.rows, losses(model, batch).double())
        totals.append(total.view(runs, -1))
    module.train()
    found = np.empty((runs, len(order)))
    found[:, order] = torch.cat(totals, dim=1).cpu().numpy()
    return found


def ratio(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Return the ratio of two sums and its standard error over the pairs.

    Parameters
    ----------
    sums : ndarray of float64, shape (examples,)
        Loss of each example in nats.
    counts : ndarray of int64, shape (examples,)
        Its target tokens.
    """
    mean = float(sums.sum() / counts.sum())
    if not math.isfinite(mean):
        raise Diverged(f"the loss became {mean}")
    n = len(sums)
    spread = ((sums - mean * counts) ** 2).sum() * n / max(1, n - 1)
    return mean, float(np.sqrt(spread) / counts.sum())
