"""The file of a fit: a DataTree in netCDF that ArviZ reads, and that loads exactly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.files import write_atomically
from tunecast.models.hierarchy.table import Spec, index_runs
from tunecast.models.inference.diagnostics import Diagnostics
from tunecast.models.inference.posterior import Posterior
from tunecast.models.laws.quantities import Prior

FORMAT = 7

# What a fit is made of.
type Parts = tuple[tuple[Posterior, ...], pd.DataFrame, dict[str, Any], Diagnostics]


def write_fit(
    path: str | Path,
    posteriors: tuple[Posterior, ...],
    runs: pd.DataFrame,
    info: dict[str, Any],
    diagnostics: Diagnostics,
) -> None:
    """Write a fit to a netCDF file, whole or not at all.

    Raises
    ------
    OSError
        When the file cannot be written; a file that was there stays as it was.
    """
    write_atomically(
        path, lambda temporary: temporary.write_bytes(content(posteriors, runs, info, diagnostics))
    )


def content(
    posteriors: tuple[Posterior, ...],
    runs: pd.DataFrame,
    info: dict[str, Any],
    diagnostics: Diagnostics,
) -> bytes:
    """Return what a fit's file holds."""
    # xarray takes a while to import, and reading does without.
    from tunecast.models.fits.datatree import dataset_of_frame, datatree_of

    tree = datatree_of(posteriors, runs, int(info["seed"]))
    tree["runs"] = dataset_of_frame(runs)
    laws = [
        {
            "spec": asdict(p.table.spec),
            "weight": p.weight,
            "priors": {k: asdict(v) for k, v in p.priors.items()},
        }
        for p in posteriors
    ]
    head = {
        "format": FORMAT,
        "info": info,
        "diagnostics": asdict(diagnostics),
        "laws": laws,
        "columns": list(runs.columns),
    }
    tree.attrs |= {"tunecast": json.dumps(head), "tunecast_format": FORMAT}
    # In memory first: HDF5 that meets a full disk half-way can end the whole process.
    return bytes(tree.to_netcdf(engine="h5netcdf"))


def read_fit(path: str | Path) -> Parts:
    """Return what a fit's file was written from.

    Raises
    ------
    TunecastError
        When the file is missing, truncated, or not a fit.
    """
    path = Path(path)
    if not path.is_file():
        raise TunecastError(f"there is no fit file '{path}'")
    try:
        return _read(path)
    except TunecastError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TunecastError(f"'{path}' is not a whole fit file: {reason}") from None


def _read(path: Path) -> Parts:
    with h5netcdf.File(path, "r") as file:
        text = file.attrs.get("tunecast")
        if text is None:
            raise TunecastError(f"'{path}' is not a tunecast fit file")
        head = json.loads(text)
        if head["format"] != FORMAT:
            raise TunecastError(
                f"'{path}' has fit format {head['format']}, this version reads {FORMAT}: fit again"
            )
        runs = _frame(file["runs"], head["columns"])
        posteriors = []
        for entry in head["laws"]:
            asked = entry["spec"]
            spec = Spec(
                asked["law"],
                tuple(asked["factors"]),
                asked["data"],
                tuple(asked["cell"]),
                asked["curve"],
            )
            branch = file if len(head["laws"]) == 1 else file[spec.law]
            draws, statistics = (
                _arrays(branch[name]) for name in ("unconstrained_posterior", "sample_stats")
            )
            priors = {k: Prior(**v) for k, v in entry["priors"].items()}
            table = index_runs(runs, spec, check=False)
            posteriors.append(Posterior(table, priors, draws, statistics, entry["weight"]))
    return tuple(posteriors), runs, head["info"], Diagnostics(**head["diagnostics"])


def _arrays(group: Any) -> dict[str, np.ndarray]:
    """Return the variables of a group that are no coordinates."""
    return {
        # The file has no truth values, but xarray notes which numbers stand for some.
        name: np.asarray(variable[...]).astype(variable.attrs.get("dtype", variable.dtype))
        for name, variable in group.variables.items()
        if name not in group.dimensions
    }


def _frame(group: Any, columns: Sequence[str]) -> pd.DataFrame:
    data = {}
    for name in columns:
        values = np.asarray(group[name][...])
        if values.dtype.kind == "O":
            values = np.array(
                [v.decode() if isinstance(v, bytes) else str(v) for v in values], dtype=object
            )
        data[name] = values
    return pd.DataFrame(data)
