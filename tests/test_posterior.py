"""The draws of one law: by chain and all together, some of them, and what follows from them."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tunecast.models.fits.fit import Fit
from tunecast.models.inference.posterior import spread_out
from tunecast.models.laws import LAWS

type MakeFit = Callable[..., Fit]


def test_draws_of_all_chains_stand_one_chain_after_the_other(sampled: Fit) -> None:
    (posterior,) = sampled.posteriors
    raw, values = posterior.draws["log_noise_raw"], posterior.values["log_noise"]
    chains = np.corrcoef(raw.reshape(-1), values)[0, 1]
    assert abs(chains) == pytest.approx(1, abs=1e-9)  # the coordinate is linear in it
    # The control: draws before chains would be another order.
    assert abs(np.corrcoef(raw.T.reshape(-1), values)[0, 1]) < 0.9
    assert {len(v) for v in posterior.values.values()} == {600}


def test_some_draws_have_the_values_that_they_had_among_all(sampled: Fit) -> None:
    (posterior,) = sampled.posteriors
    at = np.array([0, 3, 299, 300, 599])
    few = posterior.taken(at)
    assert few.chains == (1, 5)
    for name, values in posterior.values.items():
        np.testing.assert_array_equal(few.values[name], values[at], err_msg=name)
    for name, told in posterior.statistics.items():
        np.testing.assert_array_equal(few.statistics[name][0], told.reshape(-1)[at])
    assert posterior.chains == (2, 300)  # which stays as it was


@pytest.mark.parametrize(("n", "count"), [(10, 3), (10, 10), (10, 11), (600, 400), (1, 1)])
def test_positions_spread_over_all_draws(n: int, count: int) -> None:
    at = spread_out(n, count)
    assert len(at) == len(set(at)) == min(n, count)
    assert at[0] == 0 and at[-1] == (n - 1 if min(n, count) > 1 else 0)
    assert np.ptp(np.diff(at)) <= 1 if len(at) > 1 else True


def test_the_share_of_a_law_is_its_weight(sampled: Fit) -> None:
    (posterior,) = sampled.posteriors
    for weight, expected in ((1.0, 400), (0.25, 100), (0.001, 1)):
        assert len(replace(posterior, weight=weight).share(400)) == expected
    assert len(posterior.share(10_000)) == 600  # no more than there are


@pytest.mark.parametrize("law", LAWS)
def test_published_parameters_reproduce_what_the_cell_expects(
    ladder: pd.DataFrame, believed: MakeFit, law: str
) -> None:
    """The law as papers print it, at the reference: the loss that the hierarchy has there."""
    (posterior,) = believed(ladder, law=law, size=300).posteriors
    table, formula = posterior.table, LAWS[law]
    for k in range(len(table.cells)):
        found = posterior.parameters(k)
        one: dict[str, Any] = {
            p.name: found[p.name] for p in formula.parameters if not p.per_factor
        }
        for p in formula.parameters:
            if p.per_factor:
                one[p.name] = {x: found[f"{p.name}:{x}"] for x in table.factors}
        ordinary = np.all(
            [(1e-250 < np.abs(v)) & (np.abs(v) < 1e250) for v in found.values()], axis=0
        )
        assert ordinary.mean() > 0.3
        at = dict(zip(table.factors, table.x_ref, strict=True))
        with np.errstate(all="ignore"):  # draws of the prior that are no ordinary numbers
            loss = formula(2.0 ** table.log2_d_ref[k], at, **one)
        expected = posterior.values["log_loss_ref"][:, k]
        np.testing.assert_allclose(np.log(loss[ordinary]), expected[ordinary], atol=1e-6)
        names = {name.partition(":")[0] for name in posterior.factor_exponents(k)}
        assert names == ({"gamma", "delta"} if table.factors else set())


def test_what_can_be_computed_again_is_not_pickled(sampled: Fit) -> None:
    (posterior,) = sampled.posteriors
    before = posterior.values["log_beta"]  # computed
    text = pickle.dumps(posterior)
    own = sum(v.nbytes for v in (*posterior.draws.values(), *posterior.statistics.values()))
    assert len(text) < 1.5 * own
    np.testing.assert_array_equal(pickle.loads(text).values["log_beta"], before)
