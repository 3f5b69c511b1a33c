"""Which runs to buy next: candidates, their costs, goals, and the plan that a budget pays for.

The information in an outcome is `tunecast.models.information`'s business. This file says what is
asked of it: joint predictive draws for candidates and goal alike, from one fit. Draws are keyed by
name, so two runs that share a base model share its effect, and a plan sees that the second tells
less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.information import (
    WORTH,
    Batch,
    Contests,
    Estimate,
    Goal,
    Outcomes,
    Values,
    along,
    choose,
    differences,
    nested_along,
    regression,
)
from tunecast.models.layout import Layout
from tunecast.models.predict import check_targets, spread_out
from tunecast.models.questions import methods_of

if TYPE_CHECKING:
    from tunecast.models.fits import Fit, Member

GOALS = ("winner", "forecast", "parameters")
DRAWS = 2000  # posterior draws that a plan uses
RUNS = 20  # runs that a plan has at most
INTERVAL = (0.05, 0.95)
FLOP_PER_TOKEN = 6  # and parameter, forward and backward: Kaplan et al. 2020, arXiv:2001.08361
UNNAMED = "not seen yet: "  # what the name given to an unnamed base model begins with
MEASURED_COSTS = ("gpu_seconds", "train_flops")  # columns of a run table, the first one preferred


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
        All candidates with ``cost``, ``gain`` (nats, of the candidate alone) and ``rank`` (empty
        where not chosen).
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
    fit: Fit,
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
        all. The gain is the mutual information with each target (cell), averaged over them. For
        ``winner``, runs are chosen by the information about the differences between the methods
        (`differences`), which does not run dry while two methods are close.
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
        Whether to estimate errors of gains, and gains by nested Monte Carlo too.
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
    layout = fit.widest.layout
    ready = ready_candidates(fit, candidates)
    costs, source = costs_of(fit, ready, candidates, cost, tokens_per_example)
    budget = _checked_budget(budget, costs)
    at = None if targets is None else ready_targets(fit, targets)
    contests = [] if at is None else contests_of(layout, at)
    if goal == "winner":
        _refuse_lone_methods(layout, at, contests)
    seed = int(fit.info["seed"]) if seed is None else seed
    few = thinned(fit, draws)
    outcomes, ahead = joint_draws(few, ready, at, seed)
    asked = _goal(few, goal, at, ahead, contests)

    if runs is None:
        runs = RUNS if np.isinf(budget) else len(ready)
    most = min(runs, len(ready))
    by = differences(asked) if isinstance(asked, Contests) else asked
    start = regression(outcomes, by, np.random.default_rng([seed, 3]), most)
    own = start if by is asked else regression(outcomes, asked, np.random.default_rng([seed, 3]))
    alone = own.screen()
    # By the goal that runs are chosen by, for two runs may change a verdict that neither would.
    together = alone if start is own else start.screen()
    left = asked.entropy() if isinstance(asked, Contests) else np.inf
    if min(together.max(), left) < WORTH:
        raise NothingToTell(
            f"none of the {len(ready)} candidates tells anything about the goal '{goal}': "
            "there is less than a thousandth of a nat to learn from them"
        )
    # Identical runs once, whatever their costs and replicates.
    groups = run_groups(layout, ready)
    batch = choose(start, costs, budget, most, groups)
    chosen = list(batch.chosen)
    exact = along(outcomes, asked, chosen, seed, jackknife=check)
    nested = [Estimate(np.nan, np.nan)] * len(chosen)
    if check:
        nested = nested_along(outcomes, asked, chosen, np.random.default_rng([seed, 1]))
    table = _runs_table(candidates, ready, chosen, exact, nested, costs)
    outlook = pd.DataFrame()
    if at is not None and ahead is not None:
        steps, outlook = prospects(outcomes, chosen, ahead, at, contests, seed)
        table = pd.concat([table, steps], axis=1)
    every = candidates.reset_index(drop=True).drop(columns="cost", errors="ignore")
    every = every.assign(cost=costs, gain=alone)
    every["rank"] = pd.Series(range(1, len(chosen) + 1), index=chosen, dtype="Int64")
    table["converged"] = fit.diagnostics.converged
    if fit.info.get("simulated"):
        table["simulated"] = True
    return Plan(table, every, outlook, goal, budget, source, batch)


# --------------------------------------------------------------------------- candidates, targets


def ready_candidates(fit: Fit, candidates: pd.DataFrame) -> pd.DataFrame:
    """Return candidates with every column that the fit needs, and ``replicates``.

    Raises
    ------
    TunecastError
        When one of them lies outside the law's domain.
    """
    layout = fit.widest.layout
    ready = check_targets(candidates, layout, "candidates")
    given = ready["replicates"] if "replicates" in ready else pd.Series(1.0, index=ready.index)
    counts = pd.to_numeric(given, errors="coerce").fillna(1.0 if given.isna().all() else np.nan)
    bad = ~(counts >= 1) | (counts != counts.round()) | np.isinf(counts)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise TunecastError(
            f"the candidates' 'replicates' is {given.iloc[row]} in row {row + 1}: "
            "expected a whole number from 1"
        )
    return _named(layout, ready.assign(replicates=counts.astype(int)))


def ready_targets(fit: Fit, targets: pd.DataFrame) -> pd.DataFrame:
    """Return targets with every column that the fit needs, each method where none is named."""
    layout = fit.widest.layout
    if "method" in layout.question.cell and (
        "method" not in targets or targets["method"].isna().all()
    ):
        plain = targets.drop(columns="method", errors="ignore")
        targets = plain.merge(pd.DataFrame({"method": methods_of(fit)}), how="cross")
    return _named(layout, check_targets(targets, layout)).drop_duplicates(ignore_index=True)


def _named(layout: Layout, table: pd.DataFrame) -> pd.DataFrame:
    """Give a base model without a name the one of its own that its factors and family make."""
    question = layout.question
    keys = [c for c in question.cell if c not in ("task", "method")] + list(question.factors)
    own = table[keys].apply(
        lambda row: ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in row), axis=1
    )
    named = table[question.curve] != ""
    other = UNNAMED + (own if keys else pd.Series("", index=table.index))
    return table.assign(**{question.curve: table[question.curve].where(named, other)})


def contests_of(layout: Layout, targets: pd.DataFrame) -> list[np.ndarray]:
    """Return the rows of each place at which methods compete, in order of appearance."""
    question = layout.question
    if "method" not in question.cell:
        return [np.array([i]) for i in range(len(targets))]
    place = [c for c in (*question.cell, "task", question.curve) if c != "method"]
    place += [*question.factors, question.data]
    codes = targets.groupby(list(dict.fromkeys(place)), sort=False).ngroup().to_numpy()
    return [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]


def _refuse_lone_methods(
    layout: Layout, targets: pd.DataFrame | None, contests: Sequence[np.ndarray]
) -> None:
    assert targets is not None
    for rows in contests:
        if len(rows) < 2:
            row = targets.iloc[rows[0]]
            size = f"{layout.question.data} {row[layout.question.data]:g}"
            raise TunecastError(
                f"the target at {size} has the method '{row['method']}' only: "
                "a winner takes two methods or more at each target"
            )


def run_groups(layout: Layout, ready: pd.DataFrame) -> np.ndarray:
    """Return a number for each candidate; those that are the same run have the same."""
    question = layout.question
    keys = [*question.cell, "task", question.curve, *question.factors, question.data]
    keys += ["seed"] if "seed" in ready else []
    return ready.groupby(list(dict.fromkeys(keys)), sort=False, dropna=False).ngroup().to_numpy()


# --------------------------------------------------------------------------- costs


def costs_of(
    fit: Fit,
    ready: pd.DataFrame,
    given: pd.DataFrame,
    how: str | None,
    tokens_per_example: float,
) -> tuple[np.ndarray, str]:
    """Return the cost of each candidate, all its replicates together, and where it comes from.

    Raises
    ------
    TunecastError
        When the costs asked for cannot be had, or one is not a number above 0.
    """
    data = fit.info["data"]
    if how is None:
        measured = [c for c in MEASURED_COSTS if len(_costed(fit, c)) >= 3]
        how = "cost" if "cost" in given else measured[0] if measured else "6ND"
    if how == "6ND":
        if "model_size" not in ready:
            raise TunecastError(
                "the candidates have neither a cost nor a model_size to compute one from: "
                "add a column 'cost'"
            )
        tokens = ready[data].to_numpy(float) * tokens_per_example
        costs = FLOP_PER_TOKEN * ready["model_size"].to_numpy(float) * tokens
        source = f"{FLOP_PER_TOKEN} x model_size x {data} x {tokens_per_example:g} tokens, in FLOP"
    elif how in given:
        costs = pd.to_numeric(given[how], errors="coerce").to_numpy(float)
        source = f"the candidates' column '{how}'"
    elif how in MEASURED_COSTS:
        costs, source = _fitted_costs(fit, ready, how)
    else:
        raise TunecastError(
            f"unknown cost '{how}': expected a column of the candidates, "
            f"{', '.join(MEASURED_COSTS)} or 6ND"
        )
    bad = ~(costs > 0) | np.isinf(costs)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        value = "missing" if np.isnan(costs[row]) else f"{costs[row]:g}"
        raise TunecastError(
            f"the cost of candidate {row + 1} is {value}: expected a number above 0 for each"
        )
    return costs * ready["replicates"].to_numpy(float), source


def _costed(fit: Fit, column: str) -> pd.DataFrame:
    if column not in fit.runs or "model_size" not in fit.runs:
        return fit.runs.iloc[:0]
    values = pd.to_numeric(fit.runs[column], errors="coerce")
    return fit.runs[(values > 0) & np.isfinite(values)]


def _fitted_costs(fit: Fit, ready: pd.DataFrame, column: str) -> tuple[np.ndarray, str]:
    """Regress log cost on log sizes, with a level for each method.

    What the runs do not vary gets the exponent 1 of 6ND.
    """
    data, known = fit.info["data"], _costed(fit, column)
    if len(known) < 3 or "model_size" not in ready:
        raise TunecastError(
            f"costs cannot be fitted to '{column}': the fit has {len(known)} runs that tell it, "
            "and three with their model_size are needed"
        )
    names = ("model_size", data)
    y = np.log(known[column].to_numpy(float))
    x = {n: np.log(known[n].to_numpy(float)) for n in names}
    varied = [n for n in names if np.ptp(x[n]) > 0]
    rest = y - sum((x[n] for n in names if n not in varied), np.zeros(len(y)))
    levels = sorted(known["method"].astype(str).unique())
    dummies = np.array(known["method"].astype(str))[:, None] == np.array(levels)
    matrix = np.column_stack([dummies.astype(float), *(x[n] for n in varied)])
    solved = np.linalg.lstsq(matrix, rest, rcond=None)[0]
    level = dict(zip(levels, solved, strict=False))
    exponent = dict.fromkeys(names, 1.0) | dict(zip(varied, solved[len(levels) :], strict=True))
    log_cost = ready["method"].map(level).fillna(float(np.mean(list(level.values())))).to_numpy()
    for n in names:
        log_cost = log_cost + exponent[n] * np.log(ready[n].to_numpy(float))
    off = float(np.exp(np.sqrt(np.mean((rest - matrix @ solved) ** 2))))
    told = " x ".join(f"{n}^{exponent[n]:.2f}" for n in names)
    return np.exp(log_cost), (
        f"{column} ~ {told} by method, fitted to {len(known)} runs, typically within {off:.2g} x"
    )


def _checked_budget(budget: float | None, costs: np.ndarray) -> float:
    if budget is None:
        return float("inf")
    if not budget >= costs.min():
        raise TunecastError(
            f"the budget {budget:g} is below the cheapest candidate, which costs {costs.min():g}"
        )
    return float(budget)


# --------------------------------------------------------------------------- draws


def thinned(fit: Fit, draws: int) -> Fit:
    """Return the fit with at most so many posterior draws of each law, spread over the chains."""
    members: list[Member] = []
    for member in fit.members:
        size = len(next(iter(member.posterior.values())))
        if size > draws:
            at = spread_out(size, draws)
            member = replace(member, posterior={k: v[at] for k, v in member.posterior.items()})
        members.append(member)
    return replace(fit, members=tuple(members), _predictors={})


def joint_draws(
    fit: Fit, candidates: pd.DataFrame, targets: pd.DataFrame | None, seed: int
) -> tuple[Outcomes, Outcomes | None]:
    """Return draws of candidates and targets, joint because drawn in one call."""
    both = candidates if targets is None else pd.concat([candidates, targets], ignore_index=True)
    drawn = fit.draws(both, seed=seed)
    n = len(candidates)
    expected, scale = np.log(drawn.expected), drawn.scale
    # The mean of n runs; its noise is taken as Student-t too, with a tail heavier than it has.
    of_mean = scale[:, :n] / np.sqrt(candidates["replicates"].to_numpy(float))
    ahead = None if targets is None else Outcomes(expected[:, n:], scale[:, n:], drawn.df)
    return Outcomes(expected[:, :n], of_mean, drawn.df), ahead


def _goal(
    fit: Fit,
    goal: str,
    targets: pd.DataFrame | None,
    ahead: Outcomes | None,
    contests: Sequence[np.ndarray],
) -> Goal:
    if goal == "parameters":
        return Values(parameter_blocks(fit, targets))
    assert ahead is not None
    if goal == "winner":
        return Contests(tuple(ahead.expected[:, rows] for rows in contests))
    return Values(tuple(ahead.expected[:, [i]] for i in range(ahead.expected.shape[1])))


def parameter_blocks(fit: Fit, targets: pd.DataFrame | None) -> tuple[np.ndarray, ...]:
    """Return draws of A, E, alpha and beta of each cell asked about, shape (draws, parameters).

    Raises
    ------
    TunecastError
        When the fit mixes laws, whose parameters differ, or does not know a cell.
    """
    from tunecast.models.fits import published_parameters

    if len(fit.members) > 1:
        raise TunecastError(
            "the goal 'parameters' needs a fit of one law, and this one mixes several"
        )
    member = fit.members[0]
    cells, names = member.layout.cells, list(member.layout.question.cell)
    asked = list(cells)
    if targets is not None:
        wanted = targets[names].astype(str).itertuples(index=False, name=None)
        asked = list(dict.fromkeys(wanted))
        for cell in asked:
            if cell not in cells:
                raise TunecastError(
                    f"the fit has no runs of {' / '.join(cell)}, so no parameters of it either"
                )
    blocks = []
    for cell in asked:
        found = published_parameters(member, cells.index(cell))
        blocks.append(np.column_stack([v for name, v in found.items() if name != "D_l"]))
    return tuple(blocks)


# --------------------------------------------------------------------------- answers


def _runs_table(
    candidates: pd.DataFrame,
    ready: pd.DataFrame,
    chosen: Sequence[int],
    exact: Sequence[Estimate],
    nested: Sequence[Estimate],
    costs: np.ndarray,
) -> pd.DataFrame:
    # What was asked for as it was asked, completed by what the fit filled in.
    told = candidates.reset_index(drop=True).drop(columns="cost", errors="ignore")
    added = [c for c in ready if c not in told]
    table = (
        pd.concat([told, _as_asked(ready)[added]], axis=1).iloc[list(chosen)].reset_index(drop=True)
    )
    table.insert(0, "rank", range(1, len(chosen) + 1))
    table["gain"] = [e.gain for e in exact]
    table["gain_se"] = [e.error for e in exact]
    table["gain_nested"] = [e.gain for e in nested]
    table["gain_nested_se"] = [e.error for e in nested]
    table["ess"] = [e.ess for e in nested]
    table["cost"] = costs[list(chosen)]
    table["gain_per_cost"] = table["gain"] / table["cost"]
    table["cumulative_gain"] = table["gain"].cumsum()
    table["cumulative_cost"] = table["cost"].cumsum()
    return table


def _as_asked(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table without the names that base models got for the lack of one."""
    return table.mask(table.astype(str).apply(lambda c: c.str.startswith(UNNAMED)), "")


def prospects(
    outcomes: Outcomes,
    chosen: Sequence[int],
    ahead: Outcomes,
    targets: pd.DataFrame,
    contests: Sequence[np.ndarray],
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what a batch is expected to bring: means over targets by step, and by target.

    The width is that of the 90 % interval of a new run's loss in nats, averaged over outcomes of
    the batch. The probability of naming the right winner is that of the method named after seeing
    them, averaged likewise; ``regret_drop`` is by how many nats the choice gets better.
    """
    order = np.concatenate(contests)
    rivals = all(len(rows) > 1 for rows in contests)
    few = outcomes.take(slice(None), np.asarray(chosen, dtype=int))
    blocks = Contests(tuple(ahead.expected[:, rows] for rows in contests))
    state = regression(few, blocks, np.random.default_rng([seed, 3]), len(chosen))
    noise = np.random.default_rng([seed, 2]).standard_t(ahead.df[:, None], ahead.scale.shape)
    logs, noise = ahead.expected[:, order], (noise * ahead.scale)[:, order]
    states = [state]
    for i in range(len(chosen)):
        states.append(states[-1].given(i))
    widths = [_widths(s.innovations, logs, noise) for s in states]
    steps: dict[str, Any] = {
        "width_before": float(widths[0].mean()),
        "width_after": [float(w.mean()) for w in widths[1:]],
    }
    by_target = _as_asked(targets.iloc[order].reset_index(drop=True))
    by_target = by_target.assign(width_before=widths[0], width_after=widths[-1])
    if rivals:
        right, regret = [s.right_winner() for s in states], [s.regret() for s in states]
        steps["p_right_before"] = float(right[0].mean())
        steps["p_right_after"] = [float(p.mean()) for p in right[1:]]
        steps["regret_drop"] = [float((regret[0] - r).mean()) for r in regret[1:]]
        counts = [len(rows) for rows in contests]
        by_target["p_right_before"] = np.repeat(right[0], counts)
        by_target["p_right_after"] = np.repeat(right[-1], counts)
        by_target["regret_drop"] = np.repeat(regret[0] - regret[-1], counts)
    return pd.DataFrame(steps, index=range(len(chosen))), by_target


def _widths(innovations: np.ndarray, logs: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return the mean width in nats of the interval of a new run, shape (quantities,).

    The spread of what outcomes leave open is taken to be the same for all of them.
    """
    x = np.column_stack([np.ones(len(logs)), innovations]).astype(float)
    means = x @ np.linalg.lstsq(x, logs, rcond=None)[0]
    low, high = np.quantile(logs - means + noise, INTERVAL, axis=0)
    return (np.exp(means) * (np.exp(high) - np.exp(low))).mean(axis=0)
