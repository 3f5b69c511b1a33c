"""Priors against posteriors: what the data taught of each parameter, in published units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tunecast.models import Fit
from tunecast.models.hierarchy.numpy_backends import simulate_prior
from tunecast.models.inference.posterior import Posterior
from tunecast.models.laws.published import PRINTED

PRIOR_DRAWS = 2000
# A posterior at least this wide against its prior has learned next to nothing; a correlation at
# least this strong ties two parameters together.
WIDE, TIED = 0.7, 0.9
LEAST, MOST = 1e-150, 1e150


@dataclass(frozen=True)
class Parameters:
    """Priors and posteriors of the law's parameters, cell by cell, in published units.

    Parameters
    ----------
    rows : DataFrame
        ``parameter, cell, method, prior_q05, prior_q95, q05, q25, q50, q75, q95, published,
        width`` (posterior over prior interval, on the scale of the parameter's support).
    tied : tuple of str
        A sentence for each pair of parameters that the data do not tell apart.
    """

    rows: pd.DataFrame
    tied: tuple[str, ...]

    @property
    def unlearned(self) -> list[str]:
        """What is known of hardly better than before, one phrase for each parameter."""
        wide = self.rows[self.rows["width"] >= WIDE]
        every = self.rows.groupby("parameter").size()
        said = []
        for name, rows in wide.groupby("parameter", sort=False):
            whose = "every cell" if len(rows) == every[name] else "; ".join(rows["cell"])
            said.append(f"{_symbol(str(name))} ({whose})")
        return said


def parameters(fit: Fit) -> Parameters:
    """Return priors, posteriors and published values of the law's parameters."""
    after = max(fit.posteriors, key=lambda p: p.weight)
    before = _prior(after, int(fit.info["seed"]))
    table = after.table
    positive = {p.name for p in table.law.parameters if p.support == "positive"}
    rows, tied = [], []
    for k, cell in enumerate(table.cells):
        label = _label(cell, table.cells)
        named = dict(zip(table.spec.cell, cell, strict=True))
        prior, posterior = before.parameters(k), after.parameters(k)
        scaled = {}
        for name in posterior:
            log = name.partition(":")[0] in positive
            known, values = _bounded(prior[name], log), _bounded(posterior[name], log)
            low, high = np.quantile(known, [0.05, 0.95])
            q = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
            scaled[name] = np.log(values) if log else values
            known_width, width = _width(low, high, log), _width(q[0], q[-1], log)
            share = width / known_width if known_width > 0 else 1.0
            rows.append(
                {
                    "parameter": name,
                    "cell": label,
                    "method": named.get("method", ""),
                    "prior_q05": low,
                    "prior_q95": high,
                    **dict(zip(("q05", "q25", "q50", "q75", "q95"), q, strict=True)),
                    "published": _published(named, name),
                    "width": share,
                }
            )
        tied += ties(label, scaled)
    return Parameters(pd.DataFrame(rows), tuple(tied))


def _prior(posterior: Posterior, seed: int) -> Posterior:
    """Return draws of the prior in the place of those of the posterior."""
    table, priors, geometry = posterior.table, posterior.priors, posterior.geometry
    drawn = simulate_prior(table, priors, PRIOR_DRAWS, seed, geometry).draws
    return Posterior(table, priors, {name: values[None] for name, values in drawn.items()})


def ties(cell: str, scaled: Mapping[str, np.ndarray]) -> list[str]:
    """Return a sentence for each pair of parameters of a cell that hardly vary alone."""
    names = [n for n in scaled if np.isfinite(scaled[n]).all()]
    table = pd.DataFrame({n: scaled[n] for n in names}).corr(method="spearman").to_numpy()
    said = []
    for i, a in enumerate(names):
        for j in range(i):
            if abs(table[i, j]) >= TIED:
                said.append(
                    f"{cell}: {_symbol(names[j])} and {_symbol(a)} trade off "
                    f"(rank correlation {table[i, j]:+.2f})."
                )
    return said


def parameter_rows(table: pd.DataFrame) -> list[tuple[str, list[dict[str, Any]], bool]]:
    """Return name, rows and whether the axis is logarithmic of each parameter's figure."""
    made = []
    for parameter, rows in table.groupby("parameter", sort=False):
        name = str(parameter)
        records: list[dict[str, Any]] = []
        for row in rows.to_dict("records"):
            record = {str(k): v for k, v in row.items() if k != "width"}
            published = row["published"]
            record["published"] = None if published is None or pd.isna(published) else published
            record["tooltip"] = {
                "cell": row["cell"],
                "median": f"{row['q50']:.3g}",
                "90 %": f"{row['q05']:.3g} to {row['q95']:.3g}",
                "prior 90 %": f"{row['prior_q05']:.3g} to {row['prior_q95']:.3g}",
            }
            if record["published"] is not None:
                record["tooltip"]["published"] = f"{published:g}"
            records.append(record)
        linear = name == "E" or name.startswith("alpha")
        made.append((f"parameter-{name.replace(':', '-')}", records, not linear))
    return made


def _label(cell: tuple[str, ...], cells: Sequence[tuple[str, ...]]) -> str:
    """Return what tells a cell from the others: one task need not be named with every method."""
    apart = [value for i, value in enumerate(cell) if len({c[i] for c in cells}) > 1]
    return " / ".join(apart or cell)


def _bounded(values: np.ndarray, log: bool) -> np.ndarray:
    """Bring what over- or underflowed back among the numbers; a D_l may be either."""
    return np.clip(values, LEAST, MOST) if log else values


def _width(low: float, high: float, log: bool) -> float:
    return math.log(high / low) if log else high - low


def _published(named: Mapping[str, str], parameter: str) -> float | None:
    """Return the paper's value for this task and method, if it has one that compares."""
    row = PRINTED.get((named.get("task", ""), named.get("method", "")))
    if row is None:
        return None
    of = {"E": row.E, "beta": row.beta, "alpha:model_size": row.alpha_m}
    of["alpha:pretrain_tokens"] = row.alpha_p
    return of.get(parameter)


def _symbol(name: str) -> str:
    head, _, factor = name.partition(":")
    letter = {"alpha": "\N{GREEK SMALL LETTER ALPHA}", "beta": "β"}.get(head, head)
    return f"{letter} of {factor.replace('_', ' ')}" if factor else letter
