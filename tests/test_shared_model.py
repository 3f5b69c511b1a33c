"""Other losses for one layout: draws are read in the coordinates they were sampled in."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student_t

from tunecast.models.hierarchy import build, replay, simulate_prior, slope_weight
from tunecast.models.inference import question_of
from tunecast.models.layout import Layout, lay_out
from tunecast.models.priors import WEAK
from tunecast.models.simulate import simulate


def table(seed: int) -> pd.DataFrame:
    runs = simulate(np.random.default_rng(seed), noise=0.02, sizes=(1e9, 4e9))
    few = runs["task"].isin(["mlsum"]) & runs["method"].isin(["lora", "prompt"])
    return runs[few].reset_index(drop=True)


def laid_out(runs: pd.DataFrame) -> Layout:
    return lay_out(runs, question_of(runs, law="multiplicative"))


def test_the_likelihood_of_new_losses_is_the_one_that_replay_implies() -> None:
    """The model at a point against replay of the same point, with another table's losses.

    Laying the other table out anew is the control: it chooses other coordinates, and the same
    numbers then mean other curves.
    """
    import pymc as pm

    first, other = table(1), table(2)
    layout = laid_out(first)
    shared = layout.with_losses(other["loss"].to_numpy())
    draws, _ = simulate_prior(layout, WEAK, 1, seed=3)
    model = build(layout, WEAK)
    with model:
        pm.set_data({"observed_log_loss": shared.log_loss})
    point = {name: values[0] for name, values in draws.items()}
    compiled = model.compile_logp(vars=[model["log_loss"]], mode="FAST_COMPILE")(point)

    def by_replay(where: Layout) -> float:
        b = replay(where, WEAK, draws)
        z = (shared.log_loss - b.mean[0]) / b.noise[0][where.row_curve]
        density = student_t.logpdf(z, b.noise_df[0]) - np.log(b.noise[0][where.row_curve])
        return float(density.sum())

    assert by_replay(shared) == pytest.approx(float(compiled), rel=1e-9)
    assert by_replay(laid_out(other)) != pytest.approx(float(compiled), rel=1e-6)


def test_new_losses_keep_the_coordinates_and_change_nothing_else() -> None:
    layout = laid_out(table(1))
    shared = layout.with_losses(table(2)["loss"].to_numpy())
    np.testing.assert_array_equal(slope_weight(layout, WEAK), slope_weight(shared, WEAK))
    assert not np.array_equal(layout.log_loss, shared.log_loss)
    with pytest.raises(ValueError, match="3 losses for 44 rows"):
        layout.with_losses(np.ones(3))
