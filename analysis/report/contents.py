"""What a report says, whatever its format: answers, checks, parameters, warnings, provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

import numpy as np
import pandas as pd

from tunecast.analysis.report.answers import Answer, answers, default_targets
from tunecast.analysis.report.calibration import Check, held_out, left_out
from tunecast.analysis.report.caveats import warnings_of
from tunecast.analysis.report.page_draws import PageDraws
from tunecast.analysis.report.parameters import Parameters, parameters
from tunecast.analysis.report.strata import Stratum, strata_of
from tunecast.analysis.report.vega import plotting_release
from tunecast.models import Fit, get_law

MAX_ANSWERS = 4  # strata that are answered unasked, those with the most runs


@dataclass(frozen=True)
class Contents:
    """All that a report says.

    Parameters
    ----------
    fit : Fit
        The fit.
    answers : list of Answer
        One for each target.
    checks : list of Check
        Coverage checks: each run left out, and the backtests if they were made.
    plan : DataFrame or None
        From ``tunecast plan``.
    track : DataFrame or None
        Scores of earlier forecasts.
    commands : tuple of str
        How the report was made.
    """

    fit: Fit
    answers: list[Answer]
    checks: list[Check]
    plan: pd.DataFrame | None = None
    track: pd.DataFrame | None = None
    commands: tuple[str, ...] = ()

    @cached_property
    def draws(self) -> PageDraws:
        """Draws for what is computed in the page, or on a grid."""
        return PageDraws(self.fit)

    @property
    def strata(self) -> tuple[Stratum, ...]:
        """The strata of the runs."""
        return self.draws.strata

    @cached_property
    def parameters(self) -> Parameters:
        """Priors and posteriors."""
        return parameters(self.fit)

    @property
    def unanswered(self) -> int:
        """How many strata the answers say nothing of."""
        names = list(self.strata[0].labels)
        answered = {tuple(str(a.target.get(n, "")) for n in names) for a in self.answers}
        return sum(tuple(s.labels.values()) not in answered for s in self.strata)

    @property
    def methods(self) -> list[str]:
        """Every method of the runs."""
        return sorted(self.fit.runs["method"].astype(str).unique())

    @property
    def warnings(self) -> list[str]:
        """What a reader should know first."""
        far = [float(a.forecasts["extrapolation"].max()) for a in self.answers]
        return warnings_of(self.fit, far)

    @property
    def provenance(self) -> list[tuple[str, str]]:
        """Name and value of everything that the numbers follow from."""
        info, spec = self.fit.info, self.fit.spec
        law = get_law(spec.law)
        rows = [
            ("data digest (SHA-256)", str(info.get("digest", "unknown"))),
            ("runs fitted", str(len(self.fit.runs))),
            ("law", f"{info.get('law', law.name)}: {law.latex} ({law.reference})"),
            ("weights of laws", ", ".join(
                f"{p.law} {p.weight:.2f}" for p in self.fit.posteriors)),
            ("factors", ", ".join(spec.factors) or "none"),
            ("data axis", spec.data),
            ("cells", " by ".join(spec.cell)),
            ("priors", str(info.get("priors_name", "given in Python"))),
            ("sampler", ", ".join(f"{info[k]} {k}" for k in ("chains", "tune", "draws")
                                  if k in info)),
            ("seed", str(info["seed"])),
            ("versions", ", ".join(f"{k} {v}" for k, v in info.get("versions", {}).items())),
            ("page made by", f"tunecast {version('tunecast')}, {plotting_release()}"),
        ]  # fmt: skip
        return [(name, value) for name, value in rows if value]

    @property
    def priors(self) -> pd.DataFrame:
        """The prior table."""
        table = self.fit.posteriors[0].priors
        rows = [
            {"quantity": k, "location": p.location, "scale": p.scale, "effect": p.effect,
             "scatter": p.scatter, "meaning": p.meaning}
            for k, p in table.items()
        ]  # fmt: skip
        return pd.DataFrame(rows)


def contents(
    fit: Fit,
    *,
    targets: pd.DataFrame | None = None,
    plan: pd.DataFrame | None = None,
    track: pd.DataFrame | None = None,
    commands: Sequence[str] = (),
    backtest: bool = False,
) -> Contents:
    """Return what a report on a fit says.

    Parameters
    ----------
    fit : Fit
        The fit.
    targets : DataFrame, optional
        The places that the answer is about, as `Fit.compare` takes them; by default one for each
        task, at the largest model and ten times the data.
    plan : DataFrame, optional
        From ``tunecast plan``.
    track : DataFrame, optional
        Scores of earlier forecasts.
    commands : sequence of str, optional
        How the report was made.
    backtest : bool, optional
        Whether to fit twice more, without the largest size and without the largest data.
    """
    places = _unasked(fit) if targets is None else targets
    checks = [left_out(fit), *(held_out(fit) if backtest else ())]
    return Contents(fit, answers(fit, places), checks, plan, track, tuple(commands))


def _unasked(fit: Fit) -> pd.DataFrame:
    runs = np.array([stratum.runs for stratum in strata_of(fit)])
    return default_targets(fit).iloc[np.sort((-runs).argsort(kind="stable")[:MAX_ANSWERS])]
