"""Which interpreter the set-up takes, on machines made of fake ones.

A fake is a shell script that runs the real interpreter with another version in its mouth, so the
script's own questions are asked and answered.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "find-python.sh"
INSTALL = "needs Python 3.12 or newer with venv and ensurepip"


class Machine:
    """A home and a search path of our own, with nothing in them but what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "a home"  # the space is on purpose
        self.bin = folder / "bin"
        self.home.mkdir()
        self.bin.mkdir()

    def script(self, path: str | Path, body: str) -> Path:
        place = self.bin / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"#!/bin/sh\n{body}\n")
        place.chmod(0o755)
        return place

    def python(self, path: str | Path, *version: int | str, lacks: str = "") -> Path:
        """Put a fake of that version there; ``lacks`` names a module that it does not have."""
        numbers = (*version, *(0, 0, 0)[len(version) :])[:3]
        level = version[3] if len(version) > 3 else "final"
        prelude = (
            f"import sys; sys.version_info = ({', '.join(map(str, numbers))}, '{level}', 0); "
            f"sys.executable = '{self.bin / path}'; sys.modules['{lacks or 'nothing'}'] = None"
        )
        # Called as: python -I -c CODE
        return self.script(path, f'exec "{sys.executable}" -I -c "{prelude}\n$3"')

    def find(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", str(SCRIPT)],
            env={"PATH": str(self.bin), "HOME": str(self.home), **environment},
            capture_output=True,
            text=True,
        )

    def finds(self, expected: Path, **environment: str) -> bool:
        done = self.find(**environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{expected}\n"
        return done.stderr == ""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_none(machine: Machine) -> None:
    done = machine.find()
    assert (done.returncode, done.stdout) == (1, "")
    assert INSTALL in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_newest_by_number_and_not_by_spelling(machine: Machine) -> None:
    machine.python("python3.12", 3, 12, 11)
    machine.python("python3", 3, 11, 2)
    newest = machine.python("python3.13", 3, 13, 2)
    assert machine.finds(newest)
    machine.python(machine.home / ".pyenv/versions/3.13.1/bin/python3", 3, 13, 1)
    assert machine.finds(newest)
    newer = machine.python(machine.home / ".pyenv/versions/3.13.10/bin/python3", 3, 13, 10)
    assert machine.finds(newer)


def test_python3_counts_by_what_it_is(machine: Machine) -> None:
    machine.python("python3.12", 3, 12, 1)
    assert machine.finds(machine.python("python3", 3, 13, 0))


@pytest.mark.parametrize(
    "unfit",
    [
        {"version": (3, 11, 9)},
        {"version": (2, 7, 18)},
        {"version": (3, 14, 0, "candidate")},
        {"version": (3, 14, 0), "lacks": "ensurepip"},
        {"version": (3, 14, 0), "lacks": "venv"},
        {"version": (3, 14, 0), "lacks": "ssl"},
    ],
    ids=str,
)
def test_the_unfit_are_passed_over(machine: Machine, unfit: dict[str, object]) -> None:
    version, lacks = unfit["version"], str(unfit.get("lacks", ""))
    assert isinstance(version, tuple)
    machine.python("python3.14", *version, lacks=lacks)
    assert INSTALL in machine.find().stderr
    assert machine.finds(machine.python("python3.12", 3, 12, 3))


@pytest.mark.parametrize(
    "shim",
    ["echo 'pyenv: python3.14: command not found' >&2; exit 127", "exit 0", "echo 3.14", "kill $$"],
)
def test_a_name_that_does_not_work_is_passed_over(machine: Machine, shim: str) -> None:
    machine.script("python3.14", shim)
    done = machine.find()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1, "the shim's own complaint is not shown"
    assert machine.finds(machine.python("python3.13", 3, 13, 0))


def test_a_python_too_new_for_the_compiled_packages_comes_last(machine: Machine) -> None:
    too_new = machine.python("python3", 3, 15, 0)
    assert machine.finds(too_new)
    assert machine.finds(machine.python("python3.12", 3, 12, 0))


def test_what_pyenv_and_uv_have_installed_is_found(machine: Machine) -> None:
    pyenv = machine.python(machine.home / ".pyenv/versions/3.12.1/bin/python3", 3, 12, 1)
    assert machine.finds(pyenv)
    uv = ".local/share/uv/python/cpython-3.13.5-linux-x86_64-gnu/bin/python3"
    assert machine.finds(machine.python(machine.home / uv, 3, 13, 5))
    elsewhere = machine.python(machine.home / "envs/versions/3.14.0/bin/python3", 3, 14, 0)
    assert machine.finds(elsewhere, PYENV_ROOT=str(machine.home / "envs"))


def test_the_one_that_is_asked_for_wins_if_it_is_fit(machine: Machine) -> None:
    newest = machine.python("python3.14", 3, 14, 0)
    asked = machine.python("asked", 3, 12, 0)
    assert machine.finds(asked, PYTHON=str(asked))
    assert machine.finds(asked, PYTHON="asked")
    for unfit in (str(machine.python("old", 3, 11, 0)), "absent"):
        quiet = machine.finds(newest, PYTHON=unfit)
        assert not quiet, "that another was taken must be said"


def test_no_home_is_no_obstacle(machine: Machine) -> None:
    expected = machine.python("python3", 3, 12, 0)
    done = subprocess.run(
        ["/bin/sh", str(SCRIPT)], env={"PATH": str(machine.bin)}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (f"{expected}\n", "")


def test_the_real_thing() -> None:
    done = subprocess.run([SCRIPT], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    ask = "import sys, venv, ensurepip; print(sys.version_info >= (3, 12))"
    told = subprocess.run([done.stdout.strip(), "-c", ask], capture_output=True, text=True)
    assert told.stdout == "True\n"
