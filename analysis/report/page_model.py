"""The model in a page: its draws and ranges as JSON, for the functions of `page_law`."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tunecast.analysis.report.page_draws import PageDraws
from tunecast.analysis.report.page_law import curve_quantities, javascript
from tunecast.analysis.report.page_predictor import PageCurve, PagePredictor
from tunecast.analysis.report.strata import factors_of
from tunecast.models.hierarchy.drift import KAPPA, KNOT, REST_SLOPE, SLOPES, TERMS
from tunecast.models.laws.positive import MAX_LOG

# Curves of known base models come along as long as they leave the page small.
CURVE_BYTES = 1_200_000

type KnownBases = Mapping[str, Sequence[dict[str, Any]]]


def scripts(draws: PageDraws) -> list[str]:
    """Return the laws as JavaScript."""
    return [javascript(p.law, p.table.factors) for p in draws.predictors]


def payload(draws: PageDraws) -> dict[str, Any]:
    """Return the draws and ranges that a page computes with, ready for JSON."""
    bases = _known_bases(draws)
    return {
        "drift": {"kappa": KAPPA, "slopes": SLOPES, "rest_slope": REST_SLOPE, "knot": KNOT},
        "max_log_loss": MAX_LOG,
        "data": draws.fit.spec.data,
        "factors": [asdict(factor) for factor in factors_of(draws.fit)],
        "settings": [
            {
                "name": s.name,
                "labels": dict(s.labels),
                "methods": list(s.methods),
                "seen": [s.low, s.high],
                "asked": list(s.asked),
                "base_models": bases[s.name],
            }
            for s in draws.strata
        ],
        "models": [_law(draws, p, bases) for p in draws.predictors],
    }


def _known_bases(draws: PageDraws) -> KnownBases:
    """Return the base models that the page knows in each stratum, with their factors."""
    spec, runs = draws.fit.spec, draws.fit.runs
    names, affordable = runs[spec.curve].astype(str), _affordable(draws)
    at = {
        base: [float(runs.loc[names == base, f].iloc[0]) for f in spec.factors]
        for base in affordable
    }
    return {
        s.name: [{"name": b, "at": at[b]} for b in affordable if b in draws.base_models(s)]
        for s in draws.strata
    }


def _affordable(draws: PageDraws) -> list[str]:
    """Return the base models whose curves the page can hold, in the order of the runs they have."""
    counts = draws.fit.runs[draws.fit.spec.curve].astype(str).value_counts(sort=True)
    arrays = 1 + 2 * TERMS + max(len(curve_quantities(p.law)) for p in draws.predictors)
    kept, spent = [], 0
    for base in counts.index:
        curves = sum(len(s.methods) for s in draws.strata if base in draws.base_models(s))
        spent += curves * arrays * 4 * draws.size  # four bytes a number
        if spent > CURVE_BYTES:
            break
        kept.append(str(base))
    return kept


def _law(draws: PageDraws, p: PagePredictor, bases: KnownBases) -> dict[str, Any]:
    spec, every = p.table.spec, draws.fit.spec.factors
    new, known = {}, {}
    for i, stratum in enumerate(draws.strata):
        for method in stratum.methods:
            cell, task = stratum.cell(spec, method), stratum.labels["task"]
            curve = p.new_curve(cell, task)
            own_cell = [_packed(values) for values in curve.cell]
            new[f"{i}\x1f{method}"] = {**_written(curve), "cell": own_cell}
            for base in bases[stratum.name]:
                at = dict(zip(every, base["at"], strict=True))
                own = [at[factor] for factor in spec.factors]
                curve = p.known_curve(cell, task, base["name"], own)
                known[f"{i}\x1f{method}\x1f{base['name']}"] = _written(curve)
    return {
        "draws": p.size,
        "factors": [every.index(f) for f in spec.factors],
        "x_ref": list(p.table.x_ref),
        "x_seen": [
            [float(np.exp(column.min()) * ref), float(np.exp(column.max()) * ref)]
            for column, ref in zip(p.table.curve_x.T, p.table.x_ref, strict=True)
        ],
        "first_knot": p.first_knot,
        "pool": _packed(p.pool),
        "drift_task": _packed(p.drift_scale("drift_task")),
        "drift_curve": _packed(p.drift_scale("drift_curve")),
        "noise_z": _packed(p.run_noise()),
        "new": new,
        "known": known,
    }


def _written(curve: PageCurve) -> dict[str, Any]:
    return {
        "quantities": [_packed(values) for values in curve.quantities],
        "noise": _packed(curve.noise),
        "range": curve.seen,
        "task_range": curve.task_seen,
        "drift": [_packed(values) for values in curve.drift.T],
        "task_drift": [_packed(values) for values in curve.task_drift.T],
        "ref": curve.reference,
        "shifts": curve.shifts,
    }


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()
