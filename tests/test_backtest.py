"""Backtests: which splits say something, and whose draws are scored."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tunecast.models.errors import TunecastError
from tunecast.models.fits import backtest as module
from tunecast.models.fits.backtest import backtest
from tunecast.models.fits.fit import Fit
from tunecast.models.questions.scoring import score_draws

type MakeFit = Callable[..., Fit]


@pytest.mark.parametrize(
    ("train", "test", "by", "match"),
    [
        ("finetune_examples < 0", "loss > 0", (), "no usable row satisfies the train expression"),
        ("loss > 0", "finetune_examples < 0", (), "no usable row satisfies the test expression"),
        ("finetune_examples <= 600", "finetune_examples >= 600", (), "rows are in train and in"),
        (
            "finetune_examples < 600",
            "finetune_examples > 600",
            ("mood",),
            "lacks the column 'mood'",
        ),
    ],
)
def test_a_backtest_that_says_nothing_is_refused(
    ladder: pd.DataFrame, train: str, test: str, by: tuple[str, ...], match: str
) -> None:
    with pytest.raises(TunecastError, match=match):
        backtest(ladder, train=train, test=test, by=by)


def test_a_backtest_scores_the_rows_left_out_with_a_fit_of_the_others(
    ladder: pd.DataFrame, believed: MakeFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[pd.DataFrame] = []

    def fake(runs: pd.DataFrame, **options: Any) -> Fit:
        assert options == {"law": "power", "seed": 4}
        seen.append(runs)
        return believed(runs, law="power")

    monkeypatch.setattr(module, "fit", fake)
    table = backtest(
        ladder, train="finetune_examples <= 600", test="finetune_examples > 600",
        by=["method"], law="power", seed=4,
    )  # fmt: skip
    inside = ladder["finetune_examples"] <= 600
    assert sorted(seen[0]["run_id"]) == sorted(ladder.loc[inside, "run_id"])
    later = ladder[~inside].reset_index(drop=True)
    draws = believed(ladder[inside], law="power").draws(later)
    expected = score_draws(draws, later["loss"].to_numpy(), later[["method"]])
    pd.testing.assert_frame_equal(table.drop(columns="converged"), expected)
    assert table["converged"].all()
    # The control: a fit of all rows scores otherwise.
    every = believed(ladder, law="power").draws(later)
    assert not np.allclose(score_draws(every, later["loss"].to_numpy())["crps"], table["crps"][0])


def test_runs_that_are_not_done_or_zero_shot_are_scored_by_nobody(
    ladder: pd.DataFrame, believed: MakeFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = ladder["finetune_examples"] > 600
    row = ladder[later].head(1)
    failed = row.assign(run_id="failed", status="failed")
    extra = pd.concat([failed, row.assign(run_id="zero", finetune_examples=0.0)])
    monkeypatch.setattr(module, "fit", lambda runs, **options: believed(runs))
    ask = {"train": "finetune_examples <= 600 and run_id != 'zero'"}
    ask |= {"test": "finetune_examples > 600 or run_id == 'zero'"}
    table = backtest(pd.concat([ladder, extra], ignore_index=True), **ask)
    assert table["n"].tolist() == [later.sum()]
