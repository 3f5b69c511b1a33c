"""Tasks: where they come from, their splits, and what is said of those that cannot be used."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import importorskip

from tunecast.models.errors import TunecastError
from tunecast.training.splits import source_key, split_of
from tunecast.training.tasks import Task, TaskSource, assemble, load_task

ROWS = [{"source": f"question {k}", "target": f"answer {k}"} for k in range(300)]


def leaks(task: Task) -> set[str]:
    """Return the hashes of sources that train shares with dev or test."""
    train, dev, test = (
        {source_key(source) for source, _ in split} for split in (task.train, task.dev, task.test)
    )
    return (train & (dev | test)) | (dev & test)


def as_jsonl(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_test_source_never_occurs_in_train() -> None:
    """Copies of test sources are planted in train, one in other letters and spacing."""
    splits = {
        "train": [("a", "1"), ("B  b", "2"), ("c", "3"), ("d", "4"), ("d", "4")],
        "dev": [("c", "other"), ("b b", "2")],
        "test": [("b b", "5")],
    }
    task = assemble("planted", splits, {})
    assert leaks(task) == set()
    assert sorted(task.train) == [("a", "1"), ("d", "4")]
    assert task.dev == (("c", "other"),)
    assert task.origin["dropped"] == 2


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_one_file_is_split_by_hash(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    if suffix == ".jsonl":
        as_jsonl(path, ROWS)
    else:
        pd.DataFrame(ROWS).to_parquet(path)
    task = load_task(TaskSource(name="mine", path=str(path)), tmp_path)
    assert len(task.train) + len(task.dev) + len(task.test) == len(ROWS)
    assert min(map(len, (task.train, task.dev, task.test))) > 0
    assert leaks(task) == set()
    assert {source for source, _ in task.test} == {
        row["source"] for row in ROWS if split_of(source_key(row["source"])) == "test"
    }


def test_a_folder_of_files_has_the_splits_they_are_named_after(tmp_path: Path) -> None:
    for name, rows in {
        "train": ROWS[:200],
        "validation": ROWS[200:250],
        "test": ROWS[250:],
    }.items():
        as_jsonl(tmp_path / f"{name}.jsonl", [{"pair": row} for row in rows])
    source = TaskSource(name="mine", path=str(tmp_path), source="pair.source", target="pair.target")
    task = load_task(source, tmp_path)
    assert [len(task.train), len(task.dev), len(task.test)] == [200, 50, 50]
    assert ("question 250", "answer 250") in task.test


def test_a_folder_of_the_datasets_library_works(tmp_path: Path) -> None:
    datasets = importorskip("datasets")
    both = {"train": datasets.Dataset.from_list(ROWS)}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "saved")
    task = load_task(TaskSource(name="mine", path=str(tmp_path / "saved")), tmp_path)
    assert len(task.train) + len(task.dev) + len(task.test) == len(ROWS)


@pytest.mark.parametrize(
    ("rows", "source", "sentence"),
    [
        (None, {}, "there is no file '.*mine.jsonl' for task 'mine'."),
        (ROWS[:1], {}, "task 'mine' has an empty (test|dev|train) split."),
        (ROWS, {"source": "src"}, "task 'mine' has no column 'src', only source, target."),
        ([{"source": 1, "target": "x"}], {}, "task 'mine' holds 1 in 'source', not a text."),
        (ROWS, {"path": ""}, "there is no built-in task 'mine' \\(debian-en-de, .*\\)"),
        (ROWS, {"path": "no/such"}, "task 'mine' cannot be loaded from 'no/such': .*"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_a_sentence(
    tmp_path: Path, rows: list[dict[str, object]] | None, source: dict[str, Any], sentence: str
) -> None:
    path = tmp_path / "mine.jsonl"
    if rows is not None:
        as_jsonl(path, rows)
    if "such" in source.get("path", ""):
        importorskip("datasets")
    with pytest.raises(TunecastError, match=sentence) as caught:
        load_task(TaskSource(**{"name": "mine", "path": str(path), **source}), tmp_path)
    assert "\n" not in str(caught.value)
