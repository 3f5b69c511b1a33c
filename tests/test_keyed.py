"""Randomness that belongs to a name: the same draws for whoever asks, standard and independent."""

import numpy as np
from scipy.stats import binom, norm
from scipy.stats import t as student

from tunecast.models.hierarchy.keyed import Keyed

ALARM = 1e-4


def test_draws_belong_to_their_name() -> None:
    keyed = Keyed(seed=3, size=500)
    first = keyed.draws(None, "log_beta_curve", ("t", "fmt"), 1.5)
    keyed.draws(None, "something else")
    np.testing.assert_array_equal(keyed.draws(None, "log_beta_curve", ("t", "fmt"), 1.5), first)
    others = [
        keyed.draws(None, "log_beta_curve", ("t", "fmt"), 1.25),
        keyed.draws(None, "log_beta_curve", ("t", "lora"), 1.5),
        keyed.draws(None, "log_beta_curve", "('t', 'fmt')", 1.5),  # a text that reads like a tuple
        Keyed(seed=4, size=500).draws(None, "log_beta_curve", ("t", "fmt"), 1.5),
    ]
    for other in others:
        assert abs(np.corrcoef(first, other)[0, 1]) < 5 / np.sqrt(500)
    assert keyed.draws(None, "a", shape=(2, 3)).shape == (500, 2, 3)


def test_keyed_draws_are_standard_normal_or_student() -> None:
    keyed = Keyed(seed=0, size=20_000)
    for df, law in ((None, norm()), (4.0, student(4.0))):
        inside = (np.abs(keyed.draws(df, "a")) < 1).sum()
        low, high = binom.interval(1 - ALARM, 20_000, law.cdf(1) - law.cdf(-1))
        assert low <= inside <= high
        other = norm() if df else student(4.0)  # the control: one is not taken for the other
        assert not low <= 20_000 * (other.cdf(1) - other.cdf(-1)) <= high
