"""The checks of a report: calibrated forecasts pass, wrong ones are seen, words follow numbers."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL

from tunecast.analysis import trust
from tunecast.analysis.verdicts import answers, default_targets
from tunecast.models import Fit
from tunecast.models.fits import Member
from tunecast.models.published import PRINTED


def with_losses(fit: Fit, loss: np.ndarray) -> Fit:
    """Return the fit with other losses, its draws as they are."""
    (member,) = fit.members
    layout = replace(member.layout, log_loss=np.log(loss))
    changed = Member(layout, member.priors, member.posterior, 1.0)
    return replace(fit, members=(changed,), runs=fit.runs.assign(loss=loss))


@pytest.fixture(scope="module")
def drawn(believed: Callable[..., Fit]) -> Fit:
    """Draws of the prior narrowed to one of them, with runs drawn from it: a fit that is true."""
    from tunecast.models.runs import read_runs

    fit = believed(read_runs(SMALL, columns=["model_size", "finetune_examples"]), size=50)
    (member,) = fit.members
    posterior = {k: np.repeat(v[:1], 400, axis=0) for k, v in member.posterior.items()}
    one = replace(fit, members=(Member(member.layout, member.priors, posterior, 1.0),))
    belief = one.members[0].belief
    rng = np.random.default_rng(4)
    t = rng.standard_t(belief.noise_df[0], len(fit.runs))
    scale = belief.noise[0, member.layout.row_curve]
    return with_losses(one, np.exp(belief.mean[0] + scale * t))


def test_runs_of_the_fit_itself_are_covered(drawn: Fit) -> None:
    check = trust.left_out(drawn)
    for row in check.coverage():
        assert row["low"] <= row["actual"] <= row["high"], row
    counts, low, high = check.histogram()
    assert sum(b["count"] for b in counts) == len(drawn.runs)
    assert 0 <= low < len(drawn.runs) / len(counts) < high


def test_shifted_runs_are_not_covered(drawn: Fit) -> None:
    wrong = with_losses(drawn, drawn.runs["loss"].to_numpy() * 1.5)
    ninety = trust.left_out(wrong).coverage()[2]
    assert ninety["actual"] < ninety["low"]
    rows, _ = trust.predictive_check(wrong)
    assert any(not r["q05"] <= r["observed"] <= r["q95"] for r in rows)


def test_leaving_out_equals_fitting_without() -> None:
    """A normal mean with a flat prior can be solved: y ~ N(m, 1), each y left out exactly."""
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    y, size = rng.normal(size=8), 100_000
    mean = np.broadcast_to(rng.normal(y.mean(), 1 / np.sqrt(8), size=(size, 1)), (size, 8))
    pit = trust.pit_without(y, mean, np.ones((size, 8)), np.full((size, 1), 1e9))
    rest = (y.sum() - y) / 7
    without = norm.cdf((y - rest) / np.sqrt(1 + 1 / 7))
    naive = norm.cdf(y - mean).mean(axis=0)
    assert np.abs(pit - without).max() < 0.01
    assert np.abs(naive - without).max() > 0.03


def test_published_values_stand_beside_their_cells(
    zhang: pd.DataFrame, believed: Callable[..., Fit]
) -> None:
    fit = believed(zhang[zhang["finetune_examples"] > 0], law="multiplicative")
    rows = trust.parameters(fit).rows
    for row in rows.to_dict("records"):
        task, method = row["cell"].split(" / ")[:2]
        wanted = {"E": "E", "beta": "beta", "alpha:model_size": "alpha_m"}.get(row["parameter"])
        if wanted is None:
            assert pd.isna(row["published"])
        else:
            assert row["published"] == getattr(PRINTED[task, method], wanted)


def test_a_posterior_like_its_prior_is_called_unlearned(
    ladder: pd.DataFrame, believed: Callable[..., Fit], drawn: Fit
) -> None:
    assert len(trust.parameters(believed(ladder, size=2000)).unlearned) >= 4
    assert trust.parameters(drawn).unlearned == []


def test_a_parameter_beyond_all_numbers_has_an_interval(
    drawn: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where beta is near 0, D_l overflows: quantiles between two infinities are no numbers."""
    endless = np.full(400, np.inf)
    monkeypatch.setattr(trust, "published_parameters", lambda member, k: {"D_l": endless})
    assert np.isfinite(trust.parameters(drawn).rows[["prior_q95", "q50"]]).all(axis=None)


def test_parameters_that_move_together_are_named() -> None:
    x = np.random.default_rng(0).normal(size=500)
    said = trust.ties("cell", {"A": x, "E": -x, "beta": np.roll(x, 1)})
    assert said == ["cell: A and E trade off (rank correlation -1.00)."]


def test_warnings_name_what_the_table_shows(
    ladder: pd.DataFrame, believed: Callable[..., Fit]
) -> None:
    edge = ladder.assign(rate_at_edge=[True] * 5 + [False] * 44)
    fit = believed(edge)
    fit = replace(fit, info={**fit.info, "counts": {"diverged": 3}})
    said = " ".join(trust.warnings_of(fit, [12.0]))
    assert "12 times beyond" in said and "5 of 49 runs did best at an edge" in said
    assert "3 runs that diverged" in said and "3 values of model size" in said
    assert "beyond" not in " ".join(trust.warnings_of(believed(ladder)))


@pytest.mark.parametrize("gap", [-0.3, 0.0, 0.3])
def test_the_verdict_follows_the_numbers(
    gap: float, ladder: pd.DataFrame, believed: Callable[..., Fit]
) -> None:
    """The same fit with one method's level moved: the sentences must move with it."""
    runs = ladder[ladder["method"] != "prompt"].reset_index(drop=True)
    fit = believed(runs, size=400)
    (member,) = fit.members
    moved = dict(member.posterior)
    moved["mean_method_level"] = moved["mean_method_level"] + np.array([0, 10 * gap])
    fit = replace(fit, members=(Member(member.layout, member.priors, moved, 1.0),))
    (answer,) = answers(fit, default_targets(fit))
    rows = answer.forecasts.to_dict("records")
    best = max(rows, key=lambda row: row["p_best"])
    text = " ".join(answer.sentences)
    p, first = best["p_best"], best["method"]
    if p < 0.66:
        assert f"do not decide which method is best: {first} leads" in text
    else:
        assert f"{first} " in text and "has the lowest expected loss" in text
    assert f"{100 * p:.0f} %" in text
    for row in rows:
        assert f"{row['method']} {row['loss_q50']:.3g} nats" in text
    (crossing,) = answer.crossovers.to_dict("records")
    assert ("have no crossover" in text) == (crossing["p_none"] > 0.5)


def test_a_place_inside_the_data_is_called_so(
    ladder: pd.DataFrame, believed: Callable[..., Fit]
) -> None:
    fit = believed(ladder)
    place = {"task": "debian-en-de", "model_size": 4e5, "finetune_examples": 600.0}
    (inside,) = answers(fit, pd.DataFrame([place]))
    (beyond,) = answers(fit, pd.DataFrame([place | {"model_size": 1240480 * 4}]))
    assert inside.sentences[-1] == "The target lies inside the data."
    assert "4 times in parameters" in beyond.sentences[-1]
