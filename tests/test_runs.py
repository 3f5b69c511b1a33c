"""The run table: what is refused and how, what comes back, and what survives a failure."""

import errno
import os
import pickle
import re
import threading
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import disk_full_after
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecast.models.errors import TunecastError
from tunecast.models.files import locked, write_atomically
from tunecast.models.runs import (
    COLUMNS,
    Run,
    append_run,
    column_table,
    describe,
    digest,
    embedded_tables,
    read_runs,
    warn_about,
    where,
)

ROOT = Path(__file__).parent.parent
RUN = Run(run_id="a", task="t", method="lora", loss=0.1 + 0.2, model_size=16e9, seed=3)
HEADER = "run_id,task,method,loss\n"
ABSENT = object()


def table(**changes: Any) -> pd.DataFrame:
    """Three good rows, with columns replaced or, if ABSENT, left out."""
    columns = {
        "run_id": ["a", "b", "c"],
        "task": "t",
        "method": ["fmt", "lora", "fmt"],
        "model_size": 1_000_000,
        "finetune_examples": [0, 100, 200],
        "loss": [3.0, 2.0, 1.0],
        **changes,
    }
    return pd.DataFrame({name: v for name, v in columns.items() if v is not ABSENT})


# ------------------------------------------------------------------ what is refused

FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"run_id": ABSENT}, r"column 'run_id' is missing; the table has: task, method"),
    ({"task": ABSENT}, r"column 'task' is missing"),
    ({"method": ABSENT, "methods": "fmt"}, r"column 'method' is missing; is 'methods' meant\?"),
    ({"loss": ABSENT}, r"column 'loss' is missing"),
    ({"run_id": ["a", None, "c"]}, r"'run_id' must be a label, but it is empty in row 2\.$"),
    ({"run_id": ["a", "b", "a"]}, r"'run_id' must not repeat, but 'a' is there again in row 3\.$"),
    ({"task": ["t", " ", ""]}, r"'task' .* empty in row 2 \(2 such rows, this is the first\)\.$"),
    ({"loss": [3, -1, 0]}, r"'loss' must be a finite number > 0 .* is -1 in row 2 \(2 such rows"),
    ({"loss": [3, 2, np.nan]}, r"'loss' .* in rows that are done, but it is empty in row 3\.$"),
    ({"loss": [3, 2, np.inf]}, r"'loss' .* it is inf in row 3"),
    ({"loss": ["3", "2", "1,5"]}, r"'loss' .* it is '1,5' in row 3"),
    ({"status": ["done", "Done", "ok"]}, r"'status' must be one of done, diverged, failed, .*Done"),
    ({"status": None, "loss": [3, None, 1]}, r"'loss' .* empty in row 2"),
    ({"origin": "guessed"}, r"'origin' must be one of measured, simulated, .* \(3 such rows"),
    ({"model_size": [1e6, 0, 1e6]}, r"'model_size' must be a finite number > 0, .* 0.0 in row 2"),
    ({"model_size": [None, 1, 1]}, r"'model_size' .* empty in row 1"),
    ({"finetune_examples": [0, -5, 1]}, r"'finetune_examples' .* >= 0, but it is -5 in row 2"),
    ({"finetune_examples": ABSENT}, r"column 'finetune_examples' is missing"),
    ({"seed": [0, 1.5, None]}, r"'seed' must be a whole number >= 0, but it is 1.5 in row 2"),
    ({"loss_se": [0.0, 0.1, -0.1]}, r"'loss_se' .* is -0.1 in row 3"),
    ({"rank": [8, "x", None]}, r"'rank' must be a finite number, .* 'x' in row 2 \(2 such rows"),
    ({"rank": [True, False, True]}, r"'rank' must be a finite number, but it is True"),
    ({"rank": pd.to_datetime(["2026-01-01"] * 3)}, r"'rank' must be a finite number, .*Timestamp"),
    ({"rank": [[8], [16], [32]]}, r"'rank' must be a finite number, but it is \[8\]"),
    ({"pair": ["x", None, "x"]}, r"'pair' must be a label, but it is empty in row 2"),
]


@pytest.mark.parametrize(("changes", "message"), FAULTS)
def test_a_fault_is_told_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    frame = table(**{"rank": 8, "pair": "en-de", **changes})
    with pytest.raises(TunecastError, match=message) as caught:
        read_runs(frame, columns=["model_size", "finetune_examples", "rank"], labels=["pair"])
    assert len(caught.value.args) == 1


def test_all_faults_are_told_at_once() -> None:
    frame = table(method=ABSENT, loss=[-1, 2, 3], run_id=["a", "a", "b"], seed=-1)
    with pytest.raises(TunecastError) as caught:
        read_runs(frame, columns=["rank"])
    assert len(caught.value.args) == 5
    assert str(caught.value).splitlines() == list(caught.value.args)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


def test_a_frame_needs_rows_and_distinct_columns() -> None:
    with pytest.raises(TunecastError, match="'the table' has no rows"):
        read_runs(table().iloc[:0])
    twice = pd.concat([table(), table()["loss"]], axis=1)
    with pytest.raises(TunecastError, match="column 'loss' appears more than once"):
        read_runs(twice)


FILES: list[tuple[str, bytes, str]] = [
    ("empty.csv", b"", r"'.*empty.csv' is empty"),
    ("blank.csv", b"\n\n", r"is empty"),
    ("header.csv", HEADER.encode(), r"'.*header.csv' has no rows"),
    ("semicolons.csv", b"run_id;task;method;loss\na;t;m;1\n", r"separated by ';', not by commas"),
    ("surplus.csv", HEADER.encode() + b"a,t,m,1,9\n", r"more fields than its header"),
    ("ragged.csv", HEADER.encode() + b"a,t,m,1\nb,t,m,1,9\n", r"Expected 4 fields in line 3"),
    ("short.csv", HEADER.encode() + b"a,t,m\n", r"'loss' .* empty in row 1"),
    ("twice.csv", b"run_id,task,method,loss,loss\na,t,m,1,2\n", r"'loss' appears more than once"),
    ("binary.csv", bytes(range(256)), r"cannot be read as csv: .*utf-8"),
    ("quote.csv", HEADER.encode() + b'"a,t,m,1\n', r"cannot be read as csv: .*string"),
    ("empty.parquet", b"", r"cannot be read as parquet"),
    ("broken.parquet", b"PAR1 nothing here PAR1", r"cannot be read as parquet"),
    ("runs.xlsx", b"", r"must end in .csv or .parquet"),
]


@pytest.mark.parametrize(("name", "content", "message"), FILES, ids=[f[0] for f in FILES])
def test_an_unreadable_file_is_told_in_one_sentence(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TunecastError, match=message) as caught:
        read_runs(tmp_path / name)
    assert len(caught.value.args) == 1
    assert "\n" not in str(caught.value)


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "runs.parquet"
    table().to_parquet(whole)
    whole.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(TunecastError, match="cannot be read as parquet"):
        read_runs(whole)


def test_what_is_not_there_is_told_with_every_source(tmp_path: Path) -> None:
    with pytest.raises(TunecastError) as caught:
        read_runs(["nowhere.csv", tmp_path, "laddr", "ladder", "ladder"])
    assert [" ".join(fault.split()[:4]) for fault in caught.value.args] == [
        "there is no file",
        f"'{tmp_path}' is a folder,",
        "there is no file",
        "'ladder' is given twice.",
    ]
    assert "embedded table (" in caught.value.args[2]
    with pytest.raises(TunecastError, match="no run table was given"):
        read_runs([])


# ------------------------------------------------------------------ what comes back


def test_defaults_are_filled_and_types_are_settled() -> None:
    given_ = table(run_id=[1, 2, 3], status=["done", None, "failed"], loss=[3, 2, 1e9], note="x")
    before = given_.copy()
    frame = read_runs(given_)
    pd.testing.assert_frame_equal(given_, before)
    assert list(frame["status"]) == ["done", "done", "failed"]
    assert set(frame["origin"]) == {"measured"}
    assert list(frame["run_id"]) == list(frame["base_model"]) == ["1", "2", "3"]
    assert frame["model_size"].dtype == frame["finetune_examples"].dtype == float
    assert list(frame["note"]) == ["x"] * 3, "extra columns are kept"
    assert np.isnan(frame["loss"][2]), "a failed run has not measured anything"
    assert describe(frame) == {"done": 2, "diverged": 0, "failed": 1}


def test_an_empty_base_model_is_a_checkpoint_of_its_own() -> None:
    frame = read_runs(table(base_model=["big", None, " "]), columns=["base_model"])
    assert list(frame["base_model"]) == ["big", "b", "c"]


def test_rows_that_are_not_done_may_lack_what_the_fit_uses() -> None:
    frame = read_runs(
        table(status=["done", "failed", "diverged"], loss=["3", "", "nan"], rank=[8, None, None]),
        columns=["rank", "loss"],
    )
    assert len(frame) == 3
    assert describe(frame) == {"done": 1, "diverged": 1, "failed": 1}


def test_labels_read_the_same_from_any_type() -> None:
    as_numbers = read_runs(
        table(status=["done", "done", "failed"], cell=[7, 8, None]), labels=["cell"]
    )
    as_words = read_runs(table(cell=pd.Categorical(["7", "8", "7"])), labels=["cell"])
    assert list(as_numbers["cell"][:2]) == list(as_words["cell"][:2]) == ["7", "8"]
    same_twice = read_runs(table(), columns=["model_size"], labels=["model_size", "task"])
    assert same_twice["model_size"].dtype == float, "a factor may also tell curves apart"


def test_files_are_put_one_below_the_other_and_faults_name_the_file(tmp_path: Path) -> None:
    first, second = tmp_path / "first.csv", tmp_path / "second.parquet"
    table().to_csv(first, index=False)
    table(run_id=["d", "e", "f"], lr=1e-3).to_parquet(second)
    frame = read_runs([first, str(second), "ladder"])
    n = len(read_runs("ladder"))
    assert len(frame) == 6 + n
    assert list(frame.index) == list(range(6 + n))
    assert frame["lr"].notna().sum() == 3
    table(loss=[1, 2, -3]).to_parquet(second)
    with pytest.raises(TunecastError) as caught:
        read_runs([first, second])
    assert caught.value.args == (
        f"column 'loss' must be a finite number > 0 in rows that are done, but it is -3.0 "
        f"in row 3 of '{second}'.",
        f"column 'run_id' must not repeat, but 'a' is there again "
        f"in row 1 of '{second}' (3 such rows, this is the first).",
    )


def test_a_csv_as_a_spreadsheet_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "runs.CSV"
    path.write_bytes(b"\xef\xbb\xbf\r\nrun_id, task ,method,loss \r\n007,1,x,0.1\r\n")
    frame = read_runs(path)
    assert frame[["run_id", "task", "loss"]].values.tolist()[0] == ["007", "1", 0.1]


def test_a_named_index_is_a_column() -> None:
    assert list(read_runs(table().set_index("run_id"))["run_id"]) == ["a", "b", "c"]


def test_the_embedded_ladder() -> None:
    assert "ladder" in embedded_tables()
    frame = read_runs("ladder", columns=["model_size", "finetune_examples", "pretrain_tokens"])
    assert describe(frame) == {"done": len(frame), "diverged": 0, "failed": 0}
    assert warn_about(frame) == []
    sizes = np.sort(frame["model_size"].unique())
    assert len(sizes) >= 4 and (2 <= sizes[1:] / sizes[:-1]).all()
    assert (sizes[1:] / sizes[:-1] <= 3).all()
    examples = frame["finetune_examples"].unique()
    assert len(examples) >= 6 and examples.max() / examples.min() >= 100
    assert set(frame["method"]) == {"fmt", "lora", "prompt"}
    assert frame["task"].nunique() == 2
    # A whole design, and the same search for the learning rate everywhere.
    design = frame.groupby(["task", "method", "base_model", "finetune_examples"])["seed"]
    assert len(design) == 2 * 3 * len(sizes) * len(examples)
    assert (design.nunique() == 2).all()
    assert frame["rate_candidates"].nunique() == 1
    assert frame["pretrain_tokens"].nunique() == 1


def test_every_embedded_table_is_sound_and_tells_its_origin() -> None:
    for name in embedded_tables():
        assert len(read_runs(name)) > 0
        assert (ROOT / "models" / "data" / f"{name}.md").stat().st_size > 0


# ------------------------------------------------------------------ questions


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("finetune_examples <= 100", 2),
        ("finetune_examples > 0 and method != 'fmt'", 1),
        ("run_id in ['a', 'c']", 2),
        ("task.str.startswith('x')", 0),
        ("family == 'x'", 1),
        ("flag", 1),
    ],
)
def test_where(expression: str, rows: int) -> None:
    flag = pd.array([True, False, None], dtype="boolean")
    assert len(where(read_runs(table(family=["x", None, "y"], flag=flag)), expression)) == rows


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("size > 3", r"name 'size' is not defined; the columns are: run_id, task"),
        ("loss >", r"the condition 'loss >' cannot be evaluated: invalid syntax\.$"),
        ("", r"cannot be evaluated"),
        ("loss", r"'loss' is no condition"),
        ("loss = 3", r"'loss = 3' is no condition"),
        ("1 == 1", r"is no condition"),
        ("loss > 1\nloss < 3", r"'loss > 1 loss < 3' cannot be evaluated"),
        ("method > 3", r"cannot be evaluated: .*str"),
        ("loss > @secret", r"'secret' is not defined"),
        ("__import__('os').getpid() > 0", r"cannot be evaluated"),
    ],
)
def test_where_says_what_is_wrong(expression: str, message: str) -> None:
    secret = 0  # noqa: F841 - a condition must not see the variables around it
    with pytest.raises(TunecastError, match=message) as caught:
        where(read_runs(table()), expression)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": ["done", "failed", "diverged"]}, r"1 of 3 runs diverged"),
        ({"status": ["done", "failed", "diverged"]}, r"1 of 3 runs failed"),
        ({}, r"1 runs are zero-shot"),
        ({"origin": ["measured", "simulated", "simulated"]}, r"2 of 3 runs are simulated"),
        ({"loss": [21.0, 15.0, 13.0]}, r"median loss of task 't' is 15 nats, worse than guessing"),
        ({"ppl": [3.0, 2.0, 1.0]}, r"loss equals the column 'ppl'"),
        ({"dev_loss": [1.1, 0.7, 0.1]}, r"logarithm of loss is nearer to 'dev_loss'"),
    ],
)
def test_warn_about(changes: dict[str, Any], message: str) -> None:
    told = "\n".join(warn_about(read_runs(table(**changes))))
    assert re.search(message, told), told


def test_a_good_table_is_not_warned_about() -> None:
    """The control for the signs of perplexity: losses, with columns that fit them."""
    losses = np.array([3.0, 2.0, 1.0])
    frame = table(
        finetune_examples=[1, 2, 3], ppl=np.exp(losses), dev_loss=losses + 0.1, train_loss=0.05
    )
    assert warn_about(read_runs(frame)) == []


# ------------------------------------------------------------------ round trips

labels_ = st.text(alphabet="abcXYZ019-_/,;\"'é ", max_size=8).map(lambda text: "x" + text + "x")
positive = st.floats(min_value=1e-300, max_value=1e300)
rows = st.fixed_dictionaries(
    {
        "run_id": labels_,
        "task": labels_,
        "method": labels_,
        "base_model": st.none() | labels_,
        "model_size": st.none() | positive | st.integers(1, 10**12),
        "finetune_examples": st.none() | st.integers(0, 10**9),
        "loss": positive,
        "seed": st.none() | st.integers(0, 2**32),
    }
)
tables = st.lists(rows, min_size=1, max_size=5, unique_by=lambda row: row["run_id"])


@settings(max_examples=40)
@given(tables.map(pd.DataFrame), st.randoms(use_true_random=False))
def test_a_table_survives_csv_and_parquet_and_any_order(
    tmp_path_factory: pytest.TempPathFactory, drawn: pd.DataFrame, random: Any
) -> None:
    folder = tmp_path_factory.mktemp("table")
    frame = read_runs(drawn)
    frame.to_csv(folder / "runs.csv", index=False)
    shuffled = frame.iloc[random.sample(range(len(frame)), len(frame))]
    shuffled[frame.columns[::-1]].to_parquet(folder / "runs.parquet")
    expected = digest(frame)
    assert digest(read_runs(folder / "runs.csv")) == expected
    assert digest(read_runs(folder / "runs.parquet")) == expected
    frame["loss"] = np.nextafter(frame["loss"], np.inf)
    assert digest(frame) != expected


def test_the_digest_sees_values_names_and_pairing() -> None:
    base = digest(read_runs(table()))
    assert digest(read_runs(table(note=None))) == base
    assert digest(read_runs(table(note=1))) != digest(read_runs(table(note="1")))
    assert digest(read_runs(table(note=1))) != digest(read_runs(table(remark=1)))
    assert digest(read_runs(table(loss=[2.0, 3.0, 1.0]))) != base


# ------------------------------------------------------------------ the declaration


def test_a_run_is_checked_where_it_is_made() -> None:
    with pytest.raises(TypeError, match="loss"):
        Run(run_id="a", task="t", method="m")  # type: ignore[call-arg]
    with pytest.raises(TunecastError, match=r"'loss' .* empty in run 'a'") as caught:
        Run(run_id="a", task="", method="m", loss=float("nan"), seed=-1)
    assert len(caught.value.args) == 3
    failed = replace(RUN, status="failed", loss=None)
    assert failed.loss is None


def test_every_column_is_declared_and_printed() -> None:
    text = column_table()
    for item in fields(Run):
        assert set(item.metadata) == {"domain", "unit", "meaning"}
        assert f"| `{item.name}`" in text
    assert list(COLUMNS) == [item.name for item in fields(Run)]


def test_the_readme_shows_the_columns() -> None:
    readme = (ROOT / "README.md").read_text()
    shown = readme.split("<!-- columns -->")[1].split("<!-- /columns -->")[0]
    assert shown.strip() == column_table().strip(), "paste column_table() between the marks"


# ------------------------------------------------------------------ writing

SUFFIXES = (".csv", ".parquet")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_are_appended_one_at_a_time(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"runs{suffix}"
    append_run(path, RUN)
    append_run(path, replace(RUN, run_id="b", status="failed", loss=None, seed=None))
    append_run(path, replace(RUN, run_id="c", base_model="big"), extra={"lr": 1e-4, "note": "x,y"})
    frame = read_runs(path, columns=["model_size"])
    assert list(frame["run_id"]) == ["a", "b", "c"]
    assert list(frame["base_model"]) == ["a", "b", "big"]
    assert frame["loss"][0] == 0.1 + 0.2, "to the last digit"
    assert frame["lr"].tolist()[2] == 1e-4
    with pytest.raises(TunecastError, match=r"already has a run 'b'"):
        append_run(path, replace(RUN, run_id="b"))
    with pytest.raises(TunecastError, match=r"must not repeat declared ones: loss"):
        append_run(path, replace(RUN, run_id="d"), extra={"loss": 1})
    assert len(read_runs(path)) == 3


def test_rows_that_are_there_keep_their_text(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("run_id,loss,task,method,model_size\n007,1.50,t,NA,1e6\n")
    append_run(path, RUN)
    assert path.read_text().splitlines()[1].startswith("007,1.50,t,NA,1e6,")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("runs.txt", None, "must end in .csv or .parquet"),
        ("runs.csv", b"a,b\n1,2\n", "has no column 'run_id'"),
        ("runs.csv", b"\xff\xfe", "cannot be read as csv"),
        ("runs.parquet", b"PAR1", "cannot be read as parquet"),
    ],
)
def test_append_refuses_what_is_no_table(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TunecastError, match=message):
        append_run(path, RUN)
    assert (path.read_bytes() if content is not None else None) == content


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_the_old_table(
    tmp_path: Path, suffix: str, ladder: pd.DataFrame
) -> None:
    path = tmp_path / f"runs{suffix}"
    if suffix == ".csv":
        ladder.to_csv(path, index=False)
    else:
        ladder.to_parquet(path)
    before = path.read_bytes()
    assert len(before) > 4096, "or the limit is never met"
    with disk_full_after(4096), pytest.raises(OSError):
        append_run(path, RUN)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir() if entry.suffix != ".lock"] == [path.name]
    append_run(path, RUN)
    assert len(read_runs(path)) == 50


def test_appending_at_the_same_time_loses_no_row(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"

    def append(worker: int) -> None:
        for row in range(4):
            append_run(path, replace(RUN, run_id=f"{worker}/{row}"))

    threads = [threading.Thread(target=append, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_runs(path)) == 16


def test_the_lock_is_let_go_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "x"):
        raise KeyError
    with locked(tmp_path / "x"):
        pass


# ------------------------------------------------------------------ files

FAILURES = [OSError(errno.ENOSPC, "no space left on device"), KeyboardInterrupt(), SystemExit(3)]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failed_write_leaves_no_trace(
    tmp_path: Path, failure: BaseException, old: str | None
) -> None:
    target = tmp_path / "out.txt"
    if old is not None:
        target.write_text(old)

    def write(path: Path) -> None:
        path.write_text("half of the new")
        raise failure

    with pytest.raises(type(failure)):
        write_atomically(target, write)
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_failed_replacement_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        write_atomically(tmp_path / "out.txt", lambda path: path.write_text("new"))
    assert list(tmp_path.iterdir()) == []


def test_a_write_keeps_suffix_mode_and_link(tmp_path: Path) -> None:
    target, link = tmp_path / "real.nc", tmp_path / "link.nc"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    seen: list[Path] = []

    def write(path: Path) -> None:
        seen.append(path)
        path.write_text("new")

    write_atomically(link, write)
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640
    assert (seen[0].suffix, seen[0].parent) == (".nc", tmp_path)


def test_a_write_needs_a_folder_and_a_file_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; make it first"):
        write_atomically(tmp_path / "absent" / "out.txt", lambda path: path.write_text("new"))
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_atomically(tmp_path, lambda path: path.write_text("new"))


def test_a_device_is_written_and_never_replaced() -> None:
    write_atomically("/dev/null", lambda path: path.write_text("new"))
    assert Path("/dev/null").is_char_device()
