"""The command line, asked as a user asks it: what it answers, refuses, and leaves behind."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import INFO, SMALL, disk_full_after

import tunecast.models
from tunecast.analysis.cli import main
from tunecast.models import Diagnostics, Fit, inference, load_fit
from tunecast.models.runs import read_runs, where

TARGET = "task,method,model_size,finetune_examples\ndebian-en-de,fmt,1240480,6000\n"


@dataclass
class Done:
    """What a call left: exit code, and what it printed."""

    code: int
    out: str
    err: str


type Call = Callable[..., Done]


@pytest.fixture
def tunecast_(capfd: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs one command in this process."""

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        return Done(int(caught.value.code or 0), *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def result(believed: Callable[..., Fit]) -> Fit:
    """A fit to the ladder without its largest model, with draws of the prior: not converged."""
    small = where(read_runs(SMALL), "base_model != 'ladder-1.2m'").reset_index(drop=True)
    made = believed(small)
    return replace(made, info=INFO, diagnostics=Diagnostics(1.2, 9.0, 9.0, 0, 1.0, 200))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, result: Fit) -> Path:
    path = tmp_path_factory.mktemp("fit") / "ladder.nc"
    result.save(path)
    return path


@pytest.fixture
def no_sampling(monkeypatch: pytest.MonkeyPatch, result: Fit) -> list[dict[str, Any]]:
    """Put a finished fit in the place of sampling; the list holds how it was asked."""
    asked: list[dict[str, Any]] = []

    def fake(runs: pd.DataFrame, **options: Any) -> Fit:
        asked.append({"runs": runs, **options})
        if not options["allow_unconverged"]:
            raise tunecast.models.UnconvergedError(result)
        return result

    monkeypatch.setattr(tunecast.models, "fit", fake)
    return asked


def refused(done: Done, *sentences: str) -> None:
    """Exit code 2, one line for each fault, no traceback."""
    assert done.code == 2, done
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == len(sentences), done.err
    for line, sentence in zip(lines, sentences, strict=True):
        assert line.startswith("tunecast: ") and line.endswith((".", "?")), line
        assert sentence in line


# ------------------------------------------------------------------ bad run tables


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
        (["--where", "base_model == 'ladder-0.1m'"], "model_size"),
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


# ------------------------------------------------------------------ bad targets


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


# ------------------------------------------------------------------ answers


def test_help_is_quick() -> None:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", "import tunecast.analysis.cli as c; c.main(['--help'])"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "crossover" in done.stdout
    # Measured 0.2 s; the limit allows for a busy machine.
    assert time.perf_counter() - started < 2
    code = (
        "import sys, tunecast.analysis.cli; "
        "print(sorted({'pandas', 'numpy', 'pymc', 'matplotlib'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("option", "default"),
    [("--draws", inference.DRAWS), ("--tune", inference.TUNE), ("--chains", inference.CHAINS)],
)
def test_help_shows_the_sampler_s_own_defaults(
    option: str, default: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line writes them out, because to import them would load numpy and pandas."""
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    (line,) = [text for text in capsys.readouterr().out.splitlines() if option in text]
    assert f"[default: ({default})]" in line


def test_forecast_prints_and_writes_the_same(
    tmp_path: Path, tunecast_: Call, saved: Path, result: Fit
) -> None:
    ask = ("forecast", saved, "--model-size", 1240480, "--examples", "600,6000", "--seed", 3)
    printed = tunecast_(*ask)
    assert printed.code == 0
    assert "NOT CONVERGED" in printed.out.splitlines()[0]
    for suffix, read in ((".csv", pd.read_csv), (".parquet", pd.read_parquet)):
        path = tmp_path / f"answer{suffix}"
        done = tunecast_(*ask, "-o", path)
        assert (done.code, done.out) == (0, "")
        assert "NOT CONVERGED" in done.err
        frame = read(path)
        assert len(frame) == 6, "three methods, two sizes"
        assert not frame["converged"].any()
        assert "simulated" not in frame
        expected = result.forecast(
            frame[["task", "method", "model_size", "finetune_examples"]], seed=3
        )
        for name in ("loss_q05", "loss_q50", "loss_q95", "expected_q50", "extrapolation"):
            assert frame[name].to_numpy() == pytest.approx(expected[name].to_numpy())
    for loss in frame["loss_q50"]:
        assert f"{loss:.4g}" in printed.out


def test_targets_come_from_a_table_too(tmp_path: Path, tunecast_: Call, saved: Path) -> None:
    path, out = tmp_path / "targets.csv", tmp_path / "answer.csv"
    path.write_text("note,base_model," + TARGET.replace("\nd", "\nkept,ladder-0.4m,d"))
    assert tunecast_("forecast", saved, "--at", path, "-o", out).code == 0
    frame = pd.read_csv(out)
    assert frame["note"].tolist() == ["kept"]
    assert frame["loss_q05"][0] < frame["loss_q50"][0] < frame["loss_q95"][0]


def test_a_known_base_model_needs_no_size(tmp_path: Path, tunecast_: Call, saved: Path) -> None:
    out = tmp_path / "answer.csv"
    models = "ladder-0.1m,ladder-0.4m"
    ask = ("--base-model", models, "--method", "lora", "--examples", 600, "-o", out)
    assert tunecast_("forecast", saved, *ask).code == 0
    assert pd.read_csv(out)["model_size"].tolist() == [100672, 443232]


def test_compare(tmp_path: Path, tunecast_: Call, saved: Path) -> None:
    out = tmp_path / "answer.csv"
    ask = ("compare", saved, "--model-size", 1240480, "--examples", "60,6000")
    assert tunecast_(*ask, "-o", out).code == 0
    frame = pd.read_csv(out)
    assert len(frame) == 6
    assert frame.groupby("finetune_examples")["p_best"].sum().tolist() == pytest.approx([1, 1])
    assert tunecast_(*ask, "--methods", "fmt,lora", "-o", out).code == 0
    assert set(pd.read_csv(out)["method"]) == {"fmt", "lora"}
    printed = tunecast_(*ask)
    assert "P(best)" in printed.out and "expected regret" in printed.out


def test_crossover(tmp_path: Path, tunecast_: Call, saved: Path) -> None:
    out = tmp_path / "answer.csv"
    ask = ("crossover", saved, "--a", "fmt", "--b", "lora", "--model-size", 1240480)
    done = tunecast_(*ask, "-o", out)
    assert done.code == 0, done
    frame = pd.read_csv(out)
    assert len(frame) == 1
    assert frame[["p_none", "p_one", "p_two", "p_more"]].sum(axis=1)[0] == pytest.approx(1)
    assert "P(none)" in tunecast_(*ask).out


@pytest.mark.parametrize("command", ["forecast", "compare"])
def test_a_picture_beside_the_table(
    tmp_path: Path, tunecast_: Call, saved: Path, command: str
) -> None:
    picture = tmp_path / "answer.png"
    ask = ("--model-size", 1240480, "--examples", 6000, "--plot", picture)
    assert tunecast_(command, saved, *ask).code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_score(tmp_path: Path, tunecast_: Call, saved: Path) -> None:
    reached = where(read_runs(SMALL), "base_model == 'ladder-1.2m'")
    reached.to_csv(tmp_path / "runs.csv", index=False)
    reached.drop(columns=["loss", "base_model"]).to_csv(tmp_path / "targets.csv", index=False)
    answer, scores = tmp_path / "answer.csv", tmp_path / "scores.csv"
    assert tunecast_("forecast", saved, "--at", tmp_path / "targets.csv", "-o", answer).code == 0
    done = tunecast_("score", answer, tmp_path / "runs.csv", "--by", "method", "-o", scores)
    assert done.code == 0, done
    frame = pd.read_csv(scores)
    assert frame["n"].max() == 15
    assert not frame["converged"].any()
    refused(tunecast_("score", answer, tmp_path / "none.csv"), "there is no file")
    refused(tunecast_("score", tmp_path / "none.csv", SMALL), "there is no file")
    refused(tunecast_("score", answer, tmp_path / "runs.csv", "--by", "recipe"), "'recipe'")
    refused(tunecast_("score", tmp_path / "targets.csv", tmp_path / "runs.csv"), "loss_q")


def test_backtest(
    tmp_path: Path, tunecast_: Call, monkeypatch: pytest.MonkeyPatch, result: Fit
) -> None:
    monkeypatch.setattr("tunecast.models.inference.fit", lambda runs, **options: result)
    out, picture = tmp_path / "scores.csv", tmp_path / "scores.png"
    ask = ("backtest", SMALL, "--train", "model_size < 1e6")
    done = tunecast_(*ask, "--test", "model_size > 1e6", "-o", out, "--plot", picture)
    assert done.code == 3 and "its scores are marked" in done.err
    frame = pd.read_csv(out)
    assert frame["n"][0] == 15 and not frame["converged"].any()
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = tunecast_(*ask, "--test", "model_size > 1e6", "--by", "method")
    assert "NOT CONVERGED" in printed.out and "method=lora" in printed.out
    refused(tunecast_(*ask, "--test", "model_size > 1e9"), "test expression")
    refused(tunecast_(*ask, "--test", "loss > 0"), "are in train and in test")


# ------------------------------------------------------------------ fitting


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
    tmp_path: Path, tunecast_: Call, no_sampling: list[dict[str, Any]], result: Fit
) -> None:
    done = tunecast_("fit", SMALL, "-o", tmp_path / "fit.nc")
    assert done.code == 3
    assert result.diagnostics.reasons[0] in done.err
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


# --------------------------------------------------------------------------- report and ledger


def test_a_report_is_written_and_says_how(tunecast_: Call, saved: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.csv"
    plan.write_text("rank,method,gain\n1,fmt,0.25\n")
    page = tmp_path / "page.html"
    done = tunecast_("report", saved, "-o", page, "--plan", plan)
    assert done.code == 0 and f"wrote {page}" in done.err
    text = page.read_text(encoding="utf-8")
    assert "Runs worth making next" in text and "0.2500" in text
    assert f"tunecast report {saved.name} -o page.html --plan plan.csv" in text
    assert str(tmp_path) not in text


def test_a_report_in_markdown_brings_its_pictures(
    tunecast_: Call, saved: Path, tmp_path: Path
) -> None:
    done = tunecast_("report", saved, "-o", tmp_path / "r.md", "--format", "md")
    assert done.code == 0, done.err
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^]]*\]\(<([^>]+)>\)", text)
    assert len(pictures) >= 4
    assert all((tmp_path / name).stat().st_size > 5000 for name in pictures)
    table = (tmp_path / "r_files" / "forecast-1.tex").read_text()
    assert table.startswith(r"\begin{tabular}") and r"\bottomrule" in table
    assert text.index("DID NOT CONVERGE") < text.index("## The answer")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-o", "page.txt"], "must end in .html or .htm"),
        (["-o", "page.html", "--plan", "none.csv"], "there is no file 'none.csv'"),
        (["-o", "page.html", "--ledger", "targets.csv"], "is no ledger"),
    ],
)
def test_a_report_that_cannot_be_made_is_refused(
    tunecast_: Call,
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "targets.csv").write_text(TARGET)
    done = tunecast_("report", saved, *arguments)
    assert done.code == 2 and sentence in done.err
    assert not list(tmp_path.glob("page.*"))


def test_a_ledger_keeps_forecasts_until_their_runs_land(
    tunecast_: Call, saved: Path, tmp_path: Path
) -> None:
    """The unseen size is scored once it has run; the size already fitted never is."""
    ledger, scores = tmp_path / "ledger.csv", tmp_path / "scores.csv"
    for size in ("1240480", "443232"):
        done = tunecast_(
            "forecast", saved, "--model-size", size, "--examples", "600,2000",
            "--ledger", ledger, "-o", tmp_path / "f.csv",
        )  # fmt: skip
        assert done.code == 0, done.err
    filed = pd.read_csv(ledger)
    assert len(filed) == 12
    assert filed["was_fitted"].tolist() == [False] * 6 + [True] * 6
    assert filed["forecast_at"].notna().all()
    assert tunecast_("score", ledger, SMALL, "-o", scores).code == 0
    table = pd.read_csv(scores)
    assert table["n"].tolist() == [6, 6] and table["group"].iloc[1].startswith("day=")
    page = tmp_path / "page.html"
    assert tunecast_("report", saved, "-o", page, "--ledger", ledger).code == 0
    assert "None of the forecasts in the ledger has a run yet" in page.read_text(encoding="utf-8")
