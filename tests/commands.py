"""What a command of the command line leaves, and what is expected of one that is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Done:
    """What a call left: exit code, and what it printed."""

    code: int
    out: str
    err: str


type Call = Callable[..., Done]


def refused(done: Done, *sentences: str) -> None:
    """Exit code 2, one line for each fault, no traceback."""
    assert done.code == 2, done
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == len(sentences), done.err
    for line, sentence in zip(lines, sentences, strict=True):
        assert line.startswith("tunecast: ") and line.endswith((".", "?")), line
        assert sentence in line
