"""Batches: what an epoch shows, in which order, and what is padding."""

from typing import Any

import numpy as np
from conftest import importorskip

importorskip("torch")
importorskip("peft")
importorskip("transformers")

from tunecast.training.batches import batches, choose, order_from, pool_of
from tunecast.training.budget import Budget
from tunecast.training.examples import Encoded


def test_an_epoch_shows_every_example_once_and_wastes_little() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=403)
    found = batches(lengths, 8, seed=1, epoch=2)
    assert sorted(np.concatenate(found)) == list(range(403))
    assert [b.tolist() for b in found] == [b.tolist() for b in batches(lengths, 8, 1, 2)]
    assert [b.tolist() for b in found] != [b.tolist() for b in batches(lengths, 8, 1, 3)]

    def padded(groups: list[np.ndarray]) -> int:
        return sum(len(g) * int(lengths[g].max()) for g in groups)

    anyhow = np.array_split(np.random.default_rng(1).permutation(403), 51)
    assert padded(found) < 1.05 * lengths.sum() < padded(anyhow)


def test_a_seed_has_its_own_subset_and_smaller_ones_lie_inside_larger_ones() -> None:
    assert set(choose(100, 10, 0)) < set(choose(100, 30, 0))
    assert set(choose(100, 30, 0)) != set(choose(100, 30, 1))
    assert len(set(choose(100, 100, 2))) == 100


def test_epochs_are_budgeted_and_small_data_get_more() -> None:
    budget = Budget(epochs=2, examples=100, batch=8)
    assert [budget.passes(n) for n in (0, 10, 49, 50, 1000)] == [0, 10, 3, 2, 2]
    assert budget.steps(10) == 20
    assert budget.steps(1000) == 250


def test_runs_side_by_side_are_padded_to_about_one_length(task: Encoded) -> None:
    """Batches of different seeds and numbers of examples, at one time; shuffled ones as control."""
    lengths = pool_of(task.train).lengths
    plans = []
    for seed, count in enumerate((380, 380, 200, 90)):
        subset = choose(len(lengths), min(count, len(lengths)), seed)
        order = order_from(0, lengths[subset], Budget(epochs=9, examples=1, batch=4), seed)
        plans.append([lengths[subset[mine]] for _, mine in zip(range(180), order, strict=False)])
    rng = np.random.default_rng(0)
    shuffled = [[plan[k] for k in rng.permutation(len(plan))] for plan in plans]

    def fill(plans: list[Any]) -> float:
        used = sum(int(batch.sum()) for plan in plans for batch in plan)
        return used / sum(
            max(int(batch.max()) for batch in step) * sum(map(len, step))
            for step in zip(*plans, strict=True)
        )

    assert fill(plans) > 0.9 > 0.85 > fill(shuffled)
