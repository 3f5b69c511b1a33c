"""Priors against posteriors, and warnings: what is said is what the table and the draws show."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tunecast.analysis.report.caveats import warnings_of
from tunecast.analysis.report.parameters import parameters, ties
from tunecast.models import Fit
from tunecast.models.inference.posterior import Posterior
from tunecast.models.laws.published import PRINTED


def test_published_values_stand_beside_their_cells(
    zhang: pd.DataFrame, believed: Callable[..., Fit]
) -> None:
    fit = believed(zhang[zhang["finetune_examples"] > 0], law="multiplicative")
    rows = parameters(fit).rows
    for row in rows.to_dict("records"):
        task, method = row["cell"].split(" / ")[:2]
        wanted = {"E": "E", "beta": "beta", "alpha:model_size": "alpha_m"}.get(row["parameter"])
        if wanted is None:
            assert pd.isna(row["published"])
        else:
            assert row["published"] == getattr(PRINTED[task, method], wanted)


def test_a_posterior_like_its_prior_is_called_unlearned(
    ladder: pd.DataFrame, believed: Callable[..., Fit], drawn_fit: Fit
) -> None:
    assert len(parameters(believed(ladder, size=2000)).unlearned) >= 4
    assert parameters(drawn_fit).unlearned == []


def test_a_parameter_beyond_all_numbers_has_an_interval(
    drawn_fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where beta is near 0, D_l overflows: quantiles between two infinities are no numbers."""
    endless = np.full(400, np.inf)
    monkeypatch.setattr(Posterior, "parameters", lambda posterior, cell: {"D_l": endless})
    assert np.isfinite(parameters(drawn_fit).rows[["prior_q95", "q50"]]).all(axis=None)


def test_parameters_that_move_together_are_named() -> None:
    x = np.random.default_rng(0).normal(size=500)
    said = ties("cell", {"A": x, "E": -x, "beta": np.roll(x, 1)})
    assert said == ["cell: A and E trade off (rank correlation -1.00)."]


def test_warnings_name_what_the_table_shows(
    ladder: pd.DataFrame, believed: Callable[..., Fit]
) -> None:
    edge = ladder.assign(rate_at_edge=[True] * 5 + [False] * 44)
    fit = believed(edge)
    fit = replace(fit, info={**fit.info, "counts": {"diverged": 3}})
    said = " ".join(warnings_of(fit, [12.0]))
    assert "12 times beyond" in said and "5 of 49 runs did best at an edge" in said
    assert "3 runs that diverged" in said and "3 values of model size" in said
    assert "beyond" not in " ".join(warnings_of(believed(ladder)))
