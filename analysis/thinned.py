"""What a page computes with: some of a fit's draws, and the deviations that new curves get.

A `Thinned` fit answers as the fit itself does, with two liberties that a picture needs. It keeps a
few hundred draws. And the own deviations of a new curve do not change with its size: at any one
size they have the same distribution as the fit's, and along the sizes a draw is a smooth curve.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from tunecast.analysis.page_law import javascript, place_names
from tunecast.models.fits import Fit, Member
from tunecast.models.hierarchy import Belief, at_factors
from tunecast.models.layout import Question
from tunecast.models.predict import KNOT, Predictor, check_targets

DRAWS = 500
# How far beyond the runs a page can ask.
DATA_BELOW, DATA_BEYOND = 10.0, 1000.0
FACTOR_BELOW, FACTOR_BEYOND = 10.0, 100.0
# Curves of known base models come along as long as they leave the page small.
CURVE_BYTES = 1_200_000


@dataclass(frozen=True)
class Setting:
    """A task, with the values of the other columns of a cell except the method.

    Parameters
    ----------
    labels : mapping of str to str
        The column ``task`` and all columns of a cell but ``method``.
    methods : tuple of str
        Methods with runs in this setting; one empty name where cells do not tell methods apart.
    low, high : float
        Smallest and largest data size of its runs.
    largest : tuple of float
        Largest value of each factor among them.
    runs : int
        How many there are.
    """

    labels: Mapping[str, str]
    methods: tuple[str, ...]
    low: float
    high: float
    largest: tuple[float, ...]
    runs: int

    @property
    def name(self) -> str:
        """The labels, for people."""
        return " / ".join(self.labels.values())

    def cell(self, question: Question, method: str) -> tuple[str, ...]:
        """Return the cell of a method in this setting."""
        return tuple(method if c == "method" else self.labels[c] for c in question.cell)


def settings_of(fit: Fit) -> tuple[Setting, ...]:
    """Return the settings that the runs of a fit have, in the order of their names."""
    question = fit.question
    names = list(dict.fromkeys(("task", *(c for c in question.cell if c != "method"))))
    found = []
    labels = fit.runs[names].astype(str)
    for _, rows in fit.runs.groupby([labels[n] for n in names], sort=True):
        methods = tuple(sorted(rows["method"].astype(str).unique()))
        size = rows[question.data].astype(float)
        found.append(
            Setting(
                labels.loc[rows.index[0]].to_dict(),
                methods if "method" in question.cell else ("",),
                float(size.min()),
                float(size.max()),
                tuple(float(rows[f].max()) for f in question.factors),
                len(rows),
            )
        )
    return tuple(found)


class _Smooth(Predictor):
    """A predictor whose drift comes from a pool that a page can hold.

    Every curve and task reads the same standard-normal innovations, each from another draw on:
    within a draw they are as independent as new ones.
    """

    def __init__(self, member: Member, belief: Belief, seed: int, settings: Sequence[Setting]):
        super().__init__(member.layout, member.priors, belief, seed)
        low = np.log2(min(s.low for s in settings) / DATA_BELOW)
        high = np.log2(max(s.high for s in settings) * DATA_BEYOND)
        self.first = int(np.floor(low / KNOT)) - 1
        count = int(np.ceil(high / KNOT)) + 1 - self.first
        self.pool = _single(self._rng("drift pool").standard_normal((count, self.size)))
        question = member.layout.question
        keys: list[tuple[str, ...]] = [(task,) for task in member.layout.tasks]
        for base in ("", *member.layout.base_models):
            for s in settings:
                for m in s.methods:
                    keys.append((*s.cell(question, m), s.labels["task"], base))
        # Innovations owe nothing to the draws, so a shift by one already makes them others.
        self.shift = {key: i % self.size for i, key in enumerate(dict.fromkeys(keys))}

    def _own(self, x: np.ndarray) -> list[float]:
        return []

    def _z(self, *key: Any) -> np.ndarray:
        if key[0] in ("drift_task", "drift_curve") and len(key) > 1:
            row = round((key[-1] - KNOT / 2) / KNOT) - self.first
            return np.roll(self.pool[row], -self.shift[key[1:-1]])
        return _single(super()._z(*key))


def _single(values: np.ndarray) -> np.ndarray:
    """Round to single precision, in which a page holds numbers."""
    return np.asarray(values, dtype=np.float32).astype(float)


def _picked(belief: Belief, rows: np.ndarray) -> Belief:
    def pick(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, Mapping):
            return {key: pick(part) for key, part in value.items()}
        array = np.asarray(value)
        return _single(array[rows]) if array.ndim else array

    return Belief(**{f.name: pick(getattr(belief, f.name)) for f in fields(belief)})


@dataclass(frozen=True)
class Thinned:
    """A fit with few draws, as a page holds it.

    Parameters
    ----------
    fit : Fit
        The fit.
    draws : int, optional
        How many draws to keep over all its laws.
    """

    fit: Fit
    draws: int = DRAWS

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """See `settings_of`."""
        return settings_of(self.fit)

    @cached_property
    def predictors(self) -> tuple[_Smooth, ...]:
        """One for each law in use."""
        made = []
        for member in self.fit.members:
            belief = _picked(member.belief, member.rows(self.draws))
            made.append(_Smooth(member, belief, int(self.fit.info["seed"]), self.settings))
        return tuple(made)

    def expected(self, targets: pd.DataFrame) -> np.ndarray:
        """Return draws of the expected loss, shape (draws, targets)."""
        ready = check_targets(targets, self._widest.layout)
        return np.concatenate([p.draws(ready).expected for p in self.predictors])

    def new_run(self, targets: pd.DataFrame) -> np.ndarray:
        """Return draws of the loss of a new run, shape (draws, targets), one luck for all."""
        ready = check_targets(targets, self._widest.layout)
        columns = []
        for i in range(len(ready)):  # alone, each target has the noise of the first
            one = ready.iloc[[i]]
            columns.append(np.concatenate([p.draws(one).loss for p in self.predictors]))
        return np.hstack(columns)

    @property
    def _widest(self) -> _Smooth:
        return max(self.predictors, key=lambda p: len(p.layout.question.factors))

    def factors(self) -> list[dict[str, Any]]:
        """Return name and range of each factor of the runs, and of what a page can ask."""
        found = []
        for name in self.fit.question.factors:
            values = self.fit.runs[name].astype(float)
            low, high = float(values.min()), float(values.max())
            found.append(
                {
                    "name": name,
                    "seen": [low, high],
                    "asked": [low / FACTOR_BELOW, high * FACTOR_BEYOND],
                }
            )
        return found

    def base_models(self, setting: Setting) -> list[str]:
        """Return the base models with runs in a setting, in the order of the first factor."""
        return self._base_models[setting.name]

    @cached_property
    def _base_models(self) -> dict[str, list[str]]:
        question, runs = self.fit.question, self.fit.runs
        if question.factors:
            runs = runs.sort_values(question.factors[0], kind="stable")
        found: dict[str, list[str]] = {}
        for setting in self.settings:
            here = np.ones(len(runs), dtype=bool)
            for column, value in setting.labels.items():
                here &= (runs[column].astype(str) == value).to_numpy()
            found[setting.name] = list(dict.fromkeys(runs.loc[here, question.curve].astype(str)))
        return found

    def payload(self) -> dict[str, Any]:
        """Return all that the functions of `javascript` need, ready for JSON."""
        models = [self._member(p) for p in self.predictors]
        return {
            "knot": KNOT,
            "data": self.fit.question.data,
            "factors": self.factors(),
            "settings": [
                {
                    "name": s.name,
                    "labels": dict(s.labels),
                    "methods": list(s.methods),
                    "seen": [s.low, s.high],
                    "asked": [s.low / DATA_BELOW, s.high * DATA_BEYOND],
                    "base_models": self._kept_bases(s),
                }
                for s in self.settings
            ],
            "models": models,
        }

    def scripts(self) -> list[str]:
        """Return the law of each member as JavaScript."""
        return [javascript(p.law, p.layout.question.factors) for p in self.predictors]

    def _kept_bases(self, setting: Setting) -> list[dict[str, Any]]:
        factors = self.fit.question.factors
        kept = []
        for base in self._affordable:
            if base not in self.base_models(setting):
                continue
            rows = self.fit.runs[self.fit.runs[self.fit.question.curve].astype(str) == base]
            kept.append({"name": base, "at": [float(rows[f].iloc[0]) for f in factors]})
        return kept

    @cached_property
    def _affordable(self) -> list[str]:
        """Base models whose curves the page can hold, in the order of the runs they have."""
        counts = self.fit.runs[self.fit.question.curve].astype(str).value_counts(sort=True)
        kept, spent = [], 0
        for base in counts.index:
            curves = sum(len(s.methods) for s in self.settings if base in self.base_models(s))
            spent += curves * 5 * 4 * self.draws
            if spent > CURVE_BYTES:
                break
            kept.append(str(base))
        return kept

    def _member(self, p: _Smooth) -> dict[str, Any]:
        question = p.layout.question
        names = place_names(p.law, question.factors)
        new, known = {}, {}
        for i, setting in enumerate(self.settings):
            for method in setting.methods:
                cell, task = setting.cell(question, method), setting.labels["task"]
                new[f"{i}\x1f{method}"] = self._new_curve(p, names, cell, task)
                for base in self._kept_bases(setting):
                    at = self._x(p, base["at"])
                    known[f"{i}\x1f{method}\x1f{base['name']}"] = self._known_curve(
                        p, cell, task, base["name"], at
                    )
        sd = {
            kind: np.exp(p.priors[kind].location + p.priors[kind].scale * p._z(kind))
            * np.sqrt(KNOT)
            for kind in ("drift_task", "drift_curve")
        }
        t = p._rng("run noise").standard_t(p.belief.noise_df[:, None], (p.size, 1))[:, 0]
        return {
            "draws": p.size,
            "factors": [self.fit.question.factors.index(f) for f in question.factors],
            "x_ref": list(p.layout.x_ref),
            "x_seen": [
                [float(np.exp(column.min()) * ref), float(np.exp(column.max()) * ref)]
                for column, ref in zip(p.layout.curve_x.T, p.layout.x_ref, strict=True)
            ],
            "first_knot": p.first,
            "pool": _packed(p.pool),
            "drift_task": _packed(sd["drift_task"]),
            "drift_curve": _packed(sd["drift_curve"]),
            "noise_z": _packed(t),
            "new": new,
            "known": known,
        }

    def _x(self, p: _Smooth, at: Sequence[float]) -> np.ndarray:
        values = dict(zip(self.fit.question.factors, at, strict=True))
        own = [values[f] for f in p.layout.question.factors]
        return np.log(np.array(own, dtype=float)) - np.log(p.layout.x_ref)

    def _new_curve(
        self, p: _Smooth, names: Sequence[str], cell: tuple[str, ...], task: str
    ) -> dict[str, Any]:
        own = p._cell(cell)
        zero = np.zeros(len(p.layout.question.factors))
        share, rate, onset, level, noise = p._new(cell, "", task, zero)
        each = {k: v[:, None] for k, v in own.items()}
        parts = at_factors(p.law, p.layout.question.factors, each, zero[None, :], np)
        at_level, at_share, at_rate = (part[:, 0] for part in parts)
        curve = _curve(p, None, cell, task, "", share - at_share, rate - at_rate, onset, noise)
        return {
            **curve,
            "level": _packed(level - at_level),
            "place": [_packed(own[name]) for name in names],
        }

    def _known_curve(
        self, p: _Smooth, cell: tuple[str, ...], task: str, base: str, x: np.ndarray
    ) -> dict[str, Any]:
        c = p._curves().get((cell, base, tuple(np.round(x, 9))))
        share, rate, onset, level, noise = (
            p._known(c) if c is not None else p._new(cell, base, task, x)
        )
        curve = _curve(p, c, cell, task, base, share, rate, onset, noise)
        return {**curve, "level": _packed(level)}


def _curve(
    p: _Smooth,
    c: int | None,
    cell: tuple[str, ...],
    task: str,
    base: str,
    share: np.ndarray,
    rate: np.ndarray,
    onset: np.ndarray | None,
    noise: np.ndarray,
) -> dict[str, Any]:
    own, whole, ref = p._range(c, cell)
    return {
        "share": _packed(share),
        "rate": _packed(rate),
        "onset": None if onset is None else _packed(onset),
        "noise": _packed(noise),
        "range": own,
        "cell_range": whole,
        "ref": ref,
        "shifts": [p.shift[task,], p.shift[*cell, task, base]],
    }


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()


def questions(thinned: Thinned) -> Iterator[tuple[Setting, str]]:
    """Yield each setting with each of its base models, the unseen one (empty) first."""
    for setting in thinned.settings:
        for base in ("", *thinned.base_models(setting)):
            yield setting, base
