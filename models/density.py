"""The posterior's log density and gradient as machine code, compiled once and kept on disk.

Compiling the model takes longer than sampling from it. But the code depends on the model's
structure alone (law, factors, cell columns), if every number of table and priors is an input: so
it is compiled for the first table of a structure and serves all others, in later processes too.
The folder is ``density`` in `tunecast.models.files.default_cache`.

Code from a disk must not be trusted blindly. Whenever it is taken up, its value and its slope in
one direction are compared with `tunecast.models.hierarchy.log_density` at a starting point.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import math
import pickle
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tunecast.models import hierarchy, laws
from tunecast.models import priors as prior_tables
from tunecast.models.files import default_cache, write_atomically
from tunecast.models.hierarchy import build, log_density, starting_point
from tunecast.models.layout import Layout
from tunecast.models.priors import PriorTable

COMPILERS = ("numba", "llvmlite", "numpy", "nutpie", "pymc", "pytensor")
STEP = 1e-6  # of the central difference that checks a gradient
VALUE_ERROR, SLOPE_ERROR = 1e-8, 1e-3  # relative; rounding in the difference is about 1e-5


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
        Every number of table and priors by name; all float64 or int32 (PyMC's), contiguous.
    """

    shapes: Mapping[str, tuple[int, ...]]
    numbers: Mapping[str, np.ndarray]

    @property
    def slices(self) -> list[slice]:
        """Place of each unknown in one vector of all."""
        return _slices(self.shapes)

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


def _slices(shapes: Mapping[str, tuple[int, ...]]) -> list[slice]:
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes.values()))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def inputs(layout: Layout, priors: PriorTable) -> Inputs:
    """Return what the density of a table takes."""
    numbers: dict[str, np.ndarray] = {}

    def given(name: str, value: np.ndarray) -> np.ndarray:
        kind = np.int32 if np.issubdtype(np.asarray(value).dtype, np.integer) else np.float64
        numbers[f"given {name}"] = np.ascontiguousarray(value, dtype=kind)
        return value

    shapes = {k: v.shape for k, v in starting_point(layout, priors, 0, given).items()}
    numbers["observed_log_loss"] = np.ascontiguousarray(layout.log_loss, dtype=float)
    places = zip(_slices(shapes), shapes.values(), strict=True)
    numbers["places"] = np.array([n for at, shape in places for n in (at.start, at.stop, *shape)])
    return Inputs(shapes, numbers)


def compiled_density(layout: Layout, priors: PriorTable) -> Any:
    """Return the model of a table for ``nutpie.sample``.

    Raises
    ------
    ImportError
        Where nutpie or numba is missing.
    DensityError
        When freshly compiled code fails its check, which is a defect.
    """
    from nutpie.compile_pymc import CompiledPyMCModel

    taken = inputs(layout, priors)
    key = _key(layout, taken)

    def start(seed: int) -> np.ndarray:
        return taken.flat(starting_point(layout, priors, seed))

    def make(fresh: bool) -> Any:
        code = _code(key, taken, lambda: _graph(build(layout, priors), taken), fresh)
        return CompiledPyMCModel(
            dims={},
            compiled_logp_func=code.density,
            compiled_expand_func=code.identity,
            initial_point_func=start,
            shared_data=dict(taken.numbers),
            shared_var_keys={},
            user_data=_addresses(taken),
            n_expanded=taken.size,
            shape_info=(list(taken.shapes), taken.slices, list(taken.shapes.values())),
            logp_func=None,
            expand_func=None,
            _n_dim=taken.size,
            _shapes=dict(taken.shapes),
            _coords={},
        )

    model = make(fresh=False)
    fault = _fault(model, layout, priors, taken)
    if fault:
        model = make(fresh=True)
        fault = _fault(model, layout, priors, taken)
        if fault:
            raise DensityError(fault)
    return model


def value_and_gradient(model: Any, x: np.ndarray) -> tuple[float, np.ndarray]:
    """Return log density and gradient of a compiled model at a vector of all unknowns."""
    import ctypes

    gradient, value = np.empty_like(x), np.empty(())
    double = ctypes.POINTER(ctypes.c_double)
    failed = model.compiled_logp_func.ctypes(
        len(x), x.ctypes.data_as(double), gradient.ctypes.data_as(double),
        value.ctypes.data_as(double), model.user_data.ctypes.data,
    )  # fmt: skip
    if failed:
        raise DensityError(f"the compiled density failed with code {failed}")
    return float(value), gradient


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


def _key(layout: Layout, taken: Inputs) -> str:
    """Return a digest of all that the machine code depends on."""
    parts = [
        _sources(),
        layout.question.law,
        layout.question.factors,
        [(name, len(shape)) for name, shape in taken.shapes.items()],
        [(name, v.ndim, v.dtype.str) for name, v in taken.numbers.items()],
        [version(name) for name in COMPILERS],
        platform.python_version(),
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


@cache  # what runs is what was read at first
def _sources() -> str:
    files = [str(module.__file__) for module in (hierarchy, laws, prior_tables)]
    return hashlib.sha256(b"".join(Path(f).read_bytes() for f in (*files, __file__))).hexdigest()


def _addresses(taken: Inputs) -> np.ndarray:
    """Return where each number lies, followed by its shape: what `_source` reads."""
    return np.array([v for n in taken.numbers.values() for v in (n.ctypes.data, *n.shape)])


def _source(taken: Inputs) -> str:
    lines, at = [], 0
    for i, value in enumerate(taken.numbers.values()):
        shape = "".join(f"at[{at + 1 + k}], " for k in range(value.ndim))
        lines.append(f"n{i} = carray(pointer(at[{at}]), ({shape}), np.{value.dtype.name})")
        at += 1 + value.ndim
    read = "\n        ".join(lines)
    # In parts: Python makes a tuple of more than 30 from a list, which numba refuses.
    names = [f"n{i}, " for i in range(len(taken.numbers))]
    arguments = " + ".join(f"({''.join(names[i : i + 20])})" for i in range(0, len(names), 20))
    return f"""\
import numpy as np
from numba import carray
from nutpie.compile_pymc import address_as_void_pointer as pointer


def density(dim, x_, gradient_, value_, numbers_):
    try:
        at = carray(numbers_, ({at},), np.int64)
        {read}
        taken = (carray(x_, (dim,)),) + {arguments}
        value, gradient = graph(*taken)
        carray(value_, ())[()] = value
        carray(gradient_, (dim,))[...] = gradient
        if not np.all(np.isfinite(gradient)):
            return 3
        if not np.isfinite(value):
            return 4
    except Exception:
        return 1
    return 0


def identity(dim, expanded, x_, out_, numbers_):
    carray(out_, (expanded,))[...] = carray(x_, (dim,))
    return 0
"""


@dataclass(frozen=True)
class _Code:
    density: Any
    identity: Any


_LOADED: dict[str, _Code] = {}


def _code(key: str, taken: Inputs, graph: Callable[[], Any], fresh: bool) -> _Code:
    """Return machine code from memory, from disk, or compiled; compiled in any case if fresh."""
    if fresh or key not in _LOADED:
        try:
            _LOADED[key] = _compiled(_module(key, _source(taken), fresh), graph)
        except (EOFError, pickle.PickleError):  # cut short on disk
            _LOADED[key] = _compiled(_module(key, _source(taken), True), graph)
    return _LOADED[key]


def _compiled(module: ModuleType, graph: Callable[[], Any]) -> _Code:
    from numba import types
    from numba.core.ccallback import CFunc

    class Lazy(CFunc):
        """Makes the graph only where the disk has no code for it."""

        def _compile_uncached(self) -> Any:
            module.graph = graph()  # type: ignore[attr-defined]
            return super()._compile_uncached()  # type: ignore[misc]

    def made(kind: type[CFunc], name: str, *arguments: Any) -> Any:
        code = kind(getattr(module, name), ((*arguments, types.voidptr), types.int64), {}, {})
        code.enable_caching()
        code.compile()
        return code

    size, doubles = types.uint64, types.CPointer(types.double)
    return _Code(
        made(Lazy, "density", size, doubles, doubles, doubles),
        made(CFunc, "identity", size, size, doubles, doubles),
    )


def _module(key: str, source: str, fresh: bool) -> ModuleType:
    """Return the module of the source, beside which the machine code is kept."""
    path = default_cache() / "density" / f"{key}.py"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.rglob(f"{key}.*") if fresh else ():
            old.unlink(missing_ok=True)
        if not path.exists():
            write_atomically(path, lambda p: p.write_text(source, encoding="utf-8"))
    except OSError:  # nowhere to keep it: it serves this process alone
        path = Path(tempfile.mkdtemp(prefix="tunecast-")) / f"{key}.py"
        path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"tunecast_density_{key}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # code from the disk looks its module up by name
    spec.loader.exec_module(module)
    return module


def _graph(model: Any, taken: Inputs) -> Any:
    """Return a numba function of the unknowns in one vector and of the numbers, in their order."""
    import pytensor
    import pytensor.tensor as pt
    from pytensor.graph import clone_replace, rewrite_graph

    x = pt.dvector("x")
    rewrites = ("canonicalize", "stabilize", "local_remove_check_parameter")
    value: Any = rewrite_graph(model.logp(), include=rewrites)
    unknowns = [model.rvs_to_values[v] for v in model.free_RVs]
    assert [v.name for v in model.free_RVs] == list(taken.shapes)
    slopes: Any = pt.grad(value, unknowns)
    gradient = pt.concatenate([slope.ravel() for slope in slopes])
    numbers = {
        name: pt.tensor(name, dtype=v.dtype.name, shape=(None,) * v.ndim)
        for name, v in taken.numbers.items()
    }
    instead: dict[Any, Any] = {
        model[name]: number for name, number in numbers.items() if name != "places"
    }
    places, k = numbers["places"], 0
    for unknown, shape in zip(unknowns, taken.shapes.values(), strict=True):
        n = len(shape)
        own = x[places[k] : places[k + 1]].reshape([places[k + 2 + i] for i in range(n)], ndim=n)
        instead[unknown] = own if n else x[places[k]]
        k += 2 + n
    outputs = clone_replace([value, gradient], instead)
    function = pytensor.function(
        [x, *numbers.values()], outputs, mode="NUMBA", on_unused_input="ignore"
    )
    if function.get_shared():
        raise DensityError(f"the density depends on {function.get_shared()}, which is no input")
    return function.vm.jit_fn
