"""Positive numbers kept as logarithms: plain numbers where there are any, right beyond them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunecast.models.laws import LAWS, get_law
from tunecast.models.laws.law import by_factor, expected_at, log_relative_loss
from tunecast.models.laws.positive import MAX_LOG, NumPy, Positive, log_sigmoid

type Formula = Callable[[Any, Any, Any, Any], Any]

NUMBERS = st.floats(-20, 20)  # logarithms
POWERS = st.floats(-2, 2)
# What laws do with positive numbers, of three numbers and an exponent.
FORMULAS: dict[str, Formula] = {
    "sum": lambda a, b, c, p: a + b,
    "sum of sums": lambda a, b, c, p: (a + b) + (c + a),
    "sum of many": lambda a, b, c, p: c + (a + b + c) + b,
    "product": lambda a, b, c, p: a * b * c,
    "product of sums": lambda a, b, c, p: (a + b) * (b + c) * a,
    "quotient": lambda a, b, c, p: a / b / c,
    "quotient of sums": lambda a, b, c, p: (a + b) / (b + c),
    "sum in a denominator": lambda a, b, c, p: a / (b + c),
    "sum in a numerator": lambda a, b, c, p: (a + b) / c,
    "power": lambda a, b, c, p: a**p * b ** (1 - p),
    "power of a sum": lambda a, b, c, p: (a + b) ** p + c,
    "power of a product of sums": lambda a, b, c, p: ((a + b) * (b + c)) ** p,
    "power of a sum of a power": lambda a, b, c, p: (a**p + b**p) ** (1 / (abs(p) + 0.5)) + c,
    "plain numbers": lambda a, b, c, p: 2.0 * a + b * 3 + 1 + 4 / c + a / 5.0 + (0.5 + b),
    "one": lambda a, b, c, p: (1 + a) / (a + 1) * b,
}


def log_of(formula: Formula, logs: Sequence[float] | np.ndarray, p: float) -> float:
    a, b, c = (Positive(np.float64(v), NumPy) for v in logs)
    return float(formula(a, b, c, p).log)


@pytest.mark.parametrize("name", FORMULAS)
@given(x=st.tuples(NUMBERS, NUMBERS, NUMBERS), p=POWERS)
def test_it_computes_what_plain_numbers_do(
    name: str, x: tuple[float, float, float], p: float
) -> None:
    formula = FORMULAS[name]
    a, b, c = map(math.exp, x)
    # A few roundings of logarithms up to 100.
    assert log_of(formula, x, p) == pytest.approx(math.log(formula(a, b, c, p)), abs=1e-12)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_check_sees_a_wrong_result(name: str) -> None:
    """The control: other numbers, or another power, by a hundredth."""
    formula, x = FORMULAS[name], np.array([0.3, -0.4, 1.1])
    usual = log_of(formula, x, 0.7)
    others = [log_of(formula, x, 0.71)] + [log_of(formula, x + d, 0.7) for d in 0.01 * np.eye(3)]
    assert max(abs(other - usual) for other in others) > 1e-4


@pytest.mark.parametrize("name", FORMULAS)
def test_pytensor_computes_the_same(name: str) -> None:
    rng = np.random.default_rng(1)
    x, p = rng.uniform(-20, 20, (3, 50)), 0.7
    symbols = [pt.dvector(n) for n in "abc"]
    a, b, c = (Positive(s, pt) for s in symbols)
    found = FORMULAS[name](a, b, c, p).log
    mode = pytensor.compile.mode.Mode("py", optimizer=None)  # type: ignore[arg-type]
    compiled = pytensor.function(symbols, found, mode=mode, on_unused_input="ignore")
    a, b, c = (Positive(v, NumPy) for v in x)
    ours = FORMULAS[name](a, b, c, p).log
    np.testing.assert_allclose(compiled(*x), ours, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------ beyond plain numbers


def exact_log_sum(*logs: float) -> float:
    top = max(logs)
    return top + math.log(math.fsum(math.exp(v - top) for v in logs))


def near(exact: float, *logs: float) -> Any:
    """Equal to a few roundings of the largest logarithm on the way."""
    return pytest.approx(exact, rel=1e-15, abs=2e-15 * max(1.0, *map(abs, logs)))


FARTHER = st.floats(-1e5, 1e5)


@given(a=FARTHER, b=FARTHER, p=st.floats(1e-4, 1.0))
def test_a_power_of_a_sum_is_exact_however_far_the_terms_are_apart(
    a: float, b: float, p: float
) -> None:
    found = (Positive(np.float64(a), NumPy) + Positive(np.float64(b), NumPy)) ** p
    assert float(found.log) == near(p * exact_log_sum(a, b), a, b)


@given(a=FARTHER, b=FARTHER)
def test_products_and_quotients_are_exact_beyond_all_numbers(a: float, b: float) -> None:
    one, other = Positive(np.float64(a), NumPy), Positive(np.float64(b), NumPy)
    assert float((one * other).log) == a + b
    assert float((one / other).log) == a - b
    assert float((one**-0.5 * 3).log) == pytest.approx(-0.5 * a + math.log(3), rel=1e-15)


@given(a=st.floats(-400, 400), b=FARTHER, c=st.floats(-40, 40))
def test_sums_are_exact_where_their_terms_are_within_a_number_of_each_other(
    a: float, b: float, c: float
) -> None:
    one, other, third = (Positive(np.float64(v), NumPy) for v in (a + b, b, b + c))
    assert float((one + other).log) == near(exact_log_sum(a + b, b), a, b)
    three = exact_log_sum(a + b, b, b + c)
    assert float((one + other + third).log) == near(three, a, b, c)
    assert float((third + (one + other)).log) == near(three, a, b, c)


@given(gap=st.floats(MAX_LOG + 1, 1e6), sign=st.sampled_from([-1.0, 1.0]))
def test_a_sum_of_terms_farther_apart_than_any_loss_stays_a_number(gap: float, sign: float) -> None:
    """Its larger term is cut at exp(500) times the other where that is the second."""
    found = float((Positive(np.float64(sign * gap), NumPy) + Positive(np.float64(0.0), NumPy)).log)
    assert found == pytest.approx(MAX_LOG if sign > 0 else 0.0, abs=1e-12)
    # Not so of what is raised to a power, as laws do with data sizes.
    whole = (Positive(np.float64(sign * gap), NumPy) + Positive(np.float64(0.0), NumPy)) ** 1.0
    assert float(whole.log) == pytest.approx(max(sign * gap, 0.0), rel=1e-12)


def test_some_elements_are_taken_of_what_is_no_sum() -> None:
    x = Positive(np.array([1.0, 2.0, 3.0]), NumPy)
    np.testing.assert_array_equal(x[np.array([2, 0, 2])].log, [3.0, 1.0, 3.0])
    with pytest.raises(AssertionError):
        (x + x)[0]


def test_arrays_leave_the_arithmetic_to_it() -> None:
    x = Positive(np.zeros(3), NumPy)
    assert isinstance(2.0 * x, Positive)
    with pytest.raises(TypeError):
        np.arange(1.0, 4.0) * x  # an array is no positive number: its logarithm is not taken


@given(x=st.floats(-1e4, 1e4))
def test_log_sigmoid_does_not_overflow(x: float) -> None:
    exact = -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))
    assert float(log_sigmoid(np.float64(x), NumPy)) == pytest.approx(exact, rel=1e-12, abs=1e-300)


# ------------------------------------------------------------------ as the hierarchy uses it


@pytest.mark.parametrize("name", LAWS)
def test_pytensor_computes_what_the_hierarchy_needs_of_a_law(name: str) -> None:
    """Expected quantities, relative losses and local slopes, also where beta is nearly 0."""
    law, n, factors = get_law(name), 20, ("a", "b")
    rng = np.random.default_rng(2)
    own = {
        q.name: q.prior.location
        + 2 * q.prior.scale * rng.standard_normal((2, n) if q.per_factor else n)
        for q in law.quantities
    }
    own["log_beta"][:3] = -9.0
    log_x = {k: rng.normal(0, 2, n) for k in factors if law.has("alpha")}
    log_u = rng.normal(0, 4, n)

    def found(q: Any, xp: Any) -> list[Any]:
        curve = expected_at(law, by_factor(law, q, factors), log_x, xp)
        slopes = [law.log_slope(q, xp)]
        slopes += [law.factor_slope(q, xp)] if law.has("alpha") else []
        return [*curve.values(), log_relative_loss(law, log_u, curve, xp), *slopes]

    symbols = {k: pt.dmatrix(k) if v.ndim == 2 else pt.dvector(k) for k, v in own.items()}
    mode = pytensor.compile.mode.Mode("py", optimizer=None)  # type: ignore[arg-type]
    compiled = pytensor.function(
        list(symbols.values()), found(symbols, pt), mode=mode, on_unused_input="ignore"
    )
    for theirs, ours in zip(compiled(*own.values()), found(own, NumPy), strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(theirs, ours, rtol=1e-10, atol=1e-10)
