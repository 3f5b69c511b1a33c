"""Panels: which targets, and which runs beside them, share one picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tunecast.analysis.labels import AXIS_NAMES, short
from tunecast.analysis.plots.frame import MAX_PANELS
from tunecast.models.errors import TunecastError

if TYPE_CHECKING:
    from tunecast.models import Fit

_GRID_POINTS = 49  # along the data axis: smooth to the eye at six decades


@dataclass(frozen=True)
class Panel:
    """One picture: everything that its curves share.

    Parameters
    ----------
    shared : mapping
        Column to value, such as the task and the model size.
    methods : tuple of str
        A curve for each.
    sizes : ndarray
        Where the curves are drawn along the data axis.
    runs : DataFrame
        Fitted runs on these curves.
    context : DataFrame
        Fitted runs of the same task on other curves.
    heldout : DataFrame or None
        Runs on these curves that the fit has not seen.
    title : str
        What is shared, in words.
    """

    shared: Mapping[str, Any]
    methods: tuple[str, ...]
    sizes: np.ndarray
    runs: pd.DataFrame
    context: pd.DataFrame
    heldout: pd.DataFrame | None
    title: str

    def targets(self, data: str) -> pd.DataFrame:
        """Return a row for each method and data size."""
        grid = pd.MultiIndex.from_product([self.methods, self.sizes], names=["method", data])
        return grid.to_frame(index=False).assign(**self.shared)


def panels_of(
    fit: Fit, targets: pd.DataFrame, heldout: pd.DataFrame | None = None
) -> Iterator[Panel]:
    """Yield a panel for each task and model among the targets.

    Raises
    ------
    TunecastError
        If there are more than a figure holds.
    """
    data, curve, factors = fit.info["data"], fit.info["curve"], list(fit.info["factors"])
    cell = [name for name in fit.info["cell"] if name != "method"]
    keys = [name for name in dict.fromkeys([*cell, *factors, curve]) if name in targets]
    groups = list(targets.groupby(keys, sort=False, dropna=False))
    if len(groups) > MAX_PANELS:
        raise TunecastError(
            f"a picture holds at most {MAX_PANELS} panels, one for each task and model, "
            f"and these targets need {len(groups)}; draw fewer of them."
        )
    for values, rows in groups:
        # NaN, for a base model not seen yet, differs from itself.
        shared = {k: v for k, v in zip(keys, values, strict=True) if v == v and v is not None}
        methods = tuple(dict.fromkeys(rows["method"]))
        related = fit.runs[fit.runs["method"].isin(methods)]
        related = related[_agrees(related, {k: v for k, v in shared.items() if k in cell})]
        fitted = _agrees(related, shared)
        apart = None
        if heldout is not None:
            apart = heldout[_agrees(heldout, shared) & heldout["method"].isin(methods).to_numpy()]
        ends = [table[data] for table in (related, rows, apart) if table is not None]
        every = np.concatenate([np.asarray(end, dtype=float) for end in ends])
        every = every[every > 0]
        yield Panel(
            shared=shared,
            methods=methods,
            sizes=np.geomspace(every.min(), every.max(), _GRID_POINTS),
            runs=related[fitted],
            context=related[~fitted],
            heldout=apart,
            title=_title(shared, curve, factors),
        )


def _agrees(table: pd.DataFrame, values: Mapping[str, Any]) -> np.ndarray:
    agrees = np.ones(len(table), dtype=bool)
    for name, value in values.items():
        agrees &= (table[name] == value).to_numpy()
    return agrees


def _title(shared: Mapping[str, Any], curve: str, factors: Sequence[str]) -> str:
    # A family named as well as its base model would say the same twice.
    parts = [str(v) for k, v in shared.items() if k not in factors and k not in (curve, "family")]
    if curve in shared:
        parts.append(str(shared[curve]))
    parts += [f"{short(shared[k])} {AXIS_NAMES.get(k, k)}" for k in factors if k in shared]
    return ", ".join(parts)


def place_in_words(target: pd.DataFrame, data: str, *, several: bool) -> str:
    """Return where a target lies on the data axis, and of which task if there are several."""
    row = target.iloc[0]
    whose = f" of {row['task']}" if several and "task" in target else ""
    return f"At {short(float(row[data]))} {unit_of(data)}{whose}"


def unit_of(data: str) -> str:
    """Return what a data size counts."""
    return "examples" if data == "finetune_examples" else data.replace("_", " ")


def joined(*tables: pd.DataFrame | None) -> pd.DataFrame:
    """Return the runs of all tables that there are, without a row if there are none."""
    found = [table for table in tables if table is not None and len(table)]
    return pd.concat(found) if found else pd.DataFrame({"method": []})
