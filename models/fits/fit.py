"""A fit of a run table: posterior draws, the runs behind them, diagnostics; asks are methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tunecast.models.checks.misfit import Misfit, in_brief, kept, misfits_in
from tunecast.models.checks.predictive import predictive_checks
from tunecast.models.checks.tables import table_checks
from tunecast.models.errors import TunecastError
from tunecast.models.fits.file import read_fit, write_fit
from tunecast.models.hierarchy.predict import Draws, Predictor
from tunecast.models.hierarchy.priors import get_priors
from tunecast.models.hierarchy.table import Spec, checked_runs, index_runs, spec_of, usable
from tunecast.models.hierarchy.targets import check_targets
from tunecast.models.inference.diagnostics import Diagnostics
from tunecast.models.inference.posterior import Posterior, spread_out
from tunecast.models.inference.sampling import CHAINS, DRAWS, TUNE, check_sampler, sample
from tunecast.models.inference.stacking import stacked
from tunecast.models.laws import get_law
from tunecast.models.planning.plans import Plan, plan
from tunecast.models.questions.compare import compare
from tunecast.models.questions.crossover import crossover
from tunecast.models.questions.forecast import forecast
from tunecast.models.runs import describe, digest

if TYPE_CHECKING:
    import xarray as xr

AUTO = "auto"


class UnconvergedError(TunecastError):
    """A fit that failed its diagnostics; the fit itself is in ``fit``."""

    def __init__(self, result: Fit) -> None:
        self.fit = result
        reasons = "; ".join(result.diagnostics.reasons)
        super().__init__(f"the fit did not converge: {reasons}")


@dataclass(frozen=True, repr=False)
class Fit:
    """What was learned from a run table; asks are methods, answers are tables.

    Parameters
    ----------
    posteriors : tuple of Posterior
        One for each law in use.
    runs : DataFrame
        The rows that were fitted.
    info : dict
        Law, columns, seed, data digest, counts of rows, misfits, versions.
    diagnostics : Diagnostics
        Of the sampling.

    Examples
    --------
    >>> from tunecast.models import load_fit
    >>> fit = load_fit("fit.nc")  # doctest: +SKIP
    >>> fit.forecast(targets)  # doctest: +SKIP
    """

    posteriors: tuple[Posterior, ...]
    runs: pd.DataFrame
    info: dict[str, Any]
    diagnostics: Diagnostics
    # Made when first asked for, so that a changed copy of a fit has none of another's.
    _predictors: dict[int, list[Predictor]] = field(default_factory=dict, init=False, compare=False)

    @property
    def misfits(self) -> tuple[Misfit, ...]:
        """Checks that the fit fails against its own table; see `tunecast.models.checks`."""
        return misfits_in(self.info)

    @property
    def widest(self) -> Posterior:
        """The law with the most factors."""
        return max(self.posteriors, key=lambda p: len(p.table.factors))

    @property
    def spec(self) -> Spec:
        """Columns that the fit uses (of the law with the most factors)."""
        return self.widest.table.spec

    def draws(self, targets: pd.DataFrame, *, seed: int | None = None) -> Draws:
        """Return posterior predictive draws for a table of targets.

        Parameters
        ----------
        targets : DataFrame
            Columns ``task, method, base_model``, the factors and the data size. Rows with an empty
            base model are all of one that is not seen yet.
        seed : int, optional
            Of all that is drawn anew; the fit's own unless given.

        Raises
        ------
        TunecastError
            When a column is missing or a number is not above 0.
        """
        seed = int(self.info["seed"]) if seed is None else seed
        ready = self.check_targets(targets)
        if seed not in self._predictors:
            self._predictors[seed] = [p.predictor(seed) for p in self.posteriors]
        parts = [p.draws(ready) for p in self._predictors[seed]]
        if len(parts) == 1:
            return parts[0]
        # As many as let each law have its share, of however many draws it kept.
        draws = min(int(p.size / p.weight) for p in self.posteriors)
        return mixed(parts, [p.share(draws) for p in self.posteriors])

    def forecast(self, targets: pd.DataFrame, *, seed: int | None = None) -> pd.DataFrame:
        """See `tunecast.models.questions.forecast.forecast`."""
        return forecast(self, targets, seed=seed)

    def compare(
        self,
        targets: pd.DataFrame,
        *,
        methods: Sequence[str] | None = None,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """See `tunecast.models.questions.compare.compare`."""
        return compare(self, targets, methods=methods, seed=seed)

    def crossover(self, a: str, b: str, **options: Any) -> pd.DataFrame:
        """See `tunecast.models.questions.crossover.crossover`."""
        return crossover(self, a, b, **options)

    def plan(self, candidates: pd.DataFrame, **options: Any) -> Plan:
        """See `tunecast.models.planning.plans.plan`."""
        return plan(self, candidates, **options)

    @property
    def laws(self) -> tuple[str, ...]:
        """Names of the laws in use."""
        return tuple(p.law for p in self.posteriors)

    def check_targets(self, targets: pd.DataFrame, *, who: str = "targets") -> pd.DataFrame:
        """See `tunecast.models.hierarchy.targets.check_targets`."""
        return check_targets(targets, self.widest.table, who)

    def cell_parameters(self) -> dict[tuple[str, ...], dict[str, np.ndarray]]:
        """Return draws of the published parameters of each cell, shape (draws,) each.

        Raises
        ------
        TunecastError
            When the fit has several laws, whose parameters are not the same.
        """
        if len(self.posteriors) > 1:
            raise TunecastError(
                f"the fit has the laws {', '.join(self.laws)}, whose parameters do not compare: "
                "expected a fit of one law"
            )
        (posterior,) = self.posteriors
        return {cell: posterior.parameters(k) for k, cell in enumerate(posterior.table.cells)}

    def thinned(self, draws: int) -> Fit:
        """Return the fit with at most so many posterior draws of each law, over all chains."""
        few = [p.taken(spread_out(p.size, draws)) if p.size > draws else p for p in self.posteriors]
        return replace(self, posteriors=tuple(few))

    def summary(self) -> pd.DataFrame:
        """Return posterior quantiles of A, E, alpha, beta and D_l of each cell, as papers print.

        And gamma and delta. With ``X_ref`` the table's median, what the law gives with the others
        is times ``(X / X_ref)^-gamma``, and beta is times ``(X / X_ref)^-delta``, about the middle
        of the cell's data sizes.

        Returns
        -------
        DataFrame
            Columns ``law``, the cell columns, ``parameter, unit, q05, q50, q95``.
        """
        rows = []
        for posterior in self.posteriors:
            table, law = posterior.table, posterior.table.law
            units = {p.name: p.unit for p in law.parameters}
            for k, cell in enumerate(table.cells):
                head = {"law": law.name, **dict(zip(table.spec.cell, cell, strict=True))}
                found = posterior.parameters(k) | posterior.factor_exponents(k)
                for name, values in found.items():
                    low, mid, high = np.quantile(values, [0.05, 0.5, 0.95])
                    unit = units.get(name.partition(":")[0], "")
                    rows.append(
                        head
                        | {"parameter": name, "unit": unit, "q05": low, "q50": mid, "q95": high}
                    )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        """Return a few lines: what was fitted, and whether to trust it."""
        return f"<tunecast fit of {self._what()}\n {self._state()}>"

    def _what(self) -> str:
        tables = [p.table for p in self.posteriors]
        curves, cells = len(tables[0].curve_cell), len(tables[0].cells)
        weights = ", ".join(f"{p.law} {p.weight:.2f}" for p in self.posteriors)
        law = weights if len(self.posteriors) > 1 else self.posteriors[0].law
        return (
            f"{len(self.runs)} runs: law {law}; {curves} curves in {cells} cells by "
            f"{', '.join(self.spec.cell)}"
        )

    def _state(self) -> str:
        d = self.diagnostics
        figures = (
            f"{d.draws} draws, R-hat at most {d.rhat_max:.3f}, ESS at least "
            f"{min(d.ess_bulk_min, d.ess_tail_min):.0f}, {d.divergences} divergences"
        )
        misfit = f"\n MISFIT by {in_brief(self.misfits)}" if self.misfits else ""
        if d.converged:
            return f"converged: {figures}{misfit}"
        return f"DID NOT CONVERGE ({'; '.join(d.reasons)}): {figures}{misfit}"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: what was fitted, whether to trust it, and parameters."""
        table = self.summary().to_html(index=False, float_format="{:.4g}".format)
        return f"<p><b>{escape(self._what())}</b></p><p>{escape(self._state())}</p>{table}"

    def to_datatree(self) -> xr.DataTree:
        """Return the fit as a DataTree that ArviZ reads; see `tunecast.models.fits.datatree`."""
        # xarray takes a while to import.
        from tunecast.models.fits.datatree import datatree_of

        return datatree_of(self.posteriors, self.runs, int(self.info["seed"]))

    def save(self, path: str | Path) -> None:
        """Write the fit to a netCDF file, whole or not at all.

        ``arviz.from_netcdf`` reads it as it is.

        Raises
        ------
        OSError
            When the file cannot be written; a file that was there stays as it was.
        """
        write_fit(path, self.posteriors, self.runs, self.info, self.diagnostics)


def mixed(parts: Sequence[Draws], picks: Sequence[np.ndarray]) -> Draws:
    """Return draws of several laws one below the other, some positions of each."""

    def of(name: str) -> np.ndarray:
        return np.concatenate([getattr(p, name)[i] for p, i in zip(parts, picks, strict=True)])

    beyond = np.max([p.extrapolation for p in parts], axis=0)
    return Draws(of("loss"), of("expected"), beyond, of("scale"), of("df"))


def load_fit(path: str | Path) -> Fit:
    """Return a saved fit; its forecasts equal those of the fit that was saved, byte for byte.

    Raises
    ------
    TunecastError
        When the file is missing, truncated, or not a fit.
    """
    return Fit(*read_fit(path))


def fit(
    runs: pd.DataFrame | str | Path | Sequence[str | Path],
    *,
    law: str = "rectified",
    factors: Sequence[str] | None = None,
    data: str = "finetune_examples",
    cell: Sequence[str] | None = None,
    curve: str = "base_model",
    priors: str | Path = "weak",
    draws: int = DRAWS,
    tune: int = TUNE,
    chains: int = CHAINS,
    seed: int = 0,
    progress: bool = True,
    allow_unconverged: bool = False,
    retry: bool = True,
    model: Any = None,
) -> Fit:
    """Fit the hierarchical model to a run table.

    Parameters
    ----------
    runs : DataFrame, path, or name of an embedded table
        What `tunecast.models.read_runs` takes.
    law : str
        A name in `tunecast.models.LAWS`, or ``auto``: all of them, weighted by their
        leave-future-out score.
    factors : sequence of str, optional
        Columns that serve as factors X; the model size unless given (none for a law without them).
    data : str
        Column that serves as the data axis D.
    cell : sequence of str, optional
        Columns whose combinations have parameters of their own; task and method unless given, and
        family too where there are several: their losses do not compare.
    curve : str
        Column that names the base model.
    priors : str or path
        ``weak``, ``zhang2024`` or a CSV file.
    draws, tune, chains, seed : int
        Of the sampler, for each chain.
    progress : bool
        Whether to show a progress bar.
    allow_unconverged : bool
        Return a fit that failed its diagnostics, marked, instead of raising.
    retry : bool
        Whether sampling ends early where its draws have converged, and a fit that fails is sampled
        once more, for twice as long with smaller steps.
    model : pymc.Model, optional
        What `tunecast.models.pymc_model` returned for the same runs and options, with terms of your
        own added. It is compiled by PyTensor to numba, which takes longer.

    Raises
    ------
    UnconvergedError
        When the fit fails its diagnostics and that is not allowed; it carries the fit.
    TunecastError
        When table or options are at fault; one sentence for each fault.

    Examples
    --------
    >>> from tunecast.models import fit
    >>> result = fit("ladder", progress=False)  # doctest: +SKIP
    """
    if law != AUTO:
        get_law(law)
    check_sampler(draws=draws, tune=tune, chains=chains)
    table = get_priors(priors)
    ask: dict[str, Any] = {"factors": factors, "data": data, "cell": cell, "curve": curve}
    frame = checked_runs(runs, law=None if law == AUTO else law, **ask)
    used = usable(frame, data)
    options = {"draws": draws, "tune": tune, "chains": chains, "seed": seed}
    posteriors: tuple[Posterior, ...]
    scores: dict[str, float] = {}
    if law == AUTO:
        if model is not None:
            raise TunecastError("law 'auto' fits several laws: a model of your own has one")
        posteriors, diagnostics, scores = stacked(used, ask, table, options, progress, retry)
    else:
        indexed = index_runs(used, spec_of(used, law=law, **ask))
        found = sample(indexed, table, **options, progress=progress, retry=retry, model=model)
        posteriors = (Posterior(indexed, table, found.draws, found.statistics),)
        diagnostics = found.diagnostics
    spec = max((p.table.spec for p in posteriors), key=lambda s: len(s.factors))
    done = frame[frame["status"] == "done"]
    info = {
        "law": law,
        "weights": {p.law: p.weight for p in posteriors},
        "leave_future_out": scores,
        "factors": list(spec.factors),
        "data": data,
        "cell": list(spec.cell),
        "curve": curve,
        "priors_name": str(priors),
        **options,
        "digest": digest(frame),
        "counts": {"used": len(used), "zero_shot": len(done) - len(used), **describe(frame)},
        "simulated": bool((used["origin"] == "simulated").any()) if "origin" in used else False,
        "misfits": kept((*table_checks(used, spec), *predictive_checks(posteriors))),
        "versions": _versions(),
    }
    result = Fit(posteriors, used, info, diagnostics)
    if not diagnostics.converged and not allow_unconverged:
        raise UnconvergedError(result)
    return result


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("tunecast", "pymc", "nutpie", "numpy", "arviz")}
