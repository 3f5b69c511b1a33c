"""Point fits: recovery of known laws, bounds, fixed parameters, and errors in one sentence."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from known_laws import EXAMPLES, SIZES, TRUTHS, factors_of, runs_of

from tunecast.models.errors import TunecastError
from tunecast.models.laws import LAWS, get_law
from tunecast.models.pointfits import fit_point
from tunecast.models.pointfits.problem import LOG_DATA_SIZE


@pytest.mark.parametrize("delta", [1e-3, math.inf])
@pytest.mark.parametrize("scale", ["loss", "log"])
@pytest.mark.parametrize("law", LAWS)
def test_exact_runs_are_recovered(law: str, scale: Any, delta: float) -> None:
    fit = fit_point(runs_of(law), law=law, factors=factors_of(law), residuals=scale, delta=delta)
    N, D = np.array([3e9, 16e9]), np.array([3e4, 1e8])  # within the data, and far beyond
    truth = get_law(law)(D, {"model_size": N}, **TRUTHS[law])
    np.testing.assert_allclose(fit.predict(D, {"model_size": N}), truth, rtol=1e-6)
    assert fit.at_bound == ()
    assert np.abs(fit.residuals).max() < 1e-6


@pytest.mark.parametrize("law", LAWS)
def test_exact_runs_give_back_the_parameters(law: str) -> None:
    """By name and factor; and hardly any other law goes through the same runs."""
    runs, factors = runs_of(law), factors_of(law)
    fit = fit_point(runs, law=law, factors=factors, residuals="log", delta=math.inf)
    for name, truth in TRUTHS[law].items():
        found = fit.parameters[name]
        if isinstance(truth, dict):
            assert found == {x: pytest.approx(value, rel=1e-4) for x, value in truth.items()}
        else:
            assert found == pytest.approx(truth, rel=1e-4), name
    # The control. Laws that hold this one do: with D_l of 0, or with a beta of 0 before the break.
    holds = {"multiplicative": ("rectified", "broken"), "rectified": ("broken",)}
    for other in LAWS:
        if other in (law, *holds.get(law, ())) or bool(factors_of(other)) != bool(factors):
            continue
        wrong = fit_point(runs, law=other, factors=factors, residuals="log", delta=math.inf)
        assert np.abs(wrong.residuals).max() > 1e-5, other


@pytest.mark.parametrize("law", LAWS)
def test_noisy_runs_of_any_law_are_fitted_without_leaving_the_numbers(law: str) -> None:
    """Overflow is a warning, and warnings are errors here; no fit is worse than the noise."""
    for source in LAWS:
        factors = factors_of(law)
        if bool(factors_of(source)) != bool(factors):
            continue
        for noise in (0.005, 0.1):
            runs = runs_of(source, noise=noise, seed=3)
            fit = fit_point(runs, law=law, factors=factors, residuals="log", delta=math.inf)
            assert np.isfinite(fit.residuals).all()
            usual = np.sqrt(np.mean(fit.residuals**2))
            assert usual < (2 * noise if source == law else 0.2), (source, noise)


def test_two_factors_and_zero_examples_are_recovered() -> None:
    truth = {
        "A": 8e4,
        "alpha": {"model_size": 0.3, "pet_params": -0.01},
        "D_l": 3e4,
        "beta": 0.45,
        "E": 0.7,
    }
    axes = np.meshgrid(SIZES[:3], [1e5, 1e6, 1e7], [0, *EXAMPLES], indexing="ij")
    N, P, D = (axis.ravel() for axis in axes)
    X = {"model_size": N, "pet_params": P}
    runs = pd.DataFrame({**X, "finetune_examples": D, "loss": LAWS["rectified"](D, X, **truth)})
    fit = fit_point(runs, law="rectified", factors=list(X))
    np.testing.assert_allclose(fit.predict(D, runs), runs["loss"], rtol=1e-6)
    for factor, alpha in truth["alpha"].items():  # type: ignore[attr-defined]
        assert fit.parameters["alpha"][factor] == pytest.approx(alpha, abs=1e-5)


def test_a_floor_of_zero_is_reported_as_a_bound() -> None:
    D = EXAMPLES
    bent_down = 9.0 * D**-0.1 * np.exp(-0.02 * np.log(D / 1e5) ** 2)  # steeper than any power law
    fit = fit_point(pd.DataFrame({"finetune_examples": D, "loss": bent_down}), law="power")
    assert fit.at_bound == ("E",)
    assert fit.parameters["E"] < 1e-6


def test_unfinished_runs_are_left_out() -> None:
    runs = runs_of("power").assign(status="done")
    diverged = runs.iloc[:1].assign(status="diverged", loss=np.nan)
    fit = fit_point(pd.concat([runs, diverged]), law="power")
    assert len(fit.residuals) == len(runs)


def test_fixed_parameters_stay_and_the_rest_is_estimated() -> None:
    truth = TRUTHS["rectified"]
    fixed = {"beta": truth["beta"], "D_l": truth["D_l"], "alpha": dict(truth["alpha"])}
    fit = fit_point(
        runs_of("rectified"), law="rectified", factors=["model_size"], fixed=fixed | {"E": 0.7}
    )
    assert fit.num_free == 1
    for name in ("beta", "E", "D_l"):
        assert fit.parameters[name] == pytest.approx(truth[name], rel=1e-12)
    assert fit.parameters["alpha"] == truth["alpha"]
    assert fit.parameters["A"] == pytest.approx(truth["A"], rel=1e-6)


def test_nothing_learned_before_leaves_d_l_at_its_bound() -> None:
    fit = fit_point(
        runs_of("multiplicative"), law="rectified", factors=["model_size"], residuals="log"
    )
    assert "D_l" in fit.at_bound or fit.parameters["D_l"] < 1e-3
    truth = LAWS["multiplicative"](1e8, {"model_size": 16e9}, **TRUTHS["multiplicative"])
    # What is left of D_l at its bound, e^(-70 beta), limits how close the two laws can come.
    closeness = max(math.exp(LOG_DATA_SIZE[0] * TRUTHS["multiplicative"]["beta"]), 1e-6)
    assert fit.predict(1e8, {"model_size": 16e9}) == pytest.approx(truth, rel=10 * closeness)


# --------------------------------------------------------------------------- errors


GOOD = runs_of("multiplicative")


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (GOOD, {"law": "cubic"}, "unknown law 'cubic'"),
        (GOOD, {"law": "power", "factors": ["model_size"]}, "law 'power' takes no factors"),
        (GOOD, {"factors": ["depth"]}, "missing column 'depth'"),
        (GOOD, {"data": "tokens"}, "missing column 'tokens'"),
        (GOOD.assign(model_size="1B"), {}, "column 'model_size' is not numeric"),
        (GOOD.head(3), {}, "too few runs: law 'multiplicative' has 4 free .* the 3 runs lie"),
        (pd.concat([GOOD.head(3)] * 4), {}, "the 12 runs lie at 3 different sizes"),
        (GOOD.head(0), {}, "too few runs"),
        (GOOD[GOOD["model_size"] == 1e9], {}, r"'model_size' has one value only \(1e\+09\)"),
        (GOOD[GOOD["finetune_examples"] == 1e4], {}, "'finetune_examples' has one value only"),
        (GOOD.assign(loss=-1.0), {}, "'loss' must be positive: 28 of 28 runs, .* row 1"),
        (GOOD.assign(loss=np.nan), {}, "'loss' must be finite"),
        (GOOD.assign(model_size=0.0), {}, "'model_size' must be positive"),
        (GOOD.assign(finetune_examples=0), {}, "'finetune_examples' must be positive for law"),
        (
            GOOD.assign(finetune_examples=-1),
            {"law": "rectified"},
            "'finetune_examples' must not be negative",
        ),
        (GOOD.assign(finetune_examples=0), {"law": "rectified"}, "none has a positive"),
        (GOOD, {"delta": 0.0}, "delta must be positive, got 0"),
        (GOOD, {"residuals": "square"}, "residuals must be 'loss' or 'log', got 'square'"),
        (GOOD, {"starts": 0}, "starts must be at least 1, got 0"),
        (GOOD, {"fixed": {"A": 1.0}}, "cannot fix 'A' of law 'multiplicative': expected some of"),
        (GOOD, {"fixed": {"D_l": 1.0}}, "cannot fix 'D_l' of law 'multiplicative'"),
        (GOOD, {"fixed": {"E": -1.0}}, "fixed 'E' must be positive, got -1.0"),
        (GOOD, {"fixed": {"alpha": {"depth": 1.0}}}, r"cannot fix alpha of \['depth'\]"),
    ],
)
def test_what_cannot_be_fitted_is_said_in_one_sentence(
    frame: pd.DataFrame, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TunecastError, match=message):
        fit_point(frame, **({"law": "multiplicative", "factors": ["model_size"]} | options))


def test_prediction_needs_the_factors_of_the_fit() -> None:
    fit = fit_point(GOOD, law="multiplicative", factors=["model_size"])
    with pytest.raises(TunecastError, match="missing factor 'model_size': the fit has factors"):
        fit.predict(1e5, {"pet_params": 1e6})
