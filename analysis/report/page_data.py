"""What a page shows beside its words, as JSON: model, figures, runs, and where sliders start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from tunecast.analysis.labels import ALL_METHODS, BLUE, axis_name, colours
from tunecast.analysis.report.answers import default_targets
from tunecast.analysis.report.calibration import predictive_check
from tunecast.analysis.report.contents import Contents
from tunecast.analysis.report.figures.best_map import best_map
from tunecast.analysis.report.figures.checks import coverage, histogram, predictive
from tunecast.analysis.report.figures.intervals import intervals
from tunecast.analysis.report.figures.parts import Spec
from tunecast.analysis.report.figures.whatif import whatif
from tunecast.analysis.report.page_model import payload
from tunecast.analysis.report.parameters import parameter_rows
from tunecast.analysis.report.strata import Stratum, factors_of
from tunecast.analysis.tables import readable

MAX_RUNS = 500  # rows of the table of runs: a page must stay small
# Columns of a run that are worth a look when one points at it.
TOLD = ("run_id", "base_model", "model_size", "pet_params", "finetune_examples", "loss", "seed")


def page_data(report: Contents, figures: Mapping[str, Spec]) -> dict[str, Any]:
    """Return all that the page's script reads."""
    return {
        "model": payload(report.draws),
        "figures": figures,
        "colours": _colours(report),
        "runs": _runs(report),
        "start": _start(report),
        "words": dict(sliders(report)),
    }


def as_script(value: Any) -> str:
    """Return JSON that cannot end the script element which holds it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def sliders(report: Contents) -> list[tuple[str, str]]:
    """Return column and name of each slider: the factors and the data size."""
    spec = report.fit.spec
    return [(name, axis_name(name)) for name in (*spec.factors, spec.data)]


def figures_of(report: Contents) -> dict[str, Spec]:
    """Return the figures of the page by their names."""
    spec = report.fit.spec
    data = axis_name(spec.data)
    factor = axis_name(spec.factors[0]) if spec.factors else None
    shades = {name: c for name, c in _colours(report).items() if name}
    checks = [row for check in report.checks for row in check.coverage()]
    ppc, reach = predictive_check(report.fit)
    made = {
        "whatif": whatif(shades, data),
        **({"map": best_map(shades, data, factor)} if len(shades) > 1 else {}),
        "coverage": coverage(checks),
        **{f"pit-{i}": histogram(*check.histogram()) for i, check in enumerate(report.checks, 1)},
        "ppc": predictive(ppc, reach),
    }
    return made | {
        name: intervals(rows, logarithmic=logarithmic)
        for name, rows, logarithmic in parameter_rows(report.parameters.rows)
    }


def run_table(report: Contents) -> pd.DataFrame:
    """Return the runs that the page shows as a table."""
    spec, runs = report.fit.spec, report.fit.runs
    names = dict.fromkeys((*TOLD[:1], *spec.cell, *TOLD[1:], *spec.factors, spec.data))
    return runs[[n for n in names if n in runs]].head(MAX_RUNS)


def _colours(report: Contents) -> dict[str, str]:
    if "method" not in report.fit.spec.cell:
        return {ALL_METHODS: BLUE, "": BLUE}
    return colours(report.methods)


def _runs(report: Contents) -> list[dict[str, Any]]:
    spec, runs = report.fit.spec, report.fit.runs
    rows = []
    names = list(report.strata[0].labels)
    shown = [c for c in dict.fromkeys((*TOLD, *spec.factors, spec.data)) if c in runs]
    for row in runs.to_dict("records"):
        rows.append(
            {
                "setting": " / ".join(str(row[n]) for n in names),
                "method": str(row["method"]) if "method" in spec.cell else ALL_METHODS,
                "data": float(row[spec.data]),
                "size": float(row[spec.factors[0]]) if spec.factors else 1.0,
                "loss": float(row["loss"]),
                "tooltip": {c.replace("_", " "): readable(row[c], c) for c in shown},
            }
        )
    return rows


def _start(report: Contents) -> dict[str, dict[str, float]]:
    """Return where the sliders of each stratum stand first: at its target if there is one."""
    spec = report.fit.spec
    started: dict[str, dict[str, float]] = {}
    for stratum, default in zip(
        report.strata, default_targets(report.fit).to_dict("records"), strict=True
    ):
        matching = [
            a.target
            for a in report.answers
            if all(str(a.target.get(k, v)) == v for k, v in stratum.labels.items())
        ]
        chosen: Mapping[Any, Any] = matching[0] if matching else default
        values = {}
        for name in (*spec.factors, spec.data):
            value = chosen.get(name, default[name])
            value = default[name] if value != value else value
            low, high = _limits(report, stratum, name)
            values[name] = float(min(max(float(value), low), high))
        started[stratum.name] = values
    return started


def _limits(report: Contents, stratum: Stratum, name: str) -> tuple[float, float]:
    for factor in factors_of(report.fit):
        if factor.name == name:
            return factor.asked
    return stratum.asked
