"""What we believe: the run table, the laws, the hierarchy, and what follows from them.

The public names are listed in `tunecast.models.api` and loaded when one of them is first asked for,
so that whoever needs the run table alone (`tunecast.models.runs`) loads nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunecast.models.api import *  # noqa: F403


def _public() -> dict[str, Any]:
    every = vars(import_module("tunecast.models.api"))
    return {name: value for name, value in every.items() if not name.startswith("_")}


def __getattr__(name: str) -> Any:
    # Python looks for the parts of a package here too, before it imports them.
    if name.startswith("_") or name == "api" or name not in (public := _public()):
        raise AttributeError(f"module 'tunecast.models' has no attribute '{name}'")
    return public[name]


def __dir__() -> list[str]:
    return list(_public())
