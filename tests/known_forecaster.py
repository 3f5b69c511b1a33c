"""A forecaster whose curves are written down: two methods, of which one falls faster."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from tunecast.models.hierarchy.predict import Draws
from tunecast.models.hierarchy.table import Spec
from tunecast.models.inference.diagnostics import Diagnostics

DRAWS = 4001
SPEC = Spec("power", (), "finetune_examples", ("task", "method"), "base_model")
GOOD = Diagnostics(1.0, 1e3, 1e3, 0, 1.0, DRAWS)


@dataclass(frozen=True)
class TwoPowerLaws:
    """``slow`` is ``L = (D / 1000)^-0.1``, ``fast`` is ``e^gap (D / 1000)^-0.3``.

    The gap is normal, its draws the middles of equally likely parts: no Monte Carlo error. Run
    noise is ``noise`` in each draw.
    """

    mean: float = 0.2
    sd: float = 0.1
    noise: float = 0.05
    spec: Spec = SPEC
    diagnostics: Diagnostics = GOOD
    info: Mapping[str, Any] = field(default_factory=lambda: {"seed": 0})

    @property
    def runs(self) -> pd.DataFrame:
        return pd.DataFrame(
            {"task": "t", "method": ["fast", "slow"], "finetune_examples": [100.0, 1e5]}
        )

    @property
    def gap(self) -> np.ndarray:
        return self.mean + self.sd * norm.ppf((np.arange(DRAWS) + 0.5) / DRAWS)

    def draws(self, targets: pd.DataFrame, *, seed: int | None = None) -> Draws:
        log_d = np.log(targets["finetune_examples"].to_numpy(float) / 1000)
        fast = (targets["method"] == "fast").to_numpy()
        mean = np.where(fast, self.gap[:, None] - 0.3 * log_d, -0.1 * log_d)
        scale, df = np.full(mean.shape, self.noise), np.full(DRAWS, np.inf)
        rng = np.random.default_rng(seed)
        loss = np.exp(mean + scale * rng.standard_normal(mean.shape))
        return Draws(loss, np.exp(mean), np.ones(len(targets)), scale, df)
