"""Checks of a table before sampling: rises and checkpoints, and how often they are wrong."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL
from scipy.stats import binom, kendalltau

from tunecast.models.checks.misfit import CHECKPOINTS, FALSE_ALARMS, RISES, Misfit
from tunecast.models.checks.tables import checkpoints, rises, table_checks, trend_of
from tunecast.models.hierarchy.table import spec_of, usable
from tunecast.models.runs import read_runs

type Loss = Callable[[str, np.ndarray], np.ndarray]


def line(fmt: float, lora: float | None = None, start: float = 0.0) -> Loss:
    """Log loss that is linear in the log data size, lora's and that of all else alike or not."""

    def loss(method: str, d: np.ndarray) -> np.ndarray:
        return start + (fmt if lora is None or method != "lora" else lora) * d

    return loss


flat, falling = line(0.0), line(-0.1)


def runs_of(
    loss: Loss,
    *,
    methods: tuple[str, ...] = ("fmt", "lora"),
    sizes: Any = (100, 300, 1000, 3000, 10000, 30000),
    seeds: int = 1,
    bases: int = 3,
    noise: float = 0.02,
    seed: int = 0,
) -> pd.DataFrame:
    """A table of runs, log loss given by method and log data size, with noise."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "run_id": f"{method}-{b}-{d}-{s}", "task": "t", "method": method,
            "base_model": f"b{b}", "model_size": 1e8 * 4**b, "finetune_examples": float(d),
            "seed": s,
        }
        for method in methods for b in range(bases) for d in sizes for s in range(seeds)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    log_d = np.log(table["finetune_examples"].to_numpy())
    by_method = [loss(m, x) for m, x in zip(table["method"], log_d, strict=True)]
    table["loss"] = np.exp(np.array(by_method, float) + noise * rng.standard_t(4, len(table)))
    return table


def found(runs: pd.DataFrame, check: Any = table_checks) -> tuple[Misfit, ...]:
    """What a check finds in a table under the default specification."""
    return tuple(check(runs, spec_of(runs, law="rectified")))


# ------------------------------------------------------------------ rises with data


def test_the_rank_test_has_the_score_and_variance_of_all_orders() -> None:
    """Over permutations of losses, with ties in both; without ties Kendall's own p."""
    rng = np.random.default_rng(1)
    x = np.log(np.repeat([1.0, 2, 4, 8], [3, 1, 2, 3]))
    y = np.round(rng.standard_normal(9), 0)
    scores = np.array([trend_of(x, rng.permutation(y)).score for _ in range(4000)])
    variance = trend_of(x, y).variance
    assert scores.mean() == pytest.approx(0, abs=4 * np.sqrt(variance / 4000))
    assert scores.var() == pytest.approx(variance, rel=0.1)  # 4 standard errors
    # The control: without the correction for ties the variance is another.
    assert scores.var() != pytest.approx(9 * 8 * 23 / 18, rel=0.1)
    x, y = np.arange(12.0), rng.standard_normal(12)
    pairs = 12 * 11 / 2
    assert trend_of(x, y).score == pytest.approx(kendalltau(x, y).statistic * pairs)


def test_flat_tables_are_said_to_rise_as_seldom_as_stated() -> None:
    """Of 300 tables, from one curve to many, the alarms are within the binomial band of 1 %.

    The control: tables that rise by one noise scale for a tenfold of the data.
    """
    shapes: list[dict[str, Any]] = [
        {}, {"seeds": 4}, {"bases": 1}, {"sizes": range(100, 1600, 100), "bases": 1},
        {"methods": tuple("abcdefgh")}, {"sizes": (10, 100, 1000)},
    ]  # fmt: skip
    alarms = [
        bool(found(runs_of(flat, **shape, seed=s), rises)) for shape in shapes for s in range(50)
    ]
    assert sum(alarms) <= binom.isf(1e-4, len(alarms), FALSE_ALARMS)
    rising = [
        bool(found(runs_of(line(0.02 / np.log(10)), seeds=4, seed=s), rises)) for s in range(20)
    ]
    assert np.mean(rising) > 0.9


def test_a_rise_is_said_for_the_cell_that_rises() -> None:
    """Over all data sizes or in their upper half; the other cell, which falls, is not."""
    (misfit,) = found(runs_of(line(0.05, -0.05), noise=0.002))
    assert (misfit.kind, misfit.cell) == (RISES, ("t", "fmt"))
    assert "rises with finetune_examples from 100 to 30000: in 3 of 3 curves" in misfit.sentence
    assert "by 33 %" in misfit.sentence and "accuracies" not in misfit.sentence  # 300^0.05

    def late(method: str, d: np.ndarray) -> np.ndarray:
        return 0.1 * abs(d - np.log(1000)) - (method == "lora") * 0.2 * d

    (misfit,) = found(runs_of(late, seeds=2))
    assert misfit.cell == ("t", "fmt") and "from 1000 to 30000" in misfit.sentence
    assert found(runs_of(line(-0.05))) == ()


def test_rises_that_no_cell_shows_alone_are_said_of_the_table() -> None:
    many = tuple("abcdefghij")
    (misfit,) = found(runs_of(line(0.05), methods=many, bases=1, sizes=(100, 300, 1000, 3000)))
    assert misfit.kind == RISES and misfit.cell is None and "of the table rises" in misfit.sentence
    assert found(runs_of(flat, methods=many, bases=1, sizes=(100, 300, 1000, 3000))) == ()


def test_rises_between_0_and_1_look_like_accuracies() -> None:
    """Unless the table has the accuracies too, and they are something else."""
    runs = runs_of(line(0.05, start=-0.9))
    assert all("give the error, 1 - accuracy" in m.sentence for m in found(runs))
    other = runs.assign(eval_accuracy=0.5)
    assert found(other) and not any("accuracies" in m.sentence for m in found(other))
    same = runs.assign(eval_accuracy=runs["loss"])
    assert all("accuracies" in m.sentence for m in found(same))


# ------------------------------------------------------------------ checkpoints


def test_run_ids_that_say_a_step_are_checkpoints() -> None:
    runs = runs_of(falling)
    named = runs.assign(run_id=[
        f"{m}-{b}/checkpoint-{d:.0f}" for m, b, d in
        zip(runs["method"], runs["base_model"], runs["finetune_examples"], strict=True)
    ])  # fmt: skip
    (misfit,) = found(named)
    assert misfit.kind == CHECKPOINTS and misfit.cell is None
    assert "36 of 36 rows of the table look like checkpoints" in misfit.sentence
    # One cell of them is said of that cell.
    some = runs.assign(run_id=named["run_id"].where(runs["method"] == "lora", runs["run_id"]))
    (misfit,) = found(some)
    assert misfit.cell == ("t", "lora") and "18 of 18 rows" in misfit.sentence
    # Controls: a number in a name that is no step; runs of their own whose names say a step.
    ends = named["run_id"].str.replace("checkpoint-", "examples-")
    assert found(runs.assign(run_id=ends)) == ()
    own = [f"{name}-step{k % 7}" for k, name in enumerate(runs["run_id"])]
    assert found(runs.assign(run_id=own)) == ()


def test_many_data_sizes_or_even_ones_beside_a_step_are_checkpoints() -> None:
    many = runs_of(falling, sizes=np.unique(np.geomspace(100, 1e5, 25).round()))
    assert [m.kind for m in found(many)] == [CHECKPOINTS]
    even = runs_of(falling, sizes=range(1000, 9000, 1000))
    assert found(even) == ()
    stepped = even.assign(**{"train/global_step": even["finetune_examples"] / 8})
    (misfit,) = found(stepped)
    assert misfit.kind == CHECKPOINTS and "beside a column 'train/global_step'" in misfit.sentence
    # Controls: finished runs that say their steps, at sizes that double; replicates.
    doubled = runs_of(falling, sizes=1000 * 2 ** np.arange(8))
    assert found(doubled.assign(global_step=doubled["finetune_examples"] / 8)) == ()
    repeated = runs_of(falling, sizes=np.tile(np.arange(1000, 6000, 1000), 5))
    assert found(repeated.assign(run_id=[str(i) for i in range(len(repeated))])) == ()


@pytest.mark.parametrize("name", ["ladder", "zhang2024-simulated", SMALL])
def test_ordinary_tables_are_ordinary(name: str) -> None:
    runs = usable(read_runs(name), "finetune_examples")
    assert found(runs) == ()
    # The control: upside down they rise.
    turned = runs.assign(loss=1 / runs["loss"])
    assert {m.kind for m in found(turned)} == {RISES}


def test_tables_with_one_run_a_curve_are_not_checked() -> None:
    """Nothing is compared within curves, and nothing divides by nothing."""
    runs = runs_of(falling)
    alone = runs.assign(base_model=runs["run_id"])
    spec = replace(spec_of(alone, law="power"), factors=())
    assert rises(alone, spec) == () and checkpoints(alone, spec) == ()
