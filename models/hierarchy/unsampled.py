"""Draws of deviations that the model does not sample: those of curves of one run.

Given all that is sampled, the residual of a run that is alone on its curve is the sum of the
curve's deviation, of that of its slope and of noise. Deviations are drawn as if all were normal:
exact where tails are, and never narrower than what the run tells.
"""

from __future__ import annotations

import numpy as np

from tunecast.models.hierarchy.numpy_backends import Replay

SEED = 5


def complete(found: Replay) -> Replay:
    """Give every curve and base model its deviation, those of one run too; return the replay."""
    table, values = found.table, found.values
    if table.repeated.every:
        return found
    run = np.flatnonzero(table.run_alone)
    curve = table.run_curve[run]
    left = table.log_loss[run] - values["expected_log_loss"][:, run]
    sd = values["alone_sd"][:, run]
    share = (sd / values["scale"][:, run]) ** 2
    z = np.random.default_rng(SEED).standard_normal(left.shape)
    deviation = share * left + sd * np.sqrt(1.0 - share) * z
    if table.one_curve_per_base_model:
        effect = np.zeros((len(left), len(table.base_models)))
        if table.repeated_base.some:
            effect[:, table.repeated_base.curves] = values["base_model_effect"]
        effect[:, table.curve_base[curve]] = deviation
        found.deterministic("base_model_effect", effect, "base_model")
        return found
    loss = values["log_loss_ref_curve_or_mean"].copy()
    loss[:, curve] += deviation
    found.deterministic("log_loss_ref_curve", loss, "curve")
    return found
