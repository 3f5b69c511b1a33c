"""What the tests of plans share: a fit, runs that could be made, and where the answer is wanted."""

from collections.abc import Callable
from dataclasses import replace

import pandas as pd
from conftest import INFO, SMALL

from tunecast.models.design import PlannableFit, plannable
from tunecast.models.fits import Diagnostics, Fit
from tunecast.models.priors import WEAK, PriorTable
from tunecast.models.questions import targets_grid
from tunecast.models.runs import read_runs

TASK = "debian-en-de"
METHODS = ["fmt", "lora", "prompt"]
TARGETS = pd.DataFrame({"task": [TASK], "model_size": [4e6], "finetune_examples": [6e3]})
UNCONVERGED = Diagnostics(1.2, 9.0, 9.0, 0, 1.0, 200)


def ladder_fit(
    believed: Callable[..., Fit], size: int = 400, priors: PriorTable = WEAK
) -> PlannableFit:
    """The small ladder with draws of the prior in the place of a posterior."""
    fit = believed(read_runs(SMALL), size=size, priors=priors)
    return plannable(replace(fit, info=INFO))


def candidate_pool() -> pd.DataFrame:
    """Runs of each method on two sizes not seen yet, the second that of the target."""
    return targets_grid(
        [TASK], METHODS, model_size=[2e6, 4e6], finetune_examples=[200.0, 1000.0, 5000.0]
    )
