"""What a law is sampled by: quantities that runs determine well, each with its default prior.

Amplitudes and irreducible losses in raw units differ by many powers of ten between tables, and
trade off against exponents. So the hierarchy describes a cell at a reference point inside its data
(the middle of its range of data sizes, the median of each factor), by quantities from which the
law's parameters follow exactly (`tunecast.models.laws.law.Law.at_reference`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NO_SD = math.nan


@dataclass(frozen=True, slots=True)
class Prior:
    """One row of a prior table.

    Parameters
    ----------
    location, scale : float
        Mean and standard deviation of the normal prior of the quantity's global mean.
    effect : float
        Prior median of the standard deviation between the levels of a grouping (tasks, methods,
        families), in the unit of the quantity. It is learned, with a log-normal prior; of ``noise``
        it is fixed. NaN: there are no such effects.
    scatter : float
        Prior median of the standard deviation of curves around their cell, likewise (of
        ``log_loss_ref`` the scale of a Student-t). NaN: curves share what their cell has.
    meaning : str
        One phrase for printed results.
    """

    location: float
    scale: float
    effect: float
    scatter: float
    meaning: str

    @property
    def log_effect(self) -> float:
        """Logarithm of ``effect``."""
        return math.log(self.effect)

    @property
    def log_scatter(self) -> float:
        """Logarithm of ``scatter``."""
        return math.log(self.scatter)


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something that each cell of the hierarchy has one of.

    Parameters
    ----------
    name : str
        Of the quantity, of its row in a prior table and of the variable in the posterior.
    prior : Prior
        Its default.
    per_factor : bool
        Whether there is one for each factor ``X``.
    shown_by : int
        How many different data sizes a curve must have to show a deviation of its own.
    """

    name: str
    prior: Prior
    per_factor: bool = False
    shown_by: int = 3

    @property
    def varies(self) -> bool:
        """Whether curves deviate from their cell in it."""
        return not math.isnan(self.prior.scatter)


# Curves scatter in log loss by 0.0045 (scale of a Student-t) by the held-out errors of
# arXiv:2402.17193, Table 6 (standard deviations of 0.0065), 0.003 in the embedded ladder without
# its largest size, 0.06 in the runs of Lin et al. 2024 up to 25,600 examples without the largest
# models, under priors twice as wide as these: the row lies in the middle, by logarithms.
LOG_LOSS_REF = Quantity(
    "log_loss_ref", Prior(0.7, 1.0, 0.3, 0.009, "log loss at the reference point, log nats")
)
LOGIT_FLOOR = Quantity(
    "logit_floor", Prior(-1.0, 2.0, 1.0, 0.3, "logit of the irreducible share of that loss")
)
LOG_BETA = Quantity("log_beta", Prior(math.log(0.1), 1.2, 1.0, 0.2, "log beta"), shown_by=2)
ALPHA = Quantity("alpha", Prior(0.15, 0.2, 0.1, NO_SD, "exponent of a factor"), True)
# The laws hold E and beta fixed while a factor grows. Real base models of other sizes tend to other
# losses with unlimited data, so the loss as a whole falls with an exponent of its own, gamma; and
# their curves are flatter or steeper, so beta falls with one too, delta.
GAMMA = Quantity(
    "gamma", Prior(0.0, 0.02, 0.005, NO_SD, "exponent of a factor in the whole loss"), True
)
DELTA = Quantity("delta", Prior(0.0, 0.1, 0.05, NO_SD, "exponent of a factor in beta"), True)
BY_FACTOR = (GAMMA, DELTA)
