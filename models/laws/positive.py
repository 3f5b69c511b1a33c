"""Positive numbers kept as logarithms, on which a law's formula can be evaluated safely.

A law is written with ``+ * / **`` on positive quantities. Given plain numbers it computes in plain
numbers. Given `Positive` numbers it computes with their logarithms: a pre-learned data size of
``exp(5000)`` raised to an exponent of 0.0002 is then an ordinary number on the way, as it is in the
end.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import special

# exp(500) is a number, and so is its product with another one; a loss beyond it means nothing.
MAX_LOG = 500.0


class NumPy:
    """What formulas take from NumPy, under the names that PyTensor has for it."""

    exp, log, sqrt, clip, concatenate = np.exp, np.log, np.sqrt, np.clip, np.concatenate

    @staticmethod
    def softplus(x: Any) -> Any:
        """Return ``log(1 + exp(x))`` without overflow."""
        return np.logaddexp(0.0, x)

    @staticmethod
    def log_gamma(x: Any) -> Any:
        """Return the log of the gamma function."""
        return special.gammaln(x)

    @staticmethod
    def add_at(x: Any, places: Any, values: Any) -> Any:
        """Return x with values added to some places of its last axis, each named once."""
        shape = np.broadcast_shapes(x.shape, (*values.shape[:-1], x.shape[-1]))
        found = np.array(np.broadcast_to(x, shape))
        found[..., places] += values
        return found


def log_sigmoid(x: Any, xp: Any) -> Any:
    """Return ``log(1 / (1 + exp(-x)))`` without overflow."""
    return -xp.softplus(-x)


class Positive:
    """The number ``exp(log_scale) * rest``.

    A sum keeps the logarithm of its second term apart: ``a + b = exp(log b) * (1 + exp(gap))`` with
    ``gap = log a - log b``. So a sum costs one exponential, and a product or quotient none.

    Parameters
    ----------
    log_scale : array
        Logarithm of the number's scale.
    xp : namespace
        `NumPy`, ``pytensor.tensor``, or another that has exp, log, clip and softplus.
    rest : array, optional
        What the scale is multiplied by; 1 unless given.
    gap : array, optional
        Instead of ``rest``: the number is ``exp(log_scale) * (1 + exp(gap))``.
    """

    __slots__ = ("_rest", "gap", "log_scale", "xp")
    __array_ufunc__ = None  # NumPy arrays leave the arithmetic to the number

    def __init__(self, log_scale: Any, xp: Any, rest: Any = None, gap: Any = None) -> None:
        self.log_scale, self.xp, self._rest, self.gap = log_scale, xp, rest, gap

    @property
    def rest(self) -> Any:
        """What the scale is multiplied by; None for 1."""
        if self.gap is not None:
            return 1.0 + self.xp.exp(self.xp.clip(self.gap, -MAX_LOG, MAX_LOG))
        return self._rest

    @property
    def log(self) -> Any:
        """Logarithm of the number."""
        rest = self.rest
        return self.log_scale if rest is None else self.log_scale + self.xp.log(rest)

    def _as_positive(self, other: Any) -> Positive:
        return other if isinstance(other, Positive) else Positive(math.log(other), self.xp)

    def __mul__(self, other: Any) -> Positive:
        other = self._as_positive(other)
        ours, theirs = self.rest, other.rest
        rest = theirs if ours is None else ours if theirs is None else ours * theirs
        return Positive(self.log_scale + other.log_scale, self.xp, rest)

    def __truediv__(self, other: Any) -> Positive:
        other = self._as_positive(other)
        ours, theirs = self.rest, other.rest
        rest = ours if theirs is None else (1.0 if ours is None else ours) / theirs
        return Positive(self.log_scale - other.log_scale, self.xp, rest)

    def __pow__(self, power: Any) -> Positive:
        if self.gap is not None:  # exact however far the terms are apart
            return Positive(power * (self.log_scale + self.xp.softplus(self.gap)), self.xp)
        return Positive(power * self.log, self.xp)

    def __add__(self, other: Any) -> Positive:
        other = self._as_positive(other)
        gap = self.log_scale - other.log_scale
        ours, theirs = self.rest, other.rest
        if ours is None and theirs is None:
            return Positive(other.log_scale, self.xp, gap=gap)
        own = self.xp.exp(self.xp.clip(gap, -MAX_LOG, MAX_LOG))
        own = own if ours is None else own * ours
        return Positive(other.log_scale, self.xp, own + (1.0 if theirs is None else theirs))

    def __getitem__(self, key: Any) -> Positive:
        """Return some elements of an array of numbers that are no sums."""
        assert self.rest is None
        return Positive(self.log_scale[key], self.xp)

    def __radd__(self, other: Any) -> Positive:
        return self._as_positive(other) + self

    def __rmul__(self, other: Any) -> Positive:
        return self._as_positive(other) * self

    def __rtruediv__(self, other: Any) -> Positive:
        return self._as_positive(other) / self
