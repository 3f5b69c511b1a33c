"""Tasks: source text to target text, with train, dev and test splits that never overlap.

A `TaskSource` says where a task comes from and is all that a recipe holds; `load_task` fetches the
text. Built in are ``debian-en-de`` (translation) and ``debian-summarise`` (a long description to
its one-line synopsis, in four languages), made from the package descriptions that apt offers, and
``docstrings`` (the rest of a docstring to its first paragraph), made from Python's own library; see
`tunecast.training.corpora`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.files import default_cache
from tunecast.training.corpora import BUILT_IN, LANGUAGES, descriptions, library_docstrings
from tunecast.training.splits import SPLITS, Pair, by_hash, digest_of, source_key, split_of

# Which names a dataset of others uses for our splits.
ALIASES = {
    "train": ("train",),
    "dev": ("dev", "validation", "valid", "val"),
    "test": ("test",),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSource:
    """Where a task comes from.

    Parameters
    ----------
    name : str
        The ``task`` column; also the built-in task, if ``path`` is empty.
    path : str
        A ``.jsonl`` or ``.parquet`` file; a folder with such files named after the splits; or a
        hub id or folder that the `datasets` library loads.
    config : str or None
        Configuration of a `datasets` dataset, such as a language pair.
    source, target : str
        Columns of the two texts. A dot reaches inside: ``translation.en``.
    max_source, max_target : int
        Longest texts in tokens; longer examples are left out of every split, none is cut.
    pool : int or None
        Training examples from which the seeds choose; None takes all.
    """

    name: str
    path: str = ""
    config: str | None = None
    source: str = "source"
    target: str = "target"
    max_source: int = 64
    max_target: int = 64
    pool: int | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A task's text.

    Parameters
    ----------
    name : str
        As in `TaskSource`.
    train, dev, test : tuple of (str, str)
        Pairs of source and target, in an order that is arbitrary but fixed: the first ones of a
        split are a random sample of it.
    origin : mapping
        Licence, dates and how many training pairs were dropped since their source is also in dev
        or test.
    """

    name: str
    train: tuple[Pair, ...]
    dev: tuple[Pair, ...]
    test: tuple[Pair, ...]
    origin: Mapping[str, object] = field(default_factory=dict)


def assemble(name: str, splits: Mapping[str, Iterable[Pair]], origin: Mapping[str, object]) -> Task:
    """Return a task of cleaned pairs, no source of dev or test among those of train.

    Parameters
    ----------
    name : str
        Of the task.
    splits : mapping of str to iterable of (str, str)
        Pairs of source and target by split; where one source is in several, test keeps it, then
        dev.
    origin : mapping of str to object
        What is known of the text.

    Raises
    ------
    TunecastError
        If a split is empty.
    """
    taken: set[str] = set()
    kept: dict[str, tuple[Pair, ...]] = {}
    dropped = 0
    for split in ("test", "dev", "train"):
        pairs = {(s.strip(), t.strip()) for s, t in splits.get(split, ())}
        pairs = {(s, t) for s, t in pairs if s and t}
        free = {pair for pair in pairs if source_key(pair[0]) not in taken}
        dropped += len(pairs) - len(free) if split == "train" else 0
        taken |= {source_key(source) for source, _ in free}
        kept[split] = tuple(sorted(free, key=lambda pair: digest_of(pair)))
        if not free:
            raise TunecastError(f"task '{name}' has an empty {split} split.")
    return Task(name, kept["train"], kept["dev"], kept["test"], {**origin, "dropped": dropped})


def load_task(source: TaskSource, cache: Path | None = None) -> Task:
    """Fetch the text of a task, or take it from the cache.

    Parameters
    ----------
    source : TaskSource
        What to load.
    cache : Path, optional
        Folder for what apt fetches; by default `default_cache`.

    Raises
    ------
    TunecastError
        If there is no such task, a column is missing, a split is empty, or apt cannot fetch.
    """
    return _load_task(source, cache or default_cache())


@lru_cache(maxsize=8)
def _load_task(source: TaskSource, cache: Path) -> Task:
    if not source.path:
        if source.name not in BUILT_IN:
            known = ", ".join(BUILT_IN)
            raise TunecastError(
                f"there is no built-in task '{source.name}' ({known}); give the path of your own."
            )
        splits, origin = BUILT_IN[source.name](cache)
    else:
        splits, origin = _theirs(source)
    return assemble(source.name, splits, origin)


# --------------------------------------------------------------------------- files and datasets


READERS: Mapping[str, Callable[[Path], pd.DataFrame]] = {
    ".jsonl": lambda path: pd.read_json(path, lines=True),
    ".parquet": pd.read_parquet,
}


def _theirs(source: TaskSource) -> tuple[dict[str, list[Pair]], dict[str, object]]:
    path = Path(source.path)
    origin: dict[str, object] = {"from": path.name, "licence": "the owner's"}
    if path.suffix in READERS:
        if not path.is_file():
            raise TunecastError(f"there is no file '{path}' for task '{source.name}'.")
        return by_hash(_pairs(_rows(path), source)), origin
    files = {
        split: found
        for split in SPLITS
        for alias in ALIASES[split]
        for found in [path / f"{alias}{suffix}" for suffix in READERS]
        if found.is_file()
    }
    if files:
        return {split: _pairs(_rows(file), source) for split, file in files.items()}, origin
    tables = _dataset(source)
    splits = {
        split: _pairs(tables[alias], source)
        for split in SPLITS
        for alias in ALIASES[split]
        if alias in tables
    }
    if set(splits) == {"train"}:
        return by_hash(splits["train"]), origin
    return splits, origin


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        table = READERS[path.suffix](path)
        return [dict(zip(map(str, table), row, strict=True)) for row in table.to_numpy()]
    except (ValueError, OSError) as error:
        raise TunecastError(f"'{path}' cannot be read: {' '.join(str(error).split())}.") from error


def _dataset(source: TaskSource) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    import datasets

    try:
        if (Path(source.path) / "dataset_dict.json").is_file():
            return datasets.load_from_disk(source.path)
        return datasets.load_dataset(source.path, source.config)
    except Exception as error:  # a dozen types, of three libraries, for one that is not there
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise TunecastError(
            f"task '{source.name}' cannot be loaded from '{source.path}': {reason}."
        ) from error


def _pairs(rows: Iterable[Mapping[str, Any]], source: TaskSource) -> list[Pair]:
    return [
        (_field(row, source, source.source), _field(row, source, source.target)) for row in rows
    ]


def _field(row: Mapping[str, Any], source: TaskSource, column: str) -> str:
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            has = ", ".join(map(str, row))
            raise TunecastError(f"task '{source.name}' has no column '{column}', only {has}.")
        value = value[part]
    if not isinstance(value, str):
        raise TunecastError(f"task '{source.name}' holds {value!r} in '{column}', not a text.")
    return value


# --------------------------------------------------------------------------- text for pre-training


@lru_cache(maxsize=4)
def corpus(source: TaskSource, cache: Path, languages: Sequence[str] = ()) -> tuple[str, ...]:
    """Return documents to pre-train on: nothing that a dev or test example is made of.

    Parameters
    ----------
    source : TaskSource
        A task. Of the debian tasks, whole descriptions of the training packages are taken; of the
        docstrings, those of the training modules; of another task, sources and targets.
    cache : Path
        As in `load_task`.
    languages : sequence of str
        Of the debian tasks, the languages to take; empty takes all.
    """
    if not source.path and source.name.startswith("debian-"):
        table, _ = descriptions(cache)
        table = table[table["source"].map(split_of) == "train"]
        table = table[table["language"].isin(languages or LANGUAGES)]
        texts = [f"{row.synopsis}\n{row.body}" for row in table.itertuples()]
    elif not source.path and source.name == "docstrings":
        texts = [text for module, text in library_docstrings() if split_of(module) == "train"]
    else:
        texts = [f"{a}\n{b}" for a, b in load_task(source, cache).train]
    return tuple(sorted(set(texts), key=lambda text: digest_of([text])))
