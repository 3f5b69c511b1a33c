"""The h200 recipe at a small scale, made where there is no text: from files of tokens alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import importorskip

torch = importorskip("torch")
importorskip("peft")
importorskip("transformers")

from tunecast.analysis import cli
from tunecast.models.errors import TunecastError
from tunecast.models.runs import read_runs
from tunecast.training import offline, pretraining, tasks
from tunecast.training.base_models import Hub, Pretraining, Rung
from tunecast.training.budget import Budget
from tunecast.training.offline import in_tokens, pack
from tunecast.training.pretraining import rung_folder
from tunecast.training.recipes import Recipe, h200
from tunecast.training.sweep import prepare_all, worker
from tunecast.training.sweep.jobs import groups_of, jobs_of
from tunecast.training.sweep.worker import SweepSettings, work
from tunecast.training.tasks import TaskSource


def small(words_task: TaskSource) -> Recipe:
    """The recipe, scaled down by its own parameters."""
    return h200(
        shapes=((1, 16, 2), (2, 16, 2)),
        tiers=((8, 16), (40,)),
        translation=words_task,
        summary=replace(words_task, name="words-again", source="target", target="source"),
        pretraining=Pretraining(
            family="toy", corpus=words_task, tokens=2048, vocabulary=300, context=96, block=16,
            batch=16,
        ),
        budget=Budget(
            epochs=1, examples=1, batch=8, evaluations=2, dev_examples=4, test_examples=6
        ),
    )  # fmt: skip


def test_the_recipe_is_as_large_as_it_says() -> None:
    recipe = h200()
    sizes = sorted({c.base.size / 1e6 for c in recipe.cells if isinstance(c.base, Rung)})
    assert sizes == pytest.approx([1.8, 4.7, 12.4, 25.2, 56.6], rel=0.05)
    counts = [cell.examples for cell in recipe.cells]
    assert sorted(set(counts)) == [500, 1000, 2000, 4000, 8000, 16_000, 30_000]
    assert len(recipe.cells) == 3 * 5 * 7 * 2
    # In tiers, and within one the runs that may train side by side stand together.
    assert counts.index(8000) == 4 * 30
    assert counts.index(30_000) == 6 * 30
    groups = groups_of(jobs_of(recipe, Path("none.csv")), "cuda")
    assert [len(group) for group in groups] == [4] * 30 + [2] * 30 + [1] * 30


def test_what_was_packed_is_all_that_is_needed(
    words_task: TaskSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared and swept without a text; the base models and the tasks are those made from it."""
    recipe, cache, folder = small(words_task), tmp_path / "cache", tmp_path / "carried"
    bases = {cell.base for cell in recipe.cells}
    here = {base: rung_folder(base, cache) for base in bases if isinstance(base, Rung)}
    made = {
        cell.task: in_tokens(cell.task, cell.base, recipe.budget, cache) for cell in recipe.cells
    }
    size = pack(recipe, folder, cache)
    assert size == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def gone(*_: Any) -> Any:
        pytest.fail("it asked for the text")

    for module in (tasks, offline):
        monkeypatch.setattr(module, "load_task", gone)
        monkeypatch.setattr(module, "corpus", gone, raising=False)
    monkeypatch.setattr(pretraining, "corpus", gone)
    said: list[str] = []
    prepare_all(recipe, folder, said.append)
    assert len(said) == 4
    assert "pre-training will take about" in said[0]
    assert "ready after" in said[1]
    for base, at in here.items():
        there = rung_folder(base, folder)
        assert there.parent.name == at.parent.name
        weights = [(path / "model.safetensors").read_bytes() for path in (at, there)]
        assert weights[0] == weights[1]
    for task, wanted in made.items():
        found = in_tokens(task, recipe.cells[0].base, recipe.budget, folder)
        assert found.test_pairs == wanted.test_pairs
        for split in ("train", "dev", "test"):
            for a, b in zip(getattr(found, split), getattr(wanted, split), strict=True):
                assert a.targets == b.targets
                assert np.array_equal(a.ids, b.ids)

    monkeypatch.setattr(worker, "places_for", lambda *_: 4)
    table = tmp_path / "runs.csv"
    seen: list[int] = []
    for group in groups_of(jobs_of(recipe, table), "cuda")[:8]:
        assert work(group, SweepSettings(recipe.budget, table, folder)) == []
        seen.append(len(read_runs(table)))
    assert seen == list(range(4, 33, 4)), "rows are appended as their runs end"
    rows = read_runs(table)
    assert (rows["status"] == "done").all()
    assert (rows["tokens_per_second"] > 0).all()


def test_the_order_of_priority_is_kept_by_the_table(words_task: TaskSource, tmp_path: Path) -> None:
    """What is left after an interruption begins with the first tier that is not done."""
    recipe = small(words_task)
    whole = jobs_of(recipe, tmp_path / "none.csv")
    assert [job.cell.examples for job in whole] == [8, 16] * 12 + [40] * 12


def test_a_model_of_the_hub_cannot_be_packed(words_task: TaskSource, tmp_path: Path) -> None:
    recipe = small(words_task)
    theirs = Hub(name="theirs", path="no/such", family="x")
    cells = tuple({replace(cell, base=theirs): None for cell in recipe.cells})
    with pytest.raises(TunecastError, match="the tokens of 'theirs' cannot be carried"):
        pack(replace(recipe, cells=cells), tmp_path / "folder", tmp_path)


def test_the_command_packs_and_prepares(
    words_task: TaskSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = small(words_task)
    monkeypatch.setattr("tunecast.training.recipes.find_recipe", lambda name: recipe)
    asked: list[str | Path] = ["sweep", "h200", "-o", tmp_path / "runs.csv"]
    for option, cache in ((["--pack", tmp_path / "carried"], "cache"), (["--prepare"], "carried")):
        monkeypatch.setenv("TUNECAST_CACHE", str(tmp_path / cache))
        with pytest.raises(SystemExit) as left:
            cli.main([str(part) for part in [*asked, *option]])
        assert left.value.code == 0
    err = capsys.readouterr().err
    assert "MB of tokens; elsewhere set TUNECAST_CACHE to this folder" in err
    assert "ready after" in err
    assert not (tmp_path / "runs.csv").exists()
    assert len(list((tmp_path / "carried" / "ladder").glob("[!.]*"))) == 2
