"""The same hierarchy of the rectified law the way it is first written down, to compare speeds.

Global mean, effects of the cell columns, deviations of curves, effects of base models: all as in
tunecast, but of log A, log beta, log E and log D_l themselves, every effect a standardised
deviation times its scale (non-centred), data and sizes in units of the middle of the table. Scales
have the same medians and spreads as tunecast's; the priors on the means are its own carried over as
far as the change of variables allows, so the two posteriors are close but not the same.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from tunecast.models.laws import get_law
from tunecast.models.layout import Layout
from tunecast.models.priors import DEVIATION_DF, EFFECT_SPREAD, WEAK

# Mean, standard deviation of it, sd between levels of a cell column, sd of curves around a cell.
PRIORS = {
    "log_A": (0.7, 1.0, 0.3, WEAK["level"].scatter),
    "log_beta": (math.log(0.1), 1.2, 1.0, 0.2),
    "log_E": (-0.6, 1.5, 0.5, 0.3),
    "log_D_l": (-6.0, 5.0, 2.0, 1.0),
    "alpha": (0.15, 0.2, 0.1, math.nan),
}


def plain_model(layout: Layout) -> Any:
    """Return the PyMC model of a table with one factor; log E and log beta of curves are named."""
    law = get_law("rectified")
    (factor,) = layout.question.factors
    log_d = layout.log_u + np.log(2) * layout.log2_d_ref[layout.curve_cell][layout.row_curve]
    log_d = log_d - np.median(log_d)
    n_curves, at = len(layout.curve_cell), layout.row_curve

    def positive(name: str, median: float) -> Any:
        return median * pt.exp(EFFECT_SPREAD * pm.Normal(name, 0, 1))

    with pm.Model() as model:
        curve: dict[str, Any] = {}
        for name, (location, scale, effect, scatter) in PRIORS.items():
            cell = location + scale * pm.Normal(f"global_{name}", 0, 1)
            for column in layout.columns:
                sd = positive(f"sd_{column.name}_{name}", effect)
                z = pm.Normal(f"effect_{column.name}_{name}", 0, 1, shape=len(column.levels))
                cell = cell + sd * z[column.index]
            curve[name] = cell[layout.curve_cell] if layout.columns else cell
            if not math.isnan(scatter):
                sd = positive(f"scatter_{name}", scatter)
                curve[name] = curve[name] + sd * pm.Normal(f"curve_{name}", 0, 1, shape=n_curves)
        pm.Deterministic("log_E", curve["log_E"])
        pm.Deterministic("log_beta", curve["log_beta"])
        row = WEAK["base_effect"]
        base_sd = pt.exp(row.location + row.scale * pm.Normal("base_sd", 0, 1))
        base = base_sd * pm.StudentT(
            "base_effect", nu=DEVIATION_DF, mu=0, sigma=1, shape=len(layout.base_models)
        )
        row = WEAK["noise"]
        noise = row.location + row.scale * pm.Normal("noise_global", 0, 1)
        noise = noise + row.effect * pm.Normal("noise_task", 0, 1, shape=len(layout.tasks))
        noise = noise[layout.curve_task] + row.scatter * pm.Normal(
            "noise_curve", 0, 1, shape=n_curves
        )
        tail = WEAK["noise_df"]
        df = 2 + pt.exp(tail.location + tail.scale * pm.Normal("noise_df", 0, 1))
        loss = law(
            np.exp(log_d),
            {factor: np.exp(layout.curve_x[at, 0])},
            A=pt.exp(curve["log_A"])[at],
            alpha={factor: curve["alpha"][at]},
            beta=pt.exp(curve["log_beta"])[at],
            E=pt.exp(curve["log_E"])[at],
            D_l=pt.exp(curve["log_D_l"])[at],
        )
        pm.StudentT(
            "log_loss",
            nu=df,
            mu=pt.log(loss) + base[layout.curve_base][at],
            sigma=pt.exp(noise)[at],
            observed=layout.log_loss,
        )
    return model
