"""Sweeps: what is run, what is skipped, and what a failure costs."""

import math
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import importorskip

torch = importorskip("torch")
importorskip("peft")
importorskip("transformers")

from sweep_cases import TIMED, all_of

from tunecast.models.errors import TunecastError
from tunecast.models.runs import digest, read_runs
from tunecast.training.recipes import Recipe
from tunecast.training.sweep import local, sweep, worker
from tunecast.training.sweep.claims import claimed
from tunecast.training.sweep.jobs import groups_of, jobs_of
from tunecast.training.sweep.rows import reason_of_failure
from tunecast.training.sweep.worker import SweepSettings, work

# One run at a time in this process, unless a test says otherwise.
pytestmark = pytest.mark.usefixtures("places")


class Here(Executor):
    """Works at once in this process, where a sweep would start others for seconds."""

    def submit[**P, T](
        self, work: Callable[P, T], /, *given: P.args, **named: P.kwargs
    ) -> Future[T]:
        done: Future[T] = Future()
        try:
            done.set_result(work(*given, **named))
        except Exception as error:
            done.set_exception(error)
        return done


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "worker_pool", lambda workers: Here())


@pytest.mark.usefixtures("in_this_process")
def test_a_sweep_makes_every_row_once(recipe: Recipe, tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    found = sweep(recipe, table, cache=tmp_path)
    assert (found.made, found.skipped, found.failures) == (12, 0, ())
    rows = read_runs(table, columns=["model_size", "finetune_examples"])
    assert list(rows["run_id"]) == [cell.run_id(s) for cell in recipe.cells for s in (0, 1)]
    assert (rows["status"] == "done").all()
    assert (rows["rate_candidates"] == 2).all()
    assert set(rows["method"]) == {"fmt", "lora", "prompt"}
    assert set(rows["pet_params"]) == {0.0, 2 * 512.0, 48.0}
    first, second = (rows[rows["seed"] == seed] for seed in (0, 1))
    assert list(first["learning_rate"]) == list(second["learning_rate"])

    again = sweep(recipe, table, cache=tmp_path)
    assert (again.made, again.skipped) == (0, 12)


def test_a_table_that_was_cut_short_is_completed_alike(recipe: Recipe, tmp_path: Path) -> None:
    """Whatever rows are there: the others come out as if nothing had happened."""
    whole, half = tmp_path / "whole.csv", tmp_path / "half.csv"
    rows = all_of(recipe, whole, tmp_path)
    lines = whole.read_text().splitlines(keepends=True)
    half.write_text("".join(lines[:4]))
    assert [len(job.seeds) for job in jobs_of(recipe, half)] == [1, 2, 2, 2, 2]
    completed = all_of(recipe, half, tmp_path)
    pd.testing.assert_frame_equal(rows.drop(columns=TIMED), completed.drop(columns=TIMED))


def test_side_by_side_gives_the_rows_of_one_by_one(
    recipe: Recipe, tmp_path: Path, places: Callable[[int], None]
) -> None:
    """Whole groups of cells in four places, some rows already there, a rate that diverges."""
    mixed = replace(recipe, rates={**recipe.rates, "lora": (1e-3, math.inf)})
    solo, table = all_of(mixed, tmp_path / "solo.csv", tmp_path), tmp_path / "stacked.csv"
    lines = (tmp_path / "solo.csv").read_text().splitlines(keepends=True)
    table.write_text("".join([lines[0], lines[1], lines[12]]))
    places(4)
    groups = groups_of(jobs_of(mixed, table), "cuda")
    assert [[job.cell.method.label for job in group] for group in groups] == [
        ["fmt"] * 2, ["lora"] * 2, ["prompt"] * 2
    ]  # fmt: skip
    for group in groups:
        assert work(group, SweepSettings(mixed.budget, table, tmp_path)) == []
    stacked = read_runs(table).set_index("run_id").loc[solo["run_id"]].reset_index()
    pd.testing.assert_frame_equal(
        solo.drop(columns=TIMED), stacked.drop(columns=TIMED), rtol=0, atol=1e-5
    )
    assert len(groups_of(jobs_of(mixed, tmp_path / "none.csv"), "cpu")) == 6


# --------------------------------------------------------------------------- failures


def test_a_stack_that_fails_goes_on_one_by_one(
    recipe: Recipe, tmp_path: Path, places: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = worker.run_stack

    def failing(*args: Any, **kwargs: Any) -> Any:
        made = plain(*args, **kwargs)
        yield next(made)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(worker, "run_stack", failing)
    places(4)
    table = tmp_path / "runs.csv"
    with pytest.warns(UserWarning, match="runs go on one by one: out of memory"):
        assert work(jobs_of(recipe, table)[:2], SweepSettings(recipe.budget, table, tmp_path)) == []
    assert sorted(read_runs(table)["run_id"]) == sorted(
        cell.run_id(seed) for cell in recipe.cells[:2] for seed in (0, 1)
    )


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "failed", "out of memory: CUDA"),
        (RuntimeError("no kernel"), "failed", "RuntimeError: no kernel"),
    ],
)
def test_a_failed_run_is_a_row_and_the_sweep_goes_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: Exception, status: str, reason: str,
) -> None:  # fmt: skip
    plain = worker.run

    def failing(*args: Any, **kwargs: Any) -> Any:
        if kwargs["examples"] == 8 and kwargs["seed"] == 0:
            raise error
        return plain(*args, **kwargs)

    monkeypatch.setattr(worker, "run", failing)
    rows = all_of(recipe, tmp_path / "runs.csv", tmp_path)
    failed = rows[rows["status"] != "done"]
    assert len(rows) == 12
    assert len(failed) == 3
    assert (failed["status"] == status).all()
    assert failed["reason"].str.startswith(reason).all()
    assert failed["loss"].isna().all()
    # The second seed has no rate to take over and searches its own.
    second = rows[(rows["finetune_examples"] == 8) & (rows["seed"] == 1)]
    assert (second["rate_candidates"] == 2).all()


def test_a_diverged_run_is_a_row_with_its_reason(recipe: Recipe, tmp_path: Path) -> None:
    cells = recipe.cells[:1]
    bad = replace(recipe, cells=cells, seeds=(0,), rates={"fmt": (math.inf,)})
    rows = all_of(bad, tmp_path / "runs.csv", tmp_path)
    assert list(rows["status"]) == ["diverged"]
    assert "at rate inf" in rows["reason"][0]


BOMB = """
import os
from tunecast.training.methods import FMT

class Bomb(FMT):
    label = "bomb"
    def config(self):
        os.kill(os.getpid(), 9)
"""


def test_a_killed_worker_costs_its_run_alone(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system does when memory is out: the row says so, and the other runs are made."""
    (tmp_path / "bomb.py").write_text(BOMB)
    monkeypatch.syspath_prepend(tmp_path)
    import bomb  # type: ignore[import-not-found]

    cells = (replace(recipe.cells[0], method=bomb.Bomb()), recipe.cells[0])
    both = replace(recipe, cells=cells, seeds=(0,), rates={"bomb": (1e-3,), "fmt": (1e-3,)})
    found = sweep(both, tmp_path / "runs.csv", cache=tmp_path)
    rows = read_runs(tmp_path / "runs.csv").set_index("method")
    assert dict(rows["status"]) == {"bomb": "failed", "fmt": "done"}
    assert "out of memory" in str(rows.at["bomb", "reason"])
    assert len(found.failures) == 1
    assert not list((tmp_path / "running").iterdir())


@pytest.mark.parametrize(
    "make", [MemoryError, lambda: torch.OutOfMemoryError("CUDA out of memory")]
)
def test_every_kind_of_full_memory_is_called_so(make: Callable[[], Exception]) -> None:
    assert reason_of_failure(make()).startswith("out of memory")
    message = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nmore"
    assert reason_of_failure(RuntimeError(message)).startswith("out of memory")
    assert reason_of_failure(RuntimeError("x is\ny")) == "RuntimeError: x is"


# --------------------------------------------------------------------------- into a database


@pytest.mark.usefixtures("in_this_process")
def test_a_sweep_fills_a_database_and_goes_on_from_it(recipe: Recipe, tmp_path: Path) -> None:
    importorskip("sqlalchemy")
    url = f"sqlite:///{tmp_path}/runs.db"
    few = replace(recipe, cells=recipe.cells[:3], seeds=(0,))
    assert len(all_of(few, url, tmp_path)) == 3
    found = sweep(replace(few, seeds=(0, 1)), url, cache=tmp_path)
    assert (found.made, found.skipped, found.elsewhere) == (3, 3, 0)
    table = tmp_path / "runs.csv"
    expected = all_of(replace(few, seeds=(0, 1)), table, tmp_path)
    rows = read_runs(url)
    assert list(rows.columns) == list(expected.columns)
    assert digest(rows.drop(columns=TIMED)) == digest(expected.drop(columns=TIMED))
    with claimed(url), pytest.raises(TunecastError, match="another sweep is writing"):
        sweep(recipe, url, cache=tmp_path)
