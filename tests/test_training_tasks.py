"""Tasks: where they come from, their splits, and what is said of those that cannot be used."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import importorskip

from tunecast.models.errors import TunecastError
from tunecast.training import tasks
from tunecast.training.tasks import (
    Task,
    TaskSource,
    assemble,
    corpus,
    load_task,
    split_of,
)

ROWS = [{"source": f"question {k}", "target": f"answer {k}"} for k in range(300)]


def leaks(task: Task) -> set[str]:
    """Return the hashes of sources that train shares with dev or test."""
    train, dev, test = (
        {tasks._key(source) for source, _ in split} for split in (task.train, task.dev, task.test)
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
        row["source"] for row in ROWS if split_of(tasks._key(row["source"])) == "test"
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


def test_the_docstrings_are_always_there(tmp_path: Path) -> None:
    source = TaskSource(name="docstrings")
    task = load_task(source, tmp_path)
    assert len(task.train) > 1000
    assert leaks(task) == set()
    assert task == load_task(source, tmp_path)
    documents = corpus(source, tmp_path)
    whole = {" ".join(text.split()) for text in documents}
    assert not any(" ".join(f"{target} {body}".split()) in whole for body, target in task.test)


# --------------------------------------------------------------------------- Debian, from fakes

WORDS = {"en": "A tool", "de": "Ein Werkzeug", "fr": "Un outil", "es": "Una herramienta"}


def write_lists(folder: Path, packages: int) -> Path:
    """Write index files as apt keeps them, of ``packages`` packages in two parts each."""
    folder.mkdir()
    release = "Codename: sid\nDate: Sat, 01 Aug 2026 00:00:00 UTC\n"
    (folder / "archive_sid_InRelease").write_text(release)
    index = [
        f"Package: p{k}-{part}\nSource: p{k} (1.0)\nDepends: a,\n b\n"
        for k in range(packages)
        for part in ("bin", "data")
    ]
    (folder / "archive_sid_main_binary_Packages").write_text("\n".join(index))
    for language, word in WORDS.items():
        texts = [
            f"Package: p{k}-{part}\nDescription-md5: {k}{part}\n"
            f"Description-{language}: {word} {k} {part}\n {word} that\n does {k}.\n .\n"
            f" {part} {k}\n"
            for k in range(packages)
            for part in ("bin", "data")
        ]
        (folder / f"archive_sid_main_Translation-{language}").write_text("\n".join(texts))
    return folder


def test_debian_tasks_are_split_by_source_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(folder: Path) -> Path:
        (folder / "apt").mkdir()
        return write_lists(folder / "apt" / "lists", 200)

    monkeypatch.setattr(tasks, "_fetch", fetch)
    translate, summarise = (
        load_task(TaskSource(name=name), tmp_path) for name in ("debian-en-de", "debian-summarise")
    )
    assert leaks(translate) == set() == leaks(summarise)
    pairs = set(translate.train + translate.dev + translate.test)
    assert ("A tool 3 bin", "Ein Werkzeug 3 bin") in pairs
    assert ("A tool that does 3.", "Ein Werkzeug that does 3.") in pairs
    assert ("bin 3", "bin 3") not in pairs, "left untranslated"
    for task in (translate, summarise):
        for split in ("train", "dev", "test"):
            numbers = {source.split()[-1].rstrip(".") for source, _ in getattr(task, split)}
            numbers = {n for n in numbers if n.isdigit()}
            assert {split_of(f"p{n}") for n in numbers} == {split}
    assert {target for _, target in summarise.test} >= {
        f"{word} {k} bin"
        for word in WORDS.values()
        for k in range(200)
        if split_of(f"p{k}") == "test"
    }
    assert "2026" in str(translate.origin["suites"])
    documents = corpus(TaskSource(name="debian-en-de"), tmp_path, ("en", "de"))
    assert documents
    assert not any("outil" in text for text in documents)
    assert {split_of(f"p{text.split()[-1]}") for text in documents} == {"train"}


def test_without_apt_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TunecastError, match="need apt, which is not on this machine"):
        load_task(TaskSource(name="debian-en-de"), tmp_path)


def test_what_apt_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = tmp_path / "apt-get"
    script = """#!/bin/sh
if [ "$1" = indextargets ]; then echo 'Debian trixie file:/mirror/'; exit; fi
cat "{}/debian/apt/sources.list" >&2
echo 'E: no route to anywhere.' >&2
exit 100
"""
    apt.write_text(script.replace("{}", str(tmp_path)))
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(TunecastError, match=r"could not fetch .* file:/mirror/ bookworm main"):
        load_task(TaskSource(name="debian-en-de"), tmp_path)
    apt.write_text("#!/bin/sh\necho 'Ubuntu noble file:/mirror/'\n")
    with pytest.raises(TunecastError, match="has no archive of Debian"):
        load_task(TaskSource(name="debian-en-de"), tmp_path)
