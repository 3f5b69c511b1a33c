"""Special functions from elementary ones."""

from __future__ import annotations

import math
from typing import Any

# Of the log of the gamma function: the series, and how far above its argument that is taken.
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)
SHIFT = 8


def log_gamma(x: Any, xp: Any) -> Any:
    """Return the log of the gamma function of positive x, to 1e-13: Stirling's series.

    It is taken ``SHIFT`` further on, where the series has converged.

    Parameters
    ----------
    x : array or node
        Where.
    xp : namespace
        What has ``log``.
    """
    below = x
    for k in range(1, SHIFT):
        below = below * (x + float(k))
    y = x + float(SHIFT)
    inverse, tail = 1 / (y * y), 0.0
    for term in reversed(STIRLING):
        tail = tail * inverse + term
    half_log_tau = 0.5 * math.log(2 * math.pi)
    return (y - 0.5) * xp.log(y) - y + half_log_tau + tail / y - xp.log(below)
