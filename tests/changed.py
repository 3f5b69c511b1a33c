"""A fit of which some draws are put in the place of its own, so that an answer is known."""

import copy
from dataclasses import replace

import numpy as np

from tunecast.models.fits.fit import Fit


def with_values(fit: Fit, **changes: np.ndarray) -> Fit:
    """Return the fit of one law with draws of these unknowns, by name, in the place of its own."""
    (posterior,) = fit.posteriors
    replayed = copy.copy(posterior.replayed)
    assert changes.keys() <= replayed.values.keys()
    replayed.values = {**replayed.values, **changes}
    changed = replace(posterior)
    changed.__dict__["replayed"] = replayed
    return replace(fit, posteriors=(changed,))


def lowered(fit: Fit, method: str, by: float = 20.0) -> Fit:
    """Return the fit with every curve of a method ``by`` lower in log loss, in every draw."""
    (posterior,) = fit.posteriors
    table, values = posterior.table, posterior.values
    (grouping,) = (g for g in table.groupings if g.column == "method")
    cells = np.array([method in cell for cell in table.cells])
    effect = values["log_loss_ref_method"] - by * (np.array(grouping.levels) == method)
    curve = values["log_loss_ref_curve"] - by * cells[table.curve_cell]
    return with_values(fit, log_loss_ref_method=effect, log_loss_ref_curve=curve)
