"""Prior tables: what is believed about A, E, alpha and beta before any run is seen.

The hierarchy works in coordinates that a table of runs determines well, each tied to the law's
parameters by an exact map (see `tunecast.models.hierarchy`):

* ``level``: log of the loss at the reference point, log nats per target token;
* ``share``: logit of the irreducible share ``E / L`` at the reference point;
* ``rate``: ``log beta``;
* ``alpha``: exponent of a factor in what data can reduce;
* ``gamma``: exponent of a factor in the whole loss, E included, beyond what alpha does to it;
* ``delta``: exponent of a factor in beta, which falls as ``X^-delta``;
* ``onset``: logit of ``D_ref^beta / (D_l^beta + D_ref^beta)``, how far the power phase has begun;
* ``split``: log of a factor's part of the floor against ``E``'s (additive law alone).

A table is data: one row for each quantity, no code. Users override rows from a CSV file.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tunecast.models.errors import TunecastError
from tunecast.models.published import PRINTED

COORDINATES = ("level", "share", "rate", "alpha", "gamma", "delta", "onset", "split")


@dataclass(frozen=True, slots=True)
class Prior:
    """One row of a prior table.

    Parameters
    ----------
    location, scale : float
        Mean and standard deviation of a normal distribution; for ``scatter`` rows and for the
        noise and drift rows, of the logarithm of a positive scale.
    effect : float
        Median standard deviation between the levels of a cell column (tasks, methods, families),
        on the scale of the coordinate; learned, with a log-scale uncertainty of `EFFECT_SPREAD`.
    scatter : float
        Median standard deviation of a curve around its cell, likewise learned; in level, median
        scale of a Student-t with `DEVIATION_DF`, with a log-scale uncertainty of `LEVEL_SPREAD`.
    meaning : str
        One phrase for printed results.
    """

    location: float
    scale: float
    effect: float
    scatter: float
    meaning: str


# Log-scale standard deviation of every learned scale: two thirds lie within a factor of 1.65. A
# log-normal keeps scales off zero, where hierarchical posteriors have their funnels.
EFFECT_SPREAD = 0.5

# The same for the scatter of curves in level, of which runs say from 0.003 to 0.06 (below).
LEVEL_SPREAD = 1.0

# Degrees of freedom of what a base model and its curve add to log loss, one Student-t for both:
# heavy enough for a checkpoint that trained badly, or that is of its family by name alone, so that
# one of them does not widen the forecasts for all others.
DEVIATION_DF = 4.0

type PriorTable = Mapping[str, Prior]

_NONE = math.nan

# Scatter of curves in level and scale of base-model effects, both as scales of a Student-t: 0.0045
# each by the held-out errors of arXiv:2402.17193, Table 6 (standard deviations of 0.0065); 0.003
# and 0.004 in the embedded ladder without its largest size; 0.06 and 0.02 in the runs of Lin et al.
# 2024 up to 25,600 examples without the largest models, under priors twice as wide as these. Both
# rows lie in the middle, by logarithms.
WEAK: PriorTable = {
    "level": Prior(0.7, 1.0, 0.3, 0.009, "log loss at the reference point, log nats"),
    "share": Prior(-1.0, 2.0, 1.0, 0.3, "logit of the irreducible share E / L"),
    "rate": Prior(math.log(0.1), 1.2, 1.0, 0.2, "log beta"),
    "alpha": Prior(0.15, 0.2, 0.1, _NONE, "exponent of a factor"),
    "gamma": Prior(0.0, 0.02, 0.005, _NONE, "exponent of a factor in the whole loss"),
    "delta": Prior(0.0, 0.1, 0.05, _NONE, "exponent of a factor in beta"),
    "onset": Prior(1.0, 1.0, 0.4, 0.3, "logit of how far the power phase has begun"),
    "split": Prior(0.0, 1.0, 0.5, _NONE, "log of a factor's part of the floor against E's"),
    "base_effect": Prior(math.log(0.007), 1.0, _NONE, _NONE, "log scale of base-model effects"),
    "noise": Prior(math.log(0.005), 1.0, 0.5, 0.7, "log sd of a run's log loss"),
    "noise_df": Prior(math.log(5.0), 0.8, _NONE, _NONE, "log of Student-t degrees of freedom - 2"),
    "drift_task": Prior(math.log(0.01), 0.5, _NONE, _NONE, "log slope drift per doubling, task"),
    "drift_curve": Prior(math.log(0.005), 0.5, _NONE, _NONE, "log slope drift per doubling, curve"),
}


def _moments(values: tuple[float, ...]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def _informed_by_zhang() -> PriorTable:
    """Centre alpha and log beta on the published cells; their spread becomes the cells' spread."""
    alpha, alpha_sd = _moments(tuple(row.alpha_m for row in PRINTED.values()))
    rate, rate_sd = _moments(tuple(math.log(row.beta) for row in PRINTED.values()))
    cells = math.sqrt(len(PRINTED))
    return {
        **WEAK,
        # The global mean is known as well as nine cells can tell it, doubled for other set-ups.
        "alpha": replace(
            WEAK["alpha"], location=alpha, scale=2 * alpha_sd / cells, effect=alpha_sd / 2
        ),
        "rate": replace(WEAK["rate"], location=rate, scale=2 * rate_sd / cells, effect=rate_sd / 2),
    }


PRIORS: dict[str, PriorTable] = {"weak": WEAK, "zhang2024": _informed_by_zhang()}


def get_priors(name: str | Path) -> PriorTable:
    """Return a prior table by name, or `WEAK` with the rows of a CSV file put in its place.

    The file has the columns ``quantity, location, scale, effect, scatter``; an empty cell keeps
    the default of ``weak``.

    Raises
    ------
    TunecastError
        One sentence: no such table or file, an unknown quantity, or a value that is not a number
        of the kind expected.
    """
    if str(name) in PRIORS:
        return PRIORS[str(name)]
    path = Path(name)
    if not path.is_file():
        raise TunecastError(
            f"unknown priors '{name}': expected one of {', '.join(PRIORS)}, or a CSV file"
        )
    table = dict(WEAK)
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TunecastError(f"priors file '{path}' cannot be read as CSV: {error}") from None
    for row in rows:
        quantity = row.get("quantity") or ""
        if quantity not in table:
            raise TunecastError(
                f"priors file '{path}': unknown quantity '{quantity}', "
                f"expected one of {', '.join(WEAK)}"
            )
        old = table[quantity]
        new = _numbers(row, quantity, path)
        table[quantity] = Prior(
            new.get("location", old.location),
            new.get("scale", old.scale),
            new.get("effect", old.effect),
            new.get("scatter", old.scatter),
            old.meaning,
        )
    return table


def _numbers(row: Mapping[str, str | None], quantity: str, path: Path) -> dict[str, float]:
    values: dict[str, float] = {}
    for field in ("location", "scale", "effect", "scatter"):
        text = (row.get(field) or "").strip()
        if not text:
            continue
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or (field != "location" and value <= 0):
            kind = "a number" if field == "location" else "a positive number"
            raise TunecastError(
                f"priors file '{path}': {field} of '{quantity}' is '{text}', expected {kind}"
            )
        values[field] = value
    return values
