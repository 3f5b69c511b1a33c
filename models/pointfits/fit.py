"""Point fits the way the papers make them: the baseline that a Bayesian fit has to beat.

Huber loss, a grid of starts, intervals from a bootstrap. Letters as in
:mod:`tunecast.models.laws`: ``L`` loss in nats per target token, ``D`` data size, ``X`` a factor.

The *sum* of the Huber losses is minimised, never their mean. L-BFGS as it is commonly set stops
when the objective changes by less than an absolute amount once it is below one. With
``delta = 1e-3`` the sum is of the order of 1e-3 and the mean a hundred times smaller, so the mean
stops far from its minimum; that is how the intervals of Hoffmann et al. came out too narrow [3]_.
The search of :mod:`tunecast.models.pointfits.search` stops by relative change, which removes the
trap.

References
----------
.. [1] Zhang et al. 2024, arXiv:2402.17193, section 3.
.. [2] Hoffmann et al. 2022, arXiv:2203.15556, appendix D.3.
.. [3] Besiroglu et al. 2024, Chinchilla Scaling: A Replication Attempt, arXiv:2404.10102.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.laws import get_law
from tunecast.models.pointfits.inputs import Factors, checked_problem, factor_values
from tunecast.models.pointfits.problem import Array, Residuals, parameter_names
from tunecast.models.pointfits.search import search


@dataclass(frozen=True, slots=True, eq=False)
class PointFit:
    """A law fitted to runs by Huber loss or least squares.

    Parameters
    ----------
    law : str
        Name of the law.
    factors : tuple of str
        Columns used as ``X``.
    data : str
        Column used as ``D``.
    parameters : dict
        The parameters in the published spelling (raw units of ``D`` and ``X``); a mapping by
        factor for those per factor.
    objective : float
        Sum over runs of the Huber losses, in squared units of the residuals.
    residuals : ndarray, shape (runs,)
        Observed minus fitted, in nats or, with ``scale`` "log", in log nats.
    scale : {"loss", "log"}
        What the residuals are differences of.
    delta : float
        Where the Huber loss turns from square to absolute; infinity for least squares.
    fixed : dict
        Parameters that were given and not estimated.
    starts, converged : int
        How many starts were followed, and how many of them converged.
    at_bound : tuple of str
        Parameters that ended on a bound of the search: the data do not determine them. ``E`` there
        means zero.
    """

    law: str
    factors: tuple[str, ...]
    data: str
    parameters: dict[str, Any]
    objective: float
    residuals: Array
    scale: Residuals
    delta: float
    fixed: dict[str, Any]
    starts: int
    converged: int
    at_bound: tuple[str, ...]

    @property
    def num_free(self) -> int:
        """How many parameters were estimated."""
        held = sum(len(v) if isinstance(v, Mapping) else 1 for v in self.fixed.values())
        return len(parameter_names(get_law(self.law), self.factors)) - held

    def predict(self, D: npt.ArrayLike, X: Factors | None = None) -> Array:
        """Return the fitted loss, in nats per target token.

        Parameters
        ----------
        D : array_like
            Data sizes.
        X : mapping of str to array_like or DataFrame, optional
            Values of each factor; what the fit does not use is ignored.

        Raises
        ------
        TunecastError
            When a factor of the fit is missing.
        """
        law, sizes = get_law(self.law), np.asarray(D, dtype=float)
        return np.asarray(law(sizes, factor_values(self.factors, X), **self.parameters), float)


def fit_point(
    frame: pd.DataFrame,
    *,
    law: str,
    factors: Sequence[str] = (),
    data: str = "finetune_examples",
    delta: float = 1e-3,
    residuals: Residuals = "loss",
    starts: int = 32,
    fixed: Mapping[str, Any] | None = None,
) -> PointFit:
    """Return the law that minimises the sum of Huber losses over the runs.

    The problem is ``min sum_i Huber_delta(r_i)`` with ``r_i`` the difference between fitted and
    observed ``L`` [1]_ or ``log L`` [2]_ (references of this module).

    Parameters
    ----------
    frame : DataFrame
        One row for each run: the columns ``loss``, ``data`` and ``factors``. Rows whose ``status``
        is not ``done`` are left out if there is such a column.
    law : str
        Name of a law of :data:`tunecast.models.laws.LAWS`.
    factors : sequence of str
        Columns to use as ``X``.
    data : str
        Column to use as ``D``.
    delta : float
        Where the Huber loss turns from square to absolute, in units of the residual;
        ``math.inf`` gives least squares.
    residuals : {"loss", "log"}
        Differences of losses in nats, or of their logarithms.
    starts : int
        How many starts of the grid to follow, the best ones first.
    fixed : mapping, optional
        Parameters to hold at a value in the published spelling: any of ``beta``, ``E``, ``D_l``
        and, as a mapping by factor, ``alpha``.

    Returns
    -------
    PointFit

    Raises
    ------
    TunecastError
        When the law is unknown, a column is missing or not numeric, a value is outside the law's
        domain, or there are too few runs or distinct values for what is to be estimated.
    """
    if starts < 1:
        raise TunecastError(f"starts must be at least 1, got {starts}")
    problem = checked_problem(
        frame, get_law(law), tuple(factors), data, delta, residuals, dict(fixed or {})
    )
    ends, objectives, converged = search(problem, starts)
    best = int(np.argmin(objectives))
    theta = ends[best]
    lower, upper = problem.bounds()
    on_bound = np.minimum(theta - lower, upper - theta) < 1e-6
    return PointFit(
        law=law,
        factors=problem.factors,
        data=data,
        parameters=_of_one(problem.published(theta[None])),
        objective=float(objectives[best]),
        residuals=-problem.residuals(theta[None])[0],
        scale=residuals,
        delta=delta,
        fixed=problem.fixed,
        starts=len(ends),
        converged=int(converged.sum()),
        at_bound=tuple(
            c.name if c.factor is None else f"{c.name}[{c.factor}]"
            for c, is_on_bound in zip(problem.coordinates, on_bound, strict=True)
            if is_on_bound
        ),
    )


def _of_one(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a batch of one as numbers."""
    return {
        name: {k: float(v[0]) for k, v in value.items()}
        if isinstance(value, Mapping)
        else float(value[0])
        for name, value in parameters.items()
    }
