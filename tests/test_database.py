"""Run tables in a database: SQLite, and a PostgreSQL server of the tests' own."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import importorskip, skip_without

sa = importorskip("sqlalchemy")
importorskip("psycopg")

from tunecast.analysis import cli
from tunecast.models import Fit
from tunecast.models.errors import TunecastError
from tunecast.models.runs import (
    COLUMNS,
    Run,
    append_run,
    digest,
    has_runs,
    read_runs,
    shown,
)
from tunecast.models.runs.database import NAME, TABLE, claimed_of

RUN = Run(run_id="a", task="t", method="lora", loss=0.1 + 0.2, model_size=1e9, seed=3)
PASSWORD = "p@ss:w/rd"  # every mark that could end it in a URL
QUOTED = "p%40ss%3Aw%2Frd"


def postgres_programs() -> Path | None:
    """Return where the server's programs are: Debian keeps them by version, off the path."""
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name))
    return Path(found).parent if found else (folders[-1] if folders else None)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Start a server in a folder of its own, without a network; its URL, with a password."""
    programs = postgres_programs()
    if programs is None:
        skip_without("PostgreSQL")
    folder = Path(tempfile.mkdtemp(prefix="tunecast-"))  # a socket's path must be short
    # The server refuses to run as root.
    other: dict[str, object] = {}
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        other = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    secret, data = folder / "secret", folder / "data"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    made = [programs / "initdb", "-D", data, "-U", "team", "-A", "scram-sha-256"]
    made += [f"--pwfile={secret}", "-E", "UTF8", "--no-locale", "--no-sync"]
    subprocess.run(made, check=True, capture_output=True, cwd=folder, **other)  # type: ignore[call-overload]
    start = [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses="]
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(
            [*start, "-c", "fsync=off"], stdout=log, stderr=log, cwd=folder, **other  # type: ignore[call-overload]
        )  # fmt: skip
    url = f"postgresql+psycopg://team:{QUOTED}@/postgres?host={folder}"
    deadline = time.monotonic() + 60
    while not can_connect(url):
        assert running.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.1)
    yield url
    running.terminate()
    running.wait(30)
    shutil.rmtree(folder)


def can_connect(url: str) -> bool:
    try:
        with sa.create_engine(url, poolclass=sa.pool.NullPool).connect():
            return True
    except sa.exc.OperationalError:
        return False


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/runs.db"
    server = str(request.getfixturevalue("server"))
    with sa.create_engine(server, poolclass=sa.pool.NullPool).begin() as connection:
        connection.execute(sa.text(f"DROP TABLE IF EXISTS {NAME}"))
    return server


def fill(table: str | Path) -> None:
    """Append rows of every kind."""
    append_run(table, RUN, extra={"lr": 1e-4, "reason": "", "at_edge": True})
    failed = replace(RUN, run_id="b", status="failed", loss=None, seed=None)
    append_run(table, failed, extra={"reason": "it said: 'no'", "lr": None})
    append_run(table, replace(RUN, run_id="c", base_model="big"), extra={"steps": 12})


# --------------------------------------------------------------------------- rows


def test_a_database_gives_what_a_file_gives(url: str, tmp_path: Path) -> None:
    assert not has_runs(url)
    fill(url)
    fill(tmp_path / "runs.csv")
    assert has_runs(url)
    found, expected = read_runs(url, columns=["model_size"]), read_runs(tmp_path / "runs.csv")
    assert list(found.columns) == list(expected.columns)
    assert digest(found) == digest(expected)
    assert list(found["run_id"]) == ["a", "b", "c"], "in the order in which they came"
    assert found["loss"][0] == 0.1 + 0.2, "to the last digit"
    assert list(found["base_model"]) == ["a", "b", "big"]
    both = read_runs([url, "ladder"])
    assert len(both) == 3 + len(read_runs("ladder"))


def test_the_table_has_the_declared_columns(url: str) -> None:
    assert list(TABLE.columns.keys()) == ["row_number", *COLUMNS, "extra"]
    append_run(url, RUN)
    with sa.create_engine(url, poolclass=sa.pool.NullPool).connect() as connection:
        (loss,) = connection.execute(sa.text(f"SELECT loss FROM {NAME} WHERE seed = 3")).one()
    assert loss == 0.1 + 0.2


def test_a_run_is_there_once(url: str) -> None:
    fill(url)
    before = digest(read_runs(url))
    with pytest.raises(TunecastError, match="already has a run ' a'"):
        append_run(url, replace(RUN, run_id=" a"))
    with pytest.raises(TunecastError, match="must not repeat declared ones: loss"):
        append_run(url, replace(RUN, run_id="d"), extra={"loss": 1})
    assert digest(read_runs(url)) == before


WRITER = """
import sys
from tunecast.models.errors import TunecastError
from tunecast.models.runs import Run, append_run
url, name = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
refused = 0
for k in range(20):
    for run_id in (f"{name}/{k}", f"both/{k}"):
        try:
            append_run(url, Run(run_id=run_id, task="t", method="m", loss=1.0 + k))
        except TunecastError as error:
            assert "already has a run" in str(error), error
            refused += 1
print(refused)
"""


def test_writers_at_the_same_time_lose_no_row_and_write_none_twice(url: str) -> None:
    """Three processes, the table not there yet: each has runs of its own, and all have some."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, url, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "abc"
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    refused = 0
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        refused += int(writer.communicate(timeout=120)[0])
        assert writer.returncode == 0
    expected = sorted(f"{name}/{k}" for name in ("a", "b", "c", "both") for k in range(20))
    assert sorted(read_runs(url)["run_id"]) == expected
    assert refused == 40, "of each common run, two writers have to be told"


# --------------------------------------------------------------------------- what cannot be used


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("mysql://me:geheim@host/db", "is of kind 'mysql', but a run table can be in sqlite:///"),
        ("nonsense://me:geheim@host", "is of kind 'nonsense'"),
        ("://me:geheim@", "cannot be read as a URL such as sqlite:///FILE"),
        ("sqlite://", "names no file; write sqlite:///FILE"),
        ("postgresql://me:geheim@127.0.0.1:1/db?connect_timeout=5", "cannot be .*refused"),
        ("postgresql+psycopg://me@127.0.0.1:1/db?password=geheim", "cannot be .*refused"),
        ("postgresql+pg8000://me:geheim@127.0.0.1/db", "needs pg8000: pip install"),
    ],
)
def test_a_bad_url_is_one_sentence_without_the_password(source: str, sentence: str) -> None:
    for use in (read_runs, lambda url: append_run(url, RUN)):
        with pytest.raises(TunecastError, match=sentence) as caught:
            use(source)  # type: ignore[operator]
        assert "geheim" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_reading_makes_no_database(tmp_path: Path) -> None:
    with pytest.raises(TunecastError, match=f"has no table '{NAME}'"):
        read_runs(f"sqlite:///{tmp_path}/runs.db")
    assert not list(tmp_path.iterdir())
    with pytest.raises(TunecastError, match="cannot be written: unable to open"):
        append_run(f"sqlite:///{tmp_path}/gone/runs.db", RUN)


def test_something_else_under_our_name_is_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    with sa.create_engine(url, poolclass=sa.pool.NullPool).begin() as connection:
        connection.execute(sa.text(f"CREATE TABLE {NAME} (row_number INTEGER, run_id TEXT)"))
    for use in (read_runs, lambda url: append_run(url, RUN)):
        with pytest.raises(TunecastError, match="has no column 'task'"):
            use(url)  # type: ignore[operator]
    (tmp_path / "other.db").write_text("text")
    with pytest.raises(TunecastError, match=r"other\.db' cannot be read: file is not a database"):
        read_runs(f"sqlite:///{tmp_path}/other.db")


def test_a_wrong_password_is_not_repeated(server: str) -> None:
    with pytest.raises(TunecastError, match="password authentication failed") as caught:
        read_runs(server.replace(QUOTED, "geheim"))
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgresql://me:a:b@c/d@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me@host/db?password=x&a=b", "postgresql://me@host/db?password=***&a=b"),
        ("postgresql://host:5432/db", "postgresql://host:5432/db"),
        ("sqlite:////home/a:b@c.db", "sqlite:////home/a:b@c.db"),
        ("runs.csv", "runs.csv"),
    ],
)
def test_a_password_is_not_shown(given: str, expected: str) -> None:
    assert shown(given) == expected


def test_files_need_no_sqlalchemy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['sqlalchemy'] = None\n"
        "from tunecast.models import read_runs\n"
        "from tunecast.models.errors import TunecastError\n"
        "read_runs('ladder')\n"
        "try: read_runs('sqlite:///runs.db')\n"
        "except TunecastError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "a run table in a database needs sqlalchemy: pip install 'tunecast[database]'.\n"
    )


# --------------------------------------------------------------------------- fits and sweeps


def test_a_saved_fit_knows_no_password(
    url: str, ladder: pd.DataFrame, believed: Callable[..., Fit], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for values in ladder.to_dict("records"):
        row = {str(name): value for name, value in values.items() if not pd.isna(value)}
        known = {name: value for name, value in row.items() if name in COLUMNS}
        append_run(url, Run(**known))  # type: ignore[arg-type]
    asked: list[pd.DataFrame] = []

    def fit(runs: pd.DataFrame, **options: object) -> Fit:
        asked.append(runs)
        return believed(runs)

    monkeypatch.setattr("tunecast.models.fit", fit)
    with pytest.raises(SystemExit) as left:
        cli.main(["fit", url, "-o", str(tmp_path / "fit.nc"), "--quiet"])
    assert left.value.code == 0
    assert list(asked[0]["loss"]) == list(ladder["loss"])
    out, err = capsys.readouterr()
    kept = (tmp_path / "fit.nc").read_bytes()
    for secret in (PASSWORD, QUOTED):
        assert secret not in out + err
        assert secret.encode() not in kept


def test_a_claim_on_a_server_is_for_one_and_ends_with_it(server: str) -> None:
    with claimed_of(server, ["x", "y"]) as first:
        assert first == {"x", "y"}
        with claimed_of(server, ["y", "z"]) as second:
            assert second == {"z"}
    with claimed_of(server, ["y", "z"]) as third:
        assert third == {"y", "z"}
