"""Plans from a fit: what is bought, what it is expected to bring, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from changed import lowered
from planned import METHODS, SHAKY, TARGETS, UNCONVERGED, candidate_pool, ladder_fit

from tunecast.models.errors import TunecastError
from tunecast.models.fits.fit import Fit
from tunecast.models.planning import NothingToTell, Plan, plan
from tunecast.models.planning.batch import MIN_GAIN
from tunecast.models.planning.candidates import complete_candidates, same_runs


@pytest.fixture(scope="module")
def fit(believed: Callable[..., Fit]) -> Fit:
    return ladder_fit(believed)


@pytest.fixture(scope="module")
def shaky(believed: Callable[..., Fit]) -> Fit:
    return ladder_fit(believed, priors=SHAKY)


@pytest.fixture(scope="module")
def pool() -> pd.DataFrame:
    return candidate_pool()


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
    columns = fit.spec
    assert len(set(same_runs(columns, complete_candidates(fit, seeds)))) == len(double)
    assert len(set(same_runs(columns, complete_candidates(fit, double)))) == len(pool)


# ------------------------------------------------------------------ budgets


def test_a_budget_is_kept(fit: Fit, pool: pd.DataFrame) -> None:
    priced = pool.assign(cost=np.where(pool["method"] == "fmt", 10.0, 3.0))
    bought = plan(fit, priced, targets=TARGETS, budget=7.0)
    assert bought.runs["cumulative_cost"].iloc[-1] <= 7
    assert not (bought.runs["method"] == "fmt").any()


def test_a_budget_is_used_up(believed: Callable[..., Fit], pool: pd.DataFrame) -> None:
    fit = ladder_fit(believed, size=2000)
    priced = pool.assign(cost=1.0)
    ask = {"targets": TARGETS, "draws": 2000, "check": False}
    found = plan(fit, priced, budget=17.0, **ask).runs  # type: ignore[arg-type]
    # The last of 18 runs tell no more than chance does: eight seeds end after 13 to 17.
    assert 12 <= found["cumulative_cost"].iloc[-1] <= 17
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
    fit: Fit,
    pool: pd.DataFrame,
    change: dict[str, Any],
    options: dict[str, Any],
    sentence: str,
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
    bad = replace(fit, diagnostics=UNCONVERGED)
    with pytest.raises(TunecastError, match=r"did not converge \(R-hat 1.200 is above 1.01"):
        plan(bad, pool, targets=TARGETS)
    marked = plan(bad, pool, targets=TARGETS, runs=1, allow_unconverged=True)
    assert not marked.runs["converged"].any()


def test_candidates_that_tell_nothing_are_refused(fit: Fit, pool: pd.DataFrame) -> None:
    """Full fine-tuning wins in every draw, so nothing is left to learn."""
    told = "none of the 18 candidates tells anything about the goal"
    with pytest.raises(NothingToTell, match=told):
        plan(lowered(fit, "fmt", 20.0), pool, targets=TARGETS)


def test_runs_that_alone_change_no_verdict_are_not_refused(fit: Fit, pool: pd.DataFrame) -> None:
    """Full fine-tuning wins in nearly every draw, but they tell of the differences."""
    sure = lowered(fit, "fmt", 2.0)
    alone = plan(sure, pool, targets=TARGETS, check=False).candidates["gain"].to_numpy()
    weak = pool[alone < MIN_GAIN]
    found = plan(sure, weak, targets=TARGETS, check=False)
    assert (found.candidates["gain"] < MIN_GAIN).all()
    assert len(found.runs) > 0
    assert found.runs["p_right_before"].iloc[0] < 1
