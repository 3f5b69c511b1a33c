"""Checks of a run table at the border: every fault at once, one sentence each."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_datetime64_any_dtype, is_timedelta64_dtype

from tunecast.models.errors import TunecastError
from tunecast.models.runs.domains import FINITE, LABEL, Domain


def faults_of_shape(frame: pd.DataFrame, *, name: str) -> list[str]:
    """Return what is wrong with a table as a whole, one sentence each."""
    repeated = frame.columns[frame.columns.duplicated()].unique()
    faults = [f"column '{c}' appears more than once in '{name}'." for c in repeated]
    if len(frame) == 0:
        faults.append(f"'{name}' has no rows.")
    elif frame.shape[1] == 1 and (found := {";", "\t", "|"} & set(frame.columns[0])):
        faults.append(f"the fields of '{name}' are separated by {found.pop()!r}, not by commas.")
    return faults


def checked(
    frame: pd.DataFrame,
    places: Sequence[str],
    declared: Mapping[str, Domain],
    required: Sequence[str],
    *,
    numeric: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> pd.DataFrame:
    """Return ``frame`` with every declared and used column typed, or raise all faults at once.

    Parameters
    ----------
    frame : DataFrame
        Rows of a run table.
    places : sequence of str
        What to call each row in a sentence.
    declared : mapping of str to Domain
        Domain of each declared column.
    required : sequence of str
        Declared columns that must be there.
    numeric, labels : sequence of str
        Further columns that must hold a number, or a label, in every ``done`` row.

    Raises
    ------
    TunecastError
        With one sentence for every fault found.
    """
    domains = _domains(frame, declared, required, numeric, labels)
    faults = [_missing_column(name, frame) for name in domains if name not in frame]
    frame = _with_defaults(frame)
    done = frame["status"] == "done"
    used = {*required, "base_model", *numeric, *labels}
    for name, domain in domains.items():
        if name not in frame:
            continue
        if name in ("loss", "loss_se"):
            frame[name] = frame[name].where(done)
        values, missing = _typed(frame[name], domain)
        bad = ~missing & ~np.asarray(domain.accepts(values), dtype=bool)
        if name in ("run_id", "task", "method"):
            bad |= missing
        elif name in used:
            bad |= missing & done
        if bad.any():
            faults.append(_fault(name, domain, frame[name], bad, places))
        frame[name] = _without_fraction(values) if name == "seed" else values
    faults += _repeated_ids(frame, places)
    if faults:
        raise TunecastError(*faults)
    return frame


def _domains(
    frame: pd.DataFrame,
    declared: Mapping[str, Domain],
    required: Sequence[str],
    numeric: Sequence[str],
    labels: Sequence[str],
) -> dict[str, Domain]:
    """Return the domain of each column that is present, required or used."""
    domains = {k: v for k, v in declared.items() if k in frame or k in required}
    for names, otherwise in ((numeric, FINITE), (labels, LABEL)):
        for name in names:
            if name not in ("base_model", "status", "origin"):  # these have defaults
                domains.setdefault(name, declared.get(name, otherwise))
    return domains


def _with_defaults(frame: pd.DataFrame) -> pd.DataFrame:
    filled = frame.copy()
    defaults: dict[str, Any] = {"status": "done", "origin": "measured"}
    if "run_id" in frame:
        defaults["base_model"] = _typed(frame["run_id"], LABEL)[0]
    for name, default in defaults.items():
        if name in frame:
            values, missing = _typed(frame[name], LABEL)
            filled[name] = values.mask(missing, default)
        else:
            filled[name] = default
    return filled


def _typed(series: pd.Series, domain: Domain) -> tuple[pd.Series, pd.Series]:
    """Return the column as float64 or text, and where it is empty."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype(series.cat.categories.dtype)
    missing = series.isna() | (series.astype(str).str.strip() == "")
    if not domain.numeric:
        words = [None if m else _word(v) for v, m in zip(series, missing, strict=True)]
        return pd.Series(words, index=series.index, name=series.name), missing
    if is_bool_dtype(series) or is_datetime64_any_dtype(series) or is_timedelta64_dtype(series):
        numbers_ = np.full(len(series), np.nan)  # pandas would turn a date into nanoseconds
    else:
        numbers_ = pd.to_numeric(series, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    return pd.Series(numbers_, index=series.index, name=series.name), missing


def _word(value: object) -> str:
    # A column of labels such as 7 is stored as 7.0 where one place is empty.
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value).strip()  # type: ignore[call-overload]


def _without_fraction(seed: pd.Series) -> pd.Series:
    exact = seed.notna().all() and (seed.abs() < 2**53).all() and (seed == seed.round()).all()
    return seed.astype("int64") if exact else seed


def _missing_column(name: str, frame: pd.DataFrame) -> str:
    near = difflib.get_close_matches(name, list(frame.columns), n=1)
    if near:
        return f"column '{name}' is missing; is '{near[0]}' meant?"
    has = ", ".join(str(c) for c in frame.columns[:12])
    more = ", ..." if frame.shape[1] > 12 else ""
    return f"column '{name}' is missing; the table has: {has}{more}."


def _fault(
    name: str, domain: Domain, series: pd.Series, bad: pd.Series, places: Sequence[str]
) -> str:
    first, where_ = _first(bad, places)
    value = series.iloc[first]
    value = value.item() if isinstance(value, np.generic) else value
    empty = pd.api.types.is_scalar(value) and (pd.isna(value) or str(value).strip() == "")
    what = "empty" if empty else reprlib.repr(value)
    whose = " in rows that are done" if name == "loss" else ""
    return f"column '{name}' must be {domain.expected}{whose}, but it is {what} {where_}."


def _repeated_ids(frame: pd.DataFrame, places: Sequence[str]) -> list[str]:
    if "run_id" not in frame:
        return []
    repeated = frame["run_id"].notna() & frame["run_id"].duplicated()
    if not repeated.any():
        return []
    first, where_ = _first(repeated, places)
    value = reprlib.repr(frame["run_id"].iloc[first])
    return [f"column 'run_id' must not repeat, but {value} is there again {where_}."]


def _first(bad: pd.Series, places: Sequence[str]) -> tuple[int, str]:
    first, count = int(np.flatnonzero(bad)[0]), int(bad.sum())
    others = "" if count == 1 else f" ({count} such rows, this is the first)"
    return first, f"in {places[first]}{others}"
