"""The zoo: its tables say what they should, and what its parts count is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


def test_made_tables_have_rows_to_fit_and_to_forecast(benchmark: Any) -> None:
    entries = benchmark("zoo_simulated").SIMULATED
    assert len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        table, again = entry.table(), entry.table()
        assert table.digest == again.digest
        assert len(table.train) >= 8
        assert 30 <= len(table.test) <= 75, entry.name
        assert (pd.concat([table.train, table.test])["loss"] > 0).all()


def test_made_losses_follow_their_law(benchmark: Any) -> None:
    module = benchmark("zoo_simulated")
    quiet = {"noise": 0, "base_effect": 0, "curve_effect": 0, "spread": 0}
    runs = module.fine_tuned(module.World(**quiet), "any")
    middle = np.sqrt(1e3 * 3.2e4)
    size, data = runs["model_size"] / 1e8, runs["finetune_examples"] / middle
    np.testing.assert_allclose(runs["loss"], 1 + 1.5 * size**-0.15 * data**-0.15)


def test_distance_is_that_of_forecasts(benchmark: Any) -> None:
    """Replicates: two sizes up to 16,000 examples, asked at 4 times the size and 2 to 16 times."""
    one = benchmark("zoo_one")
    table = one.ENTRIES["replicates"].table()
    far = one.beyond(one.indexed(table), table.test)
    more = table.test["finetune_examples"] / 1.6e4
    larger = table.test["model_size"] / 1e9
    np.testing.assert_allclose(far, np.maximum(more, larger))


def test_conformal_intervals_cover_what_is_exchangeable(benchmark: Any) -> None:
    """Held-out rows like the fitted ones; at half their width the intervals must miss some."""
    rng = np.random.default_rng(0)
    runs = pd.DataFrame({"finetune_examples": np.ones(600), "loss": np.exp(rng.normal(size=600))})

    def one(train: pd.DataFrame, test: pd.DataFrame, *, draws: int, **_: Any) -> np.ndarray:
        return np.ones((draws, len(test)))

    forecast = benchmark("conformal").split_conformal(one)
    found = np.log(forecast(runs[:300], runs[300:], seed=0, draws=1000))
    low, high = np.quantile(found, [0.05, 0.95], axis=0)
    observed = np.log(runs["loss"][300:].to_numpy())
    assert 0.84 < np.mean((low <= observed) & (observed <= high)) < 0.96
    assert np.mean((low / 2 <= observed) & (observed <= high / 2)) < 0.7


def test_a_forecast_past_the_limit_is_told_and_saved(benchmark: Any, tmp_path: Path) -> None:
    zoo, out = benchmark("zoo"), tmp_path / "zoo.json"
    zoo.main(out, "one_curve", "least squares by curve", 0.01, False)
    (row,) = json.loads(out.read_text())["rows"]
    assert row["outcome"] == "stopped after 0.01 seconds"
    before = out.stat().st_mtime_ns
    zoo.main(out, "one_curve", "least squares by curve", 60, False)
    assert json.loads(out.read_text())["rows"] == [row], "what is there is not made again"
    zoo.main(out, "one_curve", "least squares by curve", 60, True)
    (row,) = json.loads(out.read_text())["rows"]
    assert row["outcome"] == "done"
    assert row["peak_mib"] > 20
    assert out.stat().st_mtime_ns > before
