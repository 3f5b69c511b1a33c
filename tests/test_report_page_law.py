"""A traced law is the law: what is recorded, computed again in Python, gives the same numbers."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tunecast.analysis.report.page_law import (
    Symbol,
    cell_quantities,
    curve_quantities,
    javascript,
)
from tunecast.models.laws import LAWS, Law
from tunecast.models.laws.law import expected_at, log_relative_loss
from tunecast.models.laws.positive import NumPy

FACTORS = ("model_size", "width")


class _Math:
    exp, log, min, max = math.exp, math.log, min, max


def read(text: str) -> list[Callable[..., float]]:
    """Return the functions of a traced law, its JavaScript read as the Python that it nearly is."""
    found = []
    for arguments, body in re.findall(r"\(([^)]*)\) => \{ (.*?) \}", text):
        lines = body.replace("const ", "").replace("Math.", "Math_.").rstrip(";").split("; ")
        source = "\n  ".join([f"def function({arguments}):", *lines])
        space: dict[str, Any] = {"Math_": _Math, "logAddExp": np.logaddexp}
        exec(source, space)
        found.append(space["function"])
    return found


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_trace_computes_what_the_law_computes(law: Law) -> None:
    factors = FACTORS if law.has("alpha") else ()
    *expected, relative = read(javascript(law, factors))
    rng = np.random.default_rng(0)
    for _ in range(5):
        given = rng.normal(size=len(cell_quantities(law, factors)))
        q: dict[str, Any] = {k.name: {} for k in law.quantities if k.per_factor}
        for (name, factor), value in zip(cell_quantities(law, factors), given, strict=True):
            q[name] = {**q[name], factor: value} if factor else value
        x = rng.normal(size=len(factors))
        wanted = expected_at(law, q, dict(zip(factors, x, strict=True)), NumPy)
        for name, function in zip(curve_quantities(law), expected, strict=True):
            assert function(*given, *x) == pytest.approx(wanted[name], rel=1e-12)
        log_u, *shape = rng.normal(size=len(expected))
        curve = dict(zip(curve_quantities(law)[1:], shape, strict=True))
        assert relative(log_u, *shape) == pytest.approx(
            log_relative_loss(law, log_u, curve, NumPy), rel=1e-12
        )


def test_what_occurs_twice_is_computed_once() -> None:
    steps: dict[str, str] = {}
    x = Symbol("p0", steps)
    np.exp(x) + np.exp(x)
    assert list(steps) == ["Math.exp(p0)", "(v0 + v0)"]


def test_a_function_that_javascript_lacks_is_refused() -> None:
    with pytest.raises(TypeError, match="sinh"):
        np.sinh(Symbol("p0", {}))
