"""The model in a page: its draws and ranges as JSON, for the functions of `page_law`."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tunecast.analysis.report.page_draws import PageDraws
from tunecast.analysis.report.page_law import javascript
from tunecast.analysis.report.page_predictor import PageCurve, PagePredictor
from tunecast.analysis.report.strata import factors_of
from tunecast.models.predict import KNOT

# Curves of known base models come along as long as they leave the page small.
CURVE_BYTES = 1_200_000

type KnownBases = Mapping[str, Sequence[dict[str, Any]]]


def scripts(draws: PageDraws) -> list[str]:
    """Return the law of each member as JavaScript."""
    return [javascript(p.law, p.layout.question.factors) for p in draws.predictors]


def payload(draws: PageDraws) -> dict[str, Any]:
    """Return the draws and ranges that a page computes with, ready for JSON."""
    bases = _known_bases(draws)
    return {
        "knot": KNOT,
        "data": draws.fit.question.data,
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
        "models": [_member(draws, p, bases) for p in draws.predictors],
    }


def _known_bases(draws: PageDraws) -> KnownBases:
    """Return the base models that the page knows in each stratum, with their factors."""
    question, runs = draws.fit.question, draws.fit.runs
    names, affordable = runs[question.curve].astype(str), _affordable(draws)
    at = {
        base: [float(runs.loc[names == base, f].iloc[0]) for f in question.factors]
        for base in affordable
    }
    return {
        s.name: [{"name": b, "at": at[b]} for b in affordable if b in draws.base_models(s)]
        for s in draws.strata
    }


def _affordable(draws: PageDraws) -> list[str]:
    """Return the base models whose curves the page can hold, in the order of the runs they have."""
    counts = draws.fit.runs[draws.fit.question.curve].astype(str).value_counts(sort=True)
    kept, spent = [], 0
    for base in counts.index:
        curves = sum(len(s.methods) for s in draws.strata if base in draws.base_models(s))
        spent += curves * 5 * 4 * draws.size  # five arrays of four bytes a number
        if spent > CURVE_BYTES:
            break
        kept.append(str(base))
    return kept


def _member(draws: PageDraws, p: PagePredictor, bases: KnownBases) -> dict[str, Any]:
    question, every = p.layout.question, draws.fit.question.factors
    new, known = {}, {}
    for i, stratum in enumerate(draws.strata):
        for method in stratum.methods:
            cell, task = stratum.cell(question, method), stratum.labels["task"]
            curve = p.new_curve(cell, task)
            place = [_packed(values) for values in curve.cell]
            new[f"{i}\x1f{method}"] = {**_written(curve), "place": place}
            for base in bases[stratum.name]:
                at = dict(zip(every, base["at"], strict=True))
                own = [at[factor] for factor in question.factors]
                curve = p.known_curve(cell, task, base["name"], own)
                known[f"{i}\x1f{method}\x1f{base['name']}"] = _written(curve)
    return {
        "draws": p.size,
        "factors": [every.index(f) for f in question.factors],
        "x_ref": list(p.layout.x_ref),
        "x_seen": [
            [float(np.exp(column.min()) * ref), float(np.exp(column.max()) * ref)]
            for column, ref in zip(p.layout.curve_x.T, p.layout.x_ref, strict=True)
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
        "share": _packed(curve.share),
        "rate": _packed(curve.rate),
        "onset": None if curve.onset is None else _packed(curve.onset),
        "noise": _packed(curve.noise),
        "range": curve.seen,
        "cell_range": curve.cell_seen,
        "ref": curve.reference,
        "shifts": curve.shifts,
        "level": _packed(curve.level),
    }


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()
