"""The posterior's log density and gradient as machine code, for the sampler.

`tunecast.models.hierarchy` is recorded (`tunecast.models.tape`), differentiated, written as a
program (`tunecast.models.program`) and compiled (`tunecast.models.machine`). Every number of table
and priors is an input of the code, so it depends on the model's structure alone (law, factors, cell
columns, whether each base model has one curve) and serves all tables of a structure in a process.

Code of our own making is not trusted blindly. For each table, its value and its slope in one
direction are compared with `tunecast.models.hierarchy.log_density` at a starting point.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunecast.models import machine
from tunecast.models.hierarchy import (
    STRUCTURAL,
    Way,
    believe,
    dim_sizes,
    log_density,
    starting_point,
)
from tunecast.models.layout import Layout
from tunecast.models.priors import PriorTable
from tunecast.models.program import Program, write
from tunecast.models.tape import Node, Size, Tape

STEP = 1e-6  # of the central difference that checks a gradient
VALUE_ERROR, SLOPE_ERROR = 1e-8, 1e-5  # relative; rounding in the difference is below 1e-8


class DensityError(RuntimeError):
    """Compiled code that does not compute the model's log density."""


@dataclass(frozen=True)
class Inputs:
    """What the compiled density takes for one table.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Shape of each unknown, in order.
    numbers : mapping of str to ndarray
        Every number of table and priors by name; all float64 or int32, contiguous.
    """

    shapes: Mapping[str, tuple[int, ...]]
    numbers: Mapping[str, np.ndarray]

    @property
    def slices(self) -> list[slice]:
        """Place of each unknown in one vector of all."""
        ends = list(itertools.accumulate(math.prod(shape) for shape in self.shapes.values()))
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return self.slices[-1].stop

    def flat(self, point: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return a point as one vector."""
        return np.concatenate([np.ravel(point[name]) for name in self.shapes]).astype(float)

    def named(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Return a vector as values by name: the inverse of `flat`."""
        return {
            name: flat[place].reshape(shape)
            for (name, shape), place in zip(self.shapes.items(), self.slices, strict=True)
        }


def inputs(layout: Layout, priors: PriorTable) -> Inputs:
    """Return what the density of a table takes."""
    numbers: dict[str, np.ndarray] = {}

    def given(name: str, value: np.ndarray) -> np.ndarray:
        kind = np.int32 if _holds_places(value) else np.float64
        numbers[_given(name)] = np.ascontiguousarray(value, dtype=kind)
        return value

    given("row_curve", layout.row_curve)
    given("log_loss", layout.log_loss)
    shapes = {k: v.shape for k, v in starting_point(layout, priors, 0, given).items()}
    return Inputs(shapes, numbers)


def _holds_places(value: np.ndarray) -> bool:
    return bool(np.issubdtype(np.asarray(value).dtype, np.integer))


def _given(name: str) -> str:
    return f"given {name}"  # some are named like an unknown


@dataclass(frozen=True)
class Recording:
    """The model of a structure.

    Parameters
    ----------
    program : Program
        What computes its log density and gradient.
    constants : mapping of str to ndarray
        Arrays among its inputs that are the same for all tables.
    shapes : mapping of str to tuple of (int or str)
        Sizes of each input and unknown that it takes: numbers, and symbols of the program.
    """

    program: Program
    constants: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[Size, ...]]


def record(layout: Layout, priors: PriorTable) -> Recording:
    """Return the program of the log density of a table's structure."""
    tape = Tape()
    sizes = {name: len(labels) for name, labels in dim_sizes(layout).items()}
    unknowns: list[Node] = []
    terms: list[Node] = []
    integers: set[str] = set()

    def given(name: str, value: np.ndarray) -> Node:
        if _holds_places(value):
            integers.add(_given(name))
        return tape.input(_given(name), tuple(f"{name}:{k}" for k in range(np.ndim(value))))

    def draw(name: str, location: Any, scale: Any, dims: tuple[str, ...], df: Any) -> Node:
        value = tape.input(name, tuple(sizes[d] if d in STRUCTURAL else d for d in dims))
        unknowns.append(value)
        terms.append(_log_pdf(tape, value, location, scale, df))
        return value

    belief = believe(layout, priors, Way(draw, tape, given))
    loss, of_row = (given(name, getattr(layout, name)) for name in ("log_loss", "row_curve"))
    terms.append(_log_pdf(tape, loss, belief.mean, belief.noise[of_row], belief.noise_df))
    total = tape.total([(term, ()) for term in terms], ())
    program = write(tape, total, unknowns, integers)
    used = {*program.inputs, *program.unknowns}
    shapes = {n.detail: tape.sizes(n) for n in tape.nodes if n.kind == "input" and n.detail in used}
    return Recording(program, tape.arrays, shapes)


def _log_pdf(tape: Tape, x: Node, location: Any, scale: Any, df: Any) -> Node:
    """Return the log density of each element, normal where df is None, else Student's t."""
    z, log_scale = (x - location) / scale, tape.log(scale)
    if df is None:
        return -0.5 * (z * z) - log_scale - 0.5 * math.log(2 * math.pi)
    half = 0.5 * tape.node(df)
    bulk = tape.log_gamma(half + 0.5) - tape.log_gamma(half) - 0.5 * tape.log(math.pi * df)
    return bulk - log_scale - (half + 0.5) * tape.log(1 + z * z / df)


_RECORDED: dict[Hashable, Recording] = {}  # a recording takes a fifth of the shortest fits


def _structure(layout: Layout, taken: Inputs) -> Hashable:
    """Return all that a recording depends on."""
    return (
        layout.question.law,
        layout.question.factors,
        tuple((name, len(shape)) for name, shape in taken.shapes.items()),
        tuple((name, v.ndim, v.dtype.str) for name, v in taken.numbers.items()),
    )


@dataclass(frozen=True)
class _Function:
    """What nutpie asks of a compiled function: where it lies, and what keeps it there."""

    address: int
    held: Any


def compiled_density(layout: Layout, priors: PriorTable) -> Any:
    """Return the model of a table for ``nutpie.sample``.

    Raises
    ------
    ImportError
        Where nutpie is missing.
    DensityError
        When the code fails its check, which is a defect.
    """
    from nutpie.compile_pymc import CompiledPyMCModel

    taken = inputs(layout, priors)
    structure = _structure(layout, taken)
    if structure not in _RECORDED:
        _RECORDED[structure] = record(layout, priors)
    recording = _RECORDED[structure]
    held, numbers = _numbers(recording, taken)

    def start(seed: int) -> np.ndarray:
        return taken.flat(starting_point(layout, priors, seed))

    code = machine.code(recording.program.text)
    model = CompiledPyMCModel(
        dims={},
        compiled_logp_func=_Function(code.density, code),  # type: ignore[arg-type]
        compiled_expand_func=_Function(code.identity, code),  # type: ignore[arg-type]
        initial_point_func=start,
        shared_data=held,
        shared_var_keys={},
        user_data=numbers,
        n_expanded=taken.size,
        shape_info=(list(taken.shapes), taken.slices, list(taken.shapes.values())),
        logp_func=None,
        expand_func=None,
        _n_dim=taken.size,
        _shapes=dict(taken.shapes),
        _coords={},
    )
    fault = _fault(model, layout, priors, taken)
    if fault:
        raise DensityError(fault)
    return model


def _numbers(recording: Recording, taken: Inputs) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the arrays that a program takes, and its ``numbers``, which point to them."""
    held = {**taken.numbers, **recording.constants}
    known: dict[Size, int] = {}
    shapes = {**{name: v.shape for name, v in held.items()}, **taken.shapes}
    for name, sizes in recording.shapes.items():
        for symbol, size in zip(sizes, shapes[name], strict=True):
            expected = symbol if isinstance(symbol, int) else known.setdefault(symbol, size)
            if size < 1 or size != expected:
                raise DensityError(f"'{name}' has the size {size}, which does not fit the model")
    program = recording.program
    offsets = dict(zip(taken.shapes, (place.start for place in taken.slices), strict=True))
    numbers = [
        *(held[name].ctypes.data for name in program.inputs),
        *(offsets[name] for name in program.unknowns),
        *(known[symbol] for symbol in program.sizes),
    ]
    return held, np.array(numbers, dtype=np.int64)


def value_and_gradient(model: Any, x: np.ndarray) -> tuple[float, np.ndarray]:
    """Return log density and gradient of a compiled model at a vector of all unknowns."""
    failed, value, gradient = machine.evaluated(
        model.compiled_logp_func.address, x, model.user_data
    )
    if failed:
        raise DensityError(f"the compiled density failed with code {failed}")
    return value, gradient


def _fault(model: Any, layout: Layout, priors: PriorTable, taken: Inputs) -> str | None:
    """Return what is wrong with compiled code, if anything."""
    x = model.initial_point_func(0)
    direction = np.random.default_rng(0).standard_normal(len(x)) / np.sqrt(len(x))

    def truth(at: np.ndarray) -> float:
        return log_density(layout, priors, taken.named(at))

    try:
        value, gradient = value_and_gradient(model, x)
    except DensityError as error:
        return str(error)
    expected = truth(x)
    if not abs(value - expected) <= VALUE_ERROR * (1 + abs(expected)):
        return f"the compiled log density is {value:.10g}, expected {expected:.10g}"
    slope = float(gradient @ direction)
    measured = (truth(x + STEP * direction) - truth(x - STEP * direction)) / (2 * STEP)
    if not abs(slope - measured) <= SLOPE_ERROR * (1 + np.abs(gradient).max()):
        return f"the compiled gradient gives a slope of {slope:.6g}, expected {measured:.6g}"
    return None
