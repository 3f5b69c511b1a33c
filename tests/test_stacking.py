"""Weights of laws: the optimum of the mixture's score, and what is set aside to find it."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar

from tunecast.models.errors import TunecastError
from tunecast.models.hierarchy.numpy_backends import geometry_of, simulate_prior
from tunecast.models.hierarchy.predict import Predictor
from tunecast.models.hierarchy.priors import WEAK, Priors
from tunecast.models.hierarchy.table import Table, index_runs, spec_of
from tunecast.models.hierarchy.targets import check_targets
from tunecast.models.inference import stacking
from tunecast.models.inference.diagnostics import Diagnostics
from tunecast.models.inference.sampling import Chains
from tunecast.models.inference.stacking import (
    LEAST_WEIGHT,
    split_future,
    stacked,
    stacking_weights,
)
from tunecast.models.laws import LAWS


def test_laws_that_own_their_rows_weigh_by_the_number_of_rows() -> None:
    """Where each row is possible under one law alone, the optimum is the share of rows."""
    owner = np.array([0] * 5 + [1] * 3 + [2] * 2)
    log_densities = np.where(owner[:, None] == np.arange(3), 0.0, -300.0)
    np.testing.assert_allclose(stacking_weights(log_densities), [0.5, 0.3, 0.2], atol=1e-12)


def test_the_weights_maximise_the_log_score() -> None:
    """Two laws whose optimum is inside: against a bounded search of the same score."""
    rng = np.random.default_rng(3)
    log_densities = rng.normal([0.1, 0.0], [1.0, 1.3], (60, 2))

    def score(w: float) -> float:
        return float(np.logaddexp(*(log_densities + np.log([w, 1 - w])).T).sum())

    best = minimize_scalar(lambda w: -score(w), bounds=(0.01, 0.99), method="bounded")
    got = stacking_weights(log_densities)
    assert 0.2 < got[0] < 0.8
    assert got.sum() == pytest.approx(1, abs=1e-12)
    assert score(got[0]) >= -best.fun - 1e-9
    # The control: equal weights score less.
    assert score(0.5) < score(got[0]) - 1e-6


def test_a_law_that_is_always_better_takes_everything() -> None:
    rng = np.random.default_rng(0)
    worse = rng.normal(-5, 1, 30)
    assert stacking_weights(np.array([worse + 2, worse]).T)[0] == pytest.approx(1, abs=1e-9)


def test_a_constant_of_a_row_changes_nothing() -> None:
    log_densities = np.random.default_rng(1).normal(size=(20, 3))
    shifted = log_densities + np.linspace(-2000, 700, 20)[:, None]
    np.testing.assert_allclose(
        stacking_weights(shifted), stacking_weights(log_densities), atol=1e-9
    )


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


OPTIONS: dict[str, Any] = {"draws": 10, "tune": 10, "chains": 2, "seed": 3}
ASK: dict[str, Any] = {
    "factors": None, "data": "finetune_examples", "cell": None, "curve": "base_model"
}  # fmt: skip


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, bool]]:
    """Prior draws for posterior ones; the law, number of runs and retry of each fit."""
    fits: list[tuple[str, int, bool]] = []
    good = Diagnostics(1.0, 1e3, 1e3, 0, 1.0, 100)

    def fake(table: Table, priors: Priors, *, seed: int, retry: bool, **options: Any) -> Chains:
        fits.append((table.spec.law, len(table.run_curve), retry))
        found = simulate_prior(table, priors, 300, seed, geometry_of(table, priors))
        draws = {name: v.reshape(3, 100, *v.shape[1:]) for name, v in found.draws.items()}
        return Chains(draws, {"lp": np.zeros((3, 100))}, good)

    monkeypatch.setattr(stacking, "sample", fake)
    return fits


def test_laws_are_weighed_on_sizes_that_they_did_not_see(
    ladder: pd.DataFrame, seen: list[tuple[str, int, bool]]
) -> None:
    """A fit of the past for each of the six laws, then one of all for each law kept."""
    posteriors, diagnostics, scores = stacked(ladder, ASK, WEAK, OPTIONS, False, True)
    future = split_future(ladder, ("task", "method"), "finetune_examples")
    assert seen[: len(LAWS)] == [(law, int((~future).sum()), False) for law in LAWS]
    kept = [p.law for p in posteriors]
    assert seen[len(LAWS) :] == [(law, len(ladder), True) for law in kept]
    weights = [p.weight for p in posteriors]
    assert sum(weights) == pytest.approx(1) and min(weights) >= LEAST_WEIGHT
    assert list(scores) == list(LAWS) and np.isfinite(list(scores.values())).all()
    assert len(LAWS) == 6
    assert diagnostics.draws == 100 * len(posteriors)
    # What the sampler told travels with the draws, chains apart.
    assert all(p.chains == (3, 100) and p.statistics["lp"].shape == (3, 100) for p in posteriors)


def test_weights_follow_the_density_of_the_future(
    ladder: pd.DataFrame, seen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is maximised is the mean log density of the rows set aside, under each law's draws."""
    given: list[np.ndarray] = []

    def watched(log_densities: np.ndarray) -> np.ndarray:
        given.append(log_densities)
        return stacking_weights(log_densities)

    monkeypatch.setattr(stacking, "stacking_weights", watched)
    posteriors, _, scores = stacked(ladder, ASK, WEAK, OPTIONS, False, False)
    (log_densities,) = given
    future = split_future(ladder, ("task", "method"), "finetune_examples")
    assert log_densities.shape == (future.sum(), len(LAWS))
    np.testing.assert_allclose(list(scores.values()), log_densities.mean(axis=0))
    # Those of log loss, by draws of a fit of the rows that are not set aside.
    past, later = ladder[~future].reset_index(drop=True), ladder[future]
    table = index_runs(past, spec_of(past, law="power"))
    own = simulate_prior(table, WEAK, 300, 3, geometry_of(table, WEAK))
    draws = Predictor(table, WEAK, own.values, 3).draws(check_targets(later, table))
    by_hand = draws.log_density(np.log(later["loss"].to_numpy()))
    np.testing.assert_allclose(log_densities[:, list(LAWS).index("power")], by_hand, rtol=1e-9)
    expected = stacking_weights(log_densities)
    kept = [list(LAWS).index(p.law) for p in posteriors]
    dropped = [i for i in range(len(LAWS)) if i not in kept]
    assert (expected[dropped] < LEAST_WEIGHT).all()
    np.testing.assert_allclose(
        [p.weight for p in posteriors], expected[kept] / expected[kept].sum()
    )


def test_too_few_sizes_for_auto_is_one_sentence(ladder: pd.DataFrame) -> None:
    few = ladder[ladder["finetune_examples"].isin([200, 600, 2000])]
    with pytest.raises(TunecastError, match="four data sizes or more: name a law instead"):
        stacked(few, ASK, WEAK, OPTIONS, False, False)
