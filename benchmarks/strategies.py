"""Ways to spend a budget on a pool of runs: tunecast's plans and five rivals.

A strategy takes what is known (a fit of the runs bought so far) and chooses runs for a budget; a
`campaign` buys them, fits again and goes on to the next budget. Strategies that learn from a fit
spend what each budget adds in `BATCHES` of equal cost and fit after each, as a user would. Nobody
sees a loss that was not bought.

D- and V-optimal choice are the classical ones: each cell's law on its own, ``log L`` linearised at
the posterior medians of its parameters, runs added one by one by gain per cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from refits import fit_rows

from tunecast.models import Fit, plan
from tunecast.models.planning import NothingToTell

GOALS = ("winner", "forecast")
OPTIMAL = ("D-optimal", "V-optimal")
RIVALS = ("random", "cheapest", "cost-weighted random", *OPTIMAL)
STRATEGIES = (*GOALS, *RIVALS)
BUDGETS = (0.01, 0.05, 0.1)  # of a pool's cost, that a campaign may have spent
BATCHES = 2  # between two budgets, for strategies that learn from a fit
STEP = 1e-4  # of a parameter, for derivatives
RIDGE = 1e-3  # prior precision of a log parameter, so that a cell without runs has an answer


@dataclass(frozen=True)
class Market:
    """Runs that can be bought, and what for.

    Parameters
    ----------
    pool : DataFrame
        Runs with their losses.
    costs : ndarray, shape (runs,)
        What each costs.
    targets : DataFrame
        What is to be forecast or decided.
    ask : dict
        What `fit_rows` is asked.
    """

    pool: pd.DataFrame
    costs: np.ndarray
    targets: pd.DataFrame
    ask: dict[str, Any]


def campaign(
    name: str,
    market: Market,
    known: np.ndarray,
    first: Fit,
    budgets: Sequence[float],
    *,
    seed: int,
    plan_draws: int,
    chain: dict[str, Any],
) -> Iterator[tuple[np.ndarray, Fit]]:
    """Yield, for each budget, which runs a strategy has by then and the fit of them.

    Parameters
    ----------
    name : str
        One of `STRATEGIES`.
    market : Market
        What can be bought.
    known : ndarray of bool, shape (runs,)
        The runs of the start.
    first : Fit
        The fit of them.
    budgets : sequence of float
        What may have been spent by then, rising, without the cost of the start.
    seed, plan_draws, chain
        Of fits and choices; draws of a plan; how long chains are.
    """
    fit, bought, spent, before = first, known.copy(), 0.0, 0.0
    batches = BATCHES if name in (*GOALS, *OPTIMAL) else 1
    for number, budget in enumerate(budgets):
        for limit in np.linspace(before, budget, batches + 1)[1:]:
            left = limit - spent
            open_ = np.flatnonzero(~bought)
            costs = market.costs[open_]
            if left < costs.min():
                continue
            picked = choose(
                name, fit, market.pool.iloc[open_].reset_index(drop=True), costs, market.targets,
                left, np.random.default_rng([seed, number]), draws=plan_draws,
            )  # fmt: skip
            if len(picked):
                bought[open_[picked]] = True
                spent += costs[picked].sum()
                fit = fit_rows(market.pool[bought], market.ask, seed=seed, **chain)
        before = max(before, budget)
        yield bought.copy(), fit


def within(order: np.ndarray, costs: np.ndarray, budget: float) -> np.ndarray:
    """Return the candidates that a budget pays for when bought in order, skipping dear ones."""
    bought, left = [], budget
    for candidate in order:
        if costs[candidate] <= left:
            bought.append(candidate)
            left -= costs[candidate]
    return np.array(bought, dtype=int)


def choose(
    name: str,
    fit: Fit,
    candidates: pd.DataFrame,
    costs: np.ndarray,
    targets: pd.DataFrame,
    budget: float,
    rng: np.random.Generator,
    *,
    draws: int,
) -> np.ndarray:
    """Return the positions of the candidates that a strategy buys for a budget."""
    if name in GOALS:
        pool = candidates.drop(columns="loss").assign(cost=costs, position=range(len(costs)))
        try:
            answer = plan(
                fit, pool, goal=name, targets=targets, budget=budget, draws=draws,
                check=False, allow_unconverged=True,
            )  # fmt: skip
        except NothingToTell:
            return np.empty(0, dtype=int)
        return answer.runs["position"].to_numpy(int)
    n = len(costs)
    if name == "random":
        return within(rng.permutation(n), costs, budget)
    if name == "cheapest":
        return within(np.argsort(costs, kind="stable"), costs, budget)
    if name == "cost-weighted random":
        return within(
            rng.choice(n, n, replace=False, p=(1 / costs) / (1 / costs).sum()), costs, budget
        )
    return _optimal(name, fit, candidates, costs, targets, budget)


def _optimal(
    name: str,
    fit: Fit,
    candidates: pd.DataFrame,
    costs: np.ndarray,
    targets: pd.DataFrame,
    budget: float,
) -> np.ndarray:
    jacobian, cell = gradients(fit, candidates)
    known, known_cell = gradients(fit, fit.runs)
    wanted, wanted_cell = gradients(fit, targets)
    width = jacobian.shape[1]
    noise = float(np.exp(2 * np.median(fit.posteriors[0].values["log_noise_task"])))
    covariance = {}
    for c in np.unique(np.concatenate([cell, known_cell, wanted_cell])):
        rows = known[known_cell == c]
        covariance[c] = np.linalg.inv(RIDGE * np.eye(width) + rows.T @ rows / noise)
    left, open_ = budget, np.ones(len(costs), dtype=bool)
    chosen: list[int] = []
    gains = np.full(len(costs), np.nan)
    stale = set(covariance)
    while True:
        open_ &= costs <= left
        if not open_.any():
            return np.array(chosen, dtype=int)
        for c in stale:
            at = np.flatnonzero(cell == c)
            spread = jacobian[at] @ covariance[c]
            variance = (spread * jacobian[at]).sum(axis=1)
            if name == "D-optimal":
                gains[at] = np.log1p(variance / noise)
            else:
                drop = (spread @ wanted[wanted_cell == c].T) ** 2
                gains[at] = drop.sum(axis=1) / (noise + variance)
        best = int(np.argmax(np.where(open_, gains / costs, -np.inf)))
        chosen.append(best)
        open_[best] = False
        left -= costs[best]
        c = cell[best]
        j = covariance[c] @ jacobian[best]
        covariance[c] = covariance[c] - np.outer(j, j) / (noise + jacobian[best] @ j)
        stale = {c}


def gradients(fit: Fit, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return derivatives of log L by a cell's parameters at their medians, and each row's cell.

    A cell without runs stands at the medians of all cells.
    """
    table = fit.posteriors[0].table
    spec, cells, law = table.spec, table.cells, table.law
    labels = list(rows[list(spec.cell)].astype(str).itertuples(index=False, name=None))
    parameters = list(fit.cell_parameters().values())
    usual = {n: np.concatenate([p[n] for p in parameters]) for n in parameters[0]}
    every = (*cells, *sorted(set(labels) - set(cells)))
    index = np.array([every.index(label) for label in labels])
    D = rows[spec.data].to_numpy(float)
    X = {f: rows[f].to_numpy(float) for f in spec.factors}
    out: list[np.ndarray] = [np.empty(0)] * len(rows)
    for k in np.unique(index):
        at = np.flatnonzero(index == k)
        own = parameters[k] if k < len(cells) else usual
        medians = {n: float(np.median(v)) for n, v in own.items()}
        names = list(medians)

        def log_loss(
            values: np.ndarray, at: np.ndarray = at, names: list[str] = names
        ) -> np.ndarray:
            given = dict(zip(names, values, strict=True))
            alpha = {f: given.pop(f"alpha:{f}") for f in spec.factors if f"alpha:{f}" in given}
            x = {f: v[at] for f, v in X.items()}
            return np.log(law(D[at], x, **given, **({"alpha": alpha} if law.has("alpha") else {})))

        centre = np.array(list(medians.values()))
        columns = []
        for i, n in enumerate(names):
            # By the logarithm of what is positive: A and E span decades.
            unit = 1.0 if n.startswith("alpha") else centre[i]
            step = np.zeros(len(centre))
            step[i] = STEP * unit
            columns.append((log_loss(centre + step) - log_loss(centre - step)) / (2 * STEP))
        for row, values in zip(at, np.column_stack(columns), strict=True):
            out[row] = values
    return np.array(out), index
