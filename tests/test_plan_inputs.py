"""What a plan starts from: completed candidates and targets, costs, joint draws, parameters."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from planned import SHAKY, TARGETS, candidate_pool, ladder_fit

from tunecast.models.fits.fit import Fit
from tunecast.models.planning.candidates import complete_candidates, complete_targets
from tunecast.models.planning.costs import candidate_costs
from tunecast.models.planning.goals import cell_parameter_draws
from tunecast.models.planning.outcomes import joint_predictive_draws


@pytest.fixture(scope="module")
def fit(believed: Callable[..., Fit]) -> Fit:
    return ladder_fit(believed)


@pytest.fixture(scope="module")
def shaky(believed: Callable[..., Fit]) -> Fit:
    return ladder_fit(believed, priors=SHAKY)


@pytest.fixture(scope="module")
def pool() -> pd.DataFrame:
    return candidate_pool()


def test_base_models_are_shared_by_name(shaky: Fit, pool: pd.DataFrame) -> None:
    """The effect of a checkpoint correlates its runs, and those of two checkpoints less."""
    rows = pd.DataFrame(
        {
            "method": ["fmt", "lora", "lora"],
            "base_model": ["new", "new", "other"],
            "model_size": 4e6,
            "finetune_examples": 1e3,
        }
    )
    outcomes, _ = joint_predictive_draws(shaky, complete_candidates(shaky, rows), None, 0)
    rank = pd.DataFrame(outcomes.expected).corr("spearman").to_numpy()
    assert rank[0, 1] > 0.8 > 0.4 > rank[0, 2]
    unnamed = complete_candidates(shaky, pool)
    assert unnamed["base_model"].nunique() == 2
    targets = complete_targets(shaky, TARGETS)
    assert set(targets["base_model"]) < set(unnamed["base_model"])


def test_replicates_cost_more_and_hide_less(fit: Fit, pool: pd.DataFrame) -> None:
    one, four = (complete_candidates(fit, pool.assign(replicates=n)) for n in (1, 4))
    (a, _), (b, _) = (joint_predictive_draws(fit, table, None, 0) for table in (one, four))
    np.testing.assert_allclose(b.scale, a.scale / 2)
    np.testing.assert_array_equal(b.expected, a.expected)
    both = [candidate_costs(fit, table, pool, None, 1.0)[0] for table in (one, four)]
    np.testing.assert_allclose(both[1], 4 * both[0])


def test_costs_from_a_column_from_runs_and_from_sizes(fit: Fit, pool: pd.DataFrame) -> None:
    ready = complete_candidates(fit, pool)
    given = pool.assign(cost=np.arange(1.0, len(pool) + 1))
    costs, source = candidate_costs(fit, complete_candidates(fit, given), given, None, 1.0)
    np.testing.assert_array_equal(costs, given["cost"])
    assert "column 'cost'" in source
    tokens, source = candidate_costs(fit, ready, pool, "6ND", 50.0)
    np.testing.assert_allclose(tokens, 300 * pool["model_size"] * pool["finetune_examples"])
    assert "50 tokens" in source
    runs = fit.runs
    level = runs["method"].map({"fmt": 3.0, "lora": 1.0, "prompt": 2.0})
    seconds = level * runs["model_size"] ** 0.7 * runs["finetune_examples"] ** 0.9
    timed = replace(fit, runs=runs.assign(gpu_seconds=seconds))
    costs, source = candidate_costs(timed, ready, pool, None, 1.0)
    level = pool["method"].map({"fmt": 3.0, "lora": 1.0, "prompt": 2.0})
    wanted = level * pool["model_size"] ** 0.7 * pool["finetune_examples"] ** 0.9
    np.testing.assert_allclose(costs, wanted, rtol=1e-6)
    assert "model_size^0.70" in source and "finetune_examples^0.90" in source


def test_parameters_are_the_published_ones(fit: Fit) -> None:
    """A, alpha, beta and E of each cell; not D_l, which has no bearing where it is small."""
    blocks = cell_parameter_draws(fit, None)
    summary = fit.summary()
    assert len(blocks) == len(fit.posteriors[0].table.cells)
    for block, cell in zip(blocks, fit.posteriors[0].table.cells, strict=True):
        own = summary[summary["method"] == cell[1]].set_index("parameter")["q50"]
        names = ["A", "alpha:model_size", "beta", "E"]
        np.testing.assert_allclose(np.median(block, axis=0), own[names], rtol=1e-6)
    asked = complete_targets(fit, TARGETS.assign(method="lora"))
    (only,) = cell_parameter_draws(fit, asked)
    np.testing.assert_array_equal(only, blocks[1])
