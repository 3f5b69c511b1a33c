"""Calibration: where runs fell within what was forecast for them.

All is computed from saved draws. Only `held_out` fits again.

References
----------
.. [1] Vehtari et al. 2024, Pareto Smoothed Importance Sampling, for `left_out`; ArviZ computes it.
.. [2] Gneiting, Balabdaoui and Raftery 2007, on PIT histograms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import softmax

from tunecast.analysis.labels import axis_name, percent
from tunecast.models import Fit
from tunecast.models import fit as sample
from tunecast.models.questions.scoring import BAND, COVERAGES

CHECK_DRAWS = 1000  # enough for shares of draws to 2 %
BINS = 10
MOST_PARETO_K = 0.7  # beyond it importance sampling needs more draws than anyone makes [1]_


@dataclass(frozen=True)
class Check:
    """Where runs fell within what was forecast for them.

    Parameters
    ----------
    name : str
        What was left out, in words.
    pit : ndarray, shape (runs,)
        Share of each forecast below what the run reached.
    converged : bool
        Whether the fit behind it did.
    pareto_k : ndarray, shape (runs,)
        Where draws were reweighted: the shape of the tail of each run's weights.
    """

    name: str
    pit: np.ndarray
    converged: bool = True
    pareto_k: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def coverage(self) -> list[dict[str, Any]]:
        """Return nominal and actual coverage with binomial bands."""
        n, rows = len(self.pit), []
        for nominal in COVERAGES:
            low, high = stats.binom.interval(BAND, n, nominal)
            inside = np.abs(self.pit - 0.5) <= nominal / 2
            rows.append(
                {
                    "check": self.name,
                    "nominal": round(100 * nominal),
                    "actual": float(inside.mean()),
                    "low": low / n,
                    "high": high / n,
                    "runs": n,
                }
            )
        return rows

    def histogram(self) -> tuple[list[dict[str, Any]], float, float]:
        """Return the bins of the PIT values, and the band of a uniform one."""
        counts, edges = np.histogram(self.pit, BINS, (0, 1))
        low, high = stats.binom.interval(BAND, len(self.pit), 1 / BINS)
        rows = [
            {"from": float(a), "to": float(b), "count": int(c)}
            for a, b, c in zip(edges[:-1], edges[1:], counts, strict=True)
        ]
        return rows, float(low), float(high)


def left_out(fit: Fit) -> Check:
    """Return the check of each run against the draws reweighted as if it had not been fitted."""
    observed = fit.posteriors[0].table.log_loss
    pit, pareto_k = pit_without(observed, *_predictive(fit))
    return Check("each run left out in turn", pit, pareto_k=pareto_k)


def pit_without(
    observed: np.ndarray, mean: np.ndarray, scale: np.ndarray, df: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return each observation's PIT under the draws reweighted as if it had not been seen.

    Parameters
    ----------
    observed : ndarray, shape (n,)
        Log losses.
    mean, scale : ndarray, shape (draws, n)
        Location and scale of the Student-t of each, for each draw.
    df : ndarray, shape (draws, 1)
        Its degrees of freedom.

    Returns
    -------
    pit, pareto_k : ndarray, shape (n,)
        The weights of an observation are no guide where its Pareto k is above `MOST_PARETO_K`, or
        is not to be had.
    """
    # ArviZ takes a while to import.
    from arviz_stats.base import array_stats

    log_likelihood = np.asarray(stats.t.logpdf(observed, df, mean, scale))
    log_weight, pareto_k = np.zeros_like(log_likelihood), np.zeros(len(observed))
    varies = np.ptp(log_likelihood, axis=0) > 0  # equal draws have equal weights
    if varies.any():
        found, pareto_k[varies] = array_stats.psislw(log_likelihood[:, varies], axis=0)
        log_weight[:, varies] = found.T
    weight = softmax(log_weight, axis=0)
    return (weight * stats.t.cdf(observed, df, mean, scale)).sum(axis=0), pareto_k


def held_out(fit: Fit, **options: Any) -> list[Check]:
    """Return the checks of fits that did not see the largest size, and the largest data.

    Parameters
    ----------
    fit : Fit
        Whose runs and options to use.
    **options
        Of `tunecast.models.fit`, such as ``draws``; the fit's own where not given.
    """
    info, spec = fit.info, fit.spec
    same: dict[str, Any] = {
        k: info[k] for k in ("law", "draws", "tune", "chains", "seed") if k in info
    }
    same |= {"data": spec.data, "cell": spec.cell, "curve": spec.curve}
    same |= {"priors": info.get("priors_name", "weak"), "progress": False}
    if spec.factors:
        same["factors"] = spec.factors
    checks = []
    for name in (*spec.factors[:1], spec.data):
        values = fit.runs[name].astype(float)
        outside = values == values.max()
        if name == spec.data:
            group = [fit.runs[c].astype(str) for c in spec.cell]
            outside = values == values.groupby(group).transform("max")
        inside = fit.runs[~outside]
        apart = fit.runs[outside].reset_index(drop=True)
        result = sample(inside, **(same | {"allow_unconverged": True} | options))
        losses = result.draws(apart).loss
        pit = (losses < apart["loss"].to_numpy(float)).mean(axis=0)
        what = f"the largest number of {axis_name(name)} left out"
        checks.append(Check(what, pit, result.diagnostics.converged))
    return checks


def predictive_check(fit: Fit) -> tuple[list[dict[str, Any]], tuple[float, float]]:
    """Return the distribution of residuals beside those of replicated runs, and its range."""
    rng = np.random.default_rng([int(fit.info["seed"]), 1])
    mean, scale, df = _predictive(fit)
    centre = mean.mean(axis=0)
    observed = fit.posteriors[0].table.log_loss - centre
    replicated = mean + scale * rng.standard_t(np.broadcast_to(df, scale.shape)) - centre
    reach = 1.1 * float(max(np.quantile(np.abs(replicated), 0.99), np.abs(observed).max()))
    rows = []
    for at in np.linspace(-reach, reach, 61):
        below = np.quantile((replicated < at).mean(axis=1), [0.05, 0.5, 0.95])
        rows.append(
            {
                "at": float(at),
                "observed": float((observed < at).mean()),
                **dict(zip(("q05", "q50", "q95"), map(float, below), strict=True)),
            }
        )
    return rows, (-reach, reach)


def coverage_sentences(checks: Sequence[Check]) -> list[str]:
    """Return how often runs fell into their 90 % interval, a sentence for each check."""
    said = []
    for check in checks:
        row = next(r for r in check.coverage() if r["nominal"] == 90)
        note = ""
        if row["actual"] < row["low"]:
            note = ": the intervals are too narrow there, or the errors come together"
        elif row["actual"] > row["high"]:
            note = ": the intervals are wider than they need be"
        if not check.converged:
            note += "; that fit did not converge"
        if heavy := int((~(check.pareto_k <= MOST_PARETO_K)).sum()):
            note += f"; for {heavy} of them a Pareto k above {MOST_PARETO_K} makes that doubtful"
        said.append(
            f"With {check.name}: {percent(row['actual'])} of {row['runs']} runs lie in their 90 % "
            f"interval (chance allows {percent(row['low'])} to {percent(row['high'])}){note}."
        )
    return said


def _predictive(fit: Fit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return location and scale of each fitted run for each draw, and degrees of freedom.

    Draws of every law, as many as its weight gives it, one below the other.
    """
    mean, scale, df = [], [], []
    for posterior in fit.posteriors:
        values, some = posterior.values, posterior.share(CHECK_DRAWS)
        mean.append(values["expected_log_loss"][some])
        scale.append(values["scale"][some])
        df.append(values["noise_df"][some, None])
    return np.concatenate(mean), np.concatenate(scale), np.concatenate(df)
