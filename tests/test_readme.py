"""The README says what the code says, and its script runs."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import write_readme
from commands import Call

import tunecast.models
from tunecast.analysis.cli import app
from tunecast.models import Fit

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SCRIPT = README.split("```python\n")[1].split("```")[0]


def test_the_generated_parts_are_up_to_date() -> None:
    assert write_readme.rendered(README) == README, "run python tools/write_readme.py"


def test_a_stale_part_is_renewed() -> None:
    stale = README.replace("| `run_id` (required)", "| `id`")
    assert stale != README
    assert write_readme.rendered(stale) == README
    with pytest.raises(AssertionError, match="files"):
        write_readme.rendered(README.replace("<!-- /files -->", ""))


def test_every_link_leads_to_a_file() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).is_file(), link


def test_the_figure_is_small() -> None:
    for picture in (ROOT / "tools" / "figures").glob("*.png"):
        assert picture.stat().st_size < 150_000, picture.name


def test_every_command_and_option_exists(tunecast_: Call) -> None:
    called = re.findall(r"^tunecast (.+)$", README, flags=re.MULTILINE)
    assert len(called) >= 5
    for line in called:
        command = line.split()[0]
        done = tunecast_(command, "--help")
        assert done.code == 0, line
        for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", line):
            assert re.search(rf"{option}\b", done.out), (line, option)
    registered = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    assert {line.split()[0] for line in called} <= registered
    for name in registered:
        assert re.search(rf"\b{name}\b", README), f"README does not mention '{name}'"


def test_every_exit_code_is_told() -> None:
    assert re.findall(r"^\| (\d+) \|", README, flags=re.MULTILINE) == ["0", "2", "3", "130"]


def test_the_script_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    believed: Callable[..., Fit],
) -> None:
    """With draws of the prior in the place of sampling: whether it works, not what it finds."""
    monkeypatch.setattr(tunecast.models, "fit", lambda runs: believed(runs.reset_index(drop=True)))
    monkeypatch.chdir(tmp_path)
    exec(compile(SCRIPT, "README.md", "exec"), {})
    assert re.search(r"\d+ of \d+ runs lie in their 90 % interval", capsys.readouterr().out)
    assert (tmp_path / "fit.nc").is_file()
    assert len(SCRIPT.strip().splitlines()) <= 24


@pytest.mark.slow
def test_the_script_runs_as_it_stands(tmp_path: Path) -> None:
    """A fit of the ladder takes minutes; here it also has to converge."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+ of \d+ runs lie in their 90 % interval", done.stdout)
