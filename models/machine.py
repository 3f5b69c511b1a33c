"""Machine code for a program (`tunecast.models.program`), compiled once and kept on disk.

It is kept in the folder ``density`` of `tunecast.models.files.default_cache`, under a digest of all
that it depends on: the program's text, LLVM, and the processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from tunecast.models.files import default_cache, write_atomically

LIBRARY = ("exp", "log", "malloc", "free")  # functions of the C library that code may call
_DOUBLES = ctypes.POINTER(ctypes.c_double)
SIGNATURE = ctypes.CFUNCTYPE(
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


_LOADED: dict[str, Code] = {}


def code(text: str, fresh: bool = False) -> Code:
    """Return machine code for a program's text: from memory, from disk, or compiled.

    Parameters
    ----------
    text : str
        See `Program`.
    fresh : bool
        Whether to compile in any case.
    """
    machine = _machine()
    parts = (text, llvm.llvm_version_info, machine.triple, *_host())
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
    if fresh or key not in _LOADED:
        path = default_cache() / "density" / f"{key}.o"
        found = None if fresh else _read(path)
        if found is None:
            found = compiled(text)
            _keep(path, found)
        _LOADED[key] = _loaded(found)
    return _LOADED[key]


def compiled(text: str) -> bytes:
    """Return an object file for a program's text."""
    machine = _machine()
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    llvm.create_pass_builder(machine, options).getModulePassManager().run(
        module, llvm.create_pass_builder(machine, options)
    )
    return machine.emit_object(module)


def _host() -> tuple[str, str]:
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


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
    cpu, features = _host()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=cpu, features=features, opt=2, reloc="pic", codemodel="jitdefault", jit=True
    )


def _loaded(found: bytes) -> Code:
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(found))
    engine.finalize_object()
    return Code(
        engine, engine.get_function_address("density"), engine.get_function_address("identity")
    )


# A file begins with the digest of what follows: a linker may fall over code cut short.
def _keep(path: Path, found: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda p: p.write_bytes(hashlib.sha256(found).digest() + found))
    except OSError:
        pass  # nowhere to keep it: it serves this process alone


def _read(path: Path) -> bytes | None:
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    return whole[32:] if hashlib.sha256(whole[32:]).digest() == whole[:32] else None
