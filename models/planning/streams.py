"""Independent streams of random numbers that follow from the seed of a plan."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What random numbers are for; the value enters the seed, so it never changes."""

    NESTED = 1  # noise of the outcomes of nested Monte Carlo
    FUTURE_RUNS = 2  # noise of the runs that a plan's outlook forecasts
    OUTCOMES = 3  # noise of a batch's simulated outcomes


def generator(seed: int, stream: Stream) -> np.random.Generator:
    """Return the generator of a stream."""
    return np.random.default_rng([seed, int(stream)])
