"""The least sum of Huber losses: a grid of starts, and damped Gauss-Newton steps from them.

*All starts and all resamples at once.* Each of these problems is tiny, so they are solved as one
batch. The papers use L-BFGS from one start after another; the minimum is the same, found in a
fraction of the time and without a stopping rule that depends on the size of the objective
(``tests/test_pointfits_search.py`` holds one against the other).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tunecast.models.pointfits.problem import Array, Problem

# The grid of starts. The floor's share of the lowest loss decides which basin a start falls into.
E_SHARES = (0.02, 0.4, 0.75, 0.93)
BETAS = (0.03, 0.1, 0.25, 0.6, 1.2)
ALPHAS = (0.0, 0.08, 0.25, 0.6)
OTHER_EXPONENTS = (0.15, 0.5)  # of a law that has more than beta

MAX_STEPS = 300
RELATIVE_TOLERANCE = 1e-9
# So many steps in a row that gain less than the tolerance count as converged. More than one: a
# step that was rejected gains nothing either, and the next one is damped more.
PATIENCE = 5


def search(problem: Problem, starts: int) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Return where each of the best starts ended: coordinates, objectives, and if it converged.

    The grid is screened by its objective. The starts with different floors ``E`` take turns, so
    that none of the basins is left out.
    """
    grid = start_grid(problem)
    order = np.argsort(problem.objective(problem.residuals(grid)), kind="stable")
    floor = [i for i, coordinate in enumerate(problem.coordinates) if coordinate.name == "E"]
    levels = np.unique(grid[order][:, floor], axis=0, return_inverse=True)[1].ravel()
    turn = pd.Series(levels).groupby(levels).cumcount().to_numpy()
    order = order[np.argsort(turn, kind="stable")]
    return minimise(problem, grid[order[:starts]])


def start_grid(problem: Problem) -> Array:
    """Return all starts, shape (starts, parameters): the axes crossed, amplitudes to match."""
    law, loss = problem.law, problem.loss
    log_D = np.log(problem.D[problem.D > 0])
    levels: dict[str, Any] = {}
    for parameter in law.parameters:
        if parameter.is_data_size:
            sizes = [log_D.min() - 2, log_D.min(), log_D.mean(), log_D.max()]
            levels[parameter.name] = sizes
        elif parameter.is_exponent and parameter.support == "positive":
            levels[parameter.name] = np.log(OTHER_EXPONENTS)
    levels |= {"E": np.log(np.multiply(E_SHARES, loss.min())), "beta": np.log(BETAS)}
    levels["alpha"] = ALPHAS
    # Beyond two factors all alphas start alike: the grid must not grow without bound.
    few = len(problem.factors) <= 2
    keys = [(c.name, c.factor if few else None) for c in problem.coordinates]
    axes = {key: levels[key[0]] for key in keys if key[0] in levels}
    points = np.array(list(itertools.product(*axes.values())))
    columns = dict(zip(axes, points.T, strict=True))

    def positive(name: str) -> Array | float:
        key = (name, None)
        return np.exp(columns[key]) if key in columns else problem.fixed_value(key)

    # In the middle of the data, where D = X = 1 in scaled units, the law passes through the mean.
    ones = dict.fromkeys(problem.factors, 1.0)
    own: dict[str, Any] = {
        p.name: positive(p.name)
        for p in law.parameters
        if not p.per_factor and (p.is_data_size or p.is_exponent)
    }
    own |= {p.name: ones if p.per_factor else 1.0 for p in law.parameters if p.name not in own}
    floor = positive("E") if law.has("E") else 0.0
    above = np.maximum(loss.mean() - floor, 0.05 * loss.mean()) / law.reducible_part(1.0, ones, own)
    terms = 1 + len(problem.factors) if law.has("B") else 1
    amplitude = np.broadcast_to(np.log(above / terms), len(points))
    grid = np.stack([columns.get(key, amplitude) for key in keys], axis=1)
    return np.clip(grid, *problem.bounds())


def minimise(problem: Problem, theta: Array) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Return the minima that damped, reweighted Gauss-Newton steps reach from ``theta``.

    Huber's loss enters by the weights ``min(1, delta / |r|)``; only steps that lower its sum are
    taken. Each member of the batch has its own damping and stops on its own, so its result does
    not depend on its company.

    Parameters
    ----------
    problem : Problem
        One problem, or a batch with its own losses or weights.
    theta : ndarray, shape (batch, parameters)
        Starts.

    Returns
    -------
    theta, objective, converged : ndarray
        Of shapes (batch, parameters), (batch,) and (batch,).
    """
    theta = theta.copy()
    value = problem.objective(problem.residuals(theta))
    damping = np.full(len(theta), 1e-3)
    without_gain = np.zeros(len(theta), dtype=int)  # steps in a row
    # A sum below this is zero: residuals a ten-millionth of the Huber threshold or of a nat.
    zero = (1e-7 * min(problem.delta, 1.0)) ** 2
    active = np.arange(len(theta))
    for _ in range(MAX_STEPS):
        if not len(active):
            break
        part = problem.subset(active)
        proposal = _step(part, theta[active], damping[active])
        new = part.objective(part.residuals(proposal))
        gain = value[active] - new
        small = gain <= RELATIVE_TOLERANCE * value[active] + zero
        better = gain > 0
        theta[active[better]] = proposal[better]
        value[active[better]] = new[better]
        adapted = np.where(better, damping[active] / 5, damping[active] * 4)
        damping[active] = np.clip(adapted, 1e-12, 1e12)
        without_gain[active] = np.where(small, without_gain[active] + 1, 0)
        active = active[without_gain[active] < PATIENCE]
    return theta, value, without_gain >= PATIENCE


def _step(problem: Problem, theta: Array, damping: Array) -> Array:
    """Return where one damped step leads, shape (batch, parameters)."""
    residual, slope = problem.linearised(theta)
    size = np.maximum(np.abs(residual), np.finfo(float).tiny)
    weight = problem.weights * np.minimum(1.0, problem.delta / size)
    J = slope.transpose(1, 2, 0)  # (batch, runs, parameters)
    gradient = (J * (weight * residual)[..., None]).sum(axis=1)
    curvature = J.transpose(0, 2, 1) @ (J * weight[..., None])
    lower, upper = problem.bounds()
    # A coordinate that presses against its bound stays there and leaves the others free.
    held = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
    gradient[held] = 0.0
    curvature[held[:, :, None] | held[:, None, :]] = 0.0
    diagonal = np.einsum("bii->bi", curvature)  # a view: writing to it writes to the matrix
    largest = diagonal.max(axis=1, keepdims=True)
    diagonal += damping[:, None] * diagonal + 1e-14 * largest + np.finfo(float).tiny
    diagonal[held] = 1.0
    step = -np.linalg.solve(curvature, gradient[..., None])[..., 0]
    # At most a factor e^2 in a positive parameter: the linear picture is local.
    return np.clip(theta + np.clip(step, -2.0, 2.0), lower, upper)
