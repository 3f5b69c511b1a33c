"""What the command line refuses, each time with one sentence for every fault."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import Call, refused
from conftest import SMALL, TARGET

import tunecast.models
from tunecast.analysis.cli import main

# --------------------------------------------------------------------------- bad run tables


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("run_id,task,method\na,t,m\n", ["column 'loss' is missing"]),
        ("run_id,task,method,loss\na,t,m,-1\n", ["'loss' must be a finite number > 0"]),
        ("run_id,task,method,loss\na,t,m,nan\n", ["it is empty in row 1"]),
        ("run_id,task,method,loss\na,t,m,oops\n", ["it is 'oops' in row 1"]),
        (
            "run_id,task,method,loss\na,t,m,1\na,t,m,2\n",
            ["'run_id' must not repeat, but 'a' is there again in row 2"],
        ),
        ("", ["is empty"]),
        ("run_id,task,method,loss\n", ["has no rows"]),
        (
            "run_id,task,method,loss\n,t,m,-1\n",
            ["'run_id' must be a label", "'loss' must be a finite number > 0"],
        ),
    ],
)
def test_a_bad_run_table(tmp_path: Path, tunecast_: Call, text: str, sentences: list[str]) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text)
    refused(tunecast_("fit", path, "-o", tmp_path / "fit.nc"), *sentences)
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs.csv"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--law", "cubic"], "cubic"),
        (["--factors", "modelsize"], "'modelsize'"),
        (["--data", "examples"], "'examples'"),
        (["--cell", "task,recipe"], "'recipe'"),
        (["--curve", "checkpoint"], "'checkpoint'"),
        (["--priors", "strong"], "'strong'"),
        (["--where", "size > 3"], "name 'size' is not defined"),
        (["--where", "loss > 100"], "no run fulfils the condition 'loss > 100'"),
        (["--where", "base_model == 'ladder-0.1m'", "--factors", "model_size"], "model_size"),
        (["--where", "finetune_examples == 60"], "finetune_examples"),
    ],
)
def test_a_bad_question(tmp_path: Path, tunecast_: Call, options: list[str], sentence: str) -> None:
    refused(tunecast_("fit", SMALL, "-o", tmp_path / "fit.nc", *options), sentence)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there(tmp_path: Path, tunecast_: Call) -> None:
    refused(tunecast_("fit", tmp_path / "none.csv", "-o", tmp_path / "f.nc"), "there is no file")
    refused(tunecast_("forecast", tmp_path / "none.nc", "--examples", 10), "there is no fit file")
    refused(tunecast_("forecast", tmp_path, "--examples", 10), "there is no fit file")


def test_a_file_that_may_not_be_read(tmp_path: Path, tunecast_: Call) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("run_id,task,method,loss\na,t,m,1\n")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    refused(tunecast_("fit", path, "-o", tmp_path / "f.nc"), "ermission")


@pytest.mark.parametrize("length", [0, 100, 5000])
def test_a_truncated_fit(tmp_path: Path, tunecast_: Call, saved: Path, length: int) -> None:
    path = tmp_path / "fit.nc"
    path.write_bytes(saved.read_bytes()[:length])
    refused(tunecast_("forecast", path, "--examples", 10), "fit.nc")


def test_a_file_that_is_no_fit(tmp_path: Path, tunecast_: Call) -> None:
    path = tmp_path / "fit.nc"
    path.write_text("not a fit")
    refused(tunecast_("forecast", path, "--examples", 10), "fit.nc")


# --------------------------------------------------------------------------- bad targets


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "say what to forecast"),
        (["--examples", "many"], "takes numbers such as 1e9,2e9, not 'many'"),
        (["--examples", "10"], "give --model-size; the fit has: 100672, 443232"),
        (["--examples", "10", "--set", "model_size"], "--set takes COLUMN=VALUE"),
        (["--examples", ",", "--model-size", "1e6"], "no value was given for finetune_examples"),
        (["--examples", "-5", "--model-size", "1e6"], "-5"),
        (["--examples", "nan", "--model-size", "1e6"], "is missing in row 1"),
        (["--examples", "10", "--model-size", "0"], "model_size"),
        (["--at", "none.csv"], "there is no file 'none.csv'"),
        (["--at", "none.txt"], "must end in .csv or .parquet"),
        (["--at", "none.csv", "--task", "x"], "leave --task out"),
    ],
)
def test_a_bad_target(tunecast_: Call, saved: Path, options: list[str], sentence: str) -> None:
    refused(tunecast_("forecast", saved, *options), sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("task,method,finetune_examples\ndebian-en-de,fmt,10\n", "model_size"),
        ("task,method,model_size,finetune_examples\n", "has no rows"),
        ("", "cannot be read"),
        (TARGET.replace("6000", "lots"), "finetune_examples"),
    ],
)
def test_a_bad_table_of_targets(
    tmp_path: Path, tunecast_: Call, saved: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "targets.csv"
    path.write_text(text)
    for command in ("forecast", "compare"):
        refused(tunecast_(command, saved, "--at", path), sentence)


@pytest.mark.parametrize(
    ("option", "name"), [("--task", "task"), ("--method", "method"), ("--base-model", "base_model")]
)
def test_a_name_the_fit_has_not_seen_is_said(
    tunecast_: Call, saved: Path, option: str, name: str
) -> None:
    """It can be forecast, as a new one; but it may be mistyped."""
    ask = ("forecast", saved, "--model-size", 1e6, "--examples", 10)
    assert "note:" not in tunecast_(*ask).err
    done = tunecast_(*ask, option, "x")
    assert done.code == 0, done
    assert f"note: the fit has not seen the {name} 'x'; it has: " in done.err


def test_a_bad_crossover(tunecast_: Call, saved: Path) -> None:
    ask = ("crossover", saved, "--a", "fmt")
    refused(tunecast_(*ask, "--b", "x", "--model-size", 1e6), "'x'")
    refused(tunecast_(*ask, "--b", "lora", "--model-size", "1e6,2e6"), "one target")
    refused(tunecast_(*ask, "--b", "lora"), "give --model-size")


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("answer.txt", "must end in .csv or .parquet"),
        ("none/answer.csv", "does not exist; make it first"),
        ("folder.csv", "is a folder"),
    ],
)
def test_an_output_that_cannot_be(
    tmp_path: Path, tunecast_: Call, saved: Path, output: str, sentence: str
) -> None:
    (tmp_path / "folder.csv").mkdir()
    ask = ("--model-size", 1e6, "--examples", 10, "-o", tmp_path / output)
    refused(tunecast_("forecast", saved, *ask), sentence)


def test_a_fit_is_refused_its_output_before_it_samples(
    tmp_path: Path, tunecast_: Call, no_sampling: list[dict[str, Any]]
) -> None:
    refused(tunecast_("fit", SMALL, "-o", tmp_path / "fit.csv"), "must end in .nc")
    refused(tunecast_("fit", SMALL, "-o", tmp_path / "none" / "fit.nc"), "does not exist")
    assert no_sampling == []


@pytest.mark.parametrize(
    "arguments", [["fit", "ladder"], ["forecast"], ["fit", "ladder", "--draws", "few"], ["guess"]]
)
def test_a_wrong_call(tunecast_: Call, arguments: list[str]) -> None:
    done = tunecast_(*arguments)
    assert done.code == 2
    assert "Error: " in done.err and "Traceback" not in done.err


@pytest.mark.parametrize(
    "misuse",
    [
        "pd.DataFrame({'a': [1]}).set_axis(['x', 'y'], axis=1)",  # raises in Python code
        "np.zeros(3).reshape(2, 2)",  # raises in compiled code, which leaves no frame
    ],
)
def test_a_fault_of_ours_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, misuse: str
) -> None:
    """Only what tunecast raises itself is put to the user as a fault of the input."""
    ours: dict[str, Any] = {"__name__": "tunecast.models.pretended", "np": np, "pd": pd}
    exec(f"def fit(runs, **options): return {misuse}", ours)
    monkeypatch.setattr(tunecast.models, "fit", ours["fit"])
    with pytest.raises(ValueError, match=r"Length mismatch|cannot reshape"):
        main(["fit", SMALL, "-o", str(tmp_path / "fit.nc")])
