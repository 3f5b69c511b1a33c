"""Sweeps on Ray: rows come back once, whatever happens to the machines.

Those that start Ray are slow: it takes its time, and on a busy machine gives up after 30 seconds.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import importorskip

importorskip("torch")
importorskip("peft")
ray = importorskip("ray")

from ray.cluster_utils import Cluster

from tunecast.analysis import cli
from tunecast.models.errors import TunecastError
from tunecast.models.runs import read_runs
from tunecast.training.base_models import Hub
from tunecast.training.budget import Budget
from tunecast.training.methods import FMT, LoRA
from tunecast.training.recipes import Recipe, grid
from tunecast.training.sweep import cluster, sweep
from tunecast.training.sweep.cluster import Lost, Streams, connected, gpus_for
from tunecast.training.sweep.jobs import jobs_of
from tunecast.training.sweep.worker import SweepSettings, work
from tunecast.training.tasks import TaskSource


@pytest.fixture
def recipe(small_base: Hub, words_task: TaskSource) -> Recipe:
    return Recipe(
        name="test",
        cells=grid([words_task], [small_base], (FMT(), LoRA(rank=2)), (8, 24)),
        seeds=(0, 1),
        rates={"fmt": (1e-3, 1e-2), "lora": (1e-3, 1e-2)},
        budget=Budget(
            epochs=1, examples=1, batch=8, evaluations=2, dev_examples=4, test_examples=8
        ),
    )


@pytest.fixture(scope="module")
def on_ray() -> Iterator[None]:
    """Ray on this machine, with a GPU that is not there."""
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    with connected("local", 2):
        yield
    ray.shutdown()


def task() -> Any:
    """Return a task that gives some items and ends well, in an error, or in sudden death."""

    def counted(name: str, items: int, end: str) -> Iterator[str]:
        import os
        import time

        for k in range(items):
            yield f"{name}{k}"
        if end == "error":
            raise TunecastError(f"{name} cannot be run.")
        if end == "death":
            time.sleep(1)  # what was given a moment ago is still on its way
            os._exit(1)

    return counted  # not of this module, which the workers cannot import


@pytest.mark.slow
def test_streams_give_what_ended_well_and_tell_what_is_lost(on_ray: None) -> None:
    streams = Streams(task(), 0)
    streams.add("whole", "a", 3, "well")
    streams.add("cut", "b", 2, "death")
    found: dict[str, list[Any]] = {"whole": [], "cut": [], "again": []}
    for key, item in streams:
        found[key].append(item)
        if isinstance(item, Lost):
            streams.add("again", "c", 1, "well")
    assert found["whole"] == ["a0", "a1", "a2"]
    assert found["cut"] == ["b0", "b1", Lost("WorkerCrashedError")]
    assert found["again"] == ["c0"]


@pytest.mark.slow
def test_an_error_comes_back_as_it_was_raised(on_ray: None) -> None:
    streams = Streams(task(), 0)
    streams.add("bad", "a", 0, "error")
    with pytest.raises(TunecastError, match=r"^a cannot be run\.$"):
        list(streams)


@pytest.mark.slow
def test_runs_share_a_gpu_or_wait_for_it(on_ray: None, tmp_path: Path) -> None:
    assert gpus_for(None) == 1
    assert gpus_for(0.5) == 0.5
    with pytest.raises(TunecastError, match=r"asks for 2 GPUs, but no machine .* more than 1\."):
        gpus_for(2)

    def meets(folder: Path, name: str, gpus: float) -> Iterator[tuple[str, bool]]:
        import os
        import time

        (folder / name).touch()
        until = time.monotonic() + (1 if gpus == 1 else 120)
        while (alone := len(list(folder.iterdir())) < 2) and time.monotonic() < until:
            time.sleep(0.05)
        if gpus == 1:
            (folder / name).unlink()
        yield os.environ["CUDA_VISIBLE_DEVICES"], not alone

    for gpus in (0.5, 1):
        folder = tmp_path / str(gpus)
        folder.mkdir()
        streams = Streams(meets, gpus)
        for name in "ab":
            streams.add(name, folder, name, gpus)
        assert [item for _, item in streams] == [("0", gpus == 0.5)] * 2


# --------------------------------------------------------------------------- sweeps


def without_times(table: Path) -> pd.DataFrame:
    timed = ["gpu_seconds", "tokens_per_second", "search_flops"]
    rows = read_runs(table).drop(columns=timed)
    return rows.sort_values("run_id").reset_index(drop=True)


def made_here(recipe: Recipe, folder: Path) -> pd.DataFrame:
    """The rows as one process makes them, one after the other."""
    table = folder / "here.csv"
    for job in jobs_of(recipe, table):
        work([job], SweepSettings(recipe.budget, table, folder))
    return without_times(table)


@pytest.mark.slow
def test_a_sweep_on_ray_makes_the_rows_of_any_other(
    on_ray: None, recipe: Recipe, tmp_path: Path
) -> None:
    table = tmp_path / "runs.csv"
    found = sweep(recipe, table, ray="local", cache=tmp_path)
    assert (found.made, found.skipped, found.failures) == (8, 0, ())
    pd.testing.assert_frame_equal(without_times(table), made_here(recipe, tmp_path))
    again = sweep(recipe, table, ray="local", cache=tmp_path)
    assert (again.made, again.skipped) == (0, 8)


@pytest.mark.slow
def test_what_cannot_be_run_is_refused_on_ray_too(
    on_ray: None, recipe: Recipe, tmp_path: Path
) -> None:
    cell = replace(recipe.cells[0], examples=10**6)
    with pytest.raises(TunecastError, match="1000000 training examples were asked for"):
        sweep(replace(recipe, cells=(cell,)), tmp_path / "runs.csv", ray="local", cache=tmp_path)
    assert not (tmp_path / "runs.csv").exists()


@pytest.mark.slow
def test_a_run_that_takes_its_workers_down_is_given_up(
    on_ray: None, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bomb(FMT):  # here, so that it goes to the workers by value
        label = "bomb"

        def config(self) -> None:
            import os

            os._exit(1)

    monkeypatch.setattr(cluster, "LOSSES", 2)
    cells = (replace(recipe.cells[0], method=Bomb()), recipe.cells[0])
    both = replace(recipe, cells=cells, seeds=(0,), rates={"bomb": (1e-3,), "fmt": (1e-3,)})
    found = sweep(both, tmp_path / "runs.csv", ray="local", cache=tmp_path)
    rows = read_runs(tmp_path / "runs.csv").set_index("method")
    assert dict(rows["status"]) == {"bomb": "failed", "fmt": "done"}
    assert rows.at["bomb", "reason"] == "lost its worker 2 times (WorkerCrashedError)"
    assert len(found.failures) == 1


ROUNDING = 1e-4  # of losses after some hundred steps


def long(recipe: Recipe) -> Recipe:
    """The same cells with runs of a second or more.

    A run may be made in a stack here and alone there, as each finds faster. That changes rounding,
    and at large rates such runs are chaotic.
    """
    rates = {method: (3e-4, 1e-3) for method in recipe.rates}
    budget = replace(recipe.budget, examples=1500, patience=99)
    return replace(recipe, budget=budget, rates=rates)


@pytest.mark.slow
def test_a_machine_lost_in_mid_run_costs_no_row(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines, of which one dies while it has a run: all rows come, and none twice."""
    recipe, table = long(recipe), tmp_path / "runs.csv"
    expected = made_here(recipe, tmp_path)
    ray.shutdown()
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    doomed = machines.add_node(num_cpus=1)
    begun: list[str] = []
    plain = Streams.add

    def watched(self: Streams, key: Any, *arguments: object) -> None:
        begun.append(key[0].cell.run_id(0))
        plain(self, key, *arguments)

    monkeypatch.setattr(Streams, "add", watched)

    def kill() -> None:
        while not table.exists() or len(read_runs(table)) < 2:
            time.sleep(0.05)
        machines.remove_node(doomed, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    try:
        killer.start()
        found = sweep(recipe, table, ray=machines.address, cache=tmp_path)
        killer.join()
    finally:
        ray.shutdown()
        machines.shutdown()
    assert len(begun) > len(recipe.cells), "no run was lost, so nothing was tested"
    assert (found.made, found.failures) == (8, ())
    pd.testing.assert_frame_equal(without_times(table), expected, rtol=ROUNDING)


@pytest.mark.slow
def test_a_sweep_goes_on_after_its_own_death(recipe: Recipe, tmp_path: Path) -> None:
    """The cluster lives on; the runs of the dead sweep end with it, and its rows are there."""
    recipe, table = long(recipe), tmp_path / "runs.csv"
    expected = made_here(recipe, tmp_path)
    (tmp_path / "recipe.py").write_text(
        "from tunecast.training.base_models import Hub\n"
        "from tunecast.training.methods import FMT, LoRA\n"
        "from tunecast.training.recipes import Cell, Recipe\n"
        "from tunecast.training.budget import Budget\n"
        "from tunecast.training.tasks import TaskSource\n"
        f"def recipe():\n    return {recipe!r}\n"
    )
    ray.shutdown()
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    command = [
        sys.executable,
        "-m",
        "tunecast.analysis.cli",
        "sweep",
        f"{tmp_path}/recipe.py:recipe",
    ]
    command += ["-o", str(table), "--ray", machines.address]
    environment = {**os.environ, "TUNECAST_CACHE": str(tmp_path)}
    try:
        first = subprocess.Popen(command, env=environment)
        deadline = time.monotonic() + 120
        while not table.exists() or len(read_runs(table)) < 2:
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first.kill()
        first.wait(30)
        assert len(read_runs(table)) < 8
        subprocess.run(command, env=environment, check=True)
    finally:
        machines.shutdown()
    pd.testing.assert_frame_equal(without_times(table), expected, rtol=ROUNDING)


# --------------------------------------------------------------------------- Ray of its own


@pytest.mark.slow
def test_ray_that_was_begun_here_ends_here() -> None:
    ray.shutdown()
    with connected("local", 1):
        assert ray.cluster_resources()["CPU"] == 1
        assert gpus_for(None) == 0
    assert not ray.is_initialized()


# --------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--ray", "nowhere"], "'nowhere' is no address of Ray; give local, auto or HOST:PORT."),
        (["--ray", "ray://head:10001"], "is the address of a Ray client"),
        (["--ray", "auto", "--workers", "2"], "decides itself how many workers there are."),
        (["--gpus-per-run", "0.5"], "have to be scheduled by Ray: add --ray."),
        (["--ray", "local", "--gpus-per-run", "1.5"], "a part of a GPU or a whole number"),
    ],
)
def test_bad_options_are_one_sentence_and_code_2(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ray.shutdown()
    with pytest.raises(SystemExit) as left:
        cli.main(["sweep", "tiny", "-o", str(tmp_path / "runs.csv"), *arguments])
    err = capsys.readouterr().err
    assert left.value.code == 2
    assert sentence in err
    assert err.count("\n") == 1


def test_a_cluster_that_does_not_answer_is_said_at_once(tmp_path: Path) -> None:
    ray.shutdown()
    with socket.socket() as taken:  # bound, but it does not listen
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(TunecastError, match=f"no Ray cluster answers at '{address}'"),
            connected(address, 1),
        ):
            pass
