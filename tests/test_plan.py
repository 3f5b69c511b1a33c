"""Plans from a fit: what is bought, for what cost, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import INFO, SMALL

from tunecast.models.design import (
    NothingToTell,
    Plan,
    costs_of,
    joint_draws,
    parameter_blocks,
    plan,
    ready_candidates,
    ready_targets,
    run_groups,
)
from tunecast.models.errors import TunecastError
from tunecast.models.fits import Diagnostics, Fit
from tunecast.models.information import WORTH
from tunecast.models.priors import WEAK
from tunecast.models.questions import targets_grid
from tunecast.models.runs import read_runs

TASK = "debian-en-de"
METHODS = ["fmt", "lora", "prompt"]
TARGETS = pd.DataFrame({"task": [TASK], "model_size": [4e6], "finetune_examples": [6e3]})


@pytest.fixture(scope="module")
def fit(believed: Callable[..., Fit]) -> Fit:
    """The ladder with draws of the prior in the place of a posterior."""
    return replace(believed(read_runs(SMALL), size=400), info=INFO)


@pytest.fixture(scope="module")
def shaky(believed: Callable[..., Fit]) -> Fit:
    """The same where checkpoints differ by far more than all else: their effects decide."""
    priors = {**WEAK, "base_effect": replace(WEAK["base_effect"], location=2.0, scale=0.1)}
    priors["level"] = replace(WEAK["level"], scale=0.1)
    return replace(believed(read_runs(SMALL), size=400, priors=priors), info=INFO)


@pytest.fixture(scope="module")
def pool() -> pd.DataFrame:
    """Runs of each method on two sizes not seen yet, the second that of the target."""
    return targets_grid(
        [TASK], METHODS, model_size=[2e6, 4e6], finetune_examples=[200.0, 1000.0, 5000.0]
    )


@pytest.fixture(scope="module")
def answer(fit: Fit, pool: pd.DataFrame) -> Plan:
    return plan(fit, pool, targets=TARGETS, budget=1e11, runs=5)


# ------------------------------------------------------------------ what a plan says


def test_a_plan_adds_up(answer: Plan, pool: pd.DataFrame) -> None:
    runs = answer.runs
    assert list(runs["rank"]) == list(range(1, len(runs) + 1))
    assert {"task", "method", "base_model", "model_size", "finetune_examples"} <= set(runs)
    assert (runs["base_model"] == "").all()  # none was asked for: the sweep takes what it has
    assert runs["cumulative_cost"].iloc[-1] <= 1e11
    np.testing.assert_allclose(runs["cumulative_cost"], runs["cost"].cumsum())
    np.testing.assert_allclose(runs["cumulative_gain"], runs["gain"].cumsum())
    np.testing.assert_allclose(runs["gain_per_cost"], runs["gain"] / runs["cost"])
    assert (runs["gain_se"] > 0).all()
    np.testing.assert_allclose(
        runs["cost"], 6 * runs["model_size"] * runs["finetune_examples"], rtol=1e-12
    )
    marked = answer.candidates.dropna(subset="rank").sort_values("rank")
    keys = ["method", "model_size", "finetune_examples"]
    pd.testing.assert_frame_equal(
        marked[keys].reset_index(drop=True), runs[keys].reset_index(drop=True)
    )
    assert len(answer.candidates) == len(pool)


def test_what_a_plan_brings(answer: Plan) -> None:
    runs, outlook = answer.runs, answer.outlook
    assert (runs["width_after"] <= runs["width_before"]).all()
    # A width is a difference of quantiles of 400 draws: a relative error of 1 / sqrt(400).
    rise = runs["width_after"].diff().dropna()
    assert (rise <= runs["width_after"].iloc[1:] / 20).all()
    assert runs["width_after"].iloc[-1] < 0.8 * runs["width_before"].iloc[0]
    assert runs["p_right_after"].iloc[-1] > runs["p_right_before"].iloc[0]
    assert 1 / 3 <= runs["p_right_before"].iloc[0] <= 1
    assert runs["regret_drop"].iloc[-1] > 0
    assert list(outlook["method"]) == METHODS
    np.testing.assert_allclose(outlook["width_after"].mean(), runs["width_after"].iloc[-1])


def test_the_same_seed_gives_the_same_plan(fit: Fit, pool: pd.DataFrame, answer: Plan) -> None:
    again = fit.plan(pool, targets=TARGETS, budget=1e11, runs=5)
    pd.testing.assert_frame_equal(again.runs, answer.runs)


def test_runs_on_the_targets_checkpoint_tell_most(shaky: Fit, pool: pd.DataFrame) -> None:
    """4e6 parameters without a name are the target's own checkpoint; 2e6 are another one."""
    found = plan(shaky, pool, goal="forecast", targets=TARGETS, runs=3)
    mean = found.candidates.groupby("model_size")["gain"].mean()
    assert mean[4e6] > 5 * mean[2e6]
    assert (found.runs["model_size"] == 4e6).all()
    # The second run on the checkpoint tells less than half of what it would have alone: what
    # both tell of the checkpoint counts once.
    alone = found.candidates["gain"][found.candidates["rank"] == 2].iloc[0]
    assert found.runs["gain"].iloc[1] < 0.5 * alone


def test_forecast_and_parameters(fit: Fit, pool: pd.DataFrame) -> None:
    target = TARGETS.assign(method="lora")
    forecast = plan(fit, pool, goal="forecast", targets=target, runs=2)
    assert forecast.runs["method"].iloc[0] == "lora"
    assert "p_right_after" not in forecast.runs  # one method cannot be wrong
    parameters = plan(fit, pool, goal="parameters", runs=2)
    assert "width_after" not in parameters.runs
    assert parameters.outlook.empty
    known = pd.DataFrame({"base_model": ["ladder-0.1m"], "finetune_examples": [300.0]})
    lora = plan(fit, known.merge(pd.DataFrame({"method": METHODS}), how="cross"),
                goal="parameters", targets=target, runs=1)  # fmt: skip
    assert lora.runs["method"].iloc[0] == "lora"


def test_parameters_are_the_published_ones(fit: Fit) -> None:
    blocks = parameter_blocks(fit, None)
    summary = fit.summary()
    assert len(blocks) == len(fit.members[0].layout.cells)
    first = summary[summary["method"] == "fmt"].set_index("parameter")["q50"].drop("D_l")
    np.testing.assert_allclose(np.median(blocks[0], axis=0)[:2], first[["beta", "E"]], rtol=1e-6)
    assert blocks[0].shape[1] == 4


# ------------------------------------------------------------------ sharing, and listing twice


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
    outcomes, _ = joint_draws(shaky, ready_candidates(shaky, rows), None, 0)
    rank = pd.DataFrame(outcomes.expected).corr("spearman").to_numpy()
    assert rank[0, 1] > 0.8 > 0.4 > rank[0, 2]
    unnamed = ready_candidates(shaky, pool)
    assert unnamed["base_model"].nunique() == 2
    targets = ready_targets(shaky, TARGETS)
    assert set(targets["base_model"]) < set(unnamed["base_model"])


def test_a_run_listed_twice_is_bought_once(fit: Fit, pool: pd.DataFrame, answer: Plan) -> None:
    double = pd.concat([pool, pool], ignore_index=True)
    again = plan(fit, double, targets=TARGETS, budget=1e11, runs=5)
    keys = ["method", "model_size", "finetune_examples"]
    assert not again.runs.duplicated(keys).any()
    assert again.runs["cumulative_gain"].iloc[-1] == pytest.approx(
        answer.runs["cumulative_gain"].iloc[-1], rel=1e-3
    )
    # Control: with seeds they are replicates, and these may both be bought.
    seeds = double.assign(seed=np.repeat([0, 1], len(pool)))
    layout = fit.members[0].layout
    assert len(set(run_groups(layout, ready_candidates(fit, seeds)))) == len(double)
    assert len(set(run_groups(layout, ready_candidates(fit, double)))) == len(pool)


def test_replicates_cost_more_and_hide_less(fit: Fit, pool: pd.DataFrame) -> None:
    one, four = (ready_candidates(fit, pool.assign(replicates=n)) for n in (1, 4))
    (a, _), (b, _) = (joint_draws(fit, table, None, 0) for table in (one, four))
    np.testing.assert_allclose(b.scale, a.scale / 2)
    np.testing.assert_array_equal(b.expected, a.expected)
    both = [costs_of(fit, table, pool, None, 1.0)[0] for table in (one, four)]
    np.testing.assert_allclose(both[1], 4 * both[0])


# ------------------------------------------------------------------ costs


def test_costs_from_a_column_from_runs_and_from_sizes(fit: Fit, pool: pd.DataFrame) -> None:
    ready = ready_candidates(fit, pool)
    given = pool.assign(cost=np.arange(1.0, len(pool) + 1))
    costs, source = costs_of(fit, ready_candidates(fit, given), given, None, 1.0)
    np.testing.assert_array_equal(costs, given["cost"])
    assert "column 'cost'" in source
    tokens, source = costs_of(fit, ready, pool, "6ND", 50.0)
    np.testing.assert_allclose(tokens, 300 * pool["model_size"] * pool["finetune_examples"])
    assert "50 tokens" in source
    runs = fit.runs
    level = runs["method"].map({"fmt": 3.0, "lora": 1.0, "prompt": 2.0})
    seconds = level * runs["model_size"] ** 0.7 * runs["finetune_examples"] ** 0.9
    timed = replace(fit, runs=runs.assign(gpu_seconds=seconds))
    costs, source = costs_of(timed, ready, pool, None, 1.0)
    level = pool["method"].map({"fmt": 3.0, "lora": 1.0, "prompt": 2.0})
    wanted = level * pool["model_size"] ** 0.7 * pool["finetune_examples"] ** 0.9
    np.testing.assert_allclose(costs, wanted, rtol=1e-6)
    assert "model_size^0.70" in source and "finetune_examples^0.90" in source


def test_a_budget_is_kept(fit: Fit, pool: pd.DataFrame) -> None:
    priced = pool.assign(cost=np.where(pool["method"] == "fmt", 10.0, 3.0))
    bought = plan(fit, priced, targets=TARGETS, budget=7.0)
    assert bought.runs["cumulative_cost"].iloc[-1] <= 7
    assert not (bought.runs["method"] == "fmt").any()


def test_a_budget_is_used_up(believed: Callable[..., Fit], pool: pd.DataFrame) -> None:
    fit = replace(believed(read_runs(SMALL), size=2000), info=INFO)
    priced = pool.assign(cost=1.0)
    ask = {"targets": TARGETS, "draws": 2000, "check": False}
    found = plan(fit, priced, budget=17.0, **ask).runs  # type: ignore[arg-type]
    # The last of 18 runs tell no more than chance does.
    assert 14 <= found["cumulative_cost"].iloc[-1] <= 17
    assert found["gain"].notna().all() and found["gain_nested"].isna().all()
    # Control: without one, what tells next to nothing is not made.
    free = plan(fit, priced, runs=18, **ask).runs  # type: ignore[arg-type]
    assert len(free) < len(found)


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        ({"finetune_examples": 0}, {}, "the candidates' 'finetune_examples' is 0 in row 1"),
        ({"model_size": -1.0}, {}, "the candidates' 'model_size' is -1 in row 1"),
        ({"model_size": "big"}, {}, "the candidates' 'model_size' holds text"),
        ({"replicates": 0.5}, {}, "the candidates' 'replicates' is 0.5 in row 1"),
        ({"cost": 0.0}, {}, "the cost of candidate 1 is 0: expected a number above 0"),
        ({"cost": np.nan}, {}, "the cost of candidate 1 is missing"),
        ({"cost": np.inf}, {}, "the cost of candidate 1 is inf"),
        ({"cost": 5.0}, {"budget": 4.0}, "the budget 4 is below the cheapest candidate, which"),
        ({}, {"budget": np.nan}, "the budget nan is below the cheapest candidate"),
        ({}, {"goal": "fame"}, "unknown goal 'fame': expected one of winner, forecast, parameters"),
        ({}, {"cost": "gpu_seconds"}, "costs cannot be fitted to 'gpu_seconds': the fit has 0"),
        ({}, {"cost": "money"}, "unknown cost 'money'"),
        ({}, {"targets": None}, "the goal 'winner' needs targets"),
        ({}, {"targets": TARGETS.assign(method="fmt")}, "has the method 'fmt' only: a winner"),
        ({}, {"targets": TARGETS.drop(columns="model_size")}, "the targets' 'model_size' is"),
        ({}, {"runs": 0}, "runs is 0, expected 1 or more"),
        ({}, {"draws": 10}, "draws is 10, expected 100 or more"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    fit: Fit, pool: pd.DataFrame, change: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(TunecastError) as caught:
        plan(fit, pool.assign(**change), **({"targets": TARGETS} | options))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parameters_of_a_cell_without_runs_are_refused(fit: Fit, pool: pd.DataFrame) -> None:
    with pytest.raises(TunecastError, match="no runs of other / fmt, so no parameters"):
        plan(fit, pool, goal="parameters", targets=TARGETS.assign(task="other", method="fmt"))


def test_no_candidates_are_refused(fit: Fit, pool: pd.DataFrame) -> None:
    with pytest.raises(TunecastError, match="there are no candidates"):
        plan(fit, pool.iloc[:0], targets=TARGETS)


def test_an_unconverged_fit_is_refused_unless_allowed(fit: Fit, pool: pd.DataFrame) -> None:
    bad = replace(fit, diagnostics=Diagnostics(1.2, 9.0, 9.0, 0, 1.0, 200))
    with pytest.raises(TunecastError, match=r"did not converge \(R-hat 1.200 is above 1.01"):
        plan(bad, pool, targets=TARGETS)
    marked = plan(bad, pool, targets=TARGETS, runs=1, allow_unconverged=True)
    assert not marked.runs["converged"].any()


def favouring(fit: Fit, by: float) -> Fit:
    """The fit with the loss of full fine-tuning lower by a factor of e^by in every draw."""
    member = fit.members[0]
    cell = {name: values.copy() for name, values in member.belief.cell.items()}
    cell["level"][:, member.layout.cells.index((TASK, "fmt"))] -= by
    sure = replace(member)
    sure.__dict__["belief"] = replace(member.belief, cell=cell)
    return replace(fit, members=(sure,), _predictors={})


def test_candidates_that_tell_nothing_are_refused(fit: Fit, pool: pd.DataFrame) -> None:
    """Full fine-tuning wins in every draw, so nothing is left to learn."""
    told = "none of the 18 candidates tells anything about the goal"
    with pytest.raises(NothingToTell, match=told):
        plan(favouring(fit, 20.0), pool, targets=TARGETS)


def test_runs_that_alone_change_no_verdict_are_not_refused(fit: Fit, pool: pd.DataFrame) -> None:
    """Full fine-tuning wins in nearly every draw, but they tell of the differences."""
    sure = favouring(fit, 2.0)
    alone = plan(sure, pool, targets=TARGETS, check=False).candidates["gain"].to_numpy()
    weak = pool[alone < WORTH]
    found = plan(sure, weak, targets=TARGETS, check=False)
    assert (found.candidates["gain"] < WORTH).all()
    assert len(found.runs) > 0
    assert found.runs["p_right_before"].iloc[0] < 1
