"""Splits that hold in every task: a group of texts lies in one of them as a whole, by its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

# Source and target.
type Pair = tuple[str, str]

SPLITS = ("train", "dev", "test")
# Per cent of the groups that are set aside where a source has no splits of its own.
TEST_PERCENT, DEV_PERCENT = 4, 3


def digest_of(texts: Iterable[str]) -> str:
    """Return a hash of texts that depends on where one ends and the next begins."""
    found = hashlib.sha256()
    for text in texts:
        raw = text.encode()
        found.update(len(raw).to_bytes(8, "big") + raw)
    return found.hexdigest()


def source_key(text: str) -> str:
    """Return what identifies a source: case and spacing do not make another text of it."""
    return digest_of([" ".join(text.lower().split())])


def split_of(group: str) -> str:
    """Return the split of everything that belongs to ``group``: the same in every task."""
    percent = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % 100
    if percent < TEST_PERCENT:
        return "test"
    return "dev" if percent < TEST_PERCENT + DEV_PERCENT else "train"


def by_hash(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """Return pairs by the split of their source."""
    splits: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for pair in pairs:
        splits[split_of(source_key(pair[0]))].append(pair)
    return splits
