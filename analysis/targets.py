"""Targets from what a user types: every combination of the values given, completed by the fit."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tunecast.models.errors import TunecastError

if TYPE_CHECKING:
    from tunecast.models import Fit


def split(words: str | None) -> tuple[str, ...]:
    """Return the words between commas; none for None."""
    return tuple(word.strip() for word in (words or "").split(",") if word.strip())


def grid(
    fit: Fit, options: Mapping[str, str | None], values: Sequence[str] = (), *, methods: bool
) -> pd.DataFrame:
    """Return every combination of what the options list, a row for each.

    Parameters
    ----------
    fit : Fit
        Says which columns a target needs, and fills those that it leaves no choice about.
    options : mapping
        The words given to ``--task``, ``--method``, ``--base-model``, ``--model-size`` and
        ``--examples``, commas between several; None where an option was not given.
    values : sequence of str, optional
        Further columns as ``COLUMN=VALUE``.
    methods : bool
        Whether a target has a method; if none is given, all that the fit knows for it are meant.

    Raises
    ------
    TunecastError
        If a value cannot be read, or a column is missing that the fit cannot fill.
    """
    data, curve = fit.info["data"], fit.info["curve"]
    named = {
        "--task": "task",
        "--method": "method",
        "--base-model": curve,
        "--model-size": "model_size",
        "--examples": data,
    }
    words = {named[option]: word for option, word in options.items() if word is not None}
    for assignment in values:
        name, equals, word = assignment.partition("=")
        if not equals or not name.strip():
            raise TunecastError(f"--set takes COLUMN=VALUE, not '{assignment}'.")
        words[name.strip()] = word
    numeric = {data, "model_size", *fit.info["factors"]}
    columns: dict[str, Sequence[Any]] = {
        name: _numbers(name, word) if name in numeric else split(word)
        for name, word in words.items()
    }
    if empty := [name for name, found in columns.items() if not found]:
        raise TunecastError(f"no value was given for {', '.join(empty)}.")
    rows = list(itertools.product(*columns.values()))  # a single empty one if nothing was given
    targets = pd.DataFrame(rows, columns=list(columns), index=range(len(rows)))
    return _completed(targets, fit, methods=methods)


def _numbers(name: str, words: str) -> list[float]:
    try:
        return [float(word) for word in split(words)]
    except ValueError:
        raise TunecastError(f"{name} takes numbers such as 1e9,2e9, not '{words}'.") from None


def _completed(targets: pd.DataFrame, fit: Fit, *, methods: bool) -> pd.DataFrame:
    """Return the targets with the columns that the fitted runs leave no choice about.

    A known base model has one size and one family; a task may have one family; a fit may have one
    task.
    """
    runs, curve = fit.runs, fit.info["curve"]
    for name in dict.fromkeys(("task", *fit.info["cell"], *fit.info["factors"])):
        if name in targets or name == "method":
            continue
        for key in (curve, "task"):
            if key in targets and (found := _only_values(runs, key, name, targets[key])):
                targets = targets.assign(**{name: targets[key].map(found)})
                break
        else:
            if runs[name].nunique() > 1:
                option = {"task": "--task", "model_size": "--model-size"}.get(name)
                option = option or f"--set {name}=..."
                raise TunecastError(f"give {option}; the fit has: {_listed(runs[name])}.")
            targets = targets.assign(**{name: runs[name].iloc[0]})
    if methods and "method" not in targets:
        known = targets["task"].isin(runs["task"]).all()
        every = runs[["task", "method"] if known else ["method"]].drop_duplicates()
        targets = targets.merge(every, on="task") if known else targets.merge(every, how="cross")
    return targets


def _only_values(
    runs: pd.DataFrame, key: str, name: str, asked: pd.Series
) -> dict[Any, Any] | None:
    """Return the value of ``name`` for each one of ``key`` asked for, None if any has several."""
    rows = runs[runs[key].isin(asked)]
    values = rows.groupby(key)[name]
    if set(asked) - set(rows[key]) or (values.nunique() != 1).any():
        return None
    return dict(values.first())


def unseen(fit: Fit, targets: pd.DataFrame) -> list[str]:
    """Return a sentence for each name among the targets that the fit has not seen.

    They can be forecast, with the width that this takes; but a name may also be mistyped.
    """
    said = []
    for name in dict.fromkeys((*fit.info["cell"], "task", fit.info["curve"])):
        if name not in targets:
            continue
        known = set(fit.runs[name].astype(str))
        for value in targets[name].dropna().astype(str).unique():
            if value and value not in known:
                has = _listed(fit.runs[name])
                said.append(f"the fit has not seen the {name} '{value}'; it has: {has}.")
    return said


def _listed(column: pd.Series) -> str:
    return ", ".join(
        f"{value:g}" if isinstance(value, float) else str(value) for value in column.unique()
    )
