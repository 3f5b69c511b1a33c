"""The command ``fit``: what reaches the sampler, and what is left when it cannot end well."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import Call, Done, refused
from conftest import SMALL, disk_full_after

import tunecast.models
from tunecast.models import Fit, load_fit


def test_options_of_a_fit_reach_it(
    tmp_path: Path, tunecast_: Call, no_sampling: list[dict[str, Any]]
) -> None:
    out = tmp_path / "fit.nc"
    options = "--law power --factors= --cell task,method,seed --where loss>4.3 --draws 7"
    done = tunecast_("fit", SMALL, "-o", out, "--allow-unconverged", *options.split())
    assert done.code == 3, "a fit that did not converge says so even when it is kept"
    assert "it was saved as asked, and is marked" in done.err
    (asked,) = no_sampling
    assert (asked["law"], asked["factors"], asked["draws"]) == ("power", (), 7)
    assert asked["cell"] == ("task", "method", "seed")
    assert len(asked["runs"]) == 48
    assert "tune" not in asked, "the default is the fit's own"
    assert not load_fit(out).diagnostics.converged


def test_a_fit_that_did_not_converge_is_not_saved(
    tmp_path: Path, tunecast_: Call, no_sampling: list[dict[str, Any]], unconverged: Fit
) -> None:
    done = tunecast_("fit", SMALL, "-o", tmp_path / "fit.nc")
    assert done.code == 3
    assert unconverged.diagnostics.reasons[0] in done.err
    assert "--allow-unconverged would save it" in done.err
    assert len(done.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_a_reader_should_know_is_said(
    tmp_path: Path, tunecast_: Call, no_sampling: list[dict[str, Any]]
) -> None:
    done = tunecast_("fit", "zhang2024-simulated", "-o", tmp_path / "fit.nc")
    assert "note: 470 of 470 runs are simulated, not measured." in done.err.splitlines()


def test_a_full_disk_keeps_the_old_fit(tmp_path: Path, saved: Path) -> None:
    """In a process of its own: what a failed write leaves behind may end it later."""
    path = tmp_path / "fit.nc"
    path.write_bytes(saved.read_bytes())
    code = f"""
import resource, tunecast.models
result = tunecast.models.load_fit({str(saved)!r})
tunecast.models.fit = lambda runs, **options: result
from tunecast.analysis.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
main(["fit", {SMALL!r}, "-q", "--allow-unconverged", "-o", {str(path)!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    refused(Done(done.returncode, done.stdout, done.stderr), "cannot be written")
    assert path.read_bytes() == saved.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["fit.nc"]


def test_a_full_disk_keeps_the_old_table_and_picture(
    tmp_path: Path, tunecast_: Call, saved: Path
) -> None:
    table, picture = tmp_path / "answer.csv", tmp_path / "answer.png"
    table.write_text("old")
    picture.write_text("old")
    sizes = ",".join(map(str, range(1000, 1100)))
    ask = ("forecast", saved, "--model-size", 1240480, "--examples", sizes)
    with disk_full_after(4096):
        refused(tunecast_(*ask, "-o", table), "cannot be written")
    with disk_full_after(4096):
        done = tunecast_(*ask, "--plot", picture)
    assert done.code == 2 and "cannot be written" in done.err
    assert table.read_text() == picture.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupt_leaves_nothing_half_written(
    tmp_path: Path, tunecast_: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(runs: pd.DataFrame, **options: Any) -> Fit:
        raise KeyboardInterrupt

    monkeypatch.setattr(tunecast.models, "fit", interrupted)
    path = tmp_path / "fit.nc"
    path.write_text("old")
    done = tunecast_("fit", SMALL, "-o", path)
    assert done.code == 130
    assert "Traceback" not in done.err
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["fit.nc"]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1, 5, 40])
def test_ctrl_c_while_it_samples(tmp_path: Path, seconds: int) -> None:
    """A real interrupt, sent to a real process while it starts, compiles or samples."""
    path = tmp_path / "fit.nc"
    path.write_text("old")
    code = "from tunecast.analysis.cli import main; main()"
    arguments = ["fit", SMALL, "-o", str(path), "--draws", "100000", "--tune", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert b"Traceback" not in err
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["fit.nc"]
