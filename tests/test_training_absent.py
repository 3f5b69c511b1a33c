"""Without the packages that train, everything else works and one sentence says what is missing."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tunecast.analysis import cli

# Stands in for a machine without torch, wherever the test runs.
WITHOUT = (
    "import sys; sys.modules['torch'] = None; from tunecast.analysis.cli import main; main({})"
)


def test_a_sweep_without_torch_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else plain(name)
    )
    with pytest.raises(SystemExit) as left:
        cli.main(["sweep", "tiny", "-o", str(tmp_path / "runs.csv")])
    assert left.value.code == 2
    assert capsys.readouterr().err == (
        "tunecast: sweep needs torch: pip install 'tunecast[train]'.\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--help"], ["sweep", "--help"]])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "sweep" in done.stdout
