"""The text that is built in: docstrings as they are, Debian from fakes."""

from pathlib import Path

import pytest

from tunecast.models.errors import TunecastError
from tunecast.training import corpora
from tunecast.training.splits import source_key, split_of
from tunecast.training.tasks import Task, TaskSource, corpus, load_task


def leaks(task: Task) -> set[str]:
    """Return the hashes of sources that train shares with dev or test."""
    train, dev, test = (
        {source_key(source) for source, _ in split} for split in (task.train, task.dev, task.test)
    )
    return (train & (dev | test)) | (dev & test)


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

    monkeypatch.setattr(corpora, "fetch_lists", fetch)
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
