"""The law as JavaScript, traced from its declaration: a page and Python share one definition.

The functions of `tunecast.models` that turn parameters into losses run once on symbols instead of
arrays. A symbol records what is done to it, and the record is written out as a function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tunecast.models.laws import Law
from tunecast.models.laws.law import expected_at, log_relative_loss
from tunecast.models.laws.positive import NumPy

_UFUNCS: dict[Any, str] = {
    np.add: "({0} + {1})",
    np.subtract: "({0} - {1})",
    np.multiply: "({0} * {1})",
    np.true_divide: "({0} / {1})",
    np.negative: "(-{0})",
    np.exp: "Math.exp({0})",
    np.log: "Math.log({0})",
    np.logaddexp: "logAddExp({0}, {1})",
}

# Every other function that a law may call is one of JavaScript's own.
HELPERS = """\
function logAddExp(a, b) {
  const high = Math.max(a, b);
  return a === b ? a + Math.LN2 : high + Math.log1p(Math.exp(-Math.abs(a - b)));
}"""


class Symbol(np.lib.mixins.NDArrayOperatorsMixin):
    """A value known by its expression alone; NumPy functions of it make further symbols.

    Parameters
    ----------
    text : str
        A JavaScript name.
    steps : dict of str to str
        Names of the expressions so far, shared by all symbols of one function: what occurs twice
        is computed once.
    """

    def __init__(self, text: str, steps: dict[str, str]) -> None:
        self.text, self.steps = text, steps

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Symbol:
        if method != "__call__" or options or ufunc not in _UFUNCS:
            raise TypeError(f"a law in a page cannot use {ufunc.__name__}")
        return self._step(_UFUNCS[ufunc].format(*map(_written, inputs)))

    def clip(self, low: float, high: float, out: None = None) -> Symbol:
        """Return what ``numpy.clip`` asks for."""
        return self._step(f"Math.min(Math.max({self.text}, {low!r}), {high!r})")

    def _step(self, expression: str) -> Symbol:
        name = self.steps.setdefault(expression, f"v{len(self.steps)}")
        return Symbol(name, self.steps)


def _written(value: Any) -> str:
    return value.text if isinstance(value, Symbol) else repr(float(value))


def _function(count: int, traced: Callable[..., Any]) -> str:
    """Return ``traced`` as the text of a JavaScript function of so many numbers."""
    steps: dict[str, str] = {}
    arguments = [f"p{i}" for i in range(count)]
    result = traced(*(Symbol(argument, steps) for argument in arguments))
    lines = [f"const {name} = {expression};" for expression, name in steps.items()]
    body = " ".join([*lines, f"return {_written(result)};"])
    return f"({', '.join(arguments)}) => {{ {body} }}"


def curve_quantities(law: Law) -> list[str]:
    """Return the quantities of a curve: its log loss at the reference, then those of its shape."""
    shape = [q.name for q in law.quantities if not q.per_factor and q.name != "log_loss_ref"]
    return ["log_loss_ref", *shape]


def cell_quantities(law: Law, factors: Sequence[str]) -> list[tuple[str, str]]:
    """Return the quantities of a cell, each with its factor, or with nothing."""
    found = []
    for q in law.quantities:
        found += [(q.name, factor) for factor in factors] if q.per_factor else [(q.name, "")]
    return found


def javascript(law: Law, factors: Sequence[str]) -> str:
    """Return an object of functions that compute one draw of a curve.

    Each of ``expected`` takes the values of `cell_quantities`, then the logarithms of the factors
    over their reference values, and returns one of `curve_quantities`. ``relative`` takes the
    logarithm of the data size over its reference, then the quantities of the curve's shape.
    """
    of_cell, of_curve = cell_quantities(law, factors), curve_quantities(law)

    def expects(name: str) -> str:
        def traced(*values: Symbol) -> Any:
            q: dict[str, Any] = {k.name: {} for k in law.quantities if k.per_factor}
            for (quantity, factor), value in zip(of_cell, values, strict=False):
                if factor:
                    q[quantity][factor] = value
                else:
                    q[quantity] = value
            log_x = dict(zip(factors, values[len(of_cell) :], strict=True))
            return expected_at(law, q, log_x, NumPy)[name]

        return _function(len(of_cell) + len(factors), traced)

    def relative(log_u: Symbol, *shape: Symbol) -> Any:
        return log_relative_loss(law, log_u, dict(zip(of_curve[1:], shape, strict=True)), NumPy)

    expected = ",\n    ".join(map(expects, of_curve))
    return f"{{ expected: [\n    {expected}],\n  relative: {_function(len(of_curve), relative)} }}"
