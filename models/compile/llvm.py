"""Machine code for a program (`tunecast.models.compile.program`), made in a second by LLVM."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np

# Functions of the C library that code may call. What else a system wants (to clear memory, to grow
# the stack), LLVM finds in the process.
LIBRARY = ("exp", "log", "malloc", "free", "memset", "memcpy")
_DOUBLES = ctypes.POINTER(ctypes.c_double)
_DENSITY = ctypes.CFUNCTYPE(
    ctypes.c_int64, ctypes.c_uint64, _DOUBLES, _DOUBLES, _DOUBLES, ctypes.c_void_p
)


@dataclass(frozen=True)
class Code:
    """Machine code in memory, while ``engine`` lives.

    Parameters
    ----------
    engine : object
        What holds it.
    density, identity : int
        Addresses of its functions.
    """

    engine: Any
    density: int
    identity: int


@cache
def code(text: str) -> Code:
    """Return machine code for a program's text, compiled once in a process."""
    machine = _machine()
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    addresses = (engine.get_function_address(name) for name in ("density", "identity"))
    return Code(engine, *addresses)


def evaluated(density: int, x: np.ndarray, numbers: np.ndarray) -> tuple[int, float, np.ndarray]:
    """Call a density; return its code (see `program.Program`), value and gradient.

    Parameters
    ----------
    density : int
        Address of the function.
    x : ndarray of float, shape (unknowns,)
        The unknowns.
    numbers : ndarray of int64
        Addresses, places and sizes that the program takes.
    """
    gradient, value = np.full_like(x, np.nan), np.full(1, np.nan)
    doubles = (array.ctypes.data_as(_DOUBLES) for array in (x, gradient, value))
    failed: int = _DENSITY(density)(len(x), *doubles, numbers.ctypes.data)
    return failed, float(value[0]), gradient


@cache
def _prepare() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    library = ctypes.CDLL("ucrtbase" if os.name == "nt" else None)
    for name in LIBRARY:
        llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)


def _machine() -> Any:
    """Return a target machine of this host, a new one: an engine takes it over."""
    _prepare()
    return llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        jit=True,
    )
