"""The posterior's log density and gradient as machine code, for the sampler.

The model (`tunecast.models.hierarchy.model`) is recorded by one more backend, differentiated,
written as a program and compiled. Every number of table, priors and geometry is an input of the
code, so it depends on the model's structure alone (law, factors, groupings, whether each base model
has one curve) and serves all tables of a structure in a process.

Code of our own making is not trusted blindly. For each table, its value and its slope in one
direction are compared with those of the density in NumPy, at a starting point.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from nutpie.compile_pymc import CompiledPyMCModel

from tunecast.models.compile import llvm
from tunecast.models.compile.graph import Node, Size, Tape
from tunecast.models.compile.program import Program, write
from tunecast.models.hierarchy.estimates import DriftEstimates, LevelEstimates, estimate
from tunecast.models.hierarchy.geometry import Geometry
from tunecast.models.hierarchy.groupings import Grouping
from tunecast.models.hierarchy.model import hierarchy
from tunecast.models.hierarchy.numpy_backends import (
    LogDensity,
    geometry_of,
    log_density,
    starting_point,
)
from tunecast.models.hierarchy.priors import Priors
from tunecast.models.hierarchy.subset import Subset
from tunecast.models.hierarchy.table import Table
from tunecast.models.laws.quantities import Prior

STEP = 1e-6  # of the central difference that checks a gradient
VALUE_ERROR, SLOPE_ERROR = 1e-8, 1e-5  # relative; rounding in the difference is below 1e-8

# Dimensions whose sizes follow from the structure alone.
STRUCTURAL = ("factor", "drift_term")


# What holds numbers of a table, its priors or estimates.
_PARTS = (Grouping, Subset, Prior, LevelEstimates, DriftEstimates, Mapping)


class DensityError(RuntimeError):
    """Compiled code that does not compute the model's log density."""


@dataclass(frozen=True)
class Inputs:
    """What the compiled density takes for one table.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Shape of each variable, in order.
    numbers : mapping of str to ndarray
        Every number of table, priors and geometry by name; all float64 or int32, contiguous.
    """

    shapes: Mapping[str, tuple[int, ...]]
    numbers: Mapping[str, np.ndarray]

    @property
    def slices(self) -> list[slice]:
        """Place of each variable in one vector of all."""
        ends = list(itertools.accumulate(math.prod(shape) for shape in self.shapes.values()))
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    @property
    def size(self) -> int:
        """Number of elements of all variables."""
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


class Recorded:
    """Stands for an object of arrays and numbers, which become inputs of a tape.

    Parameters
    ----------
    real : object
        A table, a prior table, estimates, or a part of one.
    name : str
        What to call it.
    taken : dict of str to ndarray
        Filled with the numbers that are looked at, by name.
    tape : Tape or None
        Where they are recorded; without one they are given as they are.
    """

    def __init__(
        self, real: Any, name: str, taken: dict[str, np.ndarray], tape: Tape | None
    ) -> None:
        self._real, self._name, self._taken, self._tape = real, name, taken, tape

    def __getattr__(self, name: str) -> Any:
        return self._part(getattr(self._real, name), name)

    def __getitem__(self, key: Any) -> Any:
        return self._part(self._real[key], str(key))

    def __iter__(self) -> Iterator[Any]:
        return (self._part(part, str(i)) for i, part in enumerate(self._real))

    def __len__(self) -> int:
        return len(self._real)

    def _part(self, value: Any, name: str) -> Any:
        name = f"{self._name}.{name}"
        if isinstance(value, float | np.ndarray):
            places = np.issubdtype(np.asarray(value).dtype, np.integer)
            self._taken[name] = np.array(value, np.int32 if places else np.float64, order="C")
            if self._tape is None:
                return value
            return self._tape.input(name, tuple(f"{name}:{k}" for k in range(np.ndim(value))))
        some = value[0] if isinstance(value, tuple) and value else value
        if isinstance(some, _PARTS):
            return Recorded(value, name, self._taken, self._tape)
        return value


def _recorded(
    table: Table,
    priors: Priors,
    geometry: bool,
    taken: dict[str, np.ndarray],
    tape: Tape | None,
) -> tuple[Any, Any, Geometry | None]:
    """Return what stands for the table, its prior table and the geometry of both, if asked for."""
    known = estimate(table, priors)
    t: Any
    p: Any
    e: Any
    t, p, e = (
        Recorded(real, name, taken, tape)
        for real, name in ((table, "table"), (priors, "priors"), (known, "estimates"))
    )
    return t, p, Geometry(t, e) if geometry else None


def inputs(table: Table, priors: Priors, geometry: bool = True) -> Inputs:
    """Return what the density of a table takes."""
    numbers: dict[str, np.ndarray] = {}
    t, p, coordinates = _recorded(table, priors, geometry, numbers, None)
    start = starting_point(t, p, 0, coordinates)
    # What only the likelihood looks at.
    hierarchy(LogDensity(t, coordinates, start), t, p)
    return Inputs({name: value.shape for name, value in start.items()}, numbers)


@dataclass(frozen=True)
class Recording:
    """The model of a structure.

    Parameters
    ----------
    program : Program
        What computes its log density and gradient.
    shapes : mapping of str to tuple of (int or str)
        Sizes of each input and variable that it takes: numbers, and symbols of the program.
    """

    program: Program
    shapes: Mapping[str, tuple[Size, ...]]


class Recorder(LogDensity):
    """The backend that records: each variable is an input of a tape."""

    def __init__(self, table: Any, geometry: Geometry | None, tape: Tape) -> None:
        self.variables: dict[str, Node] = {}
        super().__init__(table, geometry, self.variables)
        self.xp = tape

    def draw(
        self, name: str, df: float | None, location: Any, scale: Any, dims: tuple[str, ...]
    ) -> Node:
        """Record a variable and its density."""
        sizes = (len(self.table.coords[d]) if d in STRUCTURAL else d for d in dims)
        self.variables[name] = self.xp.input(name, tuple(sizes))
        return super().draw(name, df, location, scale, dims)

    def published(self, cell: Mapping[str, Any]) -> None:
        """Leave out what no density depends on."""


def record(table: Table, priors: Priors, geometry: bool = True) -> Recording:
    """Return the program of the log density of a table's structure."""
    tape = Tape()
    numbers: dict[str, np.ndarray] = {}
    t, p, coordinates = _recorded(table, priors, geometry, numbers, tape)
    found = Recorder(t, coordinates, tape)
    hierarchy(found, t, p)
    total = tape.total([(tape.node(term), ()) for term in found.terms], ())
    integers = {name for name, value in numbers.items() if value.dtype == np.int32}
    program = write(tape, total, list(found.variables.values()), integers)
    used = {*program.inputs, *program.unknowns}
    shapes = {n.detail: tape.sizes(n) for n in tape.nodes if n.kind == "input" and n.detail in used}
    return Recording(program, shapes)


_RECORDED: dict[Hashable, Recording] = {}  # a recording takes a fifth of the shortest fits


def _structure(table: Table, taken: Inputs) -> Hashable:
    """Return all that a recording depends on."""
    return (
        table.spec.law,
        table.factors,
        tuple((name, len(shape)) for name, shape in taken.shapes.items()),
        tuple((name, v.ndim, v.dtype.str) for name, v in taken.numbers.items()),
    )


@dataclass(frozen=True)
class _Function:
    """What nutpie asks of a compiled function: where it lies, and what keeps it there."""

    address: int
    held: Any


def compiled_density(table: Table, priors: Priors, *, geometry: bool = True) -> Any:
    """Return the model of a table for ``nutpie.sample``.

    Parameters
    ----------
    table : Table
        The runs.
    priors : mapping of str to Prior
        Prior table.
    geometry : bool
        Whether unknowns are sampled in coordinates that suit the runs, or as they are.

    Raises
    ------
    DensityError
        When the code fails its check, which is a defect.
    """
    taken = inputs(table, priors, geometry)
    structure = _structure(table, taken)
    if structure not in _RECORDED:
        _RECORDED[structure] = record(table, priors, geometry)
    recording = _RECORDED[structure]
    held, numbers = _numbers(recording, taken)
    coordinates = geometry_of(table, priors) if geometry else None

    def start(seed: int) -> np.ndarray:
        return taken.flat(starting_point(table, priors, seed, coordinates))

    code = llvm.code(recording.program.text)
    model = CompiledPyMCModel(
        dims={},
        compiled_logp_func=_Function(code.density, code),  # type: ignore[arg-type]
        compiled_expand_func=_Function(code.identity, code),  # type: ignore[arg-type]
        initial_point_func=start,
        shared_data=dict(held),
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
    fault = _fault(model, table, priors, coordinates, taken)
    if fault:
        raise DensityError(fault)
    return model


def _numbers(recording: Recording, taken: Inputs) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
    """Return the arrays that a program takes, and its ``numbers``, which point to them."""
    held, known = taken.numbers, dict[Size, int]()
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
    """Return log density and gradient of a compiled model at a vector of all variables."""
    failed, value, gradient = llvm.evaluated(model.compiled_logp_func.address, x, model.user_data)
    if failed:
        raise DensityError(f"the compiled density failed with code {failed}")
    return value, gradient


def _fault(
    model: Any, table: Table, priors: Priors, geometry: Geometry | None, taken: Inputs
) -> str | None:
    """Return what is wrong with compiled code, if anything."""
    x = model.initial_point_func(0)
    direction = np.random.default_rng(0).standard_normal(len(x)) / np.sqrt(len(x))

    def truth(at: np.ndarray) -> float:
        return log_density(table, priors, taken.named(at), geometry)

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
