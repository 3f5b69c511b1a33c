"""The text that is built in: Debian's package descriptions and the docstrings of Python's library.

No text comes with this package: apt fetches Debian's once into the cache, where its dates are
noted, and the docstrings are on every machine that has Python.
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
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.files import locked, write_atomically
from tunecast.training.splits import SPLITS, Pair, split_of

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITES = ("bookworm", "trixie", "sid")
LANGUAGES = ("en", "de", "fr", "es")
COMPRESSED = (".lz4", ".xz", ".gz", ".bz2", ".zst")
DEBIAN_LICENCE = (
    "not stated for the index files; fetched at run time, neither stored here nor redistributed"
)


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
            lists = fetch_lists(folder)
            origin = {"licence": DEBIAN_LICENCE, "suites": _dates(lists)}
            write_atomically(note, lambda path: path.write_text(json.dumps(origin, indent=1)))
            frame = _parse(lists)
            write_atomically(table, lambda path: frame.to_parquet(path, index=False))
            shutil.rmtree(folder / "apt")
    return pd.read_parquet(table), json.loads(note.read_text())


def fetch_lists(folder: Path) -> Path:
    """Fetch apt's index files of Debian and return their folder.

    That apt has a state of its own: nothing of the system's changes.

    Raises
    ------
    TunecastError
        If apt is not there or cannot fetch.
    """
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
    for module, text in library_docstrings():
        first, _, rest = text.partition("\n\n")
        if rest:
            splits[split_of(module)].append((" ".join(rest.split()), " ".join(first.split())))
    return splits, {"licence": "PSF-2.0", "python": sysconfig.get_python_version()}


@lru_cache(maxsize=1)
def library_docstrings() -> tuple[tuple[str, str], ...]:
    """Return the docstrings of Python's own library, each after the module that it is in."""
    found = []
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
                    found.append((module, inspect.cleandoc(text)))
    return tuple(found)


BUILT_IN: Mapping[str, Callable[[Path], tuple[dict[str, list[Pair]], dict[str, object]]]] = {
    "debian-en-de": debian_en_de,
    "debian-summarise": debian_summarise,
    "docstrings": docstrings,
}
