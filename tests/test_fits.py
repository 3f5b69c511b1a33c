"""A fit: what it says of itself, what it refuses, and that it answers by its own methods."""

from dataclasses import replace
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL

from tunecast.models import inference
from tunecast.models.errors import TunecastError
from tunecast.models.fits.fit import Fit, UnconvergedError, fit
from tunecast.models.laws import LAWS
from tunecast.models.questions.compare import compare
from tunecast.models.questions.crossover import crossover
from tunecast.models.questions.forecast import forecast
from tunecast.models.runs import digest

QUICK: dict[str, Any] = {"chains": 2, "retry": False, "progress": False}
SHORT: dict[str, Any] = {**QUICK, "draws": 10, "tune": 20, "allow_unconverged": True}


# ------------------------------------------------------------------ what it says of itself


def test_the_fit_says_where_it_comes_from(sampled: Fit, ladder: pd.DataFrame) -> None:
    info = sampled.info
    assert (info["law"], info["seed"], info["draws"], info["chains"]) == ("rectified", 3, 300, 2)
    assert info["digest"] == digest(ladder)
    assert info["counts"]["used"] == len(ladder) and info["counts"]["zero_shot"] == 0
    assert info["weights"] == {"rectified": 1.0} and not info["simulated"]
    assert info["versions"]["tunecast"] == metadata.version("tunecast")
    assert info["versions"]["nutpie"] == metadata.version("nutpie")
    assert sampled.laws == ("rectified",)
    assert sampled.spec.cell == ("task", "method") and sampled.spec.factors == ("model_size",)


def test_summary_is_in_the_papers_spelling(sampled: Fit) -> None:
    table = sampled.summary()
    assert set(table["parameter"]) == {
        "A", "alpha:model_size", "gamma:model_size", "delta:model_size", "D_l", "beta", "E",
    }  # fmt: skip
    assert len(table) == 3 * 7
    assert (table["q05"] <= table["q50"]).all() and (table["q50"] <= table["q95"]).all()
    # Each number is a quantile of the cell's draws.
    (posterior,) = sampled.posteriors
    for k, (_, method) in enumerate(posterior.table.cells):
        row = table[(table["method"] == method) & (table["parameter"] == "beta")].iloc[0]
        own = np.quantile(posterior.values["beta"][:, k], [0.05, 0.5, 0.95])
        np.testing.assert_array_equal(row[["q05", "q50", "q95"]].to_numpy(float), own)
    units = table.set_index("parameter")["unit"]
    assert set(units["E"]) == {"nats per target token"} and set(units["beta"]) == {""}


def test_laws_are_mixed_by_their_weights_however_many_draws_they_kept(
    believed: Any, ladder: pd.DataFrame
) -> None:
    """Early stopping and thinning leave laws with unlike numbers of draws."""
    many, few = believed(ladder, size=300), believed(ladder, size=80, law="power")
    both = (replace(many.posteriors[0], weight=0.25), replace(few.posteriors[0], weight=0.75))
    targets = ladder.head(3)
    loss = replace(many, posteriors=both).draws(targets).loss
    from_power = np.isin(loss[:, 0], few.draws(targets).loss[:, 0])
    assert from_power.sum() == 80 and from_power.mean() == pytest.approx(0.75, abs=0.01)


def test_parameters_of_cells_are_those_of_the_summary(sampled: Fit) -> None:
    found = sampled.cell_parameters()
    assert list(found) == list(sampled.posteriors[0].table.cells)
    table = sampled.summary().set_index(["method", "parameter"])
    for (_, method), parameters in found.items():
        for name, draws in parameters.items():
            assert np.median(draws) == table.loc[(method, name), "q50"]


def test_a_fit_is_shown_in_a_few_lines(sampled: Fit) -> None:
    text = repr(sampled)
    assert len(text.splitlines()) <= 3 and len(text) < 400
    assert "49 runs: law rectified; 9 curves in 3 cells by task, method" in text
    assert "DID NOT CONVERGE" in text and "600 draws" in text
    good = replace(sampled.diagnostics, rhat_max=1.001, ess_bulk_min=900.0, ess_tail_min=800.0)
    text = repr(replace(sampled, diagnostics=good))
    assert "converged: 600 draws, R-hat at most 1.001, ESS at least 800" in text
    assert "DID NOT" not in text


def test_a_notebook_shows_the_parameters_and_runs_nothing(
    sampled: Fit, ladder: pd.DataFrame, believed: Any
) -> None:
    page = sampled._repr_html_()
    assert page.count("<tr") == 1 + 3 * 7 and "DID NOT CONVERGE" in page
    ladder["method"] = ladder["method"].replace("lora", "<script>alert(1)</script>")
    ladder["<b>"] = ladder["method"]
    page = believed(ladder, size=20, cell=("task", "<b>"))._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "<b>," not in page and "&lt;b&gt;" in page


def test_a_fit_of_several_laws_shows_their_weights(sampled: Fit, believed: Any) -> None:
    power = believed(sampled.runs, law="power").posteriors[0]
    both = (replace(sampled.posteriors[0], weight=0.7), replace(power, weight=0.3))
    several = replace(sampled, posteriors=both)
    assert "law rectified 0.70, power 0.30" in repr(several)
    assert several.laws == ("rectified", "power")
    assert several.widest.law == "rectified"
    assert set(several.summary()["law"]) == {"rectified", "power"}
    with pytest.raises(
        TunecastError, match="laws rectified, power, whose parameters do not compare"
    ):
        several.cell_parameters()


# ------------------------------------------------------------------ fewer draws


def test_a_thinned_fit_has_some_of_its_draws(sampled: Fit, ladder: pd.DataFrame) -> None:
    """Spread over both chains; of each law; and its answers are about the same."""
    few = sampled.thinned(100)
    kept, every = (f.posteriors[0].values["log_beta"][:, 0] for f in (few, sampled))
    assert len(kept) == 100 and set(kept) < set(every)
    at = np.flatnonzero(np.isin(every, kept))
    assert at.min() == 0 and at.max() == 599 and (at < 300).sum() == pytest.approx(50, abs=1)
    ours, theirs = few.draws(ladder).expected, sampled.draws(ladder).expected
    assert ours.shape == (100, len(ladder))
    middle = np.median(theirs, axis=0)
    assert (np.abs(np.median(ours, axis=0) - middle) < theirs.std(axis=0)).all()
    # No more than there are: the same draws, their chains told apart.
    whole = sampled.thinned(600)
    assert whole.posteriors[0].chains == (2, 300)
    np.testing.assert_array_equal(whole.draws(ladder).loss, sampled.draws(ladder).loss)


def test_a_changed_copy_forgets_what_was_made_of_the_fit(
    sampled: Fit, ladder: pd.DataFrame, believed: Any
) -> None:
    """Answers are kept by seed, and belong to the draws that they were made of."""
    before = sampled.draws(ladder).expected
    assert len(before) == 600
    assert len(sampled.thinned(50).draws(ladder).expected) == 50
    other = believed(ladder, size=600)
    changed = replace(sampled, posteriors=other.posteriors).draws(ladder, seed=1)
    np.testing.assert_array_equal(changed.expected, other.draws(ladder, seed=1).expected)
    np.testing.assert_array_equal(sampled.draws(ladder).expected, before)


# ------------------------------------------------------------------ its answers


def test_methods_of_a_fit_answer_as_the_functions_do(sampled: Fit, ladder: pd.DataFrame) -> None:
    targets = ladder.iloc[[0, 20]].drop(columns="loss")
    place: dict[str, Any] = {"base_model": "ladder-0.4m", "points": 20}
    for method, function in (
        (sampled.forecast(targets, seed=5), forecast(sampled, targets, seed=5)),
        (
            sampled.compare(targets, methods=["fmt", "lora"], seed=5),
            compare(sampled, targets, methods=["fmt", "lora"], seed=5),
        ),
        (
            sampled.crossover("fmt", "lora", seed=5, **place),
            crossover(sampled, "fmt", "lora", seed=5, **place),
        ),
    ):
        pd.testing.assert_frame_equal(method, function)


def test_a_fit_that_did_not_converge_is_an_error_unless_allowed() -> None:
    with pytest.raises(UnconvergedError, match=r"not converge: .*ESS .* is below 400") as caught:
        fit(SMALL, draws=10, tune=20, **QUICK)
    assert isinstance(caught.value, TunecastError)
    result = caught.value.fit
    assert not result.diagnostics.converged
    allowed = fit(SMALL, **SHORT)
    assert allowed.diagnostics == result.diagnostics  # the seed decides everything
    assert not allowed.forecast(allowed.runs.head(1))["converged"].any()


# ------------------------------------------------------------------ what is fitted


def test_zero_shot_and_failed_runs_stay_out(ladder: pd.DataFrame) -> None:
    extra = ladder.head(2).assign(run_id=["zero", "failed"], status=["done", "failed"])
    extra["finetune_examples"] = [0.0, 600.0]
    table = pd.concat([ladder, extra], ignore_index=True)
    got = fit(table, **SHORT)
    assert got.info["counts"]["used"] == len(ladder) and got.info["counts"]["zero_shot"] == 1
    assert got.info["counts"]["failed"] == 1
    assert list(got.runs["run_id"]) == list(ladder["run_id"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"draws": 9}, "draws is 9, expected 10 or more"),
        ({"tune": 0}, "tune is 0, expected 10 or more"),
        ({"chains": 1}, "chains is 1, expected 2 or more"),
        ({"law": "magic"}, "unknown law 'magic': expected one of power, "),
        ({"priors": "magic"}, "unknown priors 'magic'"),
        ({"factors": ["mood"]}, "mood"),
        ({"law": "auto", "model": object()}, "law 'auto' fits several laws: a model of your own"),
    ],
)
def test_options_at_fault_are_refused_before_sampling(
    options: Any, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: Any, **named: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(inference.sampling, "sample_compiled", never)
    with pytest.raises(ValueError, match=match):
        fit(SMALL, **options)


def test_auto_fits_the_laws_and_says_how_it_weighs_them(ladder: pd.DataFrame) -> None:
    """For real, with chains of a few draws: the way through, and not how good the weights are."""
    few = ladder[ladder["method"] == "fmt"].reset_index(drop=True)
    got = fit(few, law="auto", **SHORT)
    assert got.info["law"] == "auto" and got.info["weights"].keys() <= LAWS.keys()
    assert sum(got.info["weights"].values()) == pytest.approx(1)
    assert list(got.info["leave_future_out"]) == list(LAWS)
    assert got.laws == tuple(got.info["weights"])
    assert all(p.statistics["diverging"].shape == (2, 10) for p in got.posteriors)
    draws = got.draws(few)
    assert np.isfinite(draws.loss).all()
    whole = min(20 / weight for weight in got.info["weights"].values())
    assert len(draws.loss) == pytest.approx(whole, abs=len(got.laws))
