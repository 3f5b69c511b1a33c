"""Predictive draws from a fit's posterior: known, unseen and partly seen targets alike.

Whatever the table knows of a target is used, and whatever it does not know is drawn anew from the
hierarchy: the effect of an unseen task, method or base model, a new curve's own deviations, the
slope drift beyond the data, the noise of a run. Every draw of something new is keyed by its name,
so two targets that share an unseen base model share its effect, and a forecast does not depend on
which other targets were asked for with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.hierarchy import (
    Belief,
    at_factors,
    coordinates,
    decline,
    own_deviation,
    prior_of,
)
from tunecast.models.laws import get_law
from tunecast.models.layout import CELL, Layout
from tunecast.models.priors import DEVIATION_DF, EFFECT_SPREAD, PriorTable

# Slope innovations come at this spacing in doublings; finer changes no forecast visibly.
KNOT = 0.25


@dataclass(frozen=True)
class Draws:
    """Predictive draws for a table of targets.

    Parameters
    ----------
    loss : ndarray, shape (draws, targets)
        Loss of a new run, in nats per target token.
    expected : ndarray, shape (draws, targets)
        The same without run noise.
    extrapolation : ndarray, shape (targets,)
        How many times beyond the table's range the target lies, the largest over data size and
        factors; 1 inside.
    scale : ndarray, shape (draws, targets)
        Scale of run noise, Student-t on log loss.
    df : ndarray, shape (draws,)
        Its degrees of freedom.
    """

    loss: np.ndarray
    expected: np.ndarray
    extrapolation: np.ndarray
    scale: np.ndarray
    df: np.ndarray


def spread_out(n: int, count: int) -> np.ndarray:
    """Return at most ``count`` of the positions 0 to ``n - 1``, evenly spread over them."""
    return np.linspace(0, n - 1, min(n, count)).astype(int)


type Range = tuple[float, float]  # log2 of the smallest and the largest data size


class Predictor:
    """Draws for targets, from one fit's layout, priors and belief.

    Parameters
    ----------
    layout : Layout
        What was fitted.
    priors : mapping
        Its prior table.
    belief : Belief
        Its posterior draws.
    seed : int
        Seed of everything drawn anew.
    """

    def __init__(self, layout: Layout, priors: PriorTable, belief: Belief, seed: int) -> None:
        self.layout, self.priors, self.belief, self.seed = layout, priors, belief, seed
        self.size = len(belief.base_sd)
        self.law = get_law(layout.question.law)
        self.names = coordinates(self.law, layout.question.factors)
        self._cells: dict[tuple[str, ...], dict[str, np.ndarray]] = {}

    def draws(self, targets: pd.DataFrame) -> Draws:
        """Return predictive draws for checked targets (see `check_targets`)."""
        question, layout = self.layout.question, self.layout
        n = len(targets)
        expected, noise = np.empty((self.size, n)), np.empty((self.size, n))
        beyond = np.empty(n)
        curves = self._curves()
        x_log = np.log(targets[list(question.factors)].to_numpy(float))  # no columns for power
        doublings = np.log2(targets[question.data].to_numpy(float))
        labels = targets[[*question.cell, "task", question.curve]].astype(str)
        for i, (key, row) in enumerate(
            zip(labels.itertuples(index=False, name=None), range(n), strict=True)
        ):
            cell, task, base = key[: len(question.cell)], key[-2], key[-1]
            x = x_log[row] - np.log(layout.x_ref)
            known = curves.get((cell, base, tuple(np.round(x, 9))))
            curve = self._known(known) if known is not None else self._new(cell, base, task, x)
            own, whole, ref = self._range(known, cell)
            log_u = (doublings[i] - ref) * np.log(2)
            share, rate, onset, level, scale = curve
            mean = level + decline(self.law, log_u, share, rate, onset, np)
            mean = mean + self._drift(task, key, x, doublings[i], own, whole)
            expected[:, i] = mean
            noise[:, i] = scale
            beyond[i] = self._beyond(doublings[i], *own, x)
        df = self.belief.noise_df[:, None]
        rng = self._rng("run noise")
        z = rng.standard_t(np.broadcast_to(df, (self.size, 1)), (self.size, 1))
        if n > 1:
            z = np.hstack([z, *(self._rng("run noise", j).standard_t(df) for j in range(1, n))])
        return Draws(np.exp(expected + noise * z), np.exp(expected), beyond, noise, df[:, 0])

    # ----------------------------------------------------------------- known and new curves

    def _curves(self) -> dict[tuple[object, ...], int]:
        layout = self.layout
        return {
            (
                layout.cells[k],
                layout.base_models[m],
                tuple(np.round(layout.curve_x[c], 9)),
            ): c
            for c, (k, m) in enumerate(zip(layout.curve_cell, layout.curve_base, strict=True))
        }

    def _known(self, c: int) -> tuple[np.ndarray, ...]:
        b = self.belief
        onset = None if b.onset is None else b.onset[:, c]
        return b.share[:, c], b.rate[:, c], onset, b.level[:, c], b.noise[:, c]  # type: ignore[return-value]

    def _new(
        self, cell: tuple[str, ...], base: str, task: str, x: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        b, key = self.belief, (*cell, base, *self._own(x))
        own = self._cell(cell)
        level, share, rate = at_factors(
            self.law,
            self.layout.question.factors,
            {k: v[:, None] for k, v in own.items()},
            x[None, :],
            np,
        )
        level, share = level[:, 0], share[:, 0]
        rate = rate[:, 0] + b.scatter["rate"] * self._z("rate", *key)
        share = share + b.scatter["share"] * self._z("share", *key)
        onset = None
        if "onset" in self.names:
            onset = own["onset"] + b.scatter["onset"] * self._z("onset", *key)
        # A curve's mean over its cell's range scatters, as it does for the curves fitted.
        effect, deviation = self._base(base), np.zeros(self.size)
        if not self.layout.one_curve_per_base_model:
            scale, df = own_deviation(b.scatter["level"], effect, b.base_sd, np)
            deviation = scale * self._t(df, "level", *key)
        level = level + effect + deviation
        return share, rate, onset, level, self._noise(task, key)  # type: ignore[return-value]

    def _cell(self, cell: tuple[str, ...]) -> dict[str, np.ndarray]:
        if cell in self._cells:
            return self._cells[cell]
        layout, b = self.layout, self.belief
        if cell in layout.cells:
            k = layout.cells.index(cell)
            own = {name: values[:, k] for name, values in b.cell.items()}
        else:
            own = {
                name: b.roots[name].reshape(self.size)
                + sum(self._effect(column, level, name) for column, level in self._levels(cell))
                for name in self.names
            }
        self._cells[cell] = own
        return own

    def _levels(self, cell: tuple[str, ...]) -> list[tuple[str, str]]:
        pairs = list(zip(self.layout.question.cell, cell, strict=True))
        return [*pairs, (CELL, " / ".join(cell))] if len(pairs) > 1 else pairs

    def _effect(self, column: str, level: str, name: str) -> np.ndarray:
        """Effect of a level that the fit knows, or of a new one."""
        fitted = {c.name: c for c in self.layout.columns}
        if column in fitted and level in fitted[column].levels:
            return self.belief.effects[column, name][..., fitted[column].levels.index(level)]
        if column == CELL and column not in fitted:
            return np.zeros(self.size)  # the fit has no interaction; the effects above say it all
        if column not in fitted:
            position = self.layout.question.cell.index(column)
            if level in {cell[position] for cell in self.layout.cells}:
                return np.zeros(self.size)  # the one level seen is part of the global mean
        sd = self.belief.effect_sd.get((column, name))
        if sd is None:
            wide = np.exp(EFFECT_SPREAD * self._z("effect sd", column, name))
            sd = prior_of(self.priors, name).effect * wide
        return sd * self._z("effect", column, level, name)

    def _base(self, base: str) -> np.ndarray:
        if base in self.layout.base_models:
            return self.belief.base[:, self.layout.base_models.index(base)]
        return self.belief.base_sd * self._t(DEVIATION_DF, "base model", base)

    def _noise(self, task: str, key: tuple[object, ...]) -> np.ndarray:
        prior = self.priors["noise"]
        if task in self.layout.tasks:
            log_scale = self.belief.noise_task[:, self.layout.tasks.index(task)]
        else:
            log_scale = self.belief.noise_task.mean(axis=1) + prior.effect * self._z("noise", task)
        return np.exp(log_scale + prior.scatter * self._z("noise of", *key))

    # ----------------------------------------------------------------- drift and range

    def _range(self, curve: int | None, cell: tuple[str, ...]) -> tuple[Range, Range, float]:
        """Log2 of smallest and largest data size of a target's curve, of its cell; the reference.

        An unseen curve takes its cell's range. An unseen cell has none of its own; those that
        share most of its levels lend theirs.
        """
        layout = self.layout
        if cell in layout.cells:
            near = np.array([layout.cells.index(cell)])
        else:
            shared = np.array([sum(map(str.__eq__, cell, other)) for other in layout.cells])
            near = np.flatnonzero(shared == shared.max())
        whole = float(layout.cell_low[near].min()), float(layout.cell_high[near].max())
        own = whole
        if curve is not None:
            own = float(layout.curve_low[curve]), float(layout.curve_high[curve])
        return own, whole, float(np.median(layout.log2_d_ref[near]))

    def _drift(
        self, task: str, key: tuple[object, ...], x: np.ndarray, at: float, own: Range, whole: Range
    ) -> np.ndarray | float:
        """Integrated random walk of the log-log slope beyond the data, task's plus curve's own.

        What the curves of a task share is known as far as the cell reaches.
        """
        total: np.ndarray | float = 0.0
        mine = (*key, *self._own(x))
        for kind, who, (low, high) in (
            ("drift_task", (task,), whole),
            ("drift_curve", mine, own),
        ):
            if low <= at <= high:
                continue
            edge = high if at > high else low
            first, last = sorted((edge, at))
            knots = np.arange(np.floor(first / KNOT), np.ceil(last / KNOT)) * KNOT + KNOT / 2
            row = self.priors[kind]
            sd = np.exp(row.location + row.scale * self._z(kind)) * np.sqrt(KNOT)
            for knot in knots[(knots > first) & (knots < last)]:
                total = total + sd * abs(at - knot) * self._z(kind, *who, float(knot))
        return total

    def _beyond(self, at: float, low: float, high: float, x: np.ndarray) -> float:
        ratio = [2.0 ** max(at - high, low - at, 0.0)]
        for i, value in enumerate(x):
            seen = self.layout.curve_x[:, i]
            ratio.append(float(np.exp(max(value - seen.max(), seen.min() - value, 0.0))))
        return max(ratio)

    # ----------------------------------------------------------------- keyed randomness

    def _own(self, x: np.ndarray) -> list[float]:
        """Return what tells two new curves of one cell and base model apart: their factors."""
        return np.round(x, 9).tolist()

    def _rng(self, *key: object) -> np.random.Generator:
        text = "\x1f".join(map(repr, (self.seed, *key))).encode()
        return np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:16], "big"))

    def _z(self, *key: object) -> np.ndarray:
        return self._rng(*key).standard_normal(self.size)

    def _t(self, df: float, *key: object) -> np.ndarray:
        return self._rng(*key).standard_t(df, self.size)


def check_targets(targets: pd.DataFrame, layout: Layout, who: str = "targets") -> pd.DataFrame:
    """Return targets with every column that the fit needs, or say in one sentence what is wrong.

    A missing or empty base model means an unseen one. A base model that the table holds brings
    its factor values; cell columns beyond task and method may be left out where the table has one
    value of them for the base model or in all. ``who`` is what the sentences call the table.

    Raises
    ------
    TunecastError
        When a needed column is missing, or a number is not above 0.
    """
    question = layout.question
    targets = targets.reset_index(drop=True).copy()
    if targets.empty:
        raise TunecastError(f"there are no {who}: expected at least one row")
    for name in ("task", "method"):
        if name not in targets and name in question.cell:
            seen = {cell[question.cell.index(name)] for cell in layout.cells}
            if len(seen) > 1:
                raise TunecastError(f"the {who} lack the column '{name}'")
            targets[name] = next(iter(seen))
    if "task" not in targets:
        targets["task"] = layout.tasks[0]
    if question.curve not in targets:
        targets[question.curve] = ""
    base = targets[question.curve].astype(object)
    targets[question.curve] = base.where(base.notna(), "").astype(str)
    for position, name in enumerate(question.cell):
        targets[name] = _filled_cell(targets, layout, position, name, who)
    for name in (*question.factors, question.data):
        targets[name] = _filled_number(targets, layout, name, who)
    return targets


def _filled_cell(
    targets: pd.DataFrame, layout: Layout, position: int, name: str, who: str
) -> pd.Series:
    given = targets[name] if name in targets else pd.Series(pd.NA, index=targets.index)
    by_base: dict[str, set[str]] = {}
    for c, k in enumerate(layout.curve_cell):
        by_base.setdefault(layout.base_models[layout.curve_base[c]], set()).add(
            layout.cells[k][position]
        )
    every = {cell[position] for cell in layout.cells}
    values = []
    for value, base in zip(given, targets[layout.question.curve], strict=True):
        known = by_base.get(base, every)
        if pd.isna(value) or value == "":
            if len(known) != 1:
                raise TunecastError(
                    f"the {who} need a '{name}' (one of {', '.join(sorted(known)[:6])}, "
                    "or a new one)"
                )
            value = next(iter(known))
        values.append(str(value))
    return pd.Series(values, index=targets.index)


def _filled_number(targets: pd.DataFrame, layout: Layout, name: str, who: str) -> pd.Series:
    question = layout.question
    values = targets[name] if name in targets else pd.Series(np.nan, index=targets.index)
    try:
        values = pd.to_numeric(values).astype(float)
    except (ValueError, TypeError):
        raise TunecastError(f"the {who}' '{name}' holds text, expected numbers") from None
    if name in question.factors:
        i = question.factors.index(name)
        known: Mapping[str, float] = {
            layout.base_models[m]: layout.x_ref[i] * float(np.exp(layout.curve_x[c, i]))
            for c, m in enumerate(layout.curve_base)
        }
        values = values.fillna(targets[question.curve].map(known))
    bad = ~(values > 0) | np.isinf(values)
    if bad.any():
        got = values[bad].iloc[0]
        what = "missing" if np.isnan(got) else f"{got:g}"
        raise TunecastError(
            f"the {who}' '{name}' is {what} in row {int(np.flatnonzero(bad)[0]) + 1}: "
            "expected a number above 0"
        )
    return values
