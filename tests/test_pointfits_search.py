"""The search of point fits: exact slopes, and minima as low as those of a tight L-BFGS."""

import math
from typing import Any

import numpy as np
import pytest
from known_laws import TRUTHS, Array, factors_of, runs_of
from scipy.optimize import minimize

from tunecast.models.laws import LAWS, get_law
from tunecast.models.pointfits import fit_point
from tunecast.models.pointfits.problem import scaled_problem
from tunecast.models.pointfits.search import start_grid


@pytest.mark.parametrize("scale", ["loss", "log"])
@pytest.mark.parametrize("law", LAWS)
def test_slopes_are_those_of_finite_differences(law: str, scale: Any) -> None:
    """A central step of h errs by h^2 f''' / 6 + eps f / h: with h = 1e-5 about 1e-10."""
    runs = runs_of(law)
    D = runs["finetune_examples"].to_numpy()
    if law == "rectified":
        D = np.where(D == D.min(), 0.0, D)  # 0 ** beta has slope 0, not 0 times log 0
    X = {k: runs[k].to_numpy() for k in factors_of(law)}
    loss = runs["loss"].to_numpy()
    problem = scaled_problem(get_law(law), D, X, loss, delta=1e-3, scale=scale, fixed={})
    theta = problem.coordinates_of(TRUTHS[law])[None] + 0.1
    slopes = problem.linearised(theta)[1][:, 0]
    for i, slope in enumerate(slopes):
        step = np.zeros_like(theta)
        step[0, i] = 1e-5
        difference = problem.residuals(theta + step) - problem.residuals(theta - step)
        np.testing.assert_allclose(slope, difference[0] / 2e-5, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("delta", [1e-3, math.inf])
@pytest.mark.parametrize("law", LAWS)
def test_no_start_of_a_tight_lbfgs_ends_lower(law: str, delta: float) -> None:
    """The papers' search, from a third of the grid, with a stop far below the noise."""
    runs = runs_of(law, noise=0.02, seed=3)
    fit = fit_point(runs, law=law, factors=factors_of(law), residuals="log", delta=delta)
    X = {k: runs[k].to_numpy() for k in factors_of(law)}
    columns = runs["finetune_examples"].to_numpy(), X, runs["loss"].to_numpy()
    problem = scaled_problem(get_law(law), *columns, delta=delta, scale="log", fixed={})

    def objective(theta: Array) -> tuple[float, Array]:
        residual, slope = problem.linearised(theta[None])
        pull = np.clip(residual, -delta, delta)
        # In units in which one is much: L-BFGS-B stops by an absolute change below one.
        return problem.objective(residual)[0] * 1e6, (slope * pull).sum(axis=(1, 2)) * 1e6

    box = list(zip(*problem.bounds(), strict=True))
    ends = [
        minimize(objective, start, jac=True, method="L-BFGS-B", bounds=box).fun / 1e6
        for start in start_grid(problem)[:: 3 if law == "power" else 13]
    ]
    # Either may stop a relative 1e-6 above the bottom; a wrong basin is off by far more.
    assert fit.objective <= min(ends) * (1 + 1e-6)
    assert min(ends) <= fit.objective * (1 + 1e-3)
