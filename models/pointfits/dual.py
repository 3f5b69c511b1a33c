"""Dual numbers: exact derivatives from the one definition of a law.

A law uses ``+ * / **`` alone, so numbers that carry their derivatives (forward-mode automatic
differentiation) differentiate it without a second copy of the formula.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class Dual:
    """A value with its derivatives: ``+ * / **`` on it differentiate whatever formula uses them.

    Only the operations that occur in laws are defined.

    Parameters
    ----------
    value : ndarray, shape (batch, runs)
        The value.
    slope : ndarray, shape (parameters, batch, runs)
        Its derivatives with respect to the parameters.
    """

    __slots__ = ("slope", "value")
    __array_ufunc__ = None  # an array on the left leaves the operation to us

    def __init__(self, value: Any, slope: Any) -> None:
        self.value = value
        self.slope = slope

    def __neg__(self) -> Dual:
        return Dual(-self.value, -self.slope)

    def __add__(self, other: Any) -> Dual:
        if isinstance(other, Dual):
            return Dual(self.value + other.value, self.slope + other.slope)
        return Dual(self.value + other, self.slope)

    def __mul__(self, other: Any) -> Dual:
        if isinstance(other, Dual):
            slope = self.slope * other.value + self.value * other.slope
            return Dual(self.value * other.value, slope)
        return Dual(self.value * other, self.slope * other)

    def __sub__(self, other: Any) -> Dual:
        return self + -other

    def __truediv__(self, other: Any) -> Dual:
        return self * (1 / other)

    def __rtruediv__(self, other: Any) -> Dual:
        value = other / self.value
        return Dual(value, self.slope * (-value / self.value))

    def __pow__(self, power: Any) -> Dual:
        if not isinstance(power, Dual):
            return Dual(self.value**power, self.slope * (power * self.value ** (power - 1)))
        value = self.value**power.value
        slope = power.slope * np.log(self.value) + self.slope * (power.value / self.value)
        return Dual(value, slope * value)

    def __rpow__(self, base: Any) -> Dual:
        value = base**self.value
        # 0 ** beta is 0 for every positive beta: its slope is 0, not 0 times log 0.
        log_base = np.log(np.where(np.asarray(base) > 0, base, 1.0))
        return Dual(value, self.slope * (value * log_base))

    __radd__ = __add__
    __rmul__ = __mul__
