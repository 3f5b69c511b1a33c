"""A traced law is the law: what is recorded, computed again in Python, gives the same numbers."""

import math
import re

import numpy as np
import pytest

from tunecast.analysis.report.page_law import Symbol, cell_coordinates, javascript
from tunecast.models.hierarchy import at_factors, decline
from tunecast.models.laws import LAWS, Law

FACTORS = ("model_size", "width")


class _Math:
    exp, log, pow, min, max = math.exp, math.log, math.pow, min, max


def read(text: str) -> dict[str, object]:
    """Return the functions of a traced law, its JavaScript read as the Python that it nearly is."""
    found = {}
    for name, arguments, body in re.findall(r"(\w+): \(([^)]*)\) => \{ (.*?) \}[ ,]", text):
        lines = body.replace("const ", "").replace("Math.", "Math_.").rstrip(";").split("; ")
        source = "\n  ".join([f"def {name}({arguments}):", *lines])
        space = {"Math_": _Math, "logAddExp": np.logaddexp}
        exec(source, space)
        found[name] = space[name]
    return found


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_trace_computes_what_the_law_computes(law: Law) -> None:
    factors = FACTORS if law.has("alpha") else ()
    functions = read(javascript(law, factors))
    rng = np.random.default_rng(0)
    names = cell_coordinates(law, factors)
    for _ in range(5):
        cell = {name: rng.normal(size=1) for name in names}
        x = rng.normal(size=(1, len(factors)))
        parts = at_factors(law, factors, cell, x, np)
        given = [*(float(cell[n][0]) for n in names), *map(float, x[0])]
        for name, part, rel in zip(
            ("level", "share", "rate"), parts, (1e-13, 1e-12, 1e-13), strict=True
        ):
            assert functions[name](*given) == pytest.approx(part[0], rel=rel)  # type: ignore[operator]
        shape = list(map(float, rng.normal(size=4 if law.has("D_l") else 3)))
        onset = np.array(shape[3]) if law.has("D_l") else None
        log_u, share_, rate = map(np.array, shape[:3])
        wanted = decline(law, log_u, share_, rate, onset, np)
        assert functions["decline"](*shape) == pytest.approx(float(wanted), rel=1e-12)  # type: ignore[operator]


def test_what_occurs_twice_is_computed_once() -> None:
    steps: dict[str, str] = {}
    x = Symbol("p0", steps)
    np.exp(x) + np.exp(x)
    assert list(steps) == ["Math.exp(p0)", "(v0 + v0)"]


def test_a_function_that_javascript_lacks_is_refused() -> None:
    with pytest.raises(TypeError, match="sinh"):
        np.sinh(Symbol("p0", {}))
