"""The answers of a report: their sentences follow the numbers that they stand beside."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tunecast.analysis.report.answers import answers, default_targets
from tunecast.models import Fit


@pytest.mark.parametrize("gap", [-0.3, 0.0, 0.3])
def test_the_verdict_follows_the_numbers(
    gap: float, ladder: pd.DataFrame, believed: Callable[..., Fit]
) -> None:
    """The same fit with one method's losses moved: the sentences must move with it."""
    runs = ladder[ladder["method"] != "prompt"].reset_index(drop=True)
    fit = believed(runs, size=400)
    (found,) = fit.posteriors
    moved = dict(found.draws)
    moved["log_loss_ref_method_raw"] = moved["log_loss_ref_method_raw"] + np.array([0, 10 * gap])
    fit = replace(fit, posteriors=(replace(found, draws=moved),))
    (answer,) = answers(fit, default_targets(fit))
    rows = answer.forecasts.to_dict("records")
    best = max(rows, key=lambda row: row["p_best"])
    text = " ".join(answer.sentences)
    p, first = best["p_best"], best["method"]
    if p < 0.66:
        assert f"do not decide which method is best: {first} leads" in text
    else:
        assert f"{first} " in text and "has the lowest expected loss" in text
    assert f"{100 * p:.0f} %" in text
    for row in rows:
        assert f"{row['method']} {row['loss_q50']:.3g} nats" in text
    (crossing,) = answer.crossovers.to_dict("records")
    assert ("have no crossover" in text) == (crossing["p_none"] > 0.5)


def test_a_place_inside_the_data_is_called_so(
    ladder: pd.DataFrame, believed: Callable[..., Fit]
) -> None:
    fit = believed(ladder)
    place = {"task": "debian-en-de", "model_size": 4e5, "finetune_examples": 600.0}
    (inside,) = answers(fit, pd.DataFrame([place]))
    (beyond,) = answers(fit, pd.DataFrame([place | {"model_size": 1240480 * 4}]))
    assert inside.sentences[-1] == "The target lies inside the data."
    assert "4 times in parameters" in beyond.sentences[-1]
