"""What the command line answers: help, forecasts, comparisons, crossings and scores."""

from pathlib import Path

import pandas as pd
import pytest
from commands import Call, refused
from conftest import SMALL, TARGET

from tunecast.analysis.cli import main
from tunecast.models import Fit
from tunecast.models.inference import sampling
from tunecast.models.runs import read_runs, where


@pytest.mark.parametrize(
    ("option", "default"),
    [("--draws", sampling.DRAWS), ("--tune", sampling.TUNE), ("--chains", sampling.CHAINS)],
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
    tmp_path: Path, tunecast_: Call, saved: Path, unconverged: Fit
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
        expected = unconverged.forecast(
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
    tmp_path: Path, tunecast_: Call, monkeypatch: pytest.MonkeyPatch, unconverged: Fit
) -> None:
    monkeypatch.setattr("tunecast.models.fits.backtest.fit", lambda runs, **options: unconverged)
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
