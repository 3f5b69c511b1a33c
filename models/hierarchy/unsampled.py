"""Draws of deviations that the model does not sample: those of curves of one run.

Given all that is sampled, the residual of a run that is alone on its curve is the sum of the
curve's deviation, of that of its slope and of noise. The first is drawn given that sum as if all
three were normal, which they are but for their tails; a forecast draws that of the slope from what
is expected of any curve.
"""

from __future__ import annotations

import numpy as np

from tunecast.models.hierarchy.backend import Backend

SEED = 5


def complete[B: Backend](found: B) -> B:
    """Give every curve and base model its deviation, those of one run too; return the same.

    Parameters
    ----------
    found : Backend
        Draws of everything that is sampled; given the runs of the table or, of simulated ones,
        given those.
    """
    table, values = found.table, found.values
    if table.repeated.every:
        return found
    run = np.flatnonzero(table.run_alone)
    curve = table.run_curve[run]
    log_loss = values.get("log_loss", table.log_loss)
    left = log_loss[..., run] - values["expected_log_loss"][:, run]
    sd = values["alone_sd"][:, run]
    share = (sd / values["scale"][:, run]) ** 2
    z = np.random.default_rng(SEED).standard_normal(left.shape)
    deviation = share * left + sd * np.sqrt(1.0 - share) * z
    of_one = table.one_curve_per_base_model
    if of_one:
        effect = np.zeros((len(left), len(table.base_models)))
        if table.repeated_base.some:
            effect[:, table.repeated_base.curves] = values["base_model_effect"]
        effect[:, table.curve_base[curve]] = deviation
        found.deterministic("base_model_effect", effect, "base_model")
    loss = values["log_loss_ref_curve" if of_one else "log_loss_ref_curve_or_mean"].copy()
    loss[:, curve] += deviation
    found.deterministic("log_loss_ref_curve", loss, "curve")
    return found
