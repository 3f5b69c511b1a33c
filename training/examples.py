"""Examples in tokens: how many a run sees and for how long, in which order, and in which batches.

Examples are never mixed: each is a row of its own in a batch. Batches hold examples of like
length, so that little is padding; padding stands to the right, where no token that counts can see
it. The order is a run's own, but where in it the short and the long batches come is the same for
all runs: several that train side by side are padded to about one length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from tunecast.models.errors import TunecastError
from tunecast.training.tasks import Pair, Task, TaskSource

# Batches among which those of like length are put together: more leave less padding, fewer leave
# the order closer to a random one.
POOL = 50
# The order in which the batches of a run go through the quantiles of their length: neighbours in
# time are far apart.
QUANTILES = (0, 4, 2, 6, 1, 5, 3, 7)
PERIOD = len(QUANTILES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How long a run trains and on what it is judged.

    Parameters
    ----------
    epochs : int
        Passes over the examples, at least.
    examples : int
        Examples shown in all, at least: small data get more passes. Both are upper limits once
        ``patience`` has run out.
    batch : int
        Examples of a step.
    evaluations : int
        How often the dev loss is measured, at equal distances.
    patience : int
        Evaluations without a better dev loss after which the run stops.
    warm_up : float
        Share of the steps over which the learning rate rises.
    clip : float
        Largest norm of a gradient.
    dev_examples, test_examples : int
        How many examples measure the dev and the test loss.
    generate : int
        Test examples for which text is generated and scored; 0 leaves those columns out.
    """

    epochs: int = 3
    examples: int = 1500
    batch: int = 16
    evaluations: int = 8
    patience: int = 3
    warm_up: float = 0.05
    clip: float = 1.0
    dev_examples: int = 200
    test_examples: int = 500
    generate: int = 0

    def passes(self, examples: int) -> int:
        """Return the epochs of a run with so many examples."""
        return max(self.epochs, math.ceil(self.examples / examples)) if examples else 0

    def steps(self, examples: int) -> int:
        """Return the steps of a run with so many examples."""
        return self.passes(examples) * math.ceil(examples / self.batch)

    def measured(self, examples: int) -> frozenset[int]:
        """Return the steps after which the dev loss is measured."""
        steps = self.steps(examples)
        return frozenset(
            math.ceil(steps * k / self.evaluations) for k in range(1, self.evaluations + 1)
        )


# --------------------------------------------------------------------------- a task in tokens


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One example in tokens: the source with its marks, then the target with its end mark.

    Parameters
    ----------
    ids : ndarray of int32, shape (tokens,)
        All tokens.
    targets : int
        How many at the end are target tokens.
    """

    ids: np.ndarray
    targets: int


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A task in the tokens of one tokenizer, examples beyond the length limits left out."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
    test_pairs: tuple[Pair, ...]


def encode(task: Task, source: TaskSource, tokenizer: Any, budget: Budget) -> Encoded:
    """Return a task as token ids.

    An example is ``[bos] source [sep] target eos``; a line break stands for a mark of separation
    that the tokenizer does not have.

    Raises
    ------
    TunecastError
        If a split is empty once long examples are left out.
    """
    if tokenizer.eos_token_id is None:
        raise TunecastError("the tokenizer has no mark for the end of a text.")
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    middle = (
        tokenizer("\n", add_special_tokens=False).input_ids
        if tokenizer.sep_token_id is None
        else [tokenizer.sep_token_id]
    )
    found: dict[str, tuple[Example, ...]] = {}
    kept: list[Pair] = []
    for split, pairs, most in (
        ("train", task.train, source.pool),
        ("dev", task.dev, budget.dev_examples),
        ("test", task.test, budget.test_examples),
    ):
        examples: list[Example] = []
        for pair, left, right in _tokens(pairs, tokenizer):
            if len(examples) == most:
                break
            if len(left) <= source.max_source and len(right) <= source.max_target:
                ids = [*start, *left, *middle, *right, tokenizer.eos_token_id]
                examples.append(Example(np.asarray(ids, dtype=np.int32), len(right) + 1))
                if split == "test":
                    kept.append(pair)
        if not examples:
            raise TunecastError(
                f"no {split} example of task '{task.name}' fits into {source.max_source} source "
                f"and {source.max_target} target tokens."
            )
        found[split] = tuple(examples)
    return Encoded(found["train"], found["dev"], found["test"], tuple(kept))


def _tokens(pairs: Sequence[Pair], tokenizer: Any) -> Iterator[tuple[Pair, list[int], list[int]]]:
    for start in range(0, len(pairs), 1000):
        part = pairs[start : start + 1000]
        left, right = (
            tokenizer([pair[k] for pair in part], add_special_tokens=False).input_ids
            for k in (0, 1)
        )
        yield from zip(part, left, right, strict=True)


# --------------------------------------------------------------------------- batches


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
    """Yield the batches of a whole run that follow after ``step``."""
    for epoch in range(budget.passes(len(lengths))):
        whole = batches(lengths, budget.batch, seed, epoch)
        yield from whole[max(0, step - epoch * len(whole)) :]
