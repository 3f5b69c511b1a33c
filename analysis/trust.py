"""Why trust a fit, or not: calibration, convergence, priors against posteriors, warnings.

All is computed from saved draws. Only `held_out` fits again.

References
----------
.. [1] Ionides 2008, Truncated Importance Sampling, for `left_out`.
.. [2] Gneiting, Balabdaoui and Raftery 2007, on PIT histograms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tunecast.analysis.plots import axis_name
from tunecast.models.fits import Fit, Member, published_parameters
from tunecast.models.hierarchy import simulate_prior
from tunecast.models.laws import get_law
from tunecast.models.published import PRINTED
from tunecast.models.scoring import BAND, COVERAGES

if TYPE_CHECKING:
    from collections.abc import Callable

CHECK_DRAWS = 1000  # enough for shares of draws to 2 %
PRIOR_DRAWS = 2000
BINS = 10
# A posterior at least this wide against its prior has learned next to nothing; a correlation at
# least this strong ties two parameters together.
WIDE, TIED = 0.7, 0.9
LEAST, MOST = 1e-150, 1e150


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
        from scipy.stats import binom

        n, rows = len(self.pit), []
        for nominal in COVERAGES:
            low, high = binom.interval(BAND, n, nominal)
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
        from scipy.stats import binom

        counts, edges = np.histogram(self.pit, BINS, (0, 1))
        low, high = binom.interval(BAND, len(self.pit), 1 / BINS)
        rows = [
            {"from": float(a), "to": float(b), "count": int(c)}
            for a, b, c in zip(edges[:-1], edges[1:], counts, strict=True)
        ]
        return rows, float(low), float(high)


def _weighted(fit: Fit, of: Callable[[Member, np.ndarray], np.ndarray]) -> np.ndarray:
    """Return ``of`` for draws of every law, as many as its weight gives it, one below the other."""
    return np.concatenate([of(member, member.rows(CHECK_DRAWS)) for member in fit.members])


def _noise(member: Member, rows: np.ndarray) -> np.ndarray:
    return member.belief.noise[rows][:, member.layout.row_curve]


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
    from scipy.stats import t

    z = (observed - mean) / scale
    log_weight = np.log(scale) - t.logpdf(z, df)
    weight = np.exp(log_weight - log_weight.max(axis=0))
    weight = np.minimum(weight, weight.mean(axis=0) * math.sqrt(len(weight)))
    return (weight * t.cdf(z, df)).sum(axis=0) / weight.sum(axis=0)


def held_out(fit: Fit, **options: Any) -> list[Check]:
    """Return the checks of fits that did not see the largest size, and the largest data.

    Parameters
    ----------
    fit : Fit
        Whose runs and question to use.
    **options
        Of `tunecast.models.fit`, such as ``draws``; the fit's own where not given.
    """
    from tunecast.models.inference import fit as sample

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


# --------------------------------------------------------------------------- parameters


@dataclass(frozen=True)
class Parameters:
    """Priors and posteriors of the law's parameters, cell by cell, in published units.

    Parameters
    ----------
    rows : DataFrame
        ``parameter, cell, method, prior_q05, prior_q95, q05, q25, q50, q75, q95, published,
        width`` (posterior over prior interval, on the scale of the parameter's support).
    tied : tuple of str
        A sentence for each pair of parameters that the data do not tell apart.
    """

    rows: pd.DataFrame
    tied: tuple[str, ...]

    @property
    def unlearned(self) -> list[str]:
        """What is known of hardly better than before, one phrase for each parameter."""
        wide = self.rows[self.rows["width"] >= WIDE]
        every = self.rows.groupby("parameter").size()
        said = []
        for name, rows in wide.groupby("parameter", sort=False):
            whose = "every cell" if len(rows) == every[name] else "; ".join(rows["cell"])
            said.append(f"{_symbol(str(name))} ({whose})")
        return said


def parameters(fit: Fit) -> Parameters:
    """Return priors, posteriors and published values of A, E, alpha, beta and D_l."""
    member = max(fit.members, key=lambda m: m.weight)
    layout = member.layout
    law = get_law(layout.question.law)
    positive = {p.name for p in law.parameters if p.support == "positive"}
    draws, _ = simulate_prior(layout, member.priors, PRIOR_DRAWS, int(fit.info["seed"]))
    before = Member(layout, member.priors, draws, 1.0)
    rows, tied = [], []
    for k, cell in enumerate(layout.cells):
        label = _label(cell, layout.cells)
        named = dict(zip(layout.question.cell, cell, strict=True))
        prior, posterior = published_parameters(before, k), published_parameters(member, k)
        scaled = {}
        for name in posterior:
            log = name.partition(":")[0] in positive
            known, values = _bounded(prior[name], log), _bounded(posterior[name], log)
            low, high = np.quantile(known, [0.05, 0.95])
            q = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
            scaled[name] = np.log(values) if log else values
            wide, after = _width(low, high, log), _width(q[0], q[-1], log)
            width = after / wide if wide > 0 else 1.0
            rows.append(
                {
                    "parameter": name,
                    "cell": label,
                    "method": named.get("method", ""),
                    "prior_q05": low,
                    "prior_q95": high,
                    **dict(zip(("q05", "q25", "q50", "q75", "q95"), q, strict=True)),
                    "published": _published(named, name),
                    "width": width,
                }
            )
        tied += ties(label, scaled)
    return Parameters(pd.DataFrame(rows), tuple(tied))


def _label(cell: tuple[str, ...], cells: Sequence[tuple[str, ...]]) -> str:
    """Return what tells a cell from the others: one task need not be named with every method."""
    apart = [value for i, value in enumerate(cell) if len({c[i] for c in cells}) > 1]
    return " / ".join(apart or cell)


def _bounded(values: np.ndarray, log: bool) -> np.ndarray:
    """Bring what over- or underflowed back among the numbers; a D_l may be either."""
    return np.clip(values, LEAST, MOST) if log else values


def _width(low: float, high: float, log: bool) -> float:
    return math.log(high / low) if log else high - low


def _published(named: Mapping[str, str], parameter: str) -> float | None:
    """Return the paper's value for this task and method, if it has one that compares."""
    row = PRINTED.get((named.get("task", ""), named.get("method", "")))
    if row is None:
        return None
    of = {"E": row.E, "beta": row.beta, "alpha:model_size": row.alpha_m}
    of["alpha:pretrain_tokens"] = row.alpha_p
    return of.get(parameter)


def ties(cell: str, scaled: Mapping[str, np.ndarray]) -> list[str]:
    """Return a sentence for each pair of parameters of a cell that hardly vary alone."""
    names = [n for n in scaled if np.isfinite(scaled[n]).all()]
    table = pd.DataFrame({n: scaled[n] for n in names}).corr(method="spearman").to_numpy()
    said = []
    for i, a in enumerate(names):
        for j in range(i):
            if abs(table[i, j]) >= TIED:
                said.append(
                    f"{cell}: {_symbol(names[j])} and {_symbol(a)} trade off "
                    f"(rank correlation {table[i, j]:+.2f})."
                )
    return said


def _symbol(name: str) -> str:
    head, _, factor = name.partition(":")
    letter = {"alpha": "\N{GREEK SMALL LETTER ALPHA}", "beta": "β"}.get(head, head)
    return f"{letter} of {factor.replace('_', ' ')}" if factor else letter


# --------------------------------------------------------------------------- words


def diagnostics_in_words(fit: Fit) -> list[str]:
    """Return what the chains say, a sentence for each diagnostic."""
    d = fit.diagnostics
    verdict = (
        "The sampler converged: its chains agree and visited enough independent points."
        if d.converged
        else f"The sampler did not converge: {'; '.join(d.reasons)}."
    )
    return [
        verdict,
        f"The chains differ by R-hat {d.rhat_max:.3f} at most over all unknowns (1 is agreement).",
        f"The worst-known quantity has the precision of {d.ess_bulk_min:.0f} independent draws in "
        f"its middle and of {d.ess_tail_min:.0f} in its tails, out of {d.draws}.",
        f"{d.divergences or 'No'} draws diverged; the energy diagnostic BFMI is {d.bfmi_min:.2f}.",
    ]


def warnings_of(fit: Fit, extrapolation: Sequence[float] = ()) -> list[str]:
    """Return what a reader should know before relying on the forecasts, one sentence each."""
    runs, said = fit.runs, []
    far = max(extrapolation, default=1.0)
    if far > 1.005:
        said.append(f"The targets lie up to {far:.3g} times beyond the data.")
    if "rate_at_edge" in runs:
        edge = runs["rate_at_edge"].astype(str).str.lower().isin(("true", "1", "1.0")).sum()
        if edge:
            said.append(
                f"{edge} of {len(runs)} runs did best at an edge of the learning rates tried: "
                "another rate may reach less."
            )
    question = fit.question
    places = [c for c in (*question.cell, question.curve, question.data) if c in runs]
    repeats = runs.groupby([runs[c].astype(str) for c in places]).size()
    if (repeats < 2).all():
        said.append("No run was repeated with another seed: noise and misfit are hard to tell.")
    elif (alone := int((repeats < 2).sum())) > len(repeats) / 2:
        said.append(f"{alone} of {len(repeats)} design points have a single seed.")
    counts = fit.info.get("counts", {})
    for status, why in (
        ("diverged", "diverged"),
        ("failed", "failed"),
        ("zero_shot", "are zero-shot, where a power of the data size has no value"),
    ):
        if counts.get(status):
            said.append(f"Left out of the fit: {counts[status]} runs that {why}.")
    sizes = {f: runs[f].nunique() for f in question.factors}
    said += [
        f"The runs have {n} values of {f.replace('_', ' ')}: its exponent rests on few points."
        for f, n in sizes.items()
        if n < 4
    ]
    if fit.info.get("simulated"):
        said.append("The fitted runs are simulated, not measured.")
    return said
