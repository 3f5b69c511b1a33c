"""The answer of a report at each target: forecasts, comparison, crossover, and all in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tunecast.analysis.labels import ALL_METHODS, percent, short
from tunecast.analysis.report.strata import strata_of
from tunecast.analysis.report.verdicts import crossed, distance, place_in_words, reach, verdict
from tunecast.analysis.tables import readable
from tunecast.models import Fit

DEFAULT_BEYOND = 10.0
CROSSOVER_POINTS = 80  # over four decades or so: places a crossing to 6 %


@dataclass(frozen=True)
class Answer:
    """What is forecast at one place.

    Parameters
    ----------
    place : str
        The target in words.
    target : mapping
        Its columns, without the method.
    forecasts : DataFrame
        One row for each method: quantiles of a new run and of the expected loss, ``p_best``.
    crossovers : DataFrame
        From `Fit.crossover`, one row for the two leading methods; empty if there is one.
    sentences : tuple of str
        The answer.
    """

    place: str
    target: Mapping[str, Any]
    forecasts: pd.DataFrame
    crossovers: pd.DataFrame
    sentences: tuple[str, ...]


def default_targets(fit: Fit) -> pd.DataFrame:
    """Return a place in each stratum: its largest size, ten times its most data, a new model."""
    spec = fit.spec
    rows: list[dict[str, Any]] = []
    for stratum in strata_of(fit):
        row: dict[str, Any] = dict(stratum.labels)
        row |= dict(zip(spec.factors, stratum.largest, strict=True))
        row[spec.data] = stratum.high * DEFAULT_BEYOND
        rows.append(row)
    return pd.DataFrame(rows)


def answers(fit: Fit, targets: pd.DataFrame) -> list[Answer]:
    """Return the answer at each target; a ``method`` column is ignored.

    Raises
    ------
    TunecastError
        When a target is at fault.
    """
    places = targets.drop(columns="method", errors="ignore").drop_duplicates()
    return [_answer(fit, row.to_frame().T.infer_objects()) for _, row in places.iterrows()]


def _answer(fit: Fit, place: pd.DataFrame) -> Answer:
    spec = fit.spec
    methods = _methods(fit, place)
    if "method" in spec.cell:
        asked = place.merge(pd.DataFrame({"method": methods}), how="cross")
    else:
        asked = place.reset_index(drop=True)
    table = fit.forecast(asked)
    crossings = pd.DataFrame()
    if "method" in asked and len(methods) > 1:
        compared = fit.compare(place, methods=methods).set_index("method")
        for name in ("p_best", "expected_regret"):
            table[name] = table["method"].map(compared[name])
        ranked = table.sort_values("p_best", ascending=False, kind="stable")["method"]
        crossings = _crossover(fit, place, *map(str, ranked[:2]))
    target = _target(place)
    words = place_in_words(fit, target)
    said = [reach(table), *verdict(table), *crossed(fit, crossings)]
    return Answer(words, target, table, crossings, tuple([*said, distance(fit, table, target)]))


def _target(place: pd.DataFrame) -> dict[str, Any]:
    return {str(k): v for k, v in place.iloc[0].items()}


def _methods(fit: Fit, place: pd.DataFrame) -> list[str]:
    runs = fit.runs
    for name in strata_of(fit)[0].labels:
        if name in place and place[name].iloc[0] in set(runs[name].astype(str)):
            runs = runs[runs[name].astype(str) == str(place[name].iloc[0])]
    return sorted((runs if len(runs) else fit.runs)["method"].astype(str).unique())


def _crossover(fit: Fit, place: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    spec, target = fit.spec, _target(place)
    options = {k: v for k, v in target.items() if k not in (spec.data, spec.curve, "task")}
    base = target.get(spec.curve)
    return fit.crossover(
        a,
        b,
        task=str(target["task"]) if "task" in target else None,
        base_model=base if isinstance(base, str) else "",
        points=CROSSOVER_POINTS,
        **options,
    )


def answer_table(answer: Answer) -> pd.DataFrame:
    """Return an answer's forecasts for people, in words where a number alone says little."""
    rows = []
    for row in answer.forecasts.to_dict("records"):
        shown = {"method": row.get("method", ALL_METHODS)}
        for kind, name in (("loss", "new run"), ("expected", "expected")):
            low, mid, high = (readable(row[f"{kind}_q{q}"]) for q in ("05", "50", "95"))
            shown |= {name: mid, f"{name}, 90 %": f"{low} to {high}"}
        if "p_best" in row:
            shown["P(best)"] = percent(row["p_best"])
            shown["expected regret"] = f"{row['expected_regret']:.2g}"
        rows.append(shown | {"beyond data": f"{short(row['extrapolation'])} times"})
    return pd.DataFrame(rows)
