"""Posterior predictive checks: exact where the draw is the truth, and what they find."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, kstest
from test_checks_tables import falling, runs_of

from tunecast.models.checks.misfit import DATA_SIZE, FALSE_ALARMS, REPLICATES, RISES, SURFACE
from tunecast.models.checks.predictive import TOLERANCE, checks_of, contrasts, predictive_checks
from tunecast.models.fits.fit import fit
from tunecast.models.hierarchy.numpy_backends import geometry_of, simulate_prior
from tunecast.models.hierarchy.priors import WEAK
from tunecast.models.hierarchy.table import index_runs, spec_of
from tunecast.models.inference.posterior import Posterior

GRID = runs_of(falling, seeds=2)
ALONE = runs_of(falling, sizes=np.geomspace(100, 1e5, 40).round(), methods=("fmt",), bases=1)
ALONE["base_model"] = ALONE["run_id"]
ALONE["model_size"] = np.random.default_rng(3).choice([1e8, 3e8, 1e9, 3e9], len(ALONE))


def simulated(runs: pd.DataFrame, size: int, seed: int = 1) -> Iterator[Posterior]:
    """Tables drawn from the prior, each with the draw that it came from for its posterior."""
    table = index_runs(runs, spec_of(runs, law="rectified"))
    prior = simulate_prior(table, WEAK, size, seed, geometry_of(table, WEAK))
    every = Posterior(table, WEAK, {k: v[None] for k, v in prior.draws.items()})
    for i, log_loss in enumerate(prior.values["log_loss"]):
        yield with_log_loss(every.taken(np.array([i])), every, log_loss)


def with_log_loss(posterior: Posterior, like: Posterior, log_loss: np.ndarray) -> Posterior:
    """Return the posterior with other runs, its draws as they are."""
    changed = replace(posterior, table=replace(posterior.table, log_loss=log_loss))
    # The coordinates follow from the losses; here the draws keep the meaning that they have.
    changed.__dict__["geometry"] = like.geometry
    return changed


def p_values(posteriors: Iterator[Posterior]) -> dict[str, np.ndarray]:
    """Probabilities of all tables and cells by kind of check."""
    found: dict[str, list[float]] = {}
    for posterior in posteriors:
        for check in checks_of(posterior):
            found.setdefault(check.kind, []).append(float(check.p[0]))
    return {kind: np.array(p) for kind, p in found.items()}


def louder(posteriors: Iterator[Posterior], factor: float) -> Iterator[Posterior]:
    """The same with residuals times a factor, which the draws know nothing of."""
    for posterior in posteriors:
        mean = posterior.values["expected_log_loss"][0]
        changed = mean + factor * (posterior.table.log_loss - mean)
        yield with_log_loss(posterior, posterior, changed)


# ------------------------------------------------------------------ false alarms


@pytest.mark.parametrize(("runs", "kinds"), [(GRID, {DATA_SIZE, REPLICATES}), (ALONE, {SURFACE})])
def test_probabilities_are_uniform_where_the_draw_is_the_truth(
    runs: pd.DataFrame, kinds: set[str]
) -> None:
    """Over 200 tables from the prior; Kolmogorov and Smirnov at 1e-4 detects a third more noise.

    The rank test of a surface and the ratio of replicates do not depend on the noise: their
    controls come below.
    """
    found = p_values(simulated(runs, 200))
    assert kinds <= set(found)
    for kind, p in found.items():
        assert kstest(p, "uniform").pvalue > 1e-4, kind
    control = p_values(louder(simulated(runs, 200), 1.5))
    assert kstest(control[DATA_SIZE], "uniform").pvalue < 1e-4


def test_sound_tables_fail_as_seldom_as_stated() -> None:
    """Of 300 tables at most 1 %, within its binomial band; the tolerance is left out of account.

    The control: residuals that are three times what the draws say.
    """

    def alarms(posteriors: Iterator[Posterior]) -> list[bool]:
        each = [[float(c.p[0]) for c in checks_of(p)] for p in posteriors]
        return [np.e * min(p) * len(p) < FALSE_ALARMS for p in each]

    assert sum(alarms(simulated(GRID, 300))) <= binom.isf(1e-4, 300, FALSE_ALARMS)
    assert sum(alarms(louder(simulated(GRID, 50), 3.0))) > binom.isf(1e-4, 50, FALSE_ALARMS)


def test_runs_alone_are_off_by_their_residual_whatever_is_drawn_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where each base model has one of them, its effect is drawn from its residual: no news."""
    found = []
    for seed in (1, 2):
        monkeypatch.setattr("tunecast.models.hierarchy.unsampled.SEED", seed)
        (posterior,) = simulated(ALONE, 1)
        (check,) = (c for c in checks_of(posterior) if c.kind == SURFACE)
        found.append((check.p[0], check.size, posterior.values["base_model_effect"]))
    assert found[0][:2] == found[1][:2]
    assert not np.array_equal(found[0][2], found[1][2])


# ------------------------------------------------------------------ what they find


@pytest.fixture(scope="module")
def truth() -> Posterior:
    """A table of the grid with the draw that it came from, its noise near 1 %."""
    middle = (p for p in simulated(GRID, 200) if 0.008 < p.values["noise"].mean() < 0.012)
    return next(p for p in middle if not predictive_checks([p]))


def bent(posterior: Posterior, cell: int, by: float) -> Posterior:
    """The same with one cell's runs bent by a parabola of log data size, ``by`` at its ends."""
    table = posterior.table
    own = table.curve_cell[table.run_curve] == cell
    u = table.log_u / np.abs(table.log_u).max()
    return with_log_loss(posterior, posterior, table.log_loss + own * by * (3 * u**2 - 1) / 2)


def test_runs_that_bend_otherwise_fail_in_their_cell(truth: Posterior) -> None:
    """By their data size and by their replicates; the other cell stays sound."""
    found = predictive_checks([bent(truth, 1, 0.1)])
    assert {m.kind for m in found} == {DATA_SIZE, REPLICATES}
    assert {m.cell for m in found} == {truth.table.cells[1]}
    (by_size,) = (m for m in found if m.kind == DATA_SIZE)
    assert "t / lora do not follow their runs" in by_size.sentence
    assert "above them at 3e+04" in by_size.sentence or "above them at 100" in by_size.sentence
    # What is sure but below the tolerance is not said.
    small = bent(truth, 1, TOLERANCE)
    sure = [c for c in checks_of(small) if c.cell == 1 and c.kind == REPLICATES]
    assert predictive_checks([small]) == () and sure[0].size < 2 * TOLERANCE


def test_replicates_that_differ_by_more_than_their_means_fail(truth: Posterior) -> None:
    """Two settings under one name: pairs that lie to both sides of the curve."""
    sign = np.where(np.arange(len(GRID)) % 2 == 0, 1.0, -1.0)
    mean = truth.values["expected_log_loss"][0]
    apart = with_log_loss(truth, truth, mean + 0.1 * sign)
    assert {m.kind for m in predictive_checks([apart])} == {REPLICATES}


def test_probabilities_of_many_draws_are_merged_with_their_weights(truth: Posterior) -> None:
    """A law of little weight that fails harms no fit.

    And the geometric mean of two equal posteriors is that of one.
    """
    bad = bent(truth, 0, 0.2)
    expected = predictive_checks([bad])
    assert expected
    shares = [replace(bad, weight=w) for w in (0.5, 0.5)]
    for p in shares:
        p.__dict__["geometry"] = truth.geometry
    assert predictive_checks(shares) == expected
    good, poor = replace(truth, weight=0.99), replace(bad, weight=0.01)
    good.__dict__["geometry"] = poor.__dict__["geometry"] = truth.geometry
    assert predictive_checks([poor, good]) == ()


def test_contrasts_are_orthonormal_polynomials() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 40))
    shape = contrasts([x, y], 3)
    assert shape.shape == (40, 9)
    np.testing.assert_allclose(shape.T @ shape, np.eye(9), atol=1e-12)
    np.testing.assert_allclose(shape.sum(axis=0), 0, atol=1e-12)
    # What cannot be told apart is left out.
    assert contrasts([x, x], 2).shape == (40, 2)
    assert contrasts([np.repeat([0.0, 1.0], 20)], 3).shape == (40, 1)


# ------------------------------------------------------------------ fits


SHORT: dict[str, Any] = {
    "draws": 200, "tune": 300, "chains": 2, "retry": False, "progress": False,
    "allow_unconverged": True,
}  # fmt: skip


def test_a_fit_of_a_curve_that_nothing_follows_says_so() -> None:
    """For real: a U, which drift follows and which rises, and a zigzag, which nothing follows.

    The control is the same table straightened out.
    """

    def u_shaped(method: str, d: np.ndarray) -> np.ndarray:
        return 0.08 * abs(d - np.log(1700)) if method == "fmt" else -0.05 * d

    def zigzag(method: str, d: np.ndarray) -> np.ndarray:
        return (0.1 * np.cos(2 * np.pi * d / np.log(10)) if method == "fmt" else 0.0) - 0.05 * d

    for shape, kind in ((u_shaped, RISES), (zigzag, REPLICATES)):
        result = fit(runs_of(shape, seeds=2), **SHORT)
        assert {m.cell for m in result.misfits} == {("t", "fmt")}
        assert {m.kind for m in result.misfits} == {kind}
    assert fit(runs_of(falling, seeds=2), **SHORT).misfits == ()


@pytest.mark.slow
def test_the_wrong_law_is_seen_where_each_run_has_its_own_base_model() -> None:
    """Runs of an additive law, which the rectified one bends otherwise; that law itself passes."""
    rng = np.random.default_rng(5)
    n = 150
    size, data = 10 ** rng.uniform(8, 11, n), 10 ** rng.uniform(9, 12, n)
    loss = 1.82 + 482.0 * size**-0.348 + 2085.0 * data**-0.366
    names = [f"r{i}" for i in range(n)]
    runs = pd.DataFrame({
        "run_id": names, "task": "lm", "method": "pretrain", "base_model": names,
        "model_size": size, "finetune_examples": data,
        "loss": loss * np.exp(0.004 * rng.standard_normal(n)),
    })  # fmt: skip
    options = SHORT | {"draws": 500, "tune": 800}
    assert [m.kind for m in fit(runs, law="rectified", **options).misfits] == [SURFACE]
    assert fit(runs, law="additive", **options).misfits == ()
