"""Benchmarks with short chains: calibration on known truths, campaigns that keep to a budget.

Every statistical check has a negative control that must fail. Seeds are fixed, so a result repeats.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tunecast.models.hierarchy.numpy_backends import simulate_prior
from tunecast.models.laws import LAWS

SAMPLER = {"draws": 300, "tune": 500, "chains": 4, "seed": 0}
WORLD = {
    "law": "multiplicative",
    "target_accept": 0.9,
    "noise": 0.005,
    "base_effect": 0.0065,
    "curve_effect": 0.0065,
}
WORLDS, SIMULATIONS = 20, 40


@pytest.mark.slow
def test_intervals_at_16b_cover_and_p_best_beats_a_third(benchmark: Any, tmp_path: Path) -> None:
    """20 worlds: too few to tell 90 % from 80 %, enough to see intervals of half the width.

    With one row from each world, 20 worlds alarm at 1e-4 when 90 % intervals hold 11 rows or
    fewer: true coverage of 0.5 is found nine times in ten.
    """
    worlds = benchmark("worlds")
    records = worlds.run(tmp_path / "worlds.jsonl", WORLDS, SAMPLER | WORLD)
    result = worlds.summarise(records)
    assert not result["too_narrow"]
    scores = result["winners"]
    assert scores["p_best"]["brier"] < scores["always_a_third"]["brier"]
    # Negative controls.
    half = {line["nominal"]: line for line in result["control_half_width"]["coverage"]}
    for line in result["coverage"]:
        gap = line["coverage"] - half[line["nominal"]]["coverage"]
        assert gap > 0.05
    assert result["control_methods_exchanged"]["worse_than_a_third"]


@pytest.mark.slow
def test_ranks_of_prior_draws_are_uniform(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 simulations: gross faults only; draws of 0.4 of the right spread are one."""
    sbc = benchmark("sbc")
    monkeypatch.setattr(sbc, "SHRINK", 0.4)
    settings = SAMPLER | {"law": "rectified", "target_accept": 0.95}
    records = sbc.run(tmp_path / "sbc.jsonl", SIMULATIONS, settings)
    assert not sbc.fails(sbc.uniformity(records, "ranks"))
    assert sbc.fails(sbc.uniformity(records, "ranks_shrunk"))


@pytest.mark.parametrize("law", LAWS)
def test_what_is_ranked_of_each_law(benchmark: Any, law: str) -> None:
    """All that is learned globally, and of the drift its scales and a coefficient of each."""
    sbc = benchmark("sbc")
    table = sbc.indexed(sbc.design(), law)
    values = simulate_prior(table, sbc.NARROW, 50, 0, None).values
    found = sbc.quantities(table, values)
    assert {f"global {q.name}" for q in table.quantities} <= set(found)
    told = {"sd of tasks' drift", "sd of curves' drift", "drift of a task", "drift of a curve"}
    assert told <= set(found)
    for name, drawn in found.items():
        assert drawn.shape == (50,) and np.isfinite(drawn).all() and drawn.std() > 0, name
    assert np.abs(values["log_loss"]).max() < 20  # what a file can hold


def test_the_rank_tests_pass_uniform_ranks_and_fail_narrow_ones(benchmark: Any) -> None:
    """The harness on made-up ranks, where the answer is known: 100 of 12 quantities."""
    sbc = benchmark("sbc")
    rng = np.random.default_rng(1)
    good, narrow, shifted = [], [], []

    def rank(x: np.ndarray, t: np.ndarray) -> dict[str, int]:
        return dict(zip("abcdefghijkl", (x < t).sum(axis=1).tolist(), strict=True))

    for _ in range(100):
        draws, truth = rng.standard_normal((12, sbc.RANKED)), rng.standard_normal((12, 1))
        good.append({"ranks": rank(draws, truth)})
        narrow.append({"ranks": rank(0.7 * draws, truth)})
        shifted.append({"ranks": rank(draws + 0.7, truth)})
    assert not sbc.fails(sbc.uniformity(good, "ranks"))
    assert sbc.fails(sbc.uniformity(narrow, "ranks"))
    assert sbc.fails(sbc.uniformity(shifted, "ranks"))


def test_a_world_is_scored_row_by_row_and_place_by_place(benchmark: Any) -> None:
    """Chains of 20 draws: whether the parts fit together, and nothing on how good they are."""
    worlds = benchmark("worlds")
    record = worlds.world(3, SAMPLER | WORLD | {"draws": 20, "tune": 20, "chains": 2})
    held, half = (np.array(record[key]["0.95"]) for key in ("hits", "hits_shrunk"))
    assert (half <= held).all()
    assert (np.array(record["hits"]["0.5"]) <= held).all()
    assert held.sum() > half.sum()
    p_best = np.array(record["p_best"])
    assert p_best.shape == (len(worlds.comparison_targets()), len(worlds.METHODS))
    np.testing.assert_allclose(p_best.sum(axis=1), 1.0, atol=1e-5)
    result = worlds.summarise([record, record | {"number": 4}])
    line = next(line for line in result["coverage"] if line["nominal"] == 0.95)
    assert line["coverage"] == pytest.approx(held.mean())


@pytest.mark.parametrize("name", ["forecast", "V-optimal", "cheapest"])
def test_a_campaign_keeps_what_it_bought_and_spends_no_more_than_each_budget(
    benchmark: Any, ladder: pd.DataFrame, name: str
) -> None:
    refits, strategies = benchmark("refits"), benchmark("strategies")
    pool = ladder[ladder["finetune_examples"] > 0].reset_index(drop=True)
    costs = (pool["model_size"] * pool["finetune_examples"]).to_numpy(float)
    targets = pool[pool["model_size"] == pool["model_size"].max()].drop(columns="loss").head(2)
    market = strategies.Market(pool, costs, targets, {"law": "rectified"})
    chain = {"draws": 50, "tune": 50, "chains": 2}
    known = refits.cheapest(costs, 12)
    first = refits.fit_rows(pool[known], market.ask, seed=1, **chain)
    budgets = [0.01 * costs.sum(), 0.03 * costs.sum()]
    before = known
    for budget, (bought, fit) in zip(
        budgets,
        strategies.campaign(
            name, market, known, first, budgets, seed=1, plan_draws=100, chain=chain
        ),
        strict=True,
    ):
        assert (bought >= before).all()
        assert 0 < costs[bought & ~known].sum() <= budget * (1 + 1e-9)
        assert sorted(fit.runs["run_id"]) == sorted(pool["run_id"][bought])
        before = bought
    # What it left of the last budget pays for no other run, or a plan saw nothing in one.
    left = budgets[-1] - costs[bought & ~known].sum()
    assert name == "forecast" or costs[~bought].min() > left


def test_rounded_parameters_print_as_published_and_fill_their_box(benchmark: Any) -> None:
    worlds = benchmark("worlds")
    rng = np.random.default_rng(0)
    for value in (1.2e5, 0.52, 0.00051, 0.1, 1.0, 42.0):
        drawn = [worlds.rounded(value, rng) for _ in range(300)]
        assert {float(f"{x:.2g}") for x in drawn} == {value}
        unit = 10.0 ** np.floor(np.log10(value) - 1)
        assert max(drawn) > value + 0.45 * unit


def test_a_perfect_forecaster_is_not_too_narrow_and_half_its_width_is(benchmark: Any) -> None:
    """The bands on made-up worlds whose rows share one error each, where pooled rows would fail."""
    worlds = benchmark("worlds")
    rng = np.random.default_rng(2)
    records = []
    for number in range(200):
        x = rng.standard_normal((500, 1)) + np.zeros(94)
        y = rng.standard_normal() + np.zeros(94)
        pair = {"hits": worlds.hits(x, y), "hits_shrunk": worlds.hits(worlds.SHRINK * x, y)}
        records.append({"number": number} | pair)
    lines = worlds.coverage(records, "hits")
    assert not worlds.too_narrow(lines)
    assert worlds.too_narrow(worlds.coverage(records, "hits_shrunk"))
    for line in lines:
        assert abs(line["coverage"] - line["nominal"]) < 4 * line["standard_error"]


def test_a_killed_run_goes_on_where_it_stopped(benchmark: Any, tmp_path: Path) -> None:
    resume = benchmark("resume")
    path = tmp_path / "runs.jsonl"
    assert resume.kept(path, {"seed": 1}, "world") == {}
    resume.append(path, {"world": 0, "x": 1})
    with path.open("a") as stream:
        stream.write('{"world": 1, "x"')
    assert list(resume.kept(path, {"seed": 1}, "world")) == [0]
    resume.append(path, {"world": 1, "x": 2})
    assert list(resume.kept(path, {"seed": 1}, "world")) == [0, 1]
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 3
    with pytest.raises(ValueError, match="other settings"):
        resume.kept(path, {"seed": 2}, "world")


def test_a_peer_that_is_not_installed_is_not_scored(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, ladder: pd.DataFrame
) -> None:
    """Its place must not be taken by what stands in where it fails."""
    baselines = benchmark("baselines")
    monkeypatch.setitem(sys.modules, "simple_scaling_laws", None)
    with pytest.raises(ImportError):
        baselines.simple_scaling_laws()(ladder, ladder.head(2), seed=0)
