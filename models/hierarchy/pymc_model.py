"""The model as PyMC's: for whoever wants to draw it, change it or sample it otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tunecast.models.hierarchy.backend import Backend
from tunecast.models.hierarchy.geometry import Geometry
from tunecast.models.hierarchy.model import hierarchy
from tunecast.models.hierarchy.numpy_backends import geometry_of
from tunecast.models.hierarchy.priors import Priors, get_priors
from tunecast.models.hierarchy.table import (
    Table,
    checked_runs,
    index_runs,
    spec_of,
    usable,
)


class PyTensor:
    """What formulas take from PyTensor."""

    def __getattr__(self, name: str) -> Any:
        import pytensor.tensor as pt

        return getattr(pt, name)

    @staticmethod
    def add_at(x: Any, places: Any, values: Any) -> Any:
        """Return x with values added to some places of its last axis, each named once."""
        import pytensor.tensor as pt

        return pt.inc_subtensor(x[..., places], values)


class PyMC(Backend):
    """Random variables of the PyMC model in whose context it is used."""

    def __init__(self, table: Table, geometry: Geometry | None) -> None:
        super().__init__(table, geometry)
        self.xp = PyTensor()

    def draw(
        self, name: str, df: float | None, location: Any, scale: Any, dims: tuple[str, ...]
    ) -> Any:
        """Return a random variable of this name."""
        import pymc as pm

        if df is None:
            return pm.Normal(name, location, scale, dims=dims)
        return pm.StudentT(name, nu=df, mu=location, sigma=scale, dims=dims)

    def lognormal(self, name: str, mu: Any, sigma: Any, *dims: str) -> Any:
        """Declare a positive unknown; without a geometry it is a random variable of its own."""
        import pymc as pm

        if self.geometry is not None:
            return super().lognormal(name, mu, sigma, *dims)
        return self.deterministic(name, pm.LogNormal(name, mu, sigma, dims=dims), *dims)

    def deterministic(self, name: str, value: Any, *dims: str) -> Any:
        """Name what follows from random variables; a random variable has its name already."""
        import pymc as pm

        if getattr(value, "name", None) != name:
            pm.Deterministic(name, value, dims=dims)
        return super().deterministic(name, value, *dims)

    def observe(self, name: str, value: Any, nu: Any, mu: Any, sigma: Any, *dims: str) -> None:
        """Declare the likelihood."""
        import pymc as pm

        pm.StudentT(name, nu=nu, mu=mu, sigma=sigma, observed=value, dims=dims)


def build(table: Table, priors: Priors, geometry: Geometry | None) -> Any:
    """Return the PyMC model of a table; its observed variable is ``log_loss`` over dim ``run``."""
    import pymc as pm

    # Scales are exponentials: checking that they are positive would double the compiled model.
    with pm.Model(coords=table.coords, check_bounds=False) as model:
        hierarchy(PyMC(table, geometry), table, priors)
    return model


def pymc_model(
    runs: pd.DataFrame | str | Path | Sequence[str | Path],
    *,
    law: str = "rectified",
    factors: Sequence[str] | None = None,
    data: str = "finetune_examples",
    cell: Sequence[str] | None = None,
    curve: str = "base_model",
    priors: str | Path = "weak",
    geometry: bool = True,
) -> Any:
    """Return the hierarchical model of a run table as a PyMC model.

    Parameters
    ----------
    runs : DataFrame, path, or name of an embedded table
        What `tunecast.models.read_runs` takes.
    law : str
        A name in `tunecast.models.LAWS`.
    factors, data, cell, curve
        As `tunecast.models.fit` takes them.
    priors : str or path
        ``weak``, ``zhang2024`` or a CSV file.
    geometry : bool
        Whether unknowns are sampled in coordinates that suit the runs, each made of a free variable
        ``<name>_raw``, so that ``pm.sample`` gets somewhere. Without, the free variables are the
        unknowns, in the centred form of a textbook: the same posterior, and a graph to look at.

    Returns
    -------
    pymc.Model
        Its coords are the labels of cells, curves, base models, tasks, factors and runs. Named are
        the law's parameters of each cell in the papers' units (``A``, ``E``, ``alpha``, ``beta``,
        ``D_l`` where the law has one), every unknown, ``expected_log_loss`` and ``noise``. Observed
        is ``log_loss``.

    Raises
    ------
    TunecastError
        When table or options are at fault; one sentence for each fault.

    Examples
    --------
    A term of one's own, here that no cell's irreducible loss is likely to exceed 3 nats:

    >>> import pymc as pm
    >>> from tunecast.models import pymc_model
    >>> with pymc_model("ladder") as model:
    ...     term = pm.Potential("low_floor", pm.logp(pm.HalfNormal.dist(1.5), model["E"]).sum())
    """
    ask: dict[str, Any] = {"factors": factors, "data": data, "cell": cell, "curve": curve}
    used = usable(checked_runs(runs, law=law, **ask), data)
    table, rows = index_runs(used, spec_of(used, law=law, **ask)), get_priors(priors)
    return build(table, rows, geometry_of(table, rows) if geometry else None)
