"""Prior tables: what is believed of every unknown before any run is seen.

The rows of a law's quantities stand where the quantities are declared: those that laws share in
`tunecast.models.laws.quantities`, those of one law beside it in `tunecast.models.laws.catalogue`.
Here are the others, of base models, noise and drift, and the tables that users can name. A table is
data: one row for each quantity, no code. Users override rows from a CSV file.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tunecast.models.errors import TunecastError
from tunecast.models.laws import LAWS
from tunecast.models.laws.published import PRINTED
from tunecast.models.laws.quantities import NO_SD, Prior

# Log-scale standard deviation of every learned scale: two thirds lie within a factor of 1.65. A
# log-normal keeps scales off zero, where hierarchical posteriors have their funnels.
SCALE_SPREAD = 0.5

# The same for the scatter of curves in log loss, of which tables say from 0.003 to 0.06.
LOSS_SCATTER_SPREAD = 1.0

# Degrees of freedom of what a base model and its curve add to log loss, one Student-t for both:
# heavy enough for a checkpoint that trained badly, or that is of its family by name alone, so that
# one of them does not widen the forecasts for all others.
BASE_MODEL_DF = 4.0

# What no run's noise goes below: rounding and the last shuffle of the data remain, and a posterior
# of noise that tends to 0 cannot be sampled.
LEAST_NOISE = 5e-4

type Priors = Mapping[str, Prior]

# For base_model, noise and drift, location and scale are of the logarithm of a positive scale.
# Base-model effects (scale of a Student-t) are 0.0045 by the held-out errors of arXiv:2402.17193,
# 0.004 in the embedded ladder without its largest size, 0.02 in the runs of Lin et al. 2024, as
# `tunecast.models.laws.quantities.LOG_LOSS_REF` says of curves.
WEAK: Priors = {
    **{q.name: q.prior for law in LAWS.values() for q in law.quantities},
    "base_model": Prior(math.log(0.007), 1.0, NO_SD, NO_SD, "log scale of base-model effects"),
    "noise": Prior(math.log(0.005), 1.0, 0.5, 0.7, "log sd of a run's log loss"),
    "noise_df": Prior(math.log(5.0), 0.8, NO_SD, NO_SD, "log of Student-t degrees of freedom - 2"),
    "drift_task": Prior(math.log(0.01), 0.5, NO_SD, NO_SD, "log slope drift per doubling, task"),
    "drift_curve": Prior(math.log(0.005), 0.5, NO_SD, NO_SD, "log slope drift per doubling, curve"),
}


def _moments(values: tuple[float, ...]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def _informed_by_zhang() -> Priors:
    """Centre alpha and log beta on the published cells; their spread becomes the cells' spread."""
    alpha, alpha_sd = _moments(tuple(row.alpha_m for row in PRINTED.values()))
    log_beta, log_beta_sd = _moments(tuple(math.log(row.beta) for row in PRINTED.values()))
    cells = math.sqrt(len(PRINTED))
    return {
        **WEAK,
        # The global mean is known as well as nine cells can tell it, doubled for other set-ups.
        "alpha": replace(
            WEAK["alpha"], location=alpha, scale=2 * alpha_sd / cells, effect=alpha_sd / 2
        ),
        "log_beta": replace(
            WEAK["log_beta"],
            location=log_beta,
            scale=2 * log_beta_sd / cells,
            effect=log_beta_sd / 2,
        ),
    }


PRIORS: dict[str, Priors] = {"weak": WEAK, "zhang2024": _informed_by_zhang()}


def get_priors(name: str | Path) -> Priors:
    """Return a prior table by name, or `WEAK` with the rows of a CSV file put in its place.

    The file has the columns ``quantity, location, scale, effect, scatter``; an empty cell keeps
    the default of ``weak``.

    Raises
    ------
    TunecastError
        One sentence: no such table or file, an unknown quantity, a value that is not a number of
        the kind expected, or one that the model has no use for.
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
        for field in new:
            if math.isnan(getattr(old, field)):
                raise TunecastError(
                    f"priors file '{path}': '{quantity}' has no {field} in the model, got "
                    f"{new[field]:g}, expected an empty cell"
                )
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
