"""Batches: which examples a run sees, in which order, and how they lie side by side.

Examples are never mixed: each is a row of its own in a batch. Batches hold examples of like
length, so that little is padding; padding stands to the right, where no token that counts can see
it. The order is a run's own, but where in it the short and the long batches come is the same for
all runs: several that train side by side are padded to about one length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from tunecast.training.budget import Budget
from tunecast.training.examples import Example

# Batches among which those of like length are put together: more leave less padding, fewer leave
# the order closer to a random one.
POOL = 50
# The order in which the batches of a run go through the quantiles of their length: neighbours in
# time are far apart.
QUANTILES = (0, 4, 2, 6, 1, 5, 3, 7)
PERIOD = len(QUANTILES)


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Examples as one array, from which batches are cut without a loop over examples.

    Parameters
    ----------
    ids : ndarray of int32, shape (examples, longest)
        Tokens, zeros behind the last one.
    lengths, targets : ndarray of int64, shape (examples,)
        Tokens of each example, and how many at their end are target tokens.
    """

    ids: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray


def pool_of(examples: Sequence[Example]) -> Pool:
    """Return examples as one array."""
    lengths = np.array([len(example.ids) for example in examples], dtype=np.int64)
    ids = np.zeros((len(examples), int(lengths.max(initial=1))), dtype=np.int32)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = example.ids
    return Pool(ids, lengths, np.array([example.targets for example in examples], dtype=np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Examples side by side, those of each run together.

    Parameters
    ----------
    ids : Tensor of int64, shape (runs * examples, length)
        Inputs: all tokens but the last, which has no successor. What stands behind them is
        padding, whatever it is.
    positions : Tensor of int64, shape (targets,)
        Where in the flattened ``ids`` the next token is a target token.
    labels : Tensor of int64, shape (targets,)
        Those target tokens.
    rows : Tensor of int64, shape (targets,)
        To which row of ``ids`` each belongs.
    counts : tuple of int
        Target tokens of each run.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    counts: tuple[int, ...]

    @property
    def height(self) -> int:
        """Rows of each run."""
        return len(self.ids) // len(self.counts)

    def by_run(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sums of a value for each target token over the runs, shape (runs,)."""
        sums = torch.zeros(len(self.counts), device=values.device, dtype=values.dtype)
        return sums.index_add(0, self.rows // self.height, values)


def collate(pool: Pool, members: Sequence[np.ndarray]) -> Batch:
    """Put some examples for each run into one batch, on the CPU.

    Parameters
    ----------
    pool : Pool
        All examples.
    members : sequence of ndarray of int64
        Which examples each run has in the batch. A run with fewer gets rows without a target.
    """
    height = max(map(len, members))
    taken = np.concatenate(members)
    row = np.concatenate([k * height + np.arange(len(m)) for k, m in enumerate(members)])
    n, t = pool.lengths[taken], pool.targets[taken]
    length = int(n.max()) - 1
    ids = np.zeros((len(members) * height, length), dtype=np.int64)
    ids[row] = pool.ids[taken, :length]
    # Targets one after the other: within each example they count from 0.
    within = np.arange(t.sum()) - np.repeat(np.cumsum(t) - t, t)
    example = np.repeat(np.arange(len(taken)), t)
    rows = row[example]
    positions = rows * length + (n - 1 - t)[example] + within
    labels = pool.ids[taken[example], (n - t)[example] + within].astype(np.int64)
    ends = np.cumsum([len(m) for m in members])
    counts = tuple(int(part.sum()) for part in np.split(t, ends[:-1]))
    return Batch(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        labels=torch.from_numpy(labels),
        rows=torch.from_numpy(rows),
        counts=counts,
    )


def to_device(made: Sequence[Batch], device: str) -> list[Batch]:
    """Move batches to a device, all in one transfer that the host does not wait for."""
    if device == "cpu":
        return list(made)
    parts = [getattr(batch, f.name) for batch in made for f in fields(Batch)[:-1]]
    whole = torch.cat([part.flatten() for part in parts]).pin_memory()
    there = whole.to(device, non_blocking=True).split([part.numel() for part in parts])
    shaped = iter([flat.view(part.shape) for flat, part in zip(there, parts, strict=True)])
    return [
        Batch(next(shaped), next(shaped), next(shaped), next(shaped), batch.counts)
        for batch in made
    ]


# --------------------------------------------------------------------------- order


def choose(pool: int, examples: int, seed: int) -> np.ndarray:
    """Return which of ``pool`` examples a seed picks; its smaller subsets lie in larger ones."""
    return np.random.default_rng([seed, 0]).permutation(pool)[:examples]


def batches(lengths: np.ndarray, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the batches of an epoch, examples of like length together.

    What is in a batch is random. When it comes depends on its length: in every `PERIOD` steps of
    a run the lengths go through all their quantiles, in the same order whatever the seed, the
    epoch and the number of examples.

    Parameters
    ----------
    lengths : ndarray of int64, shape (examples,)
        Tokens of each example.
    size : int
        Examples of a batch; a few have fewer.
    seed, epoch : int
        Each epoch of each run has an order of its own.

    Returns
    -------
    list of ndarray of int64
        Which examples each batch holds.
    """
    rng = np.random.default_rng([seed, 1, epoch])
    order = rng.permutation(len(lengths))
    found = []
    for start in range(0, len(order), size * POOL):
        pool = order[start : start + size * POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        found += [pool[k : k + size] for k in range(0, len(pool), size)]
    steps = epoch * len(found) + np.arange(len(found))
    quantile = np.array(QUANTILES)[steps % PERIOD]
    # Steps of one quantile share its batches out at random.
    rank = np.empty(len(found), dtype=np.int64)
    rank[np.lexsort((rng.random(len(found)), quantile))] = np.arange(len(found))
    found.sort(key=lambda batch: int(lengths[batch].max()))
    return [found[k] for k in rank]


def order_from(step: int, lengths: np.ndarray, budget: Budget, seed: int) -> Iterator[np.ndarray]:
    """Yield the batches of a whole run that follow after ``step``; see `batches`."""
    for epoch in range(budget.passes(len(lengths))):
        whole = batches(lengths, budget.batch, seed, epoch)
        yield from whole[max(0, step - epoch * len(whole)) :]
