"""What a batch is expected to bring at the targets: narrower intervals, surer winners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from tunecast.models.planning.candidates import without_placeholders
from tunecast.models.planning.conditioning import unconditioned
from tunecast.models.planning.goals import WinnerGoal
from tunecast.models.planning.outcomes import Outcomes
from tunecast.models.planning.streams import Stream, generator
from tunecast.models.planning.winners import winner_regression

INTERVAL = (0.05, 0.95)


def expected_outlook(
    outcomes: Outcomes,
    chosen: Sequence[int],
    at_targets: Outcomes,
    targets: pd.DataFrame,
    comparisons: Sequence[np.ndarray],
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what a batch is expected to bring: means over targets by step, and by target.

    The width is that of the 90 % interval of a new run's loss in nats, averaged over outcomes of
    the batch. The probability of naming the right winner is that of the method named after seeing
    them, averaged likewise; ``regret_drop`` is by how many nats the choice gets better.

    Parameters
    ----------
    outcomes : Outcomes
        Of all candidates.
    chosen : sequence of int
        The batch, in order.
    at_targets : Outcomes
        Of the targets, joint with those of the candidates.
    targets : DataFrame
        Their rows.
    comparisons : sequence of ndarray of int
        Rows of the targets at which methods compete.
    seed : int
        Of the noise.
    """
    order = np.concatenate(comparisons)
    of_batch = outcomes.subset(slice(None), np.asarray(chosen, dtype=int))
    goal = WinnerGoal(tuple(at_targets.expected[:, rows] for rows in comparisons))
    start = unconditioned(of_batch, generator(seed, Stream.OUTCOMES), len(chosen))
    states = [winner_regression(start, goal)]
    for i in range(len(chosen)):
        states.append(states[-1].conditioned_on(i))
    shape = at_targets.scale.shape
    t = generator(seed, Stream.FUTURE_RUNS).standard_t(at_targets.df[:, None], shape)
    log_losses, noise = at_targets.expected[:, order], (t * at_targets.scale)[:, order]
    widths = [_interval_widths(s.outcomes.innovations, log_losses, noise) for s in states]
    by_step: dict[str, Any] = {
        "width_before": float(widths[0].mean()),
        "width_after": [float(w.mean()) for w in widths[1:]],
    }
    by_target = without_placeholders(targets.iloc[order].reset_index(drop=True))
    by_target = by_target.assign(width_before=widths[0], width_after=widths[-1])
    if all(len(rows) > 1 for rows in comparisons):
        right = [s.probability_right() for s in states]
        regret = [s.expected_regret() for s in states]
        by_step["p_right_before"] = float(right[0].mean())
        by_step["p_right_after"] = [float(p.mean()) for p in right[1:]]
        by_step["regret_drop"] = [float((regret[0] - r).mean()) for r in regret[1:]]
        counts = [len(rows) for rows in comparisons]
        by_target["p_right_before"] = np.repeat(right[0], counts)
        by_target["p_right_after"] = np.repeat(right[-1], counts)
        by_target["regret_drop"] = np.repeat(regret[0] - regret[-1], counts)
    return pd.DataFrame(by_step, index=range(len(chosen))), by_target


def _interval_widths(
    innovations: np.ndarray, log_losses: np.ndarray, noise: np.ndarray
) -> np.ndarray:
    """Return the mean width in nats of the interval of a new run, shape (targets,).

    The spread of what outcomes leave open is taken to be the same for all of them.
    """
    x = np.column_stack([np.ones(len(log_losses)), innovations]).astype(float)
    means = x @ np.linalg.lstsq(x, log_losses, rcond=None)[0]
    low, high = np.quantile(log_losses - means + noise, INTERVAL, axis=0)
    return (np.exp(means) * (np.exp(high) - np.exp(low))).mean(axis=0)
