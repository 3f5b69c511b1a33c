"""Calibration: where runs fell within what was forecast for them.

All is computed from saved draws. Only `held_out` fits again.

References
----------
.. [1] Ionides 2008, Truncated Importance Sampling, for `left_out`.
.. [2] Gneiting, Balabdaoui and Raftery 2007, on PIT histograms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from tunecast.analysis.labels import axis_name, percent
from tunecast.models.fits import Fit, Member
from tunecast.models.inference import fit as sample
from tunecast.models.scoring import BAND, COVERAGES

CHECK_DRAWS = 1000  # enough for shares of draws to 2 %
BINS = 10


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
    """

    name: str
    pit: np.ndarray
    converged: bool = True

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
    observed = fit.members[0].layout.log_loss
    mean = _weighted(fit, lambda m, rows: m.belief.mean[rows])
    scale = _weighted(fit, _noise)
    df = _weighted(fit, lambda m, rows: m.belief.noise_df[rows])[:, None]
    return Check("each run left out in turn", pit_without(observed, mean, scale, df))


def pit_without(
    observed: np.ndarray, mean: np.ndarray, scale: np.ndarray, df: np.ndarray
) -> np.ndarray:
    """Return each observation's PIT under the draws reweighted as if it had not been seen.

    Parameters
    ----------
    observed : ndarray, shape (n,)
        Log losses.
    mean, scale : ndarray, shape (draws, n)
        Location and scale of the Student-t of each, for each draw.
    df : ndarray, shape (draws, 1)
        Its degrees of freedom.
    """
    z = (observed - mean) / scale
    log_weight = np.log(scale) - stats.t.logpdf(z, df)
    weight = np.exp(log_weight - log_weight.max(axis=0))
    weight = np.minimum(weight, weight.mean(axis=0) * math.sqrt(len(weight)))
    return (weight * stats.t.cdf(z, df)).sum(axis=0) / weight.sum(axis=0)


def held_out(fit: Fit, **options: Any) -> list[Check]:
    """Return the checks of fits that did not see the largest size, and the largest data.

    Parameters
    ----------
    fit : Fit
        Whose runs and question to use.
    **options
        Of `tunecast.models.fit`, such as ``draws``; the fit's own where not given.
    """
    info, question = fit.info, fit.question
    same: dict[str, Any] = {
        k: info[k] for k in ("law", "draws", "tune", "chains", "seed") if k in info
    }
    same |= {"data": question.data, "cell": question.cell, "curve": question.curve}
    same |= {"priors": info.get("priors_name", "weak"), "progress": False}
    if same.get("law") != "power":
        same["factors"] = question.factors
    checks = []
    for name in (*question.factors[:1], question.data):
        values = fit.runs[name].astype(float)
        outside = values == values.max()
        if name == question.data:
            group = [fit.runs[c].astype(str) for c in question.cell]
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
    mean = _weighted(fit, lambda m, rows: m.belief.mean[rows])
    scale = _weighted(fit, _noise)
    df = _weighted(fit, lambda m, rows: m.belief.noise_df[rows])[:, None]
    centre = mean.mean(axis=0)
    observed = fit.members[0].layout.log_loss - centre
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
        said.append(
            f"With {check.name}: {percent(row['actual'])} of {row['runs']} runs lie in their 90 % "
            f"interval (chance allows {percent(row['low'])} to {percent(row['high'])}){note}."
        )
    return said


def _weighted(fit: Fit, of: Callable[[Member, np.ndarray], np.ndarray]) -> np.ndarray:
    """Return ``of`` for draws of every law, as many as its weight gives it, one below the other."""
    return np.concatenate([of(member, member.rows(CHECK_DRAWS)) for member in fit.members])


def _noise(member: Member, rows: np.ndarray) -> np.ndarray:
    return member.belief.noise[rows][:, member.layout.row_curve]
