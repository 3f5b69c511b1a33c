"""What a reader should know before relying on a fit: its diagnostics and warnings, in words."""

from __future__ import annotations

from collections.abc import Sequence

from tunecast.analysis.report.verdicts import isolated
from tunecast.models import Fit
from tunecast.models.checks.misfit import FALSE_ALARMS, in_brief, in_words


def diagnostics_in_words(fit: Fit) -> list[str]:
    """Return what the chains say, a sentence for each diagnostic."""
    d = fit.diagnostics
    verdict = (
        "The sampler converged: its chains agree and visited enough independent points."
        if d.converged
        else f"The sampler did not converge: {'; '.join(d.reasons)}."
    )
    checked = []
    if "misfits" in fit.info:
        failed = in_brief(fit.misfits)
        checked = [
            f"Checked against its own table, it fails by {failed}."
            if failed
            else "It fails none of the checks against its own table, posterior predictive ones "
            f"included; about {100 * FALSE_ALARMS:.0f} % of sound tables would fail one."
        ]
    return [
        verdict,
        *checked,
        f"The chains differ by R-hat {d.rhat_max:.3f} at most over all unknowns (1 is agreement).",
        f"The worst-known quantity has the precision of {d.ess_bulk_min:.0f} independent draws in "
        f"its middle and of {d.ess_tail_min:.0f} in its tails, out of {d.draws}.",
        f"{d.divergences or 'No'} draws diverged; the energy diagnostic BFMI is {d.bfmi_min:.2f}.",
    ]


def warnings_of(fit: Fit, extrapolation: Sequence[float] = ()) -> list[str]:
    """Return what a reader should know before relying on the forecasts, one sentence each."""
    runs, said = fit.runs, [isolated(sentence) for sentence in in_words(fit.misfits)]
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
    spec = fit.spec
    places = [c for c in (*spec.cell, spec.curve, spec.data) if c in runs]
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
    sizes = {f: runs[f].nunique() for f in spec.factors}
    said += [
        f"The runs have {n} values of {f.replace('_', ' ')}: its exponent rests on few points."
        for f, n in sizes.items()
        if n < 4
    ]
    if fit.info.get("simulated"):
        said.append("The fitted runs are simulated, not measured.")
    return said
