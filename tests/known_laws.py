"""Runs whose law is known, for the tests of point fits."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tunecast.models.laws import get_law

type Array = npt.NDArray[np.float64]

SIZES = (1e9, 2e9, 4e9, 8e9)
EXAMPLES = np.geomspace(1e4, 1e6, 7)
TRUTHS: dict[str, dict[str, Any]] = {
    "power": {"A": 20.0, "beta": 0.3, "E": 0.7},
    "multiplicative": {"A": 1.2e5, "alpha": {"model_size": 0.52}, "beta": 0.15, "E": 0.75},
    "additive": {"A": {"model_size": 482.0}, "alpha": {"model_size": 0.35}, "B": 50.0}
    | {"beta": 0.37, "E": 0.7},
    "rectified": {"A": 8e4, "alpha": {"model_size": 0.32}, "D_l": 3e4, "beta": 0.45, "E": 0.7},
    "kaplan": {"A": 40.0, "alpha": {"model_size": 0.17}, "D_c": 4e5, "beta": 0.35},
    "broken": {"A": 1.2e4, "alpha": {"model_size": 0.42}, "beta": 0.12, "beta_2": 0.45}
    | {"D_b": 8e4, "f": 0.3, "E": 0.7},
}


def factors_of(law: str) -> tuple[str, ...]:
    return () if law == "power" else ("model_size",)


def runs_of(law: str, *, noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """A grid of sizes and examples with the true loss, times log-normal noise."""
    sizes = SIZES if factors_of(law) else SIZES[:1]
    N, D = (axis.ravel() for axis in np.meshgrid(sizes, EXAMPLES, indexing="ij"))
    loss = get_law(law)(D, {"model_size": N}, **TRUTHS[law])
    loss = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(D)))
    return pd.DataFrame({"model_size": N, "finetune_examples": D, "loss": loss})
