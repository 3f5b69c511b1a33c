"""What the tests of plans share: a fit, runs that could be made, and where the answer is wanted."""

from collections.abc import Callable
from dataclasses import replace

import pandas as pd
from conftest import INFO, SMALL

from tunecast.models.fits.fit import Fit
from tunecast.models.hierarchy.priors import WEAK, Priors
from tunecast.models.inference.diagnostics import Diagnostics
from tunecast.models.runs import read_runs

TASK = "debian-en-de"
METHODS = ["fmt", "lora", "prompt"]
TARGETS = pd.DataFrame({"task": [TASK], "model_size": [4e6], "finetune_examples": [6e3]})
UNCONVERGED = Diagnostics(1.2, 9.0, 9.0, 0, 1.0, 200)

# Where checkpoints differ by far more than all else: their effects decide.
SHAKY: Priors = {
    **WEAK,
    "base_model": replace(WEAK["base_model"], location=2.0, scale=0.1),
    "log_loss_ref": replace(WEAK["log_loss_ref"], scale=0.1),
}


def ladder_fit(believed: Callable[..., Fit], size: int = 400, priors: Priors = WEAK) -> Fit:
    """The small ladder with draws of the prior in the place of a posterior."""
    fit = believed(read_runs(SMALL), size=size, priors=priors)
    return replace(fit, info=INFO)


def candidate_pool() -> pd.DataFrame:
    """Runs of each method on two sizes not seen yet, the second that of the target."""
    axes = {"model_size": [2e6, 4e6], "finetune_examples": [200.0, 1000.0, 5000.0]}
    grid = pd.MultiIndex.from_product([[TASK], METHODS, *axes.values()])
    return grid.to_frame(index=False, name=["task", "method", *axes])
