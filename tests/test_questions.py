"""Comparisons, crossings and backtests, on closed forms and on draws from the prior."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tunecast.models import inference
from tunecast.models.errors import TunecastError
from tunecast.models.fits import Fit
from tunecast.models.questions import (
    backtest,
    compare,
    crossings,
    crossover,
    forecast,
    methods_of,
    targets_grid,
)
from tunecast.models.scoring import score_draws

type MakeFit = Callable[..., Fit]


def with_belief(fit: Fit, **changes: Any) -> Fit:
    """The fit with parts of its only member's belief put in place of its own."""
    member = replace(fit.members[0])
    member.__dict__["belief"] = replace(fit.members[0].belief, **changes)
    return replace(fit, members=(member,), _predictors={})


# ------------------------------------------------------------------ crossings


def test_two_power_laws_cross_where_their_formulas_say() -> None:
    """3 D^-0.5 = 0.3 D^-0.25 at D = 10^4, once; with equal amplitudes at D = 1, out of range."""
    x = np.log(np.geomspace(10, 1e7, 400))
    pairs = [(3.0, 0.5, 0.3, 0.25), (1.0, 0.5, 1.0, 0.25)]
    gap = np.array([np.log(a / b) + (q - p) * x for a, p, b, q in pairs])
    count, first = crossings(x, gap)
    assert count.tolist() == [1, 0]
    assert first[0] == pytest.approx(np.log(1e4), abs=1e-9)  # the gap is linear in log D
    assert np.isnan(first[1])


def test_none_one_two_and_three_roots() -> None:
    x = np.linspace(0, 4, 801)
    step = x[1] - x[0]
    gap = np.array([0 * x + 1, x - 1.234, (x - 0.5) * (x - 2.5), (x - 1) * (x - 2) * (x - 3.001)])
    count, first = crossings(x, gap)
    assert count.tolist() == [0, 1, 2, 3]
    # Linear interpolation of a curve errs by less than step^2 times its curvature over its slope.
    np.testing.assert_allclose(first[1:], [1.234, 0.5, 1.0], atol=2 * step**2)


def test_touching_zero_is_no_crossing() -> None:
    x = np.arange(5.0)
    gap = np.array([[2.0, 1, 0, 1, 2], [2, 1, 0, -1, -2], [-1, 0, 0, 0, -1]])
    before = gap.copy()
    count, first = crossings(x, gap)
    assert count.tolist() == [0, 1, 0]
    assert first[1] == 2
    np.testing.assert_array_equal(gap, before)


def test_crossover_counts_the_crossings_of_the_expected_draws(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    fit = believed(ladder, size=400)
    place: dict[str, Any] = {"model_size": 4e5, "base_model": "new"}
    row = crossover(fit, "fmt", "lora", low=100, high=1e5, points=60, **place).iloc[0]
    assert row["p_none"] + row["p_one"] + row["p_two"] + row["p_more"] == pytest.approx(1)
    grid = np.geomspace(100, 1e5, 60)
    drawn = [
        fit.draws(
            pd.DataFrame({"task": "debian-en-de", "method": m, "finetune_examples": grid, **place})
        ).expected
        for m in ("fmt", "lora")
    ]
    sign = np.sign(drawn[0] - drawn[1])
    changes = (sign[:, 1:] != sign[:, :-1]).sum(axis=1)
    assert row["p_none"] == pytest.approx((changes == 0).mean())
    assert row["p_two"] == pytest.approx((changes == 2).mean())
    assert row["p_a_below_at_low"] == pytest.approx((sign[:, 0] < 0).mean())
    assert row["p_a_below_at_high"] == pytest.approx((sign[:, -1] < 0).mean())
    quantiles = row[[f"first_q{q}" for q in ("05", "25", "50", "75", "95")]].to_numpy(float)
    assert 100 <= quantiles[0] and quantiles[-1] <= 1e5 and (np.diff(quantiles) >= 0).all()
    mirrored = crossover(fit, "lora", "fmt", low=100, high=1e5, points=60, **place).iloc[0]
    assert mirrored["first_q50"] == pytest.approx(row["first_q50"], rel=1e-12)
    assert mirrored["p_a_below_at_low"] == pytest.approx(1 - row["p_a_below_at_low"])


def test_a_method_far_below_never_crosses(ladder: pd.DataFrame, believed: MakeFit) -> None:
    row = crossover(lowered(believed(ladder), "fmt"), "fmt", "lora", model_size=4e5).iloc[0]
    assert (row["p_none"], row["p_a_below_at_low"], row["p_a_below_at_high"]) == (1, 1, 1)
    assert np.isnan(row["first_q50"])
    sizes = ladder["finetune_examples"]
    assert row["low"] == pytest.approx(sizes.min() / 10)
    assert row["high"] == pytest.approx(sizes.max() * 10)


@pytest.mark.parametrize(
    ("a", "b", "options", "match"),
    [
        ("fmt", "magic", {}, "unknown method 'magic': the runs have fmt, lora, prompt"),
        ("fmt", "fmt", {}, "two different methods, got 'fmt' twice"),
        ("fmt", "lora", {"low": 100, "high": 10}, "is 100 to 10, expected 0 < low < high"),
        ("fmt", "lora", {"low": 0}, "is 0 to "),
    ],
)
def test_a_crossover_that_makes_no_sense_is_refused(
    ladder: pd.DataFrame, believed: MakeFit, a: str, b: str, options: Any, match: str
) -> None:
    with pytest.raises(TunecastError, match=match):
        crossover(believed(ladder, size=2), a, b, **options)


def test_a_crossover_over_several_tasks_needs_one(zhang: pd.DataFrame, believed: MakeFit) -> None:
    with pytest.raises(TunecastError, match="name a task: one of mlsum, wmt14-en-de, "):
        crossover(believed(zhang, size=2), "fmt", "lora")


# ------------------------------------------------------------------ comparisons


def lowered(fit: Fit, method: str, by: float = 20.0) -> Fit:
    """The fit with every cell of a method ``by`` lower in log loss."""
    member = fit.members[0]
    at = np.array([method in cell for cell in member.layout.cells])
    cell = dict(member.belief.cell)
    cell["level"] = cell["level"] - by * at
    level = member.belief.level - by * at[member.layout.curve_cell]
    return with_belief(fit, cell=cell, level=level)


def by_method(table: pd.DataFrame) -> dict[str, dict[Any, Any]]:
    return {row["method"]: row for row in table.to_dict("records")}


def place(**values: Any) -> pd.DataFrame:
    return pd.DataFrame([{"model_size": 4e5, "finetune_examples": 2000.0} | values])


def test_probabilities_and_regrets_of_a_comparison(zhang: pd.DataFrame, believed: MakeFit) -> None:
    fit = believed(zhang)
    tasks = sorted(zhang["task"].unique())
    targets = (
        zhang.groupby("task")
        .head(1)[["task", "family"]]
        .assign(model_size=3e9, finetune_examples=1e5)
    )
    table = compare(fit, targets)
    methods = methods_of(fit)
    assert len(table) == len(tasks) * len(methods)
    for _, rows in table.groupby("task"):
        assert sorted(rows["method"]) == methods
        assert rows["p_best"].sum() == pytest.approx(1)
        assert (rows["expected_regret"] >= 0).all()
        one = by_method(rows)
        for a in methods:
            assert np.isnan(one[a][f"p_beats_{a}"])
            others = [one[a][f"p_beats_{b}"] for b in methods if b != a]
            assert one[a]["p_best"] <= min(others) + 1e-12
            for b in methods:
                if a != b:
                    both = one[a][f"p_beats_{b}"] + one[b][f"p_beats_{a}"]
                    assert both == pytest.approx(1)
    assert table["converged"].all()


def test_a_dominating_method_has_no_regret(ladder: pd.DataFrame, believed: MakeFit) -> None:
    one = by_method(compare(lowered(believed(ladder), "lora"), place()))
    assert one["lora"]["p_best"] == one["lora"]["p_beats_fmt"] == 1
    assert one["lora"]["expected_regret"] == 0
    assert one["fmt"]["p_best"] == 0 and one["fmt"]["expected_regret"] > 0


def test_the_methods_of_a_draw_share_the_base_models_effect(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    """Differences of log loss between methods: narrower with one unseen model than with two."""
    fit = believed(ladder, size=1000)
    fit = with_belief(fit, base_sd=1 + 0 * fit.members[0].belief.base_sd)
    common = place(task="debian-en-de")

    def gap(other: str) -> np.ndarray:
        a = fit.draws(common.assign(method="fmt", base_model="one")).expected[:, 0]
        b = fit.draws(common.assign(method="lora", base_model=other)).expected[:, 0]
        return np.log(a / b)

    def width(values: np.ndarray) -> float:
        return float(np.subtract(*np.quantile(values, [0.75, 0.25])))

    # Two Student-t effects with df 4 and scale 1 differ by a quartile range near 2.2.
    assert width(gap("two")) - width(gap("one")) > 0.5
    table = compare(fit, common.assign(base_model="one"), methods=["fmt", "lora"])
    assert table.loc[0, "p_beats_lora"] == pytest.approx((gap("one") < 0).mean())


@pytest.mark.parametrize(
    ("methods", "match"),
    [
        (["fmt"], "two methods or more, got fmt"),
        (["fmt", "fmt"], "two methods or more, got fmt"),
        (["fmt", "magic"], "unknown method 'magic': the runs have fmt, lora, prompt"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(
    ladder: pd.DataFrame, believed: MakeFit, methods: list[str], match: str
) -> None:
    with pytest.raises(TunecastError, match=match):
        compare(believed(ladder, size=2), place(), methods=methods)


def test_a_method_column_of_the_targets_is_ignored(ladder: pd.DataFrame, believed: MakeFit) -> None:
    fit = believed(ladder)
    plain = compare(fit, place())
    named = compare(fit, pd.concat([place(method="lora"), place(method="fmt")]))
    pd.testing.assert_frame_equal(plain, named)


# ------------------------------------------------------------------ forecasts


def test_a_forecast_table_holds_the_quantiles_of_the_draws(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    fit = believed(ladder)
    targets = targets_grid(["debian-en-de"], ["fmt", "lora"], model_size=[1e6], base_model=["new"])
    targets = targets.assign(finetune_examples=5e3)
    table, draws = forecast(fit, targets), fit.draws(targets)
    np.testing.assert_array_equal(table["loss_mean"], draws.loss.mean(axis=0))
    np.testing.assert_array_equal(table["loss_q05"], np.quantile(draws.loss, 0.05, axis=0))
    np.testing.assert_array_equal(table["expected_q95"], np.quantile(draws.expected, 0.95, axis=0))
    assert list(table.columns[: targets.shape[1]]) == list(targets.columns)
    assert table["converged"].tolist() == [True, True] and "simulated" not in table


def test_doubtful_fits_mark_their_forecasts(ladder: pd.DataFrame, believed: MakeFit) -> None:
    fit = believed(ladder)
    bad = replace(fit.diagnostics, rhat_max=1.5)
    doubtful = replace(fit, diagnostics=bad, info={**fit.info, "simulated": True})
    table = forecast(doubtful, ladder.head(2))
    assert table["converged"].tolist() == [False, False]
    assert table["simulated"].tolist() == [True, True]


def test_targets_grid_is_every_combination() -> None:
    grid = targets_grid(["t"], ["a", "b"], model_size=[1.0, 2.0], finetune_examples=[10, 20, 30])
    assert list(grid.columns) == ["task", "method", "model_size", "finetune_examples"]
    assert len(grid) == 12 and not grid.duplicated().any()
    assert grid.iloc[0].tolist() == ["t", "a", 1.0, 10]


# ------------------------------------------------------------------ backtests


@pytest.mark.parametrize(
    ("train", "test", "by", "match"),
    [
        ("finetune_examples < 0", "loss > 0", (), "no usable row satisfies the train expression"),
        ("loss > 0", "finetune_examples < 0", (), "no usable row satisfies the test expression"),
        ("finetune_examples <= 600", "finetune_examples >= 600", (), "rows are in train and in"),
        (
            "finetune_examples < 600",
            "finetune_examples > 600",
            ("mood",),
            "lacks the column 'mood'",
        ),
    ],
)
def test_a_backtest_that_says_nothing_is_refused(
    ladder: pd.DataFrame, train: str, test: str, by: tuple[str, ...], match: str
) -> None:
    with pytest.raises(TunecastError, match=match):
        backtest(ladder, train=train, test=test, by=by)


def test_a_backtest_scores_the_rows_left_out_with_a_fit_of_the_others(
    ladder: pd.DataFrame, believed: MakeFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[pd.DataFrame] = []

    def fake(runs: pd.DataFrame, **options: Any) -> Fit:
        assert options == {"law": "power", "seed": 4}
        seen.append(runs)
        return believed(runs, law="power")

    monkeypatch.setattr(inference, "fit", fake)
    table = backtest(
        ladder, train="finetune_examples <= 600", test="finetune_examples > 600",
        by=["method"], law="power", seed=4,
    )  # fmt: skip
    inside = ladder["finetune_examples"] <= 600
    assert sorted(seen[0]["run_id"]) == sorted(ladder.loc[inside, "run_id"])
    later = ladder[~inside].reset_index(drop=True)
    draws = believed(ladder[inside], law="power").draws(later).loss
    expected = score_draws(draws, later["loss"].to_numpy(), later[["method"]])
    pd.testing.assert_frame_equal(table.drop(columns="converged"), expected)
