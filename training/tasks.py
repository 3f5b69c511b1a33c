"""Tasks: source text to target text, with train, dev and test splits that never overlap.

A `TaskSource` says where a task comes from and is all that a recipe holds; `load_task` fetches the
text. Built in are ``debian-en-de`` (translation) and ``debian-summarise`` (a long description to
its one-line synopsis, in four languages), made from the package descriptions that apt offers, and
``docstrings`` (the rest of a docstring to its first paragraph), made from Python's own library.
No text comes with this package: apt fetches it once into the cache, where its dates are noted.
"""

from __future__ import annotations

import ast
import glob
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.files import default_cache, locked, write_atomically

type Pair = tuple[str, str]

SPLITS = ("train", "dev", "test")
# Which names a dataset of others uses for our splits.
ALIASES = {
    "train": ("train",),
    "dev": ("dev", "validation", "valid", "val"),
    "test": ("test",),
}
# Per cent of the groups that are set aside where a source has no splits of its own.
TEST_PERCENT, DEV_PERCENT = 4, 3

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITES = ("bookworm", "trixie", "sid")
LANGUAGES = ("en", "de", "fr", "es")
COMPRESSED = (".lz4", ".xz", ".gz", ".bz2", ".zst")
DEBIAN_LICENCE = (
    "not stated for the index files; fetched at run time, neither stored here nor redistributed"
)


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


def digest_of(texts: Iterable[str]) -> str:
    """Return a hash of texts that depends on where one ends and the next begins."""
    found = hashlib.sha256()
    for text in texts:
        raw = text.encode()
        found.update(len(raw).to_bytes(8, "big") + raw)
    return found.hexdigest()


def split_of(group: str) -> str:
    """Return the split of everything that belongs to ``group``: the same in every task."""
    percent = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % 100
    if percent < TEST_PERCENT:
        return "test"
    return "dev" if percent < TEST_PERCENT + DEV_PERCENT else "train"


def assemble(name: str, splits: Mapping[str, Iterable[Pair]], origin: Mapping[str, object]) -> Task:
    """Return a task of cleaned pairs, no source of dev or test among those of train.

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
        free = {pair for pair in pairs if _key(pair[0]) not in taken}
        dropped += len(pairs) - len(free) if split == "train" else 0
        taken |= {_key(source) for source, _ in free}
        kept[split] = tuple(sorted(free, key=lambda pair: digest_of(pair)))
        if not free:
            raise TunecastError(f"task '{name}' has an empty {split} split.")
    return Task(name, kept["train"], kept["dev"], kept["test"], {**origin, "dropped": dropped})


def _key(text: str) -> str:
    # Case and spacing do not make another sentence of it.
    return digest_of([" ".join(text.lower().split())])


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
        return _by_hash(_pairs(_rows(path), source)), origin
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
        return _by_hash(splits["train"]), origin
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


def _by_hash(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    splits: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for pair in pairs:
        splits[split_of(_key(pair[0]))].append(pair)
    return splits


# --------------------------------------------------------------------------- Debian's descriptions


def debian_en_de(cache: Path) -> tuple[dict[str, list[Pair]], dict[str, object]]:
    """Return synopses and paragraphs in English with their German translations."""
    table, origin = descriptions(cache)
    english, german = (table[table["language"] == language] for language in ("en", "de"))
    both = english.merge(german, on="md5", suffixes=("", "_de"))
    splits: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for row in both.itertuples():
        into = splits[split_of(str(row.source))]
        left, right = str(row.body).split("\n"), str(row.body_de).split("\n")
        pairs = [(str(row.synopsis), str(row.synopsis_de))]
        # With as many paragraphs on both sides they correspond; otherwise nothing says which do.
        pairs += zip(left, right, strict=True) if len(left) == len(right) else ()
        into += [(a, b) for a, b in pairs if a != b]  # equal ones were left untranslated
    return splits, origin


def debian_summarise(cache: Path) -> tuple[dict[str, list[Pair]], dict[str, object]]:
    """Return long descriptions with their synopses, in four languages."""
    table, origin = descriptions(cache)
    splits: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for row in table.itertuples():
        splits[split_of(str(row.source))].append((str(row.body), str(row.synopsis)))
    return splits, origin


def descriptions(cache: Path) -> tuple[pd.DataFrame, dict[str, object]]:
    """Fetch Debian's package descriptions once; afterwards take them from the cache.

    Returns
    -------
    DataFrame
        Columns md5 (which joins the translations of one text), language, source (the source
        package), synopsis, body (paragraphs, one a line).
    dict
        Licence, and for each suite the date and hash of its signed index.

    Raises
    ------
    TunecastError
        If apt is not there or cannot fetch.
    """
    folder = cache / "debian"
    table, note = folder / "descriptions.parquet", folder / "origin.json"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(table):
        if not table.exists():
            lists = _fetch(folder)
            origin = {"licence": DEBIAN_LICENCE, "suites": _dates(lists)}
            write_atomically(note, lambda path: path.write_text(json.dumps(origin, indent=1)))
            frame = _parse(lists)
            write_atomically(table, lambda path: frame.to_parquet(path, index=False))
            shutil.rmtree(folder / "apt")
    return pd.read_parquet(table), json.loads(note.read_text())


def _fetch(folder: Path) -> Path:
    """Run apt with a state of its own, so that nothing of the system's changes."""
    apt = shutil.which("apt-get")
    if apt is None:
        raise TunecastError(
            "the debian tasks need apt, which is not on this machine; 'docstrings' needs nothing."
        )
    archive = _archive(apt)
    state = folder / "apt"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    lines = [f"deb [signed-by={KEYRING}] {archive} {suite} main\n" for suite in SUITES]
    (state / "sources.list").write_text("".join(lines))
    options = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::Cache": state / "cache",
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": state / "none",
        "Acquire::Languages": ",".join(LANGUAGES),
        "APT::Sandbox::User": "root",  # the usual one may not write in a user's cache
        "APT::Update::Error-Mode": "any",
        "Acquire::http::Timeout": 30,
        "Acquire::Retries": 1,
    }
    command = [apt, "-qq", *(f"-o{name}={value}" for name, value in options.items()), "update"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0].rstrip(".")
        raise TunecastError(f"apt could not fetch Debian's descriptions: {reason}.")
    return state / "lists"


def _archive(apt: str) -> str:
    """Return the Debian archive that this machine's apt uses, which may be a mirror."""
    asked = [apt, "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)"]
    done = subprocess.run(asked, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        origin, codename, *address = line.split()
        if (origin, codename) in [("Debian", suite) for suite in SUITES] and address:
            return address[0]
    raise TunecastError(
        f"apt on this machine has no archive of Debian ({', '.join(SUITES)}); run 'apt-get update' "
        "if its lists are empty. The task 'docstrings' needs nothing."
    )


def _dates(lists: Path) -> dict[str, dict[str, str]]:
    found = {}
    for path in sorted(lists.glob("*_InRelease")):
        text = path.read_bytes()
        fields = dict(line.split(": ", 1) for line in text.decode().splitlines() if ": " in line)
        found[fields["Codename"]] = {
            "date": fields["Date"],
            "sha256": hashlib.sha256(text).hexdigest(),
        }
    return found


def _stanzas(lists: Path, pattern: str) -> Iterator[dict[str, str]]:
    """Yield the fields of each package in index files, however apt stored them."""
    for path in sorted(lists.glob(pattern)):
        raw = path.read_bytes()
        if path.suffix in COMPRESSED:
            command = ["/usr/lib/apt/apt-helper", "cat-file", str(path)]
            raw = subprocess.run(command, capture_output=True, check=True).stdout
        for stanza in raw.decode().split("\n\n"):
            fields: dict[str, str] = {}
            name = ""
            for line in stanza.splitlines():
                if line.startswith(" "):
                    fields[name] += "\n" + line
                else:
                    name, _, value = line.partition(":")
                    fields[name] = value.strip()
            yield fields


def _parse(lists: Path) -> pd.DataFrame:
    source_of = {
        stanza["Package"]: stanza.get("Source", stanza["Package"]).split(" ")[0]
        for stanza in _stanzas(lists, "*_Packages*")
        if "Package" in stanza
    }
    rows: dict[tuple[str, str], tuple[str, str, str, str, str]] = {}
    for language in LANGUAGES:
        for stanza in _stanzas(lists, f"*_Translation-{language}*"):
            text = stanza.get(f"Description-{language}")
            if not text or stanza["Package"] not in source_of:
                continue
            md5 = stanza["Description-md5"]
            synopsis, _, rest = text.partition("\n")
            body = "\n".join(_paragraphs(rest))
            if synopsis and body:
                source = source_of[stanza["Package"]]
                rows.setdefault((md5, language), (md5, language, source, synopsis, body))
    frame = pd.DataFrame(
        list(rows.values()), columns=["md5", "language", "source", "synopsis", "body"]
    )
    # One text may serve several packages; its translations must lie in one split all the same.
    frame["source"] = frame.groupby("md5")["source"].transform("first")
    return frame


def _paragraphs(text: str) -> Iterator[str]:
    for block in text.split("\n .\n"):
        if words := " ".join(block.split()):
            yield words


# --------------------------------------------------------------------------- docstrings


def docstrings(cache: Path) -> tuple[dict[str, list[Pair]], dict[str, object]]:
    """Return the bodies of the standard library's docstrings with their first paragraphs."""
    del cache  # always at hand
    splits: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for module, text in _docstrings():
        first, _, rest = text.partition("\n\n")
        if rest:
            splits[split_of(module)].append((" ".join(rest.split()), " ".join(first.split())))
    return splits, {"licence": "PSF-2.0", "python": sysconfig.get_python_version()}


def _docstrings() -> Iterator[tuple[str, str]]:
    library = sysconfig.get_path("stdlib")
    for path in sorted(glob.glob(f"{library}/**/*.py", recursive=True)):
        module = os.path.relpath(path, library)
        if any(part in ("site-packages", "test", "tests") for part in Path(module).parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about escapes in code that is not ours
                tree = ast.parse(Path(path).read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # templates and samples of other encodings are no modules
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                if text := ast.get_docstring(node):
                    yield module, inspect.cleandoc(text)


BUILT_IN: Mapping[str, Callable[[Path], tuple[dict[str, list[Pair]], dict[str, object]]]] = {
    "debian-en-de": debian_en_de,
    "debian-summarise": debian_summarise,
    "docstrings": docstrings,
}


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
        texts = [text for module, text in _docstrings() if split_of(module) == "train"]
    else:
        texts = [f"{a}\n{b}" for a, b in load_task(source, cache).train]
    return tuple(sorted(set(texts), key=lambda text: digest_of([text])))
