"""Sentences of an answer, each written from the forecast tables that it stands beside.

No sentence is fixed: which one is said, and how surely, follows from the numbers, so that a page
cannot say one thing and show another.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

import pandas as pd

from tunecast.analysis.labels import axis_name, percent, short
from tunecast.models import Fit

# What a probability is called, from the largest on. Below the last a lead is no verdict.
SURE = ((0.99, "almost certainly"), (0.9, "very probably"), (0.66, "probably"))
_DIRECTIONS = frozenset(
    map(chr, (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
)


def isolated(name: object) -> str:
    """Return a name that cannot turn the text around it, whichever way its script runs.

    Control characters of direction are left out; a name in a script that runs from right to left
    stands between isolates (Unicode Standard Annex 9).
    """
    text = "".join(c for c in str(name) if c not in _DIRECTIONS)
    if any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in text):
        return f"\N{FIRST STRONG ISOLATE}{text}\N{POP DIRECTIONAL ISOLATE}"
    return text


def place_in_words(fit: Fit, target: Mapping[str, Any]) -> str:
    """Return where a target lies."""
    spec = fit.spec
    labels = [isolated(target[c]) for c in dict.fromkeys(("task", *spec.cell)) if c in target]
    base = target.get(spec.curve)
    known = isinstance(base, str) and base != ""
    sizes = [f"{short(float(target[f]))} {axis_name(f)}" for f in spec.factors
             if f in target and target[f] == target[f]]  # fmt: skip
    model = f"base model {isolated(base)}" if known else "a base model not seen yet"
    where = ", ".join([*sizes, f"{short(float(target[spec.data]))} {axis_name(spec.data)}"])
    return f"{' / '.join(labels)}, {where}, {model}" if labels else f"{where}, {model}"


def reach(table: pd.DataFrame) -> str:
    """Return what a new run of each method is forecast to reach."""
    parts = []
    for row in table.to_dict("records"):
        span = f"{row['loss_q50']:.3g} nats (90 % interval {row['loss_q05']:.3g} to "
        parts.append(f"{isolated(row.get('method', 'it'))} {span}{row['loss_q95']:.3g})")
    return f"A new run is forecast to reach: {'; '.join(parts)}."


def verdict(table: pd.DataFrame) -> list[str]:
    """Return which method is best, how surely, and what the choice costs."""
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


def crossed(fit: Fit, crossings: pd.DataFrame) -> list[str]:
    """Return whether and where the two leading methods cross."""
    if crossings.empty:
        return []
    (row,) = crossings.to_dict("records")
    p = 1 - float(row["p_none"])
    span = f"between {short(row['low'])} and {short(row['high'])} {axis_name(fit.spec.data)}"
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


def distance(fit: Fit, table: pd.DataFrame, target: Mapping[str, Any]) -> str:
    """Return how far beyond the data a target lies."""
    far = float(table["extrapolation"].max())
    if not math.isfinite(far) or far <= 1.005:
        return "The target lies inside the data."
    spec = fit.spec
    parts = []
    for name in (*spec.factors, spec.data):
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
