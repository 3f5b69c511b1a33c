"""Sampling: what is drawn and kept, when it ends, when it is tried again."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tunecast.models import pymc_model
from tunecast.models.compile.density import compiled_density
from tunecast.models.errors import TunecastError
from tunecast.models.fits.fit import Fit
from tunecast.models.hierarchy.priors import WEAK
from tunecast.models.hierarchy.table import Table, index_runs, spec_of
from tunecast.models.inference import diagnostics, sampling
from tunecast.models.inference.diagnostics import Diagnostics, diagnose
from tunecast.models.inference.sampling import STATISTICS, Chains, sample, sample_compiled

GOOD = Diagnostics(1.0, 1e3, 1e3, 0, 1.0, 100)


@pytest.fixture
def few(ladder: pd.DataFrame) -> pd.DataFrame:
    """The 17 runs of one method."""
    return ladder[ladder["method"] == "fmt"].reset_index(drop=True)


def indexed(runs: pd.DataFrame, law: str = "power") -> Table:
    return index_runs(runs, spec_of(runs, law=law))


# ------------------------------------------------------------------ what is drawn


def test_the_posterior_describes_the_runs(sampled: Fit, ladder: pd.DataFrame) -> None:
    """Residuals of log loss are of the size of the noise; the control, shuffled losses, are not."""
    values = sampled.posteriors[0].values
    middle = np.median(values["expected_log_loss"], axis=0)
    residual = np.sqrt(np.mean((np.log(ladder["loss"]) - middle) ** 2))
    usual = np.median(values["noise"])
    assert 0.2 * usual < residual < 5 * usual
    shuffled = np.log(ladder["loss"].to_numpy())[::-1]
    assert np.sqrt(np.mean((shuffled - middle) ** 2)) > 20 * residual
    # The data moved the global mean away from its prior N(0.7, 1).
    assert values["log_loss_ref"].std() < 0.5


def test_every_unknown_is_kept_once_for_each_draw_of_each_chain(sampled: Fit) -> None:
    (posterior,) = sampled.posteriors
    draws = posterior.draws
    assert {v.shape[:2] for v in draws.values()} == {(2, 300)}
    assert posterior.chains == (2, 300) and posterior.size == 600
    assert draws["log_loss_ref_curve_raw"].shape == (2, 300, 9)
    assert all(np.isfinite(v).all() for v in draws.values())
    assert sampled.diagnostics.draws == 600
    # The variables that the model has, no more and no less; each chain has draws of its own.
    model = pymc_model(sampled.runs)
    assert draws.keys() == {variable.name for variable in model.free_RVs}
    assert all(not np.array_equal(*v) for v in draws.values())


def test_what_the_sampler_says_of_each_transition_travels(sampled: Fit) -> None:
    told = sampled.posteriors[0].statistics
    assert told.keys() == STATISTICS.keys()
    assert {v.shape for v in told.values()} == {(2, 300)}
    assert told["diverging"].dtype == bool
    assert told["diverging"].sum() == sampled.diagnostics.divergences
    # A doubling that turns back half-way costs steps and adds no depth.
    steps, depth = (told[name].astype(int) for name in ("n_steps", "tree_depth"))
    assert (2**depth - 1 <= steps).all() and (steps < 2 ** (depth + 1)).all()
    assert 0.9 < told["acceptance_rate"].mean() <= 1
    assert (told["step_size"] > 0).all()
    # The density is that of the model, up to a constant.
    posterior = sampled.posteriors[0]
    compiled = [
        log_density_of_draw(posterior.table, posterior.draws, chain, draw)
        for chain, draw in ((0, 0), (1, 150), (1, 299))
    ]
    off = np.array(compiled) - np.array([told["lp"][0, 0], told["lp"][1, 150], told["lp"][1, 299]])
    np.testing.assert_allclose(off, off[0], atol=1e-6)
    # Energy is what is left of it and momenta: half a chi-square of as many degrees as unknowns.
    unknowns = sum(v[0, 0].size for v in posterior.draws.values())
    for energy, lp in zip(told["energy"], told["lp"], strict=True):
        assert abs(np.corrcoef(energy + lp, lp)[0, 1]) < 5 / np.sqrt(300)
        assert np.std(energy + lp) == pytest.approx(np.sqrt(unknowns / 2), rel=5 / np.sqrt(2 * 300))


def log_density_of_draw(table: Table, draws: Any, chain: int, draw: int) -> float:
    from tunecast.models.hierarchy.numpy_backends import geometry_of, log_density

    point = {name: v[chain, draw] for name, v in draws.items()}
    return log_density(table, WEAK, point, geometry_of(table, WEAK))


def test_the_seed_decides_the_draws(few: pd.DataFrame) -> None:
    table = indexed(few)
    options: dict[str, Any] = {"draws": 20, "tune": 30, "chains": 2, "retry": False}
    first, again, other = (sample(table, WEAK, seed=seed, **options) for seed in (1, 1, 2))
    for name, values in first.draws.items():
        np.testing.assert_array_equal(again.draws[name], values)
        assert not np.array_equal(other.draws[name], values)


def test_no_more_draws_are_kept_than_a_fit_takes() -> None:
    """Every so-maniest of each chain, of draws and statistics alike; figures are those of all."""
    order = np.arange(2 * 1000.0).reshape(2, 1000)
    chains = Chains({"a": order[..., None]}, {"lp": order}, GOOD)
    for kept, each in ((5000, 1000), (2000, 1000), (1999, 500), (400, 200), (401, 200)):
        thin = chains.thinned(kept)
        assert thin.statistics["lp"].shape == (2, each)
        np.testing.assert_array_equal(thin.draws["a"][..., 0], thin.statistics["lp"])
        assert thin.statistics["lp"][0, 0] == 0 and thin.statistics["lp"][1, 0] == 1000
        assert np.ptp(np.diff(thin.statistics["lp"], axis=1)) == 0
        assert thin.diagnostics is GOOD
        # They need not keep the whole of what was drawn in memory.
        assert thin.draws["a"].base is None or thin.draws["a"].base.nbytes <= order.nbytes


# ------------------------------------------------------------------ when it ends


def test_sampling_ends_at_the_first_look_that_finds_it_converged(
    few: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same draws as without looking, so many of them; and all where no look finds it so."""
    model = compiled_density(indexed(few), WEAK)
    settings: dict[str, Any] = {"tune": 100, "chains": 2, "seed": 1, "target_accept": 0.8}
    draws = 240
    every = sample_compiled(model, draws, settings, False, may_stop=False).draws
    calm, still = np.zeros((2, draws), bool), np.random.default_rng(1).standard_normal((2, draws))
    looks = [round(draws * share) for share in sampling.INTERIM_CHECKS]
    assert looks == sorted({*looks} - {0, draws})
    ess = []
    for look in (*looks, draws):
        first = {name: value[:, :look] for name, value in every.items()}
        found = diagnose(first, calm[:, :look], still[:, :look])
        ess.append(min(found.ess_bulk_min, found.ess_tail_min))
    for name, limit in (("RHAT", 9.0), ("DIVERGENCE", 1.0), ("BFMI", 0.0)):
        monkeypatch.setattr(diagnostics, f"{name}_LIMIT", limit)
    for limit in (0.0, (ess[0] + max(ess)) / 2, 2 * max(ess)):
        monkeypatch.setattr(diagnostics, "ESS_LIMIT", limit)
        passed = (look for look, value in zip(looks, ess, strict=False) if value >= limit)
        expected = next(passed, draws)
        got = sample_compiled(model, draws, settings, False, may_stop=True)
        assert got.diagnostics.draws == 2 * expected
        assert all(np.array_equal(got.draws[name], every[name][:, :expected]) for name in every)
        assert {v.shape for v in got.statistics.values()} == {(2, expected)}


@pytest.mark.parametrize("interrupted", [True, False])
def test_an_interrupted_sampler_is_stopped(
    few: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    """Ctrl-C ends the chains and is not answered with the draws there are."""
    import nutpie

    real, cancelled = nutpie.sample, []

    class Watched:
        def __init__(self, sampler: Any) -> None:
            self.sampler = sampler

        def wait(self, timeout: float) -> Any:
            if interrupted:
                raise KeyboardInterrupt
            return self.sampler.wait(timeout=timeout)

        def cancel(self) -> None:
            cancelled.append(True)
            self.sampler.cancel()

    monkeypatch.setattr(nutpie, "sample", lambda *a, **k: Watched(real(*a, **k)))
    ask: dict[str, Any] = {"draws": 10, "tune": 10, "chains": 2, "retry": False}
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            sample(indexed(few), WEAK, **ask)
        assert cancelled
    else:  # the control: a sampler that ended needs no stopping
        assert sample(indexed(few), WEAK, **ask).diagnostics.draws == 20
        assert not cancelled


# ------------------------------------------------------------------ when it is tried again


BAD = replace(GOOD, ess_bulk_min=10.0)
WORSE = replace(BAD, rhat_max=1.5)


@pytest.mark.parametrize(
    ("first", "second", "retry", "kept"),
    [
        (GOOD, GOOD, True, 0),  # nothing to try again
        (BAD, GOOD, True, 1),
        (WORSE, BAD, True, 1),  # not converged either, but nearer to it
        (BAD, WORSE, True, 0),
        (BAD, GOOD, False, 0),
    ],
)
def test_what_does_not_converge_is_sampled_once_more_for_twice_as_long(
    few: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
    first: Diagnostics,
    second: Diagnostics,
    retry: bool,
    kept: int,
) -> None:
    calls: list[tuple[int, dict[str, Any], bool]] = []

    def fake(compiled: Any, draws: int, settings: Any, progress: bool, may_stop: bool) -> Chains:
        calls.append((draws, dict(settings), may_stop))
        one = np.full((2, draws), float(len(calls) - 1))
        return Chains({"a": one}, {"lp": one}, (first, second)[len(calls) - 1])

    monkeypatch.setattr(sampling, "sample_compiled", fake)
    found = sample(indexed(few), WEAK, draws=30, tune=20, chains=2, seed=5, retry=retry)
    assert (found.draws["a"] == kept).all()
    draws, settings, may_stop = calls[0]
    assert (draws, may_stop) == (30, retry)
    assert settings == {"tune": 20, "chains": 2, "seed": 5, "target_accept": 0.95}
    assert len(calls) == (2 if retry and first is not GOOD else 1)
    if len(calls) == 2:
        draws, settings, may_stop = calls[1]
        assert (draws, may_stop) == (60, True)
        assert settings == {"tune": 40, "chains": 2, "seed": 6, "target_accept": 0.99}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"draws": 9}, "draws is 9, expected 10 or more"),
        ({"tune": 0}, "tune is 0, expected 10 or more"),
        ({"chains": 1}, "chains is 1, expected 2 or more"),
    ],
)
def test_too_little_sampling_is_refused(options: Any, match: str) -> None:
    with pytest.raises(TunecastError, match=match):
        sampling.check_sampler(**options)
    sampling.check_sampler(draws=10, tune=10, chains=2)
