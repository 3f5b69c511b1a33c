"""What a plan wants to learn: quantities of interest, by target, as posterior draws.

Quantities come in blocks, one for each target or cell. The expected information gain about a goal
is the mean over its blocks of the mutual information with each. So a target listed twice doubles
nothing, and the figure is a lower bound of the information about all blocks together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.planning.fitted import FittedModel
from tunecast.models.planning.outcomes import Outcomes
from tunecast.models.planning.scores import normal_scores

GOALS = ("winner", "forecast", "parameters")
OPEN_PROBABILITY = 0.01  # two methods are as good as decided if one wins in all draws but these


@dataclass(frozen=True)
class ContinuousGoal:
    """Real quantities: losses at targets, or parameters of cells.

    Parameters
    ----------
    blocks : tuple of ndarray, shape (draws, quantities) each
        Posterior draws; only the order of the draws of a quantity matters.
    """

    blocks: tuple[np.ndarray, ...]

    def subset(self, draws: np.ndarray | slice) -> ContinuousGoal:
        """Return some draws."""
        return ContinuousGoal(tuple(b[draws] for b in self.blocks))

    def normal_scores(self) -> tuple[np.ndarray, ...]:
        """Return the normal scores of each block."""
        return tuple(normal_scores(b) for b in self.blocks)

    def num_effects(self) -> int:
        """Return how many coefficients an outcome has in a regression of the largest block."""
        return max(b.shape[1] for b in self.blocks)

    def max_information(self) -> float:
        """Return how many nats can be learned: no end of them."""
        return np.inf

    def surrogate(self) -> ContinuousGoal:
        """Return the goal by which runs are chosen: itself."""
        return self


@dataclass(frozen=True)
class WinnerGoal:
    """Which of several methods has the lowest expected loss, at each target.

    Parameters
    ----------
    blocks : tuple of ndarray, shape (draws, methods) each
        Posterior draws of expected log losses, a block for each target.
    """

    blocks: tuple[np.ndarray, ...]

    def subset(self, draws: np.ndarray | slice) -> WinnerGoal:
        """Return some draws."""
        return WinnerGoal(tuple(b[draws] for b in self.blocks))

    def winners(self) -> tuple[np.ndarray, ...]:
        """Return which method wins in each draw, at each target (see `winner_classes`)."""
        return tuple(winner_classes(b) for b in self.blocks)

    def num_effects(self) -> int:
        """Return how many coefficients an outcome has in a regression of the largest block."""
        return max(int(winner.max()) for winner in self.winners())

    def max_information(self) -> float:
        """Return how many nats can be learned: the entropy of the winner, the mean over targets."""
        shares = [np.bincount(winner) / len(winner) for winner in self.winners()]
        return float(np.mean([-(p * np.log(p)).sum() for p in shares]))

    def surrogate(self) -> ContinuousGoal:
        """Return the goal by which runs are chosen: see `pairwise_differences`."""
        return pairwise_differences(self)


type Goal = ContinuousGoal | WinnerGoal


def winner_classes(losses: np.ndarray) -> np.ndarray:
    """Return which method wins in each draw, as a number among those that win in any."""
    return np.unique(losses.argmin(axis=1), return_inverse=True)[1]


def pairwise_differences(goal: WinnerGoal) -> ContinuousGoal:
    """Return the differences of log losses that decide who wins, as far as their sign is open.

    Of each two methods at each target, unless one beats the other in all but `OPEN_PROBABILITY` of
    the draws; if no pair is open, those that are the least decided. Information about them is
    easier to estimate than that about the winner, which falls to zero where one run alone changes
    no verdict, though two together would.
    """
    pairs = [
        block[:, [a]] - block[:, [b]]
        for block in goal.blocks
        for a, b in itertools.combinations(range(block.shape[1]), 2)
    ]
    first_wins = [float((difference < 0).mean()) for difference in pairs]
    doubt = np.minimum(first_wins, 1 - np.array(first_wins))
    least = min(OPEN_PROBABILITY, doubt.max())
    return ContinuousGoal(tuple(x for x, d in zip(pairs, doubt, strict=True) if d >= least))


# --------------------------------------------------------------------------- goals from a fit


def make_goal(
    fit: FittedModel,
    name: str,
    targets: pd.DataFrame | None,
    at_targets: Outcomes | None,
    comparisons: Sequence[np.ndarray],
) -> Goal:
    """Return the goal of a name.

    Parameters
    ----------
    fit : FittedModel
        What is known.
    name : {"winner", "forecast", "parameters"}
        What is asked.
    targets : DataFrame, optional
        Checked; only for ``parameters`` may they be missing.
    at_targets : Outcomes, optional
        Their posterior predictive draws, joint with those of the candidates.
    comparisons : sequence of ndarray of int
        Rows of the targets at which methods compete.
    """
    if name == "parameters":
        return ContinuousGoal(cell_parameter_draws(fit, targets))
    assert at_targets is not None
    losses = at_targets.expected
    if name == "winner":
        return WinnerGoal(tuple(losses[:, rows] for rows in comparisons))
    return ContinuousGoal(tuple(losses[:, [i]] for i in range(losses.shape[1])))


def cell_parameter_draws(fit: FittedModel, targets: pd.DataFrame | None) -> tuple[np.ndarray, ...]:
    """Return draws of A, E, alpha and beta of each cell asked about, shape (draws, parameters).

    Raises
    ------
    TunecastError
        When the fit mixes laws, whose parameters differ, or does not know a cell.
    """
    if len(fit.laws) > 1:
        raise TunecastError(
            "the goal 'parameters' needs a fit of one law, and this one mixes several"
        )
    parameters = fit.cell_parameters()
    cells = list(parameters)
    if targets is not None:
        wanted = targets[list(fit.spec.cell)].astype(str)
        cells = list(dict.fromkeys(wanted.itertuples(index=False, name=None)))
        for cell in cells:
            if cell not in parameters:
                raise TunecastError(
                    f"the fit has no runs of {' / '.join(cell)}, so no parameters of it either"
                )
    return tuple(
        np.column_stack([v for name, v in parameters[cell].items() if not name.startswith("D_")])
        for cell in cells
    )
