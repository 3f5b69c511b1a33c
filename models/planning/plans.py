"""Which runs to make next: a greedy batch by expected information gain, within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.planning.batch import MIN_GAIN, Batch, greedy_batch
from tunecast.models.planning.candidates import (
    check_comparisons,
    comparison_rows,
    complete_candidates,
    complete_targets,
    same_runs,
    without_placeholders,
)
from tunecast.models.planning.costs import candidate_costs, checked_budget
from tunecast.models.planning.estimates import GainEstimate
from tunecast.models.planning.fitted import FittedModel
from tunecast.models.planning.goals import GOALS, Goal, make_goal
from tunecast.models.planning.nested import nested_conditional_gains
from tunecast.models.planning.outcomes import Outcomes, joint_predictive_draws
from tunecast.models.planning.outlook import expected_outlook
from tunecast.models.planning.regression import conditional_gains, gain_estimator
from tunecast.models.planning.streams import Stream, generator

DRAWS = 2000  # posterior draws that a plan uses
RUNS = 20  # runs that a plan has at most


class NothingToTell(TunecastError):
    """No candidate tells anything about the goal, in one sentence."""


@dataclass(frozen=True)
class Plan:
    """Runs to buy, in order, and what they are expected to bring.

    Parameters
    ----------
    runs : DataFrame
        A row for each run, columns as `plan` describes.
    candidates : DataFrame
        All candidates with ``cost``, ``gain`` (expected information gain in nats, of the candidate
        on its own) and ``rank`` (empty where not chosen).
    outlook : DataFrame
        A row for each target: ``width_before, width_after`` of the 90 % interval of a new run in
        nats and, where methods are compared, ``p_right_before, p_right_after`` and
        ``regret_drop``. Empty without targets.
    goal : str
        What was asked.
    budget : float
        In the unit of the costs; infinity if there was none.
    cost_source : str
        Where the costs come from, in words.
    batch : Batch
        How the choice was made.
    """

    runs: pd.DataFrame
    candidates: pd.DataFrame
    outlook: pd.DataFrame
    goal: str
    budget: float
    cost_source: str
    batch: Batch


def plan(
    fit: FittedModel,
    candidates: pd.DataFrame,
    *,
    goal: str = "winner",
    targets: pd.DataFrame | None = None,
    budget: float | None = None,
    runs: int | None = None,
    cost: str | None = None,
    tokens_per_example: float = 1.0,
    draws: int = DRAWS,
    seed: int | None = None,
    check: bool = True,
    allow_unconverged: bool = False,
) -> Plan:
    """Return the runs that tell most about a goal for their cost, in the order to make them.

    Parameters
    ----------
    fit : Fit
        What is known.
    candidates : DataFrame
        Possible runs: ``task``, ``method``, ``base_model`` or the factors, the data size; optional
        ``replicates`` (bought together, whole numbers from 1), ``seed`` and ``cost``. Rows that
        agree in all of these but the cost and the replicates are the same run, and it is bought
        once. A base model without a name is one checkpoint for each combination of factor values,
        the same one among candidates and targets.
    goal : {"winner", "forecast", "parameters"}
        ``winner``: which method has the lowest expected loss at each target; ``forecast``: the
        expected losses there; ``parameters``: A, E, alpha and beta of the targets' cells, or of
        all. The gain is the expected information gain about each target (cell), averaged over
        them. For ``winner``, runs are chosen by the information about the differences between the
        methods (`tunecast.models.planning.goals.pairwise_differences`), which does not run dry
        while two methods are close.
    targets : DataFrame, optional
        As for `forecast`; without a column ``method``, every method of the fit. Only for
        ``parameters`` may it be left out.
    budget : float, optional
        In the unit of the costs; it is used up. Without one the plan ends where no run adds a
        thousandth of a nat.
    runs : int, optional
        How many runs the plan has at most: by default `RUNS`, or all that the budget pays for.
    cost : str, optional
        A column of the candidates; ``gpu_seconds`` or ``train_flops``, fitted to the runs of the
        fit; or ``6ND``. By default the first of ``cost``, those two and ``6ND`` that there is.
    tokens_per_example : float
        For ``6ND``: turns data sizes into tokens.
    draws : int
        Posterior draws to use.
    seed : int, optional
        The fit's own unless given.
    check : bool
        Whether to estimate Monte Carlo standard errors, and gains by nested Monte Carlo too.
    allow_unconverged : bool
        Whether a fit that failed its diagnostics may be planned with.

    Returns
    -------
    Plan
        Its ``runs`` have the candidates' columns and ``rank; gain, gain_se`` (nats, given the runs
        above, by regression, with Monte Carlo standard error); ``gain_nested, gain_nested_se,
        ess`` (the same by nested Monte Carlo, empty where too few draws carry it); ``cost,
        gain_per_cost, cumulative_gain, cumulative_cost``; and means over targets once all runs so
        far are made: ``width_before, width_after, p_right_before, p_right_after, regret_drop``.

    Raises
    ------
    NothingToTell
        Where no candidate tells anything about the goal.
    TunecastError
        In one sentence: a candidate outside the law's domain, a cost that is not above 0, a budget
        below the cheapest candidate, a winner without rivals, a fit that did not converge.
    """
    _check_request(fit, goal, targets, runs, draws, allow_unconverged)
    completed = complete_candidates(fit, candidates)
    costs, cost_source = candidate_costs(fit, completed, candidates, cost, tokens_per_example)
    budget = checked_budget(budget, costs)
    at = None if targets is None else complete_targets(fit, targets)
    comparisons = [] if at is None else comparison_rows(fit.spec, at)
    if at is not None and goal == "winner":
        check_comparisons(fit.spec, at, comparisons)
    seed = int(fit.info["seed"]) if seed is None else seed
    thinned = fit.thinned(draws)
    outcomes, at_targets = joint_predictive_draws(thinned, completed, at, seed)
    asked = make_goal(thinned, goal, at, at_targets, comparisons)
    if runs is None:
        runs = RUNS if np.isinf(budget) else len(completed)
    same_run = same_runs(fit.spec, completed)
    gains, batch = _choose(
        outcomes, asked, goal, costs, budget, min(runs, len(completed)), same_run, seed
    )
    chosen = list(batch.chosen)
    by_regression = conditional_gains(outcomes, asked, chosen, seed, jackknife=check)
    by_nesting = [GainEstimate(np.nan, np.nan)] * len(chosen)
    if check:
        rng = generator(seed, Stream.NESTED)
        by_nesting = nested_conditional_gains(outcomes, asked, chosen, rng)
    table = _runs_table(candidates, completed, chosen, by_regression, by_nesting, costs)
    outlook = pd.DataFrame()
    if at is not None and at_targets is not None:
        by_step, outlook = expected_outlook(outcomes, chosen, at_targets, at, comparisons, seed)
        table = pd.concat([table, by_step], axis=1)
    every = candidates.reset_index(drop=True).drop(columns="cost", errors="ignore")
    every = every.assign(cost=costs, gain=gains)
    every["rank"] = pd.Series(range(1, len(chosen) + 1), index=chosen, dtype="Int64")
    table["converged"] = fit.diagnostics.converged
    if fit.info.get("simulated"):
        table["simulated"] = True
    return Plan(table, every, outlook, goal, budget, cost_source, batch)


def _check_request(
    fit: FittedModel,
    goal: str,
    targets: pd.DataFrame | None,
    runs: int | None,
    draws: int,
    allow_unconverged: bool,
) -> None:
    if goal not in GOALS:
        raise TunecastError(f"unknown goal '{goal}': expected one of {', '.join(GOALS)}")
    if not fit.diagnostics.converged and not allow_unconverged:
        raise TunecastError(
            f"the fit did not converge ({'; '.join(fit.diagnostics.reasons)}): "
            "its draws cannot say what a run would tell; fit again, or allow it"
        )
    if targets is None and goal != "parameters":
        raise TunecastError(f"the goal '{goal}' needs targets: say where the answer is wanted")
    for name, count, least in (("runs", runs, 1), ("draws", draws, 100)):
        if count is not None and count < least:
            raise TunecastError(f"{name} is {count}, expected {least} or more")


def _choose(
    outcomes: Outcomes,
    asked: Goal,
    name: str,
    costs: np.ndarray,
    budget: float,
    runs: int,
    same_run: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, Batch]:
    """Return the gain of each candidate on its own, and the batch.

    Raises
    ------
    NothingToTell
        Where no candidate tells anything about what is asked.
    """
    criterion = asked.surrogate()
    start = gain_estimator(outcomes, criterion, generator(seed, Stream.OUTCOMES), runs)
    screened = start.approximate_gains()
    gains = screened
    if criterion is not asked:
        of_asked = gain_estimator(outcomes, asked, generator(seed, Stream.OUTCOMES))
        gains = of_asked.approximate_gains()
    # By the goal that runs are chosen by, for two runs may change a verdict that neither would.
    if min(screened.max(), asked.max_information()) < MIN_GAIN:
        raise NothingToTell(
            f"none of the {len(costs)} candidates tells anything about the goal '{name}': "
            "there is less than a thousandth of a nat to learn from them"
        )
    return gains, greedy_batch(start, costs, budget, runs, same_run)


def _runs_table(
    candidates: pd.DataFrame,
    completed: pd.DataFrame,
    chosen: Sequence[int],
    by_regression: Sequence[GainEstimate],
    by_nesting: Sequence[GainEstimate],
    costs: np.ndarray,
) -> pd.DataFrame:
    # What was asked for as it was asked, completed by what the fit filled in.
    asked = candidates.reset_index(drop=True).drop(columns="cost", errors="ignore")
    added = without_placeholders(completed)[[c for c in completed if c not in asked]]
    table = pd.concat([asked, added], axis=1).iloc[list(chosen)].reset_index(drop=True)
    table.insert(0, "rank", range(1, len(chosen) + 1))
    table["gain"] = [e.gain for e in by_regression]
    table["gain_se"] = [e.mcse for e in by_regression]
    table["gain_nested"] = [e.gain for e in by_nesting]
    table["gain_nested_se"] = [e.mcse for e in by_nesting]
    table["ess"] = [e.ess for e in by_nesting]
    table["cost"] = costs[list(chosen)]
    table["gain_per_cost"] = table["gain"] / table["cost"]
    table["cumulative_gain"] = table["gain"].cumsum()
    table["cumulative_cost"] = table["cost"].cumsum()
    return table
