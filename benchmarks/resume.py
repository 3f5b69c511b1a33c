"""Long benchmarks that can be killed: one JSON line for each repetition, read again on restart."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from tunecast.models.files import write_atomically


def kept(path: Path, settings: dict[str, Any], key: str) -> dict[int, dict[str, Any]]:
    """Return the repetitions that a file holds, by number, after dropping a half-written line.

    Raises
    ------
    ValueError
        When the file was made with other settings.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda new: new.write_text(json.dumps(settings) + "\n"))
        return {}
    head, *lines = path.read_text().splitlines(keepends=True)
    if json.loads(head) != json.loads(json.dumps(settings)):
        raise ValueError(f"'{path}' was made with other settings, {head.strip()}: move it away")
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        write_atomically(path, lambda new: new.write_text(head + "".join(whole)))
    return {record[key]: record for record in map(json.loads, whole)}


def missing(
    path: Path, settings: dict[str, Any], key: str, count: int, backwards: bool
) -> Iterator[int]:
    """Yield the repetitions that a file lacks, looking again before each: others may add to it."""
    for number in reversed(range(count)) if backwards else range(count):
        if number not in kept(path, settings, key):
            yield number


def append(path: Path, record: dict[str, Any]) -> None:
    """Add one repetition to the file."""
    with path.open("a") as stream:
        stream.write(json.dumps(record) + "\n")


def repeat(
    path: Path,
    numbers: int,
    settings: dict[str, Any],
    once: Callable[[int, dict[str, Any]], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return repetitions 0 to ``numbers - 1``, making those that the file lacks.

    Parameters
    ----------
    once : callable
        ``once(number, settings)`` makes one record, with ``number``, ``diagnostics`` and
        ``seconds`` among its keys.
    """
    done = kept(path, settings, "number")
    for number in [i for i in range(numbers) if i not in done]:
        record = once(number, settings)
        append(path, record)
        done[number] = record
        d = record["diagnostics"]
        print(
            f"{path.stem} {number:3}  R-hat {d['rhat_max']:.3f}  ESS {d['ess_bulk_min']:.0f}  "
            f"divergences {d['divergences']}  {record['seconds']:.0f} s",
            flush=True,
        )
    return [done[i] for i in range(numbers)]


def save(path: Path, body: dict[str, Any]) -> None:
    """Write the result, whole or not at all; what is no finite number becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(body), indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda new: new.write_text(text))


def mean_and_error(values: Any) -> tuple[float, float]:
    """Return the mean over repetitions and its standard error (infinite for one repetition)."""
    x = np.asarray(values, dtype=float)
    error = x.std(ddof=1) / math.sqrt(len(x)) if len(x) > 1 else math.inf
    return float(x.mean()), float(error)


def normal_p(z: float) -> float:
    """Return the two-sided p-value of a standardised difference."""
    return float(2 * norm.sf(abs(z)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
