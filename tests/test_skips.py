"""A test may be skipped where a program is missing, but not where all are said to be there."""

import re
from pathlib import Path

import pytest
from conftest import importorskip, skip_without


def test_what_is_missing_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNECAST_REQUIRE_ALL", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs a compass"):
        skip_without("a compass")
    with pytest.raises(pytest.skip.Exception, match="needs the package no_such_package"):
        importorskip("no_such_package.part")
    assert importorskip("json.decoder").JSONDecoder


def test_what_is_missing_fails_where_all_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNECAST_REQUIRE_ALL", "1")
    with pytest.raises(pytest.fail.Exception, match="a compass is missing"):
        skip_without("a compass")
    with pytest.raises(pytest.fail.Exception, match="the package no_such_package is missing"):
        importorskip("no_such_package")


def test_no_test_skips_in_another_way() -> None:
    """What no installation could bring is another matter: a GPU, or a user who is not root."""
    allowed = {'pytest.skip("this user may read everything")'}
    for path in Path(__file__).parent.glob("test_*.py"):
        if path == Path(__file__):
            continue
        found = re.findall(r"pytest\.(?:importorskip|skip)\([^)]*\)", path.read_text())
        assert set(found) <= allowed, path.name
