"""The tape: values and gradients of every operation against NumPy, by compiled code."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import gammaln

from tunecast.models import machine
from tunecast.models.program import write
from tunecast.models.tape import Node, Tape

PLACES = np.array([2, 0, 2, 1], dtype=np.int32)
TABLE = np.array([[0, 2], [1, 1], [2, 0]], dtype=np.int32)


class Arrays:
    """What the functions below take from NumPy, under the names of the tape."""

    exp, log, sqrt, clip = np.exp, np.log, np.sqrt, np.clip
    log_gamma = staticmethod(gammaln)
    concatenate = staticmethod(np.concatenate)

    @staticmethod
    def softplus(x: Any) -> Any:
        return np.logaddexp(0, x)


# Each takes the namespace, a vector of three, a matrix (2, 3), two arrays of places and a scalar.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "arithmetic": lambda xp, v, m, p, t, s: 2 - v / m + (-m) * 3 / (v + 1) - m**2 + 1 / v - v**-1,
    "powers": lambda xp, v, m, p, t, s: v**1.5 + v**m,
    "elementary": lambda xp, v, m, p, t, s: (
        xp.exp(-v) * xp.log(m) + xp.sqrt(v) * xp.softplus(m - 1)
    ),
    "softplus far out": lambda xp, v, m, p, t, s: xp.softplus(800 * v) + xp.softplus(-800 * m),
    "clip": lambda xp, v, m, p, t, s: xp.clip(v * m, 0.6, 1.4),
    "gather": lambda xp, v, m, p, t, s: xp.exp(v)[..., p] * m[..., p],
    "gather by a table": lambda xp, v, m, p, t, s: (m[..., t] * v[t]).sum(axis=-1),
    "parts": lambda xp, v, m, p, t, s: m[0] * m[..., 1, :] + v[2],
    "slices": lambda xp, v, m, p, t, s: m[..., :1, :] * v + v[1] * m[:, 2][..., None],
    "new axes": lambda xp, v, m, p, t, s: v[..., None] * m[0][None, :] + m[1],
    "sum over an axis": lambda xp, v, m, p, t, s: (v * m).sum(axis=-1)[..., None] * v,
    "product": lambda xp, v, m, p, t, s: m[:, 0] @ m,
    "concatenation": lambda xp, v, m, p, t, s: (
        xp.concatenate([m[..., :1, :], v[None, :], m], -2) ** 2
    ),
    "log of the gamma function": lambda xp, v, m, p, t, s: xp.log_gamma(v) - xp.log_gamma(30 * m),
    "constants": lambda xp, v, m, p, t, s: np.arange(3.0) * v + np.ones(3) * m,
    "a scalar": lambda xp, v, m, p, t, s: s * v + xp.exp(s),
    "unknowns of constant slope": lambda xp, v, m, p, t, s: 2 * s + v,
}


def run(f: Callable[..., Any], x: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the sum of a function's elements and its gradient, computed by compiled code.

    ``x`` holds the vector, the matrix and the scalar.
    """
    tape = Tape()
    unknowns = [tape.input("v", ("n",)), tape.input("m", (2, "n")), tape.input("s", ())]
    listed = [tape.input("p", ("k",)), tape.input("t", ("n", 2))]
    total = f(tape, *unknowns[:2], *listed, unknowns[2]).sum()
    program = write(tape, total, unknowns, {"p", "t"})
    given = {"p": PLACES, "t": TABLE, **tape.arrays}
    sizes = {"n": 3, "k": 4}
    offsets = {"v": 0, "m": 3, "s": 9}
    numbers = np.array(
        [given[i].ctypes.data for i in program.inputs] + [offsets[u] for u in program.unknowns]
        + [sizes[s] for s in program.sizes], dtype=np.int64,
    )  # fmt: skip
    code = machine.code(program.text)
    gradient, value = np.full(10, np.nan), np.full(1, np.nan)
    double = ctypes.POINTER(ctypes.c_double)
    failed = machine.SIGNATURE(code.density)(
        10, x.ctypes.data_as(double), gradient.ctypes.data_as(double),
        value.ctypes.data_as(double), numbers.ctypes.data,
    )  # fmt: skip
    assert failed == 0
    return float(value[0]), gradient


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_those_of_numpy(name: str) -> None:
    f = FUNCTIONS[name]
    rng = np.random.default_rng(3)
    x = rng.uniform(0.5, 1.5, 10)

    def truth(x: np.ndarray) -> float:
        return float(np.sum(f(Arrays, x[:3], x[3:9].reshape(2, 3), PLACES, TABLE, x[9])))

    value, gradient = run(f, x)
    assert value == pytest.approx(truth(x), rel=1e-12)
    step = 1e-6 * np.eye(10)
    measured = [(truth(x + s) - truth(x - s)) / 2e-6 for s in step]
    np.testing.assert_allclose(gradient, measured, rtol=1e-6, atol=1e-6)
    # The control: the slopes of a function that differs by a hundredth are told apart.
    other, _ = run(lambda *a: 1.01 * f(*a), x)
    assert other != pytest.approx(truth(x), rel=1e-3)


def test_values_that_are_not_finite_are_reported() -> None:
    with pytest.raises(AssertionError):
        run(lambda xp, v, m, p, t, s: xp.log(v - 100), np.ones(10))


def test_what_is_computed_twice_is_recorded_once() -> None:
    tape = Tape()
    x = tape.input("x", ("n",))
    assert tape.exp(x + 1.0) is tape.exp(x + 1.0)
    assert tape.exp(x + 1.0) is not tape.exp(x + 2.0)
    assert tape.log(tape.exp(x)) is x
    assert (x + 0.0) is x and (1.0 * x) is x and -1.0 * -x is x


def test_what_is_the_same_for_many_is_computed_before_it_is_repeated() -> None:
    tape = Tape()
    few, where = tape.input("few", ("n",)), tape.input("where", ("rows",))
    repeated = tape.exp(few[where])
    assert repeated.kind == "read"
    assert repeated.args[0] is tape.exp(few)
    part = tape.exp(tape.input("all", (3, "n"))[0])  # of a part, no more than the part
    assert part.kind == "exp"


def test_sizes_that_do_not_fit_are_refused() -> None:
    tape = Tape()
    a, b, c = tape.input("a", (2,)), tape.input("b", (3,)), tape.input("c", ("n",))
    assert isinstance(a + c, Node)  # from here on, n is 2
    with pytest.raises(ValueError, match="do not broadcast"):
        a + b
    with pytest.raises(ValueError, match="do not broadcast"):
        b + c
    with pytest.raises(ValueError, match="is a symbol"):
        tape.concatenate([tape.input("d", ("k", 2))], -2)
