"""The recorded graph: values and gradients of every operation against NumPy, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import gammaln

from tunecast.models.compile import gradient, llvm
from tunecast.models.compile.graph import Node, Tape
from tunecast.models.compile.program import write
from tunecast.models.compile.special import log_gamma
from tunecast.models.laws.positive import NumPy

PLACES = np.array([2, 0, 2, 1], dtype=np.int32)
TABLE = np.array([[0, 2], [1, 1], [2, 0]], dtype=np.int32)


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
    "slices": lambda xp, v, m, p, t, s: m[..., :] * v[:] + v[1] * m[:, 2][..., None],
    "new axes": lambda xp, v, m, p, t, s: v[..., None] * m[0][None, :] + m[1],
    "sum over an axis": lambda xp, v, m, p, t, s: (v * m).sum(axis=-1)[..., None] * v,
    "product": lambda xp, v, m, p, t, s: m[:, 0] @ m,
    "concatenation": lambda xp, v, m, p, t, s: (
        xp.concatenate([m[..., 0, None, :], v[None, :], m], -2) ** 2
    ),
    "log of the gamma function": lambda xp, v, m, p, t, s: xp.log_gamma(v) - xp.log_gamma(30 * m),
    "constants": lambda xp, v, m, p, t, s: np.float64(2.5) * v + np.array(1.5) * m - 3,
    "a scalar": lambda xp, v, m, p, t, s: s * v + xp.exp(s),
    "unknowns of constant slope": lambda xp, v, m, p, t, s: 2 * s + v,
}


def run(f: Callable[..., Any], x: np.ndarray) -> tuple[int, float, np.ndarray]:
    """Return the code, the sum of a function's elements and its gradient, by compiled code.

    ``x`` holds the vector, the matrix and the scalar.
    """
    tape = Tape()
    unknowns = [tape.input("v", ("n",)), tape.input("m", (2, "n")), tape.input("s", ())]
    listed = [tape.input("p", ("k",)), tape.input("t", ("n", 2))]
    total = tape.node(f(tape, *unknowns[:2], *listed, unknowns[2])).sum()
    program = write(tape, total, unknowns, {"p", "t"})
    given = {"p": PLACES, "t": TABLE}
    sizes = {"n": 3, "k": 4}
    offsets = {"v": 0, "m": 3, "s": 9}
    numbers = np.array(
        [given[i].ctypes.data for i in program.inputs] + [offsets[u] for u in program.unknowns]
        + [sizes[s] for s in program.sizes], dtype=np.int64,
    )  # fmt: skip
    code = llvm.code(program.text)
    return llvm.evaluated(code.density, x, numbers)


def check(f: Callable[..., Any], seed: int) -> None:
    x = np.random.default_rng(seed).uniform(0.5, 1.5, 10)

    def truth(x: np.ndarray) -> float:
        return float(np.sum(f(NumPy, x[:3], x[3:9].reshape(2, 3), PLACES, TABLE, x[9])))

    failed, value, gradient = run(f, x)
    assert failed == 0
    assert value == pytest.approx(truth(x), rel=1e-11)
    step = 1e-5 * np.eye(10)
    measured = np.array([(truth(x + s) - truth(x - s)) / 2e-5 for s in step])
    scale = 1 + np.abs(measured).max() + abs(value)
    np.testing.assert_allclose(gradient, measured, rtol=1e-6, atol=1e-8 * scale)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_those_of_numpy(name: str) -> None:
    check(FUNCTIONS[name], 3)


def drawn(seed: int) -> Callable[..., Any]:
    """Return a function of twenty operations drawn at random, on results of earlier ones.

    Which of them fit one another is found out on arrays.
    """
    rng = np.random.default_rng(seed)
    kinds: list[Callable[..., Any]] = [
        lambda xp, p, t, a, b: a + b,
        lambda xp, p, t, a, b: a - 0.3 * b,
        lambda xp, p, t, a, b: 0.5 * a * b,
        lambda xp, p, t, a, b: a / (1.5 + xp.exp(-0.1 * b * b)),
        lambda xp, p, t, a, b: xp.softplus(a),
        lambda xp, p, t, a, b: xp.sqrt(1 + a * a),
        lambda xp, p, t, a, b: a[..., p],
        lambda xp, p, t, a, b: a[..., t],
        lambda xp, p, t, a, b: a.sum(axis=-1),
        lambda xp, p, t, a, b: a[..., None, :],
        lambda xp, p, t, a, b: a[..., 0, None, :],
        lambda xp, p, t, a, b: xp.concatenate([a, b], -2),
    ]
    example = [np.ones(3), np.ones((2, 3)), np.array(1.0)]
    steps: list[tuple[int, int, int]] = []
    while len(steps) < 20:
        kind = int(rng.integers(len(kinds)))
        i, j = (len(example) - 1 - int(n) for n in rng.integers(0, min(6, len(example)), 2))
        a, b = example[i], example[j]
        fits = {
            6: a.ndim > 0 and a.shape[-1] == 3,
            7: a.ndim > 0 and a.shape[-1] == 3,
            8: a.ndim > 0,
            9: a.ndim > 0,
            10: a.ndim > 1 and a.shape[-2] in (1, 2),
            11: a.ndim == b.ndim == 2 and a.shape == b.shape and a.shape[0] == 1,
        }.get(kind, True)
        try:
            result = np.asarray(kinds[kind](NumPy, PLACES, TABLE, a, b)) if fits else None
        except ValueError:  # they do not broadcast
            continue
        if result is not None and result.ndim < 4:
            steps.append((kind, i, j))
            example.append(result)

    def f(xp: Any, v: Any, m: Any, p: Any, t: Any, s: Any) -> Any:
        found = [v, m, s]
        for kind, i, j in steps:
            found.append(kinds[kind](xp, p, t, found[i], found[j]))
        return sum((0.1 * a * a + a).sum() for a in found[-8:])

    return f


@pytest.mark.parametrize("seed", range(30))
def test_graphs_drawn_at_random_are_computed_as_by_numpy(seed: int) -> None:
    check(drawn(seed), seed)


def test_the_check_sees_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gradient.SLOPES, "sqrt", lambda out, a: (0.51 / out,))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check(lambda xp, v, m, p, t, s: xp.sqrt(v), 3)


def test_what_is_not_finite_is_reported() -> None:
    assert run(lambda xp, v, m, p, t, s: xp.exp(1000 * v), np.ones(10))[0] == 3  # value and slope
    assert run(lambda xp, v, m, p, t, s: xp.sqrt(v - 1), np.ones(10))[0] == 3  # slope alone
    assert run(lambda xp, v, m, p, t, s: v + float("inf"), np.ones(10))[0] == 4  # value alone


def test_slopes_do_not_overflow_where_the_value_is_finite() -> None:
    failed, _, gradient = run(
        lambda xp, v, m, p, t, s: xp.log(1 + 1 / xp.exp(v)), np.full(10, -400.0)
    )
    assert failed == 0
    assert gradient[:3] == pytest.approx([-1, -1, -1])


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


def test_parts_that_are_not_supported_are_refused() -> None:
    tape = Tape()
    m, p = tape.input("m", (2, "n")), tape.input("p", ("k",))
    for key in ((-1,), (2,)):
        with pytest.raises(ValueError, match="place"):
            m[key]
    for part in (slice(1, None), slice(None, None, 2), slice(None, 3), slice(0), slice(None, 1)):
        with pytest.raises(ValueError, match="only whole dimensions can be sliced"):
            m[part]
    with pytest.raises(ValueError, match="several arrays of places"):
        m[p, p]


def test_arrays_are_no_constants() -> None:
    """Of every table a graph would have those of the table it was recorded with."""
    tape = Tape()
    v = tape.input("v", ("n",))
    for constant in (np.arange(3.0), np.ones((1, 1)), [1.0, 2.0]):
        for combined in (
            lambda c=constant: v * c,
            lambda c=constant: c + v,
            lambda c=constant: tape.softplus(c),
            lambda c=constant: v / c,
        ):
            with pytest.raises(TypeError, match=r"an array of shape .* is no input of the graph"):
                combined()
    assert tape.node(np.array(2.0)) is tape.number(2.0)


def test_places_are_not_taken_for_numbers() -> None:
    with pytest.raises(ValueError, match="'p' holds places, not numbers"):
        run(lambda xp, v, m, p, t, s: p * 1.5, np.ones(10))


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


def test_the_series_of_the_gamma_function_is_right() -> None:
    """Of what is recorded, and in NumPy: within 1e-13 of its terms."""
    x = np.concatenate([np.geomspace(1e-3, 1e6, 400), np.arange(1.0, 20.0), [0.5, 2.5]])
    error = np.abs(log_gamma(x, NumPy) - gammaln(x))
    assert (error <= 1e-13 * (1 + np.abs(gammaln(x)) + x)).all()
