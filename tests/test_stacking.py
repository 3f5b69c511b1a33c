"""Weights of laws: the optimum of the mixture's score, and what is set aside to find it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar

from tunecast.models import inference
from tunecast.models.errors import TunecastError
from tunecast.models.fits import Diagnostics, Fit
from tunecast.models.hierarchy import simulate_prior
from tunecast.models.laws import LAWS
from tunecast.models.layout import Layout
from tunecast.models.priors import WEAK, PriorTable
from tunecast.models.stacking import LEAST_WEIGHT, split_future, stacked, weigh


def test_laws_that_own_their_rows_weigh_by_the_number_of_rows() -> None:
    """Where each row is possible under one law alone, the optimum is the share of rows."""
    owner = np.array([0] * 5 + [1] * 3 + [2] * 2)
    log_densities = np.where(owner[:, None] == np.arange(3), 0.0, -300.0)
    np.testing.assert_allclose(weigh(log_densities), [0.5, 0.3, 0.2], atol=1e-12)


def test_the_weights_maximise_the_log_score() -> None:
    """Two laws whose optimum is inside: against a bounded search of the same score."""
    rng = np.random.default_rng(3)
    log_densities = rng.normal([0.1, 0.0], [1.0, 1.3], (60, 2))

    def score(w: float) -> float:
        return float(np.logaddexp(*(log_densities + np.log([w, 1 - w])).T).sum())

    best = minimize_scalar(lambda w: -score(w), bounds=(0.01, 0.99), method="bounded")
    got = weigh(log_densities)
    assert 0.2 < got[0] < 0.8
    assert got.sum() == pytest.approx(1, abs=1e-12)
    assert score(got[0]) >= -best.fun - 1e-9
    # The control: equal weights score less.
    assert score(0.5) < score(got[0]) - 1e-6


def test_a_law_that_is_always_better_takes_everything() -> None:
    rng = np.random.default_rng(0)
    worse = rng.normal(-5, 1, 30)
    assert weigh(np.array([worse + 2, worse]).T)[0] == pytest.approx(1, abs=1e-9)


def test_a_constant_of_a_row_changes_nothing() -> None:
    log_densities = np.random.default_rng(1).normal(size=(20, 3))
    shifted = log_densities + np.linspace(-2000, 700, 20)[:, None]
    np.testing.assert_allclose(weigh(shifted), weigh(log_densities), atol=1e-9)


def runs_of(sizes: dict[str, list[float]]) -> pd.DataFrame:
    rows = [
        {"task": "t", "method": m, "base_model": b, "finetune_examples": s}
        for m, values in sizes.items()
        for b in ("b0", "b1")
        for s in values
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


@pytest.mark.parametrize(
    ("n", "aside"), [(1, 0), (3, 0), (4, 1), (5, 2), (6, 2), (7, 2), (9, 3), (12, 4)]
)
def test_the_largest_third_of_a_cells_sizes_is_set_aside(n: int, aside: int) -> None:
    """Whatever another cell has; three sizes at least stay."""
    sizes = [10.0 * 2**k for k in range(n)]
    runs = runs_of({"fmt": sizes, "lora": [1.0, 2.0, 3.0, 4e6]})
    future = split_future(runs, ("task", "method"), "finetune_examples")
    own = runs["method"] == "fmt"
    assert set(runs.loc[own & future, "finetune_examples"]) == set(sizes[n - aside :])
    assert set(runs.loc[~own & future, "finetune_examples"]) == {4e6}
    assert future.sum() == 2 * (aside + 1)


def test_laws_are_weighed_on_sizes_that_they_did_not_see(
    ladder: pd.DataFrame, believed: Callable[..., Fit], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With prior draws for posterior ones: four fits of the past, then one for each law kept."""
    seen: list[tuple[str, int]] = []
    good = Diagnostics(1.0, 1e3, 1e3, 0, 1.0, 100)

    def fake(layout: Layout, priors: PriorTable, **options: Any) -> tuple[Any, Diagnostics]:
        seen.append((layout.question.law, len(layout.row_curve)))
        return simulate_prior(layout, priors, 300, options["seed"])[0], good

    monkeypatch.setattr(inference, "sample", fake)
    options = {"draws": 10, "tune": 10, "chains": 2, "seed": 3}
    ask = {"factors": None, "data": "finetune_examples", "cell": None, "curve": "base_model"}
    members, diagnostics, scores = stacked(ladder, ask, WEAK, options, False, False)
    future = split_future(ladder, ("task", "method"), "finetune_examples")
    assert seen[: len(LAWS)] == [(law, int((~future).sum())) for law in LAWS]
    kept = [m.layout.question.law for m in members]
    assert seen[len(LAWS) :] == [(law, len(ladder)) for law in kept]
    weights = [m.weight for m in members]
    assert sum(weights) == pytest.approx(1) and min(weights) >= LEAST_WEIGHT
    assert list(scores) == list(LAWS) and np.isfinite(list(scores.values())).all()
    assert diagnostics.draws == 100 * len(members)


def test_too_few_sizes_for_auto_is_one_sentence(ladder: pd.DataFrame) -> None:
    few = ladder[ladder["finetune_examples"].isin([200, 600, 2000])]
    options = {"draws": 10, "tune": 10, "chains": 2, "seed": 3}
    ask = {"factors": None, "data": "finetune_examples", "cell": None, "curve": "base_model"}
    with pytest.raises(TunecastError, match="four data sizes or more: name a law instead"):
        stacked(few, ask, WEAK, options, False, False)
