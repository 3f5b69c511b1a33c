"""Posterior predictive checks of a fit against its own runs, with a stated false-alarm rate.

At each posterior draw, what the model says of the runs is turned into scores that are independent
standard normals under the model: a residual through the Student-t of its noise. A statistic of them
then has a known distribution whatever the draw is [1]_, so that small probabilities need no
simulation, and a hundred draws are enough. Over tables that the model generates, the probability at
one posterior draw is uniform; those of all draws are merged into e times their geometric mean,
which is valid however they depend [2]_. As the draws have seen the runs, this is conservative.

References
----------
.. [1] Yuan and Johnson 2012, Goodness-of-fit diagnostics for Bayesian hierarchical models,
   Biometrics 68: pivotal discrepancies at a posterior draw.
.. [2] Vovk and Wang 2020, Combining p-values via averaging, arXiv:1212.4966.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc, fdtr, fdtrc, ndtri, stdtr

from tunecast.models.checks.misfit import (
    DATA_SIZE,
    FALSE_ALARMS,
    REPLICATES,
    SURFACE,
    Misfit,
    name_of,
    percent,
)
from tunecast.models.hierarchy.table import Table
from tunecast.models.inference.posterior import Posterior, spread_out

DRAWS = 200  # posterior draws that are looked at

# Root mean square, in log loss, below which a misfit of curves to their own runs is not worth a
# word: runs of one data size share their examples, which moves them together by half a per cent.
TOLERANCE = 0.01

DEGREE = 3  # of the polynomials that residuals may follow
ALONE = 30  # runs of a cell that are alone on their base model, to look for a surface in them
LEAST = 1e-300


@dataclass(frozen=True)
class Check:
    """A statistic of one cell's runs, at every posterior draw looked at.

    Parameters
    ----------
    kind : str
        See `Misfit`.
    cell : int
        Position of the cell.
    p : ndarray, shape (draws,)
        Probability, under the model at that draw, of a statistic as extreme.
    size : float
        How far the runs are from what the model says, root mean square in log loss.
    sentence : str
        What is to be said of it.
    """

    kind: str
    cell: int
    p: np.ndarray
    size: float
    sentence: str


def predictive_checks(posteriors: Sequence[Posterior]) -> tuple[Misfit, ...]:
    """Return the cells in which replicated data of the posterior do not look like the runs.

    Parameters
    ----------
    posteriors : sequence of Posterior
        One for each law in use; their probabilities are averaged by weight, on the log scale.

    Returns
    -------
    tuple of Misfit
        By Bonferroni over all checks, at most `FALSE_ALARMS` of the tables that the model generates
        have any.

    Examples
    --------
    >>> from tunecast.models import load_fit
    >>> predictive_checks(load_fit("fit.nc").posteriors)  # doctest: +SKIP
    """
    log_p: dict[tuple[str, int], float] = {}
    weights: dict[tuple[str, int], float] = {}
    first: dict[tuple[str, int], Check] = {}
    for posterior in sorted(posteriors, key=lambda q: -q.weight):
        for check in checks_of(posterior):
            key = (check.kind, check.cell)
            mean = float(np.log(np.clip(check.p, LEAST, 1.0)).mean())
            log_p[key] = log_p.get(key, 0.0) + posterior.weight * mean
            weights[key] = weights.get(key, 0.0) + posterior.weight
            first.setdefault(key, check)
    level = np.log(FALSE_ALARMS / max(len(first), 1))
    return tuple(
        Misfit(check.kind, posteriors[0].table.cells[check.cell], check.sentence)
        for key, check in first.items()
        if 1 + log_p[key] / weights[key] < level
        and (check.size > TOLERANCE or check.kind == SURFACE)
    )


def checks_of(posterior: Posterior, draws: int = DRAWS) -> list[Check]:
    """Return all checks of one law's posterior.

    Parameters
    ----------
    posterior : Posterior
        Draws and the runs that they have seen.
    draws : int
        How many draws to look at, at most, spread over all.
    """
    table, values = posterior.table, posterior.values
    at = spread_out(posterior.size, draws)
    residual = table.log_loss - values["expected_log_loss"][at]
    z = normal_scores(residual / values["scale"][at], values["noise_df"][at][:, None])
    off, spread = residual, values["scale"][at]
    # Where each base model has one curve, a run that is alone has its effect in its residual.
    if not table.one_curve_per_base_model:
        off = off + values["base_model_effect"][at][:, table.curve_base[table.run_curve]]
        spread = np.hypot(spread, values["base_model_sd"][at][:, None])
    cell = table.curve_cell[table.run_curve]
    found: list[Check] = []
    for k in range(len(table.cells)):
        of_cell = np.flatnonzero(cell == k)
        found += _by_data_size(table, k, of_cell, residual, z)
        found += _of_replicates(table, k, of_cell, residual, z)
        found += _on_a_surface(table, k, of_cell, off, spread)
    return found


def normal_scores(t: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Return standard normal quantiles of the probabilities of Student-t variables.

    Examples
    --------
    >>> import numpy as np
    >>> normal_scores(np.array([-2.0, 2.0]), np.array(4.0)).round(3).tolist()
    [-1.571, 1.571]
    """
    return np.asarray(-np.sign(t) * ndtri(stdtr(df, -np.abs(t))))


def _by_data_size(
    table: Table, cell: int, runs: np.ndarray, residual: np.ndarray, z: np.ndarray
) -> Iterator[Check]:
    """Check whether a cell's residuals follow a polynomial of the log data size."""
    x, place = np.unique(np.round(table.log_u[runs], 9), return_inverse=True)
    degree = min(DEGREE, len(x) - 1)
    if degree < 1 or len(runs) <= degree + 1:
        return
    shape = contrasts([table.log_u[runs]], degree)
    p = chdtrc(shape.shape[1], ((z[:, runs] @ shape) ** 2).sum(axis=1))
    # Said by data size, or by sixths of the runs where there are many data sizes.
    groups = (
        place if len(x) <= 8 else np.searchsorted(np.quantile(place, np.arange(1, 6) / 6), place)
    )
    means = {
        float(np.exp(table.log_u[own].mean() + table.log_d_ref[cell])): float(
            residual[:, own].mean()
        )
        for own in (runs[groups == g] for g in np.unique(groups))
    }
    size = float(np.sqrt(np.mean(np.square(list(means.values())))))
    high, low = (pick(means, key=lambda d: means[d]) for pick in (max, min))
    yield Check(
        DATA_SIZE,
        cell,
        p,
        size,
        f"The fitted curves of {name_of(table.cells[cell])} do not follow their runs, which lie "
        f"{_off(means[high])} at {high:.4g} {table.spec.data} and {_off(means[low])} at {low:.4g}, "
        f"expected is within {percent(TOLERANCE)}.",
    )


def _of_replicates(
    table: Table, cell: int, runs: np.ndarray, residual: np.ndarray, z: np.ndarray
) -> Iterator[Check]:
    """Check whether replicates differ among themselves as their means do from the curve."""
    design = np.stack([table.run_curve[runs], np.round(table.log_u[runs], 9)], axis=1)
    group = np.unique(design, axis=0, return_inverse=True)[1].ravel()
    repeated = np.bincount(group)[group] > 1
    runs, group = runs[repeated], group[repeated]
    groups, group = np.unique(group, return_inverse=True)
    between, within = len(groups), len(runs) - len(groups)
    if between < 2 or within < 2:
        return
    belongs = np.eye(between)[group]  # (runs, groups)
    n = belongs.sum(axis=0)

    def squares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        means = values @ belongs / n
        of_means = (means**2 * n).sum(axis=1)
        return of_means / between, ((values**2).sum(axis=1) - of_means) / within

    of_means, inside = squares(z[:, runs])
    f = of_means / inside
    p = np.minimum(1.0, 2 * np.minimum(fdtrc(between, within, f), fdtr(between, within, f)))
    a, b = (float(np.sqrt(s.mean())) for s in squares(residual[:, runs]))
    apart = a / np.sqrt(n.mean())
    expected = b / np.sqrt(n.mean())
    yield Check(
        REPLICATES,
        cell,
        p,
        max(apart, expected),
        f"Runs of {name_of(table.cells[cell])} that differ in their seed alone differ by "
        f"{percent(b)}, and their means differ from the fitted curves by {percent(apart)}, "
        f"expected is {percent(expected)}.",
    )


def _on_a_surface(
    table: Table, cell: int, runs: np.ndarray, off: np.ndarray, spread: np.ndarray
) -> Iterator[Check]:
    """Check whether runs that are alone on their base model lie off the law by a pattern.

    What such runs are off by goes into the effects of their base models, of which the noise is no
    more than a part; under the model all orders of them, in units of their spread, are as probable.
    """
    base = table.curve_base[table.run_curve]
    runs = runs[np.bincount(base)[base[runs]] == 1]
    if len(runs) < ALONE:
        return
    columns = [table.log_u[runs], *table.curve_x[table.run_curve[runs]].T]
    shape = contrasts(columns, DEGREE if len(runs) >= 2 * ALONE else DEGREE - 1)
    if 3 * shape.shape[1] > len(runs):
        return
    ranks = (off / spread)[:, runs].argsort(axis=1).argsort(axis=1)
    scores = ndtri((ranks + 0.5) / len(runs))
    scores /= scores.std(axis=1, ddof=1, keepdims=True)
    p = chdtrc(shape.shape[1], ((scores @ shape) ** 2).sum(axis=1))
    size = float(
        np.sqrt(np.mean((off[:, runs].mean(axis=0) @ shape) ** 2 * shape.shape[1] / len(runs)))
    )
    of = " and ".join((*table.factors, table.spec.data))
    yield Check(
        SURFACE,
        cell,
        p,
        size,
        f"How far runs of {name_of(table.cells[cell])} lie from the law depends on {of}, by "
        f"{percent(size)} inside the data, expected is by none: another law may describe them "
        "better, and beyond the data this one may err by more.",
    )


def contrasts(columns: Sequence[np.ndarray], degree: int) -> np.ndarray:
    """Return orthonormal polynomials of columns up to a degree, without the constant.

    Parameters
    ----------
    columns : sequence of ndarray, shape (n,)
        Coordinates of n points.
    degree : int
        Highest total degree.

    Returns
    -------
    ndarray, shape (n, contrasts)
        Columns of length 1, orthogonal to one another and to the constant.

    Examples
    --------
    >>> import numpy as np
    >>> contrasts([np.arange(3.0)], 1).round(3).ravel().tolist()
    [-0.707, 0.0, 0.707]
    """
    scaled = [(c - c.mean()) / max(c.std(), 1e-12) for c in columns]
    terms = [np.ones(len(columns[0]))]
    for d in range(1, degree + 1):
        chosen = itertools.combinations_with_replacement(scaled, d)
        terms += [np.prod(several, axis=0) for several in chosen]
    q, r = np.linalg.qr(np.stack(terms, axis=1))
    new = np.abs(np.diag(r)) > 1e-8 * np.sqrt(len(q))
    new[0] = False
    return np.asarray((q * np.sign(np.diag(r)))[:, new])


def _off(log_ratio: float) -> str:
    return f"{percent(abs(log_ratio))} {'above' if log_ratio > 0 else 'below'} them"
