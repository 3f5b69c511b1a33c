"""Comparisons of methods, on draws from the prior."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from changed import lowered, with_values
from known_forecaster import TwoPowerLaws
from scipy.stats import norm

from tunecast.models.errors import TunecastError
from tunecast.models.fits.fit import Fit
from tunecast.models.questions.compare import compare
from tunecast.models.questions.forecaster import Forecaster, methods_of

type MakeFit = Callable[..., Fit]


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
    fit = with_values(fit, base_model_sd=np.ones(1000))
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


def test_methods_that_share_a_curve_are_not_compared(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    fit = believed(ladder, size=2, cell=("task",))
    with pytest.raises(TunecastError, match=r"one curve for all methods \(its cells are by task\)"):
        compare(fit, place())
    with pytest.raises(TunecastError, match="expected cells that tell methods apart"):
        fit.crossover("fmt", "lora", model_size=4e6)


def test_a_method_column_of_the_targets_is_ignored(ladder: pd.DataFrame, believed: MakeFit) -> None:
    fit = believed(ladder)
    plain = compare(fit, place())
    named = compare(fit, pd.concat([place(method="lora"), place(method="fmt")]))
    pd.testing.assert_frame_equal(plain, named)


@pytest.mark.parametrize("examples", [1e3, 2e3, 5e3])
def test_a_comparison_of_a_known_forecaster_is_the_closed_form(examples: float) -> None:
    """P(fast is below) and the regret of either, by integration over the gap."""
    known: Forecaster = TwoPowerLaws(mean=0.2, sd=0.1)
    target = pd.DataFrame({"task": ["t"], "finetune_examples": [examples]})
    one = by_method(compare(known, target))
    log_d = np.log(examples / 1000)
    p = norm.cdf((0.2 * log_d - 0.2) / 0.1)
    assert one["fast"]["p_best"] == pytest.approx(p, abs=1 / 4000)
    assert one["slow"]["p_beats_fast"] == pytest.approx(1 - p, abs=1 / 4000)
    gap = np.linspace(-0.6, 1.0, 100_001)
    fast, slow = np.exp(gap - 0.3 * log_d), np.exp(-0.1 * log_d)
    density = norm.pdf(gap, 0.2, 0.1)
    for name, loss in (("fast", fast), ("slow", slow)):
        regret = np.trapezoid((loss - np.minimum(fast, slow)) * density, gap)
        assert one[name]["expected_regret"] == pytest.approx(regret, rel=0.01, abs=1e-5)
