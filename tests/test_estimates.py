"""What least squares says of a table, by which coordinates are chosen."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from thinned import THINNED

from tunecast.models.hierarchy.estimates import (
    BASE_WEIGHT,
    curvature_of_cells,
    estimate,
    least_squares,
    slope_weight,
)
from tunecast.models.hierarchy.numpy_backends import (
    ESTIMATED,
    geometry_of,
    starting_point,
)
from tunecast.models.hierarchy.priors import WEAK
from tunecast.models.hierarchy.table import Table, index_runs, spec_of
from tunecast.models.laws import get_law

USUAL = WEAK["log_beta"].scatter


def indexed(
    runs: pd.DataFrame, law: str = "power", factors: tuple[str, ...] = (), **ask: Any
) -> Table:
    return index_runs(runs, spec_of(runs, law=law, factors=factors, **ask))


def weights(runs: pd.DataFrame) -> np.ndarray:
    table = indexed(runs)
    return slope_weight(table, least_squares(table), USUAL)


def test_the_line_through_each_curve(ladder: pd.DataFrame) -> None:
    """Slope and its error as by NumPy's polynomials."""
    table = indexed(ladder)
    found = least_squares(table)
    usual = []
    for c in range(len(table.curve_cell)):
        own = table.run_curve == c
        x, y = table.log_u[own], table.log_loss[own]
        (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
        assert found.runs[c] == own.sum()
        assert found.mean_log_u[c] == pytest.approx(x.mean())
        assert found.mean_log_loss[c] == pytest.approx(y.mean())
        assert found.slope[c] == pytest.approx(slope)
        assert found.width[c] == pytest.approx(((x - x.mean()) ** 2).sum())
        usual.append(covariance[0, 0] * found.width[c])
    # A fit that is lucky is given a quarter of the table's usual variance.
    variance = np.maximum(usual, np.median(usual) / 4)
    np.testing.assert_allclose(found.error, np.sqrt(variance / found.width))
    assert (variance > usual).any()


def test_curves_that_show_no_slope_have_no_error(ladder: pd.DataFrame) -> None:
    own = (ladder["method"] == "lora") & (ladder["base_model"] == "ladder-0.1m")
    thin = ladder[~own | (ladder["finetune_examples"] == 600)]
    found = least_squares(indexed(thin))
    assert np.isinf(found.error).sum() == 1
    assert found.slope[np.isinf(found.error)] == 0


def test_slope_weight_grows_with_what_a_curve_shows(ladder: pd.DataFrame) -> None:
    weight = weights(ladder)
    assert ((0 <= weight) & (weight <= 1)).all()
    rng = np.random.default_rng(0)
    noisy = ladder.assign(loss=ladder["loss"] * np.exp(0.3 * rng.standard_normal(len(ladder))))
    assert weights(noisy).mean() < weight.mean() / 2


def test_a_curve_of_one_data_size_has_weight_zero(ladder: pd.DataFrame) -> None:
    own = (ladder["method"] == "lora") & (ladder["base_model"] == "ladder-0.1m")
    thin = ladder[~own | (ladder["finetune_examples"] == 600)]
    table = indexed(thin, "rectified", ("model_size",))
    single = np.flatnonzero(table.curve_low == table.curve_high)
    assert len(single) == 1
    assert slope_weight(table, least_squares(table), USUAL)[single] == 0
    told = estimate(table, WEAK)
    assert told.curve_slope_precision[single] == 0 and told.noise_weight[single] == 0


def test_a_curve_that_rises_says_nothing_of_its_log_slope(ladder: pd.DataFrame) -> None:
    own = (ladder["method"] == "lora") & (ladder["base_model"] == "ladder-0.1m")
    up = ladder["loss"].where(~own, 1.5 + 1e-5 * ladder["finetune_examples"])
    told = estimate(indexed(ladder.assign(loss=up)), WEAK)
    assert (told.curve_slope_precision == 0).sum() == 1
    assert np.isfinite(told.curve_log_slope).all()


@pytest.mark.parametrize("logit_share", [-2.0, 0.0, 1.2])
def test_the_curvature_of_a_cell_is_its_laws(ladder: pd.DataFrame, logit_share: float) -> None:
    """Of a rectified law without a floor it is exp(-logit_share), of a power law 0.

    A law is no parabola: over a tenth of a doubling about the reference it nearly is.
    """
    law, beta, D_ref = get_law("rectified"), 0.3, 600.0
    D = D_ref * 2 ** (0.01 * (np.log2(ladder["finetune_examples"]) - np.log2(D_ref)))
    sizes = {"model_size": ladder["model_size"].to_numpy()}
    D_l = D_ref * np.exp(-logit_share / beta)
    loss = law(D, sizes, A=9.0, alpha={"model_size": 0.1}, D_l=D_l, beta=beta, E=0.0)
    runs = ladder.assign(finetune_examples=D, loss=loss)
    found = curvature_of_cells(indexed(runs))
    np.testing.assert_allclose(found, np.exp(-logit_share), rtol=0.05)
    straight = ladder.assign(loss=9.0 * ladder["finetune_examples"] ** -0.3)
    np.testing.assert_allclose(curvature_of_cells(indexed(straight)), 0.2)  # the least there is


def test_runs_of_a_curve_are_averaged(ladder: pd.DataFrame) -> None:
    """By a gather with weights, also where curves have unequal numbers of runs."""
    table = indexed(ladder.iloc[[*range(20), *range(22, 49)]])
    told = estimate(table, WEAK)
    assert len(set(told.curve_runs)) > 1
    mean = (table.log_loss[told.runs_of_curve] * told.run_weight).sum(axis=-1)
    np.testing.assert_allclose(mean, told.curve_log_loss, rtol=1e-12)
    for c, runs in enumerate(told.runs_of_curve):
        assert set(runs[told.run_weight[c] > 0]) == set(np.flatnonzero(table.run_curve == c))


def test_levels_average_their_curves(ladder: pd.DataFrame) -> None:
    """Of curves that lie on a law, the slope in a factor is the law's, whatever the base models."""
    sizes = {"model_size": ladder["model_size"].to_numpy()}
    D = ladder["finetune_examples"].to_numpy()
    loss = get_law("multiplicative")(D, sizes, A=20.0, alpha={"model_size": 0.3}, beta=0.1, E=1e-12)
    table = indexed(ladder.assign(loss=loss), "multiplicative", ("model_size",))
    told = estimate(table, WEAK)
    level = told.levels["method"]
    assert list(told.levels) == ["method"]
    np.testing.assert_allclose(level.factor_slope, 0.3, rtol=1e-6)
    effects = np.array([0.02, -0.05, 0.01])
    for k in range(len(table.cells)):
        own = table.curve_cell == k
        x, base = table.curve_x[own, 0], effects[table.curve_base[own]]
        assert level.centre[0, k] == pytest.approx(x.mean())
        assert effects @ level.mean_of_base[:, k] == pytest.approx(base.mean())
        assert effects @ level.slope_of_base[0, :, k] == pytest.approx(np.polyfit(x, base, 1)[0])
        assert level.factor_slope_width[0, k] == pytest.approx(((x - x.mean()) ** 2).sum())


def test_a_factor_that_does_not_vary_in_a_level_tells_nothing(ladder: pd.DataFrame) -> None:
    one = (ladder["method"] != "lora") | (ladder["base_model"] == "ladder-0.1m")
    level = estimate(indexed(ladder[one], "additive", ("model_size",)), WEAK).levels["method"]
    assert list(level.factor_slope_width[0] > 0) == [True, False, True]


def test_the_levels_are_those_of_the_first_grouping_and_of_cells(
    ladder: pd.DataFrame, zhang: pd.DataFrame
) -> None:
    assert list(estimate(indexed(zhang), WEAK).levels) == ["task", "cell"]
    assert list(estimate(indexed(ladder, cell=("task",)), WEAK).levels) == [""]


def test_base_models_of_many_curves_are_centred_further(
    ladder: pd.DataFrame, zhang: pd.DataFrame
) -> None:
    """Two curves tell nothing of a base model, and of many the weight has a limit."""
    found = [
        float(estimate(indexed(runs), WEAK).base_weight)
        for runs in (ladder[ladder["method"] != "fmt"], ladder, zhang)
    ]
    assert found[0] == 0 < found[1] < found[2] < BASE_WEIGHT


def test_chains_start_where_runs_say(ladder: pd.DataFrame) -> None:
    """Within one error of what prior and runs say together, of what runs give an estimate."""
    table = indexed(ladder)
    for seed in range(5):
        point = starting_point(table, WEAK, seed, geometry_of(table, WEAK))
        for name in ("log_beta_curve_raw", "log_loss_ref_curve_raw"):
            assert name in ESTIMATED
            assert 0.1 < np.abs(point[name]).max() <= 1
        assert np.abs(point["log_noise_task_raw"]).min() > 4  # the control: one with a location


def test_what_residuals_say_of_drift(ladder: pd.DataFrame) -> None:
    """Coefficients that made them, where nothing else did; errors as the weights have them.

    Curves lie at levels of their own, of which those of one run are noise.
    """
    rng = np.random.default_rng(3)
    table = indexed(THINNED["one, two and all"](pd.concat([ladder, ladder.assign(task="u")])))
    known, level = estimate(table, WEAK), rng.standard_normal(len(table.curve_cell))
    level[table.curve_runs == 1] = 0.0
    curved = table.curvatures.curves
    parts = (
        (known.drift_task, table.run_task, table.task_drift_basis, np.arange(2)),
        (known.drift_curve, table.run_curve, table.curve_drift_basis, curved),
    )
    for told, group, basis, groups in parts:
        true = rng.standard_normal((len(basis), group.max() + 1))
        left = (true[:, group] * basis).sum(axis=0) + level[table.run_curve]
        found = (left[told.runs] * told.weight).sum(axis=-1)
        assert (told.known == 1).all() and found.shape == (2, len(groups))
        np.testing.assert_allclose(found, true[:, groups], atol=1e-9)
        assert np.abs(found - true[::-1, groups]).max() > 0.1  # the control
        np.testing.assert_allclose(told.noise_variance, (told.weight**2).sum(axis=-1))
    # The control: a level that a run alone has is taken for drift.
    off = ((known.drift_task.weight * table.run_alone[known.drift_task.runs]).sum(axis=-1),)
    assert np.abs(off).min() > 1e-3
    of_task = np.bincount(table.run_task, table.run_alone) / np.bincount(table.run_task)
    np.testing.assert_allclose(known.drift_task.alone, of_task)
    assert (of_task > 0).all() and not known.drift_curve.alone.any()
    assert (known.drift_task.curve_variance > 0).all()
    assert not known.drift_curve.curve_variance.any()
