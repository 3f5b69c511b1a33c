"""A fit: posterior draws, the rows behind them, diagnostics, and the file that keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.files import write_atomically
from tunecast.models.hierarchy import Belief, log_sigmoid, replay
from tunecast.models.laws import get_law
from tunecast.models.layout import Layout, Question, lay_out
from tunecast.models.predict import Draws, Predictor, check_targets, spread_out
from tunecast.models.priors import Prior, PriorTable

if TYPE_CHECKING:
    import xarray as xr

    from tunecast.models.design import Plan

FORMAT = 5


@dataclass(frozen=True)
class Diagnostics:
    """How well the chains agree, the worst over all unknowns.

    Parameters
    ----------
    rhat_max : float
        Rank-normalised split R-hat.
    ess_bulk_min, ess_tail_min : float
        Effective sample sizes.
    divergences : int
        Divergent transitions after warm-up.
    bfmi_min : float
        Bayesian fraction of missing information (energy), the lowest chain.
    draws : int
        Draws over all chains.
    """

    rhat_max: float
    ess_bulk_min: float
    ess_tail_min: float
    divergences: int
    bfmi_min: float
    draws: int

    @property
    def reasons(self) -> tuple[str, ...]:
        """What fails, one phrase each; empty when the fit converged."""
        from tunecast.models import inference as limits

        found = []
        # Written so that a NaN fails too.
        if not self.rhat_max <= limits.RHAT_LIMIT:
            found.append(f"R-hat {self.rhat_max:.3f} is above {limits.RHAT_LIMIT}")
        for name, value in (("bulk", self.ess_bulk_min), ("tail", self.ess_tail_min)):
            if not value >= limits.ESS_LIMIT:
                found.append(f"{name} ESS {value:.0f} is below {limits.ESS_LIMIT}")
        if not self.divergences <= limits.DIVERGENCE_LIMIT * self.draws:
            found.append(f"{self.divergences} of {self.draws} draws diverged")
        if not self.bfmi_min >= limits.BFMI_LIMIT:
            found.append(f"energy BFMI {self.bfmi_min:.2f} is below {limits.BFMI_LIMIT}")
        return tuple(found)

    @property
    def converged(self) -> bool:
        """Whether nothing fails."""
        return not self.reasons


class UnconvergedError(RuntimeError):
    """A fit that failed its diagnostics; the fit itself is in ``fit``."""

    def __init__(self, result: Fit) -> None:
        self.fit = result
        reasons = "; ".join(result.diagnostics.reasons)
        super().__init__(f"the fit did not converge: {reasons}")


@dataclass(frozen=True)
class Member:
    """One law's posterior and its weight in the fit (1 unless the law was ``auto``)."""

    layout: Layout
    priors: PriorTable
    posterior: Mapping[str, np.ndarray]
    weight: float

    @cached_property
    def belief(self) -> Belief:
        """Every quantity of the hierarchy, for each draw."""
        return replay(self.layout, self.priors, self.posterior)

    def rows(self, draws: int) -> np.ndarray:
        """Return positions of the draws that stand for the law where all laws have ``draws``."""
        size = len(self.belief.base_sd)
        return spread_out(size, max(round(self.weight * draws), 1))

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "belief"}


@dataclass(frozen=True)
class Fit:
    """What was learned from a run table; asks are methods, answers are tables.

    Parameters
    ----------
    members : tuple of Member
        One for each law in use.
    runs : DataFrame
        The rows that were fitted.
    info : dict
        Law, columns, seed, data digest, counts of rows, versions.
    diagnostics : Diagnostics
        Of the sampling.
    """

    members: tuple[Member, ...]
    runs: pd.DataFrame
    info: dict[str, Any]
    diagnostics: Diagnostics
    _predictors: dict[int, list[Predictor]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def question(self) -> Question:
        """Columns that the fit uses (of its first law)."""
        return max((m.layout.question for m in self.members), key=lambda q: len(q.factors))

    def draws(self, targets: pd.DataFrame, *, seed: int | None = None) -> Draws:
        """Return predictive draws for a table of targets.

        Parameters
        ----------
        targets : DataFrame
            Columns ``task, method, base_model`` (empty: unseen), the factors and the data size.
        seed : int, optional
            Of all that is drawn anew; the fit's own unless given.

        Raises
        ------
        TunecastError
            When a column is missing or a number is not above 0.
        """
        seed = self.info["seed"] if seed is None else seed
        ready = check_targets(targets, self.widest.layout)
        if seed not in self._predictors:
            self._predictors[seed] = [
                Predictor(m.layout, m.priors, m.belief, seed) for m in self.members
            ]
        parts = [p.draws(ready) for p in self._predictors[seed]]
        if len(parts) == 1:
            return parts[0]
        picks = [
            spread_out(len(p.loss), round(m.weight * len(p.loss)))
            for p, m in zip(parts, self.members, strict=True)
        ]
        return Draws(
            np.concatenate([p.loss[i] for p, i in zip(parts, picks, strict=True)]),
            np.concatenate([p.expected[i] for p, i in zip(parts, picks, strict=True)]),
            np.max([p.extrapolation for p in parts], axis=0),
            np.concatenate([p.scale[i] for p, i in zip(parts, picks, strict=True)]),
            np.concatenate([p.df[i] for p, i in zip(parts, picks, strict=True)]),
        )

    @property
    def widest(self) -> Member:
        """The law with the most factors."""
        return max(self.members, key=lambda m: len(m.layout.question.factors))

    def forecast(self, targets: pd.DataFrame, *, seed: int | None = None) -> pd.DataFrame:
        """See `tunecast.models.questions.forecast`."""
        from tunecast.models.questions import forecast

        # mypy reads this file under two names, and so takes Fit for two classes.
        return forecast(self, targets, seed=seed)  # type: ignore[arg-type]

    def compare(
        self,
        targets: pd.DataFrame,
        *,
        methods: Sequence[str] | None = None,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """See `tunecast.models.questions.compare`."""
        from tunecast.models.questions import compare

        return compare(self, targets, methods=methods, seed=seed)  # type: ignore[arg-type]

    def crossover(self, a: str, b: str, **options: Any) -> pd.DataFrame:
        """See `tunecast.models.questions.crossover`."""
        from tunecast.models.questions import crossover

        return crossover(self, a, b, **options)  # type: ignore[arg-type]

    def plan(self, candidates: pd.DataFrame, **options: Any) -> Plan:
        """See `tunecast.models.design.plan`."""
        from tunecast.models.design import plan

        return plan(self, candidates, **options)  # type: ignore[arg-type]

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
        for member in self.members:
            question = member.layout.question
            law = get_law(question.law)
            units = {p.name: p.unit for p in law.parameters}
            for k, cell in enumerate(member.layout.cells):
                found = published_parameters(member, k)
                found |= {
                    name: values[:, k]
                    for name, values in member.belief.cell.items()
                    if name.startswith(("gamma", "delta"))
                }
                for name, values in found.items():
                    low, mid, high = np.quantile(values, [0.05, 0.5, 0.95])
                    head = {"law": law.name, **dict(zip(question.cell, cell, strict=True))}
                    unit = units.get(name.partition(":")[0], "")
                    rows.append(
                        head
                        | {"parameter": name, "unit": unit, "q05": low, "q50": mid, "q95": high}
                    )
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the question, whether to trust it, and the parameters."""
        question, d = self.question, self.diagnostics
        state = "converged" if d.converged else f"DID NOT CONVERGE: {'; '.join(d.reasons)}"
        told = (
            f"{len(self.runs)} runs, law {self.info.get('law', question.law)}, "
            f"cells by {', '.join(question.cell)}; {state}"
        )
        table = self.summary().to_html(index=False, float_format="{:.4g}".format)
        return f"<p><b>{escape(told)}</b></p>{table}"

    def save(self, path: str | Path) -> None:
        """Write the fit to a netCDF file, whole or not at all.

        Raises
        ------
        OSError
            When the file cannot be written; a file that was there stays as it was.
        """
        write_atomically(path, self._write)

    def _write(self, path: Path) -> None:
        import xarray as xr

        groups: dict[str, xr.Dataset] = {"runs": _frame_to_dataset(self.runs)}
        for i, member in enumerate(self.members):
            groups[f"member_{i}"] = _posterior_to_dataset(member)
        tree = xr.DataTree.from_dict(groups)
        heads = [
            {
                "question": asdict(m.layout.question),
                "weight": m.weight,
                "priors": {k: asdict(v) for k, v in m.priors.items()},
            }
            for m in self.members
        ]
        tree.attrs["tunecast"] = json.dumps(
            {
                "format": FORMAT,
                "info": self.info,
                "diagnostics": asdict(self.diagnostics),
                "members": heads,
                "columns": list(self.runs.columns),
            }
        )
        tree.attrs["tunecast_format"] = FORMAT
        # In memory first: HDF5 that meets a full disk half-way can end the whole process.
        path.write_bytes(bytes(tree.to_netcdf(engine="h5netcdf")))


def load_fit(path: str | Path) -> Fit:
    """Return a saved fit; its forecasts equal those of the fit that was saved, byte for byte.

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
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        if isinstance(error, TunecastError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TunecastError(f"'{path}' is not a whole fit file: {reason}") from None


def _read(path: Path) -> Fit:
    import h5netcdf

    with h5netcdf.File(path, "r") as file:
        text = file.attrs.get("tunecast")
        if text is None:
            raise TunecastError(f"'{path}' is not a tunecast fit file")
        head = json.loads(text)
        if head["format"] != FORMAT:
            raise TunecastError(
                f"'{path}' has fit format {head['format']}, this version reads {FORMAT}: fit again"
            )
        runs = _frame_from_group(file["runs"], head["columns"])
        members = []
        for i, part in enumerate(head["members"]):
            group = file[f"member_{i}"]
            posterior = {name: np.asarray(group[name][...]) for name in group.variables}
            asked = part["question"]
            question = Question(
                asked["law"],
                tuple(asked["factors"]),
                asked["data"],
                tuple(asked["cell"]),
                asked["curve"],
            )
            priors = {k: Prior(**v) for k, v in part["priors"].items()}
            members.append(Member(lay_out(runs, question), priors, posterior, part["weight"]))
    return Fit(tuple(members), runs, head["info"], Diagnostics(**head["diagnostics"]))


def _posterior_to_dataset(member: Member) -> xr.Dataset:
    import xarray as xr

    return xr.Dataset(
        {
            name: (("draw", *(f"{name}_{i}" for i in range(v.ndim - 1))), v)
            for name, v in member.posterior.items()
        }
    )


def _frame_to_dataset(frame: pd.DataFrame) -> xr.Dataset:
    import xarray as xr

    columns = {}
    for name in frame:
        values = frame[name]
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            # Whole numbers stay whole: as a label, 7 must not come back as 7.0.
            whole = pd.api.types.is_integer_dtype(values) and not values.hasnans
            columns[str(name)] = ("run", values.to_numpy(np.int64 if whole else float))
        else:
            text = values.astype(object).where(values.notna(), "").astype(str)
            columns[str(name)] = ("run", text.to_numpy(object))
    return xr.Dataset(columns)


def _frame_from_group(group: Any, columns: Sequence[str]) -> pd.DataFrame:
    data = {}
    for name in columns:
        values = np.asarray(group[name][...])
        if values.dtype.kind == "O":
            values = np.array(
                [v.decode() if isinstance(v, bytes) else str(v) for v in values], dtype=object
            )
        data[name] = values
    return pd.DataFrame(data)


def published_parameters(member: Member, k: int) -> dict[str, np.ndarray]:
    """Parameters of cell ``k`` in the papers' spelling, each of shape (draws,)."""
    layout, belief = member.layout, member.belief
    question = layout.question
    law = get_law(question.law)
    own = {name: values[:, k] for name, values in belief.cell.items()}
    beta = np.exp(own["rate"])
    reducible = np.exp(own["level"] + log_sigmoid(-own["share"], np))
    floor = np.exp(own["level"] + log_sigmoid(own["share"], np))
    parameters: dict[str, Any] = {"beta": beta, "E": floor}
    factors = question.factors if law.has("alpha") else ()
    if factors:
        parameters["alpha"] = {f: own[f"alpha:{f}"] for f in factors}
    if law.has("B"):
        parts = {f: np.exp(own[f"split:{f}"]) for f in factors}
        unit = floor / (1 + sum(parts.values(), np.zeros_like(floor)))
        parameters |= {"B": reducible, "E": unit, "A": {f: unit * p for f, p in parts.items()}}
    else:
        parameters["A"] = reducible
    if law.has("D_l"):
        with np.errstate(over="ignore"):  # beta near 0 puts D_l beyond any number, honestly
            parameters["D_l"] = np.exp(-own["onset"] / beta)
        # The decay at the reference point is 1 / (D_l^beta + 1), not 1.
        parameters["A"] = parameters["A"] * (1 + np.exp(-own["onset"]))
    d_ref = 2.0 ** layout.log2_d_ref[k]
    x_ref = dict(zip(question.factors, layout.x_ref, strict=True))
    with np.errstate(over="ignore"):
        published = law.to_published(d_ref, x_ref, **parameters)
    flat: dict[str, np.ndarray] = {}
    for name, value in published.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}:{f}": v for f, v in value.items()}
        else:
            flat[name] = value
    return flat
