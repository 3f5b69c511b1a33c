"""The command that plans, and the pictures of a plan."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planned import METHODS, TARGETS, UNCONVERGED, candidate_pool, ladder_fit

from tunecast.analysis.cli import main
from tunecast.analysis.plan import plan_figure
from tunecast.models.fits.fit import Fit
from tunecast.models.planning import Plan, plan


@pytest.fixture(scope="module")
def fit(believed: Callable[..., Fit]) -> Fit:
    return ladder_fit(believed)


@pytest.fixture(scope="module")
def pool() -> pd.DataFrame:
    return candidate_pool()


@pytest.fixture(scope="module")
def answer(fit: Fit, pool: pd.DataFrame) -> Plan:
    return plan(fit, pool, targets=TARGETS, budget=1e11, runs=5)


# ------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, fit: Fit, pool: pd.DataFrame) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    fit.save(folder / "fit.nc")
    pool.to_csv(folder / "pool.csv", index=False)
    TARGETS.to_csv(folder / "at.csv", index=False)
    replace(fit, diagnostics=UNCONVERGED).save(folder / "bad.nc")
    return folder


def called(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["plan", *map(str, arguments)])
    return int(caught.value.code or 0), *capfd.readouterr()


def test_the_command_writes_table_and_picture(
    saved: Path, capfd: pytest.CaptureFixture[str], answer: Plan
) -> None:
    out, picture = saved / "plan.csv", saved / "plan.png"
    code, _, err = called(
        capfd, saved / "fit.nc", "--candidates", saved / "pool.csv", "--at", saved / "at.csv",
        "--budget", 1e11, "--runs", 5, "-o", out, "--plot", picture,
    )  # fmt: skip
    assert code == 0, err
    table = pd.read_csv(out)
    np.testing.assert_allclose(table["gain"], answer.runs["gain"], rtol=1e-6)
    assert "costs: 6 x model_size x finetune_examples x 1 tokens, in FLOP" in err
    assert "chosen by gain" in err
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_takes_a_grid_and_prints(
    saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = called(
        capfd, saved / "fit.nc", "--goal", "forecast", "--model-size", "2e6,4e6", "--examples",
        "1e3,1e4", "--method", "lora", "--at", saved / "at.csv", "--runs", 2,
    )  # fmt: skip
    assert code == 0, err
    assert "Runs to make, for the goal forecast" in out
    assert "expected to bring" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fit.nc", "--at", "at.csv"], "say what could be run"),
        (
            ["fit.nc", "--at", "at.csv", "--candidates", "pool.csv", "--examples", "1e3"],
            "--candidates names the runs already; leave --examples out",
        ),
        (["fit.nc", "--candidates", "pool.csv"], "the goal 'winner' needs targets"),
        (["fit.nc", "--candidates", "none.csv"], "there is no file"),
        (["bad.nc", "--candidates", "pool.csv", "--at", "at.csv"], "did not converge"),
        (
            ["fit.nc", "--candidates", "pool.csv", "--at", "at.csv", "--budget", "1"],
            "below the cheapest candidate",
        ),
    ],
)
def test_the_command_refuses_in_one_sentence(
    saved: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(saved)
    code, out, err = called(capfd, *arguments)
    said = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert (code, out, len(said)) == (2, "", 1), err
    assert sentence in said[0] and said[0].startswith("tunecast: ")


def test_planning_loads_neither_pymc_nor_torch(saved: Path) -> None:
    code = (
        "import sys; from tunecast.analysis.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'pymc', 'torch', 'nutpie', 'pytensor'} & set(sys.modules)"
    )
    arguments = ["plan", "fit.nc", "--candidates", "pool.csv", "--at", "at.csv", "--runs", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=saved, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------ pictures


def test_a_picture_shows_every_method_and_rank(fit: Fit, answer: Plan) -> None:
    figure = plan_figure(fit, answer)
    titles = [ax.get_title() for ax in figure.axes]
    assert [t for t in titles if t] == METHODS
    maps = [ax for ax in figure.axes if ax.get_title()]
    ranks = sorted(int(r) for ax in maps for text in ax.texts for r in text.get_text().split(","))
    assert ranks == list(range(1, len(answer.runs) + 1))
    dots = [np.asarray(c.get_offsets()) for c in figure.axes[0].collections[:3]]
    assert len(np.concatenate(dots)) == len(answer.candidates)


def test_an_unconverged_picture_is_stamped(fit: Fit, answer: Plan) -> None:
    bad = replace(fit, diagnostics=UNCONVERGED)
    words = [t.get_text() for ax in plan_figure(bad, answer).axes for t in ax.texts]
    assert "NOT CONVERGED" in words
    words = [t.get_text() for ax in plan_figure(fit, answer).axes for t in ax.texts]
    assert "NOT CONVERGED" not in words
