"""The law as JavaScript, traced from its declaration: a page and Python share one definition.

The functions of `tunecast.models` that turn parameters into losses run once on symbols instead of
arrays. A symbol records what is done to it, and the record is written out as a function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tunecast.models.hierarchy import at_factors, coordinates, decline
from tunecast.models.laws import Law

_UFUNCS: dict[Any, str] = {
    np.add: "({0} + {1})",
    np.subtract: "({0} - {1})",
    np.multiply: "({0} * {1})",
    np.true_divide: "({0} / {1})",
    np.power: "Math.pow({0}, {1})",
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
        if ufunc is np.power and not isinstance(inputs[1], Symbol) and inputs[1] == 1:
            return inputs[0]
        return self._step(_UFUNCS[ufunc].format(*map(_written, inputs)))

    def clip(self, low: float, high: float, out: None = None) -> Symbol:
        """Return what ``numpy.clip`` asks for."""
        return self._step(f"Math.min(Math.max({self.text}, {low!r}), {high!r})")

    def _step(self, expression: str) -> Symbol:
        name = self.steps.setdefault(expression, f"v{len(self.steps)}")
        return Symbol(name, self.steps)


class _Columns:
    """Stands for the array of factors: ``x[:, i]`` is the i-th name."""

    def __init__(self, columns: Sequence[Symbol]) -> None:
        self.columns = columns

    def __getitem__(self, key: tuple[slice, int]) -> Symbol:
        return self.columns[key[1]]


def _written(value: Any) -> str:
    return value.text if isinstance(value, Symbol) else repr(float(value))


def _function(names: Sequence[str], traced: Callable[..., Any]) -> str:
    """Return ``traced`` as the text of a JavaScript function of so many numbers."""
    steps: dict[str, str] = {}
    arguments = [f"p{i}" for i in range(len(names))]
    result = traced(**dict(zip(names, (Symbol(a, steps) for a in arguments), strict=True)))
    lines = [f"const {name} = {expression};" for expression, name in steps.items()]
    body = " ".join([*lines, f"return {_written(result)};"])
    return f"({', '.join(arguments)}) => {{ {body} }}"


def cell_coordinates(law: Law, factors: Sequence[str]) -> list[str]:
    """Return the coordinates of a cell that what it expects of curves depends on."""
    return [name for name in coordinates(law, factors) if name != "onset"]


def javascript(law: Law, factors: Sequence[str]) -> str:
    """Return an object of functions that compute one draw of a curve.

    ``level``, ``share`` and ``rate`` take the values of `cell_coordinates`, then the logarithms of
    the factors over their reference values. ``decline`` takes the logarithm of the data size over
    its reference, the share, the rate and, where the law has one, the onset.
    """
    names = cell_coordinates(law, factors)
    logs = [f"log {name}" for name in factors]

    def placed(part: int) -> str:
        def traced(**values: Symbol) -> Any:
            cell = {name: values[name] for name in names}
            x: Any = _Columns([values[name] for name in logs])
            return at_factors(law, factors, cell, x, np)[part]

        return _function([*names, *logs], traced)

    shape = ["log_u", "share", "rate", *(["onset"] if law.has("D_l") else [])]

    def declines(log_u: Any, share: Any, rate: Any, onset: Any = None) -> Any:
        return decline(law, log_u, share, rate, onset, np)

    parts = {name: placed(i) for i, name in enumerate(("level", "share", "rate"))}
    parts["decline"] = _function(shape, declines)
    inside = ",\n  ".join(f"{name}: {function}" for name, function in parts.items())
    return f"{{ {inside} }}"
