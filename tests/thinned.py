"""The small ladder with less of some curves: what they cannot show of their own is not sampled."""

from collections.abc import Callable

import numpy as np
import pandas as pd


def _with(sizes: Callable[[str], tuple[float, ...] | None]) -> Callable[..., pd.DataFrame]:
    """Return what keeps, of each base model, the runs of these data sizes."""

    def thinned(ladder: pd.DataFrame) -> pd.DataFrame:
        kept = [
            (own := sizes(base)) is None or size in own
            for base, size in zip(ladder["base_model"], ladder["finetune_examples"], strict=True)
        ]
        return ladder[np.array(kept)].reset_index(drop=True)

    return thinned


_SMALL, _MIDDLE, _LARGE = ("ladder-0.1m", "ladder-0.4m", "ladder-1.2m")

# By what its curves are. Two sizes are others for each base model, as a table needs three.
THINNED: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "a run each": lambda ladder: ladder.assign(base_model=ladder["run_id"]),
    "one size each": _with({_SMALL: (60.0,), _MIDDLE: (600.0,), _LARGE: (6000.0,)}.get),
    "two sizes each": _with(
        {_SMALL: (60.0, 600.0), _LARGE: (200.0, 6000.0), _MIDDLE: (60.0, 2000.0)}.get
    ),
    "one and two": _with({_SMALL: (600.0,), _MIDDLE: (60.0, 2000.0), _LARGE: (60.0, 6000.0)}.get),
    "two and all": _with({_SMALL: (60.0, 6000.0)}.get),
    "one and all": _with({_LARGE: (6000.0,)}.get),
    "one and all, a curve each": lambda ladder: _with({_LARGE: (6000.0,)}.get)(
        ladder[ladder["method"] == "fmt"]
    ),
    "one, two and all": _with({_SMALL: (60.0, 6000.0), _LARGE: (600.0,)}.get),
}
