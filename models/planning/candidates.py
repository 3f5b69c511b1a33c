"""Candidates and targets: completed, checked, and told apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.hierarchy.table import Spec
from tunecast.models.planning.fitted import FittedModel

PLACEHOLDER = "not seen yet: "  # what the name given to an unnamed base model begins with


def complete_candidates(fit: FittedModel, candidates: pd.DataFrame) -> pd.DataFrame:
    """Return candidates with every column that the fit needs, and ``replicates``.

    Raises
    ------
    TunecastError
        When one of them lies outside the law's domain.
    """
    completed = fit.check_targets(candidates, who="candidates")
    asked = (
        completed["replicates"] if "replicates" in completed else pd.Series(1.0, completed.index)
    )
    counts = pd.to_numeric(asked, errors="coerce").fillna(1.0 if asked.isna().all() else np.nan)
    bad = ~(counts >= 1) | (counts != counts.round()) | np.isinf(counts)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise TunecastError(
            f"the candidates' 'replicates' is {asked.iloc[row]} in row {row + 1}: "
            "expected a whole number from 1"
        )
    return _with_base_models(fit.spec, completed.assign(replicates=counts.astype(int)))


def complete_targets(fit: FittedModel, targets: pd.DataFrame) -> pd.DataFrame:
    """Return targets with every column that the fit needs, each method where none is named."""
    if "method" in fit.spec.cell and ("method" not in targets or targets["method"].isna().all()):
        methods = sorted(fit.runs["method"].astype(str).unique())
        plain = targets.drop(columns="method", errors="ignore")
        targets = plain.merge(pd.DataFrame({"method": methods}), how="cross")
    checked = fit.check_targets(targets, who="targets")
    return _with_base_models(fit.spec, checked).drop_duplicates(ignore_index=True)


def _with_base_models(columns: Spec, table: pd.DataFrame) -> pd.DataFrame:
    """Give a base model without a name the one of its own that its factors and family make."""
    keys = [c for c in columns.cell if c not in ("task", "method")] + list(columns.factors)
    own = table[keys].apply(
        lambda row: ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in row), axis=1
    )
    named = table[columns.curve] != ""
    other = PLACEHOLDER + (own if keys else pd.Series("", index=table.index))
    return table.assign(**{columns.curve: table[columns.curve].where(named, other)})


def without_placeholders(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table without the names that base models got for the lack of one."""
    return table.mask(table.astype(str).apply(lambda c: c.str.startswith(PLACEHOLDER)), "")


def same_runs(columns: Spec, candidates: pd.DataFrame) -> np.ndarray:
    """Return a number for each candidate; those that are the same run have the same.

    Whatever their costs and replicates.
    """
    keys = [*columns.cell, "task", columns.curve, *columns.factors, columns.data]
    keys += ["seed"] if "seed" in candidates else []
    groups = candidates.groupby(list(dict.fromkeys(keys)), sort=False, dropna=False)
    return groups.ngroup().to_numpy()


# --------------------------------------------------------------------------- where methods compete


def comparison_rows(columns: Spec, targets: pd.DataFrame) -> list[np.ndarray]:
    """Return the rows of targets that differ in the method alone, in order of appearance."""
    if "method" not in columns.cell:
        return [np.array([i]) for i in range(len(targets))]
    place = [c for c in (*columns.cell, "task", columns.curve) if c != "method"]
    place += [*columns.factors, columns.data]
    codes = targets.groupby(list(dict.fromkeys(place)), sort=False).ngroup().to_numpy()
    return [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]


def check_comparisons(
    columns: Spec, targets: pd.DataFrame, comparisons: Sequence[np.ndarray]
) -> None:
    """Refuse a target at which one method alone is asked about.

    Raises
    ------
    TunecastError
        In one sentence that names it.
    """
    for rows in comparisons:
        if len(rows) < 2:
            row = targets.iloc[rows[0]]
            size = f"{columns.data} {row[columns.data]:g}"
            raise TunecastError(
                f"the target at {size} has the method '{row['method']}' only: "
                "a winner takes two methods or more at each target"
            )
