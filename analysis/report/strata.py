"""Strata: the groups of runs within which methods are compared, and how far each may be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tunecast.models import Fit
from tunecast.models.hierarchy.table import Spec

# How far beyond the runs a report can be asked.
DATA_BELOW, DATA_BEYOND = 10.0, 1000.0
FACTOR_BELOW, FACTOR_BEYOND = 10.0, 100.0


@dataclass(frozen=True)
class Stratum:
    """The runs of a task that agree in all columns of a cell but the method.

    Parameters
    ----------
    labels : mapping of str to str
        The column ``task`` and all columns of a cell but ``method``.
    methods : tuple of str
        Methods with runs in this stratum; one empty name where cells do not tell methods apart.
    low, high : float
        Smallest and largest data size of its runs.
    largest : tuple of float
        Largest value of each factor among them.
    runs : int
        How many there are.
    """

    labels: Mapping[str, str]
    methods: tuple[str, ...]
    low: float
    high: float
    largest: tuple[float, ...]
    runs: int

    @property
    def name(self) -> str:
        """The labels, for people."""
        return " / ".join(self.labels.values())

    @property
    def asked(self) -> tuple[float, float]:
        """Smallest and largest data size that can be asked about."""
        return self.low / DATA_BELOW, self.high * DATA_BEYOND

    def cell(self, spec: Spec, method: str) -> tuple[str, ...]:
        """Return the cell of a method in this stratum."""
        return tuple(method if c == "method" else self.labels[c] for c in spec.cell)


@dataclass(frozen=True)
class FactorRange:
    """How far a factor was seen, and how far it can be asked about: smallest and largest value."""

    name: str
    seen: tuple[float, float]
    asked: tuple[float, float]


def factors_of(fit: Fit) -> tuple[FactorRange, ...]:
    """Return the ranges of the factors over all runs of a fit."""
    found = []
    for name in fit.spec.factors:
        values = fit.runs[name].astype(float)
        low, high = float(values.min()), float(values.max())
        found.append(FactorRange(name, (low, high), (low / FACTOR_BELOW, high * FACTOR_BEYOND)))
    return tuple(found)


def strata_of(fit: Fit) -> tuple[Stratum, ...]:
    """Return the strata that the runs of a fit have, in the order of their names."""
    spec = fit.spec
    names = list(dict.fromkeys(("task", *(c for c in spec.cell if c != "method"))))
    found = []
    labels = fit.runs[names].astype(str)
    for _, rows in fit.runs.groupby([labels[n] for n in names], sort=True):
        methods = tuple(sorted(rows["method"].astype(str).unique()))
        size = rows[spec.data].astype(float)
        found.append(
            Stratum(
                labels.loc[rows.index[0]].to_dict(),
                methods if "method" in spec.cell else ("",),
                float(size.min()),
                float(size.max()),
                tuple(float(rows[f].max()) for f in spec.factors),
                len(rows),
            )
        )
    return tuple(found)
