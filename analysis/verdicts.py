"""The answer of a report in sentences, each written from the forecast tables it stands beside.

No sentence is fixed: which one is said, and how surely, follows from the numbers, so that a page
cannot say one thing and show another.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tunecast.analysis.plots import axis_name, percent, short
from tunecast.analysis.thinned import settings_of
from tunecast.models.fits import Fit

# What a probability is called, from the largest on. Below the last a lead is no verdict.
SURE = ((0.99, "almost certainly"), (0.9, "very probably"), (0.66, "probably"))
DEFAULT_BEYOND = 10.0
_DIRECTIONS = frozenset(
    map(chr, (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
)
CROSSOVER_POINTS = 80  # over four decades or so: places a crossing to 6 %


def isolated(name: object) -> str:
    """Return a name that cannot turn the text around it, whichever way its script runs.

    Control characters of direction are left out; a name in a script that runs from right to left
    stands between isolates (Unicode Standard Annex 9).
    """
    text = "".join(c for c in str(name) if c not in _DIRECTIONS)
    if any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in text):
        return f"\N{FIRST STRONG ISOLATE}{text}\N{POP DIRECTIONAL ISOLATE}"
    return text


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
    """Return a place for each setting: its largest size, ten times its most data, a new model."""
    question = fit.question
    rows: list[dict[str, Any]] = []
    for setting in settings_of(fit):
        row: dict[str, Any] = dict(setting.labels)
        row |= dict(zip(question.factors, setting.largest, strict=True))
        row[question.data] = setting.high * DEFAULT_BEYOND
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
    question = fit.question
    methods = _methods(fit, place)
    if "method" in question.cell:
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
    words = _place(fit, target)
    said = [_reach(table), *_verdict(table), *_crossed(fit, crossings)]
    return Answer(words, target, table, crossings, tuple([*said, _distance(fit, table, target)]))


def _target(place: pd.DataFrame) -> dict[str, Any]:
    return {str(k): v for k, v in place.iloc[0].items()}


def _methods(fit: Fit, place: pd.DataFrame) -> list[str]:
    runs = fit.runs
    for name in settings_of(fit)[0].labels:
        if name in place and place[name].iloc[0] in set(runs[name].astype(str)):
            runs = runs[runs[name].astype(str) == str(place[name].iloc[0])]
    return sorted((runs if len(runs) else fit.runs)["method"].astype(str).unique())


def _place(fit: Fit, target: Mapping[str, Any]) -> str:
    question = fit.question
    labels = [isolated(target[c]) for c in dict.fromkeys(("task", *question.cell)) if c in target]
    base = target.get(question.curve)
    known = isinstance(base, str) and base != ""
    sizes = [f"{short(float(target[f]))} {axis_name(f)}" for f in question.factors
             if f in target and target[f] == target[f]]  # fmt: skip
    model = f"base model {isolated(base)}" if known else "a base model not seen yet"
    where = ", ".join([*sizes, f"{short(float(target[question.data]))} {axis_name(question.data)}"])
    return f"{' / '.join(labels)}, {where}, {model}" if labels else f"{where}, {model}"


def _reach(table: pd.DataFrame) -> str:
    parts = []
    for row in table.to_dict("records"):
        span = f"{row['loss_q50']:.3g} nats (90 % interval {row['loss_q05']:.3g} to "
        parts.append(f"{isolated(row.get('method', 'it'))} {span}{row['loss_q95']:.3g})")
    return f"A new run is forecast to reach: {'; '.join(parts)}."


def _verdict(table: pd.DataFrame) -> list[str]:
    if "p_best" not in table:
        return []
    ranked = table.sort_values("p_best", ascending=False, kind="stable")
    first, second = ranked.iloc[0], ranked.iloc[1]
    p, name = float(first["p_best"]), isolated(first["method"])
    others = f"next comes {isolated(second['method'])} with {percent(second['p_best'])}"
    for least, word in SURE:
        if p >= least:
            said = f"{name} {word} has the lowest expected loss ({percent(p)}; {others})"
            break
    else:
        said = (
            f"The runs do not decide which method is best: {name} leads with {percent(p)}, {others}"
        )
    cost = float(first["expected_regret"])
    return [f"{said}. Choosing {name} costs {cost:.2g} nats on average."]


def _crossover(fit: Fit, place: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    question, target = fit.question, _target(place)
    options = {k: v for k, v in target.items() if k not in (question.data, question.curve, "task")}
    base = target.get(question.curve)
    return fit.crossover(
        a,
        b,
        task=str(target["task"]) if "task" in target else None,
        base_model=base if isinstance(base, str) else "",
        points=CROSSOVER_POINTS,
        **options,
    )


def _crossed(fit: Fit, crossings: pd.DataFrame) -> list[str]:
    if crossings.empty:
        return []
    (row,) = crossings.to_dict("records")
    p = 1 - float(row["p_none"])
    span = f"between {short(row['low'])} and {short(row['high'])} {axis_name(fit.question.data)}"
    pair = f"{isolated(row['a'])} and {isolated(row['b'])}"
    if p < 0.5:
        return [f"{pair} have no crossover {span} in {percent(1 - p)} of the draws{_below(row)}."]
    return [
        f"{pair} cross {span} in {percent(p)} of the draws; if they do, the first time at "
        f"{short(row['first_q50'])} (90 % interval {short(row['first_q05'])} to "
        f"{short(row['first_q95'])})."
    ]


def _below(row: Mapping[Any, Any]) -> str:
    """Say which of two methods lies lower at both ends, where it is the same one."""
    low, high = float(row["p_a_below_at_low"]), float(row["p_a_below_at_high"])
    if (low - 0.5) * (high - 0.5) <= 0:
        return ""
    if low < 0.5:
        low, high = 1 - low, 1 - high
        name = row["b"]
    else:
        name = row["a"]
    ends = f"the least data in {percent(low)} and at the most in {percent(high)}"
    return f"; {isolated(name)} lies lower at {ends}"


def _distance(fit: Fit, table: pd.DataFrame, target: Mapping[str, Any]) -> str:
    far = float(table["extrapolation"].max())
    if not math.isfinite(far) or far <= 1.005:
        return "The target lies inside the data."
    question = fit.question
    parts = []
    for name in (*question.factors, question.data):
        value, seen = float(target.get(name, math.nan)), fit.runs[name].astype(float)
        ratio = max(value / seen.max(), seen.min() / value)
        if ratio > 1.005:
            parts.append(f"{short(ratio)} times in {axis_name(name)}")
    of = f" ({', '.join(parts)} beyond all runs)" if parts else ""
    if "method" in table and table["extrapolation"].nunique() > 1:
        each = [
            f"{short(x)} for {isolated(m)}"
            for m, x in table[["method", "extrapolation"]].to_numpy()
        ]
        return f"Times beyond the data of its curves: {', '.join(each)}{of}."
    return f"The target lies {short(far)} times beyond the data of its curves{of}."
