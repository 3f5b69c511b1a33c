"""A predictor that a page can hold: its curves as arrays, and drift from one pool of innovations.

It predicts as `tunecast.models.predict.Predictor` does, with two liberties that a picture needs.
The own deviations of a new curve do not change with its size: at any one size they have the same
distribution, and along the sizes a draw is a smooth curve. And every curve and task reads the same
standard-normal innovations, each from another draw on: within a draw they are as independent as
new ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tunecast.analysis.report.page_law import cell_coordinates
from tunecast.analysis.report.strata import Stratum
from tunecast.models.fits import Member
from tunecast.models.hierarchy import Belief, at_factors
from tunecast.models.predict import KNOT, Predictor


@dataclass(frozen=True)
class PageCurve:
    """One curve, in arrays with a value for each draw.

    Parameters
    ----------
    level, share, rate : ndarray
        Log loss at the reference, irreducible share of it, and local slope; of a new curve, what
        they add to those that its cell expects.
    onset : ndarray or None
        Where the power law begins, if the law says so.
    noise : ndarray
        Scale of run noise.
    seen, cell_seen : tuple of float
        Log2 of the smallest and the largest data size of the curve, and of its cell.
    reference : float
        Log2 of the data size of the reference.
    shifts : tuple of int
        From which draw on the pool of innovations is read for the curve's task and for the curve.
    cell : tuple of ndarray
        Coordinates of its cell, in the order of `cell_coordinates`; none for a known curve.
    """

    level: np.ndarray
    share: np.ndarray
    rate: np.ndarray
    onset: np.ndarray | None
    noise: np.ndarray
    seen: tuple[float, float]
    cell_seen: tuple[float, float]
    reference: float
    shifts: tuple[int, int]
    cell: tuple[np.ndarray, ...] = ()


class PagePredictor(Predictor):
    """A predictor from some draws of one law.

    Parameters
    ----------
    member : Member
        The law in a fit.
    rows : ndarray
        Which of its draws to keep.
    seed : int
        Seed of everything drawn anew.
    strata : sequence of Stratum
        What can be asked about.
    """

    def __init__(
        self, member: Member, rows: np.ndarray, seed: int, strata: Sequence[Stratum]
    ) -> None:
        super().__init__(member.layout, member.priors, _picked(member.belief, rows), seed)
        low = np.log2(min(s.asked[0] for s in strata))
        high = np.log2(max(s.asked[1] for s in strata))
        self.first_knot = int(np.floor(low / KNOT)) - 1
        count = int(np.ceil(high / KNOT)) + 1 - self.first_knot
        self.pool = _single(self._rng("drift pool").standard_normal((count, self.size)))
        question = member.layout.question
        keys: list[tuple[str, ...]] = [(task,) for task in member.layout.tasks]
        for base in ("", *member.layout.base_models):
            for s in strata:
                for m in s.methods:
                    keys.append((*s.cell(question, m), s.labels["task"], base))
        # Innovations owe nothing to the draws, so a shift by one already makes them others.
        self._shift = {key: i % self.size for i, key in enumerate(dict.fromkeys(keys))}

    def new_curve(self, cell: tuple[str, ...], task: str) -> PageCurve:
        """Return a curve of a base model not seen yet."""
        factors = self.layout.question.factors
        own, zero = self._cell(cell), np.zeros(len(factors))
        share, rate, onset, level, noise = self._new(cell, "", task, zero)
        each = {name: values[:, None] for name, values in own.items()}
        parts = at_factors(self.law, factors, each, zero[None, :], np)
        at_level, at_share, at_rate = (part[:, 0] for part in parts)
        coordinates = tuple(own[name] for name in cell_coordinates(self.law, factors))
        offsets = level - at_level, share - at_share, rate - at_rate
        return self._curve(None, cell, task, "", *offsets, onset, noise, coordinates)

    def known_curve(
        self, cell: tuple[str, ...], task: str, base: str, factors: Sequence[float]
    ) -> PageCurve:
        """Return the curve of a base model that has runs, though perhaps none in this cell."""
        x = np.log(np.array(factors, dtype=float)) - np.log(self.layout.x_ref)
        c = self._curves().get((cell, base, tuple(np.round(x, 9))))
        share, rate, onset, level, noise = (
            self._known(c) if c is not None else self._new(cell, base, task, x)
        )
        return self._curve(c, cell, task, base, level, share, rate, onset, noise)

    def _curve(
        self,
        c: int | None,
        cell: tuple[str, ...],
        task: str,
        base: str,
        level: np.ndarray,
        share: np.ndarray,
        rate: np.ndarray,
        onset: np.ndarray | None,
        noise: np.ndarray,
        coordinates: tuple[np.ndarray, ...] = (),
    ) -> PageCurve:
        seen, cell_seen, reference = self._range(c, cell)
        shifts = self._shift[task,], self._shift[*cell, task, base]
        return PageCurve(
            level, share, rate, onset, noise, seen, cell_seen, reference, shifts, coordinates
        )

    def drift_scale(self, kind: str) -> np.ndarray:
        """Return the scale of ``drift_task`` or ``drift_curve`` between two knots."""
        prior = self.priors[kind]
        return np.exp(prior.location + prior.scale * self._z(kind)) * np.sqrt(KNOT)

    def run_noise(self) -> np.ndarray:
        """Return the standard luck of the first new run, a value for each draw."""
        rng = self._rng("run noise")
        return rng.standard_t(self.belief.noise_df[:, None], (self.size, 1))[:, 0]

    def _own(self, x: np.ndarray) -> list[float]:
        return []

    def _z(self, *key: Any) -> np.ndarray:
        if key[0] in ("drift_task", "drift_curve") and len(key) > 1:
            row = round((key[-1] - KNOT / 2) / KNOT) - self.first_knot
            return np.roll(self.pool[row], -self._shift[key[1:-1]])
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
