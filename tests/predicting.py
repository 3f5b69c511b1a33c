"""What the tests of predictive draws share."""

from typing import Any

import numpy as np
import pandas as pd

from tunecast.models.fits.fit import Fit
from tunecast.models.hierarchy.predict import Predictive, Predictor
from tunecast.models.hierarchy.targets import check_targets

type Values = dict[str, np.ndarray]

ALARM = 1e-4  # probability that a right model leaves a band


def predictor(fit: Fit, values: Values | None = None, **options: Any) -> Predictor:
    (p,) = fit.posteriors
    return Predictor(p.table, p.priors, {**p.values, **(values or {})}, seed=5, **options)


def over(asked: Predictor, targets: pd.DataFrame) -> Predictive:
    """The model over targets."""
    return asked.hierarchy(check_targets(targets, asked.table))


def log_expected(asked: Predictor, targets: pd.DataFrame) -> np.ndarray:
    return np.log(asked.draws(check_targets(targets, asked.table)).expected)


def target(**values: Any) -> pd.DataFrame:
    row = {"task": "debian-en-de", "method": "fmt", "finetune_examples": 600.0}
    return pd.DataFrame([row | values])


def standard(z: np.ndarray) -> bool:
    """Whether draws have the mean and the spread of a standard normal, to five errors."""
    n = z.size
    return bool(abs(z.mean()) < 5 / np.sqrt(n) and abs(z.std() - 1) < 5 / np.sqrt(2 * n))


def deviations(found: Any, values: Any) -> np.ndarray:
    """By what the log loss of each curve differs from what its cell and base model say."""
    base = values["base_model_effect"][:, found.table.curve_base]
    return values["log_loss_ref_curve"] - values["log_loss_ref_expected"] - base
