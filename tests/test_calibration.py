"""Calibration on known truths: small versions of benchmarks/worlds.py and benchmarks/sbc.py.

Every check has a negative control that must fail. Seeds are fixed, so a result repeats.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script of benchmarks/ by name; its folder is on the path while the test runs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> Any:
        import importlib

        return importlib.import_module(name)

    yield load
    for name in ("worlds", "sbc", "resume", "baselines"):
        sys.modules.pop(name, None)


SAMPLER = {"draws": 300, "tune": 500, "chains": 4, "seed": 0}
WORLDS, SIMULATIONS = 20, 40


@pytest.mark.slow
def test_intervals_at_16b_cover_and_p_best_beats_a_third(benchmark: Any, tmp_path: Path) -> None:
    """20 worlds: too few to tell 90 % from 80 %, enough to see intervals of half the width.

    With one row from each world, 20 worlds alarm at 1e-4 when 90 % intervals hold 11 rows or
    fewer: true coverage of 0.5 is found nine times in ten.
    """
    worlds = benchmark("worlds")
    settings = SAMPLER | {"law": "multiplicative", "target_accept": 0.9}
    settings |= {"noise": 0.005, "base_effect": 0.0065, "curve_effect": 0.0065}
    records = worlds.run(tmp_path / "worlds.jsonl", WORLDS, settings)
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
def test_ranks_of_prior_draws_are_uniform(benchmark: Any, tmp_path: Path) -> None:
    """40 simulations: gross faults only; draws of 0.7 of the right spread are one."""
    sbc = benchmark("sbc")
    settings = SAMPLER | {"law": "rectified", "target_accept": 0.95}
    records = sbc.run(tmp_path / "sbc.jsonl", SIMULATIONS, settings)
    assert not sbc.fails(sbc.uniformity(records, "ranks"))
    assert sbc.fails(sbc.uniformity(records, "ranks_shrunk"))


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
