"""How misfits travel: with the fit, its file, its answers, the command line and the report."""

import doctest
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import Call
from conftest import INFO, SMALL, TARGET
from test_checks_tables import line, runs_of

import tunecast.models
from tunecast.analysis.report.caveats import diagnostics_in_words, warnings_of
from tunecast.models.checks import misfit as module
from tunecast.models.checks import predictive, tables
from tunecast.models.checks.misfit import (
    CHECKPOINTS,
    DATA_SIZE,
    REPLICATES,
    RISES,
    Misfit,
    concerning,
    in_words,
    kept,
    misfits_in,
)
from tunecast.models.fits import backtest as backtest_module
from tunecast.models.fits.backtest import backtest
from tunecast.models.fits.fit import Fit, fit, load_fit

CELL = ("debian-en-de", "fmt")
FOUND = (
    Misfit(RISES, CELL, "The loss of debian-en-de / fmt rises."),
    Misfit(REPLICATES, CELL, "Replicates of debian-en-de / fmt differ."),
)


def with_misfits(fit: Fit, *misfits: Misfit) -> Fit:
    """The fit, having failed some checks."""
    return replace(fit, info=INFO | fit.info | {"misfits": kept(misfits)})


@pytest.mark.parametrize("part", [module, tables, predictive])
def test_examples_run(part: Any) -> None:
    done = doctest.testmod(part)
    assert done.attempted > 0 and done.failed == 0


# ------------------------------------------------------------------ which cells they concern


def test_what_is_left_out_of_a_question_meets_any_cell() -> None:
    cells = [("t", "fmt"), ("t", "lora")]
    found = (Misfit(RISES, cells[0], "It rises."),)
    assert concerning(found, cells, ("t", None)) == found
    assert concerning(found, cells, (None, "fmt")) == found
    assert concerning(found, cells, ("t", "lora")) == ()


def test_an_unseen_cell_is_that_of_most_of_its_neighbours_and_of_the_table() -> None:
    cells = [(t, m) for t in "abc" for m in ("fmt", "lora")]
    table = Misfit(CHECKPOINTS, None, "All of it.")
    one = Misfit(RISES, ("a", "fmt"), "a rises.")
    two = Misfit(RISES, ("b", "fmt"), "b rises.")
    again = Misfit(DATA_SIZE, ("a", "fmt"), "a bends.")
    other = Misfit(DATA_SIZE, ("c", "lora"), "c bends.")
    assert concerning((one, again, other), cells, ("d", "fmt")) == ()  # one cell of three
    assert concerning((one, two, other), cells, ("d", "fmt")) == (one, two)
    assert concerning((one, two, table), cells, ("d", "lora")) == (table,)
    assert concerning((table,), cells, ("a", "fmt")) == (table,)


def test_many_misfits_of_a_kind_are_said_in_few_lines() -> None:
    many = [Misfit(DATA_SIZE, (c,), f"{c} bends.") for c in "abcde"]
    assert in_words([*many, *many]) == [
        *("a bends.", "b bends.", "c bends."),
        "The same check (data size) fails in 2 more cells: d, e.",
    ]


# ------------------------------------------------------------------ the fit and its file


def test_a_fit_keeps_what_it_found_in_its_file(tmp_path: Path) -> None:
    """The control: the same runs with losses that fall."""
    short: dict[str, Any] = {"draws": 10, "tune": 20, "chains": 2, "retry": False}
    short |= {"progress": False, "allow_unconverged": True}
    result = fit(runs_of(line(0.05, -0.05)), **short)
    assert (RISES, ("t", "fmt")) in {(m.kind, m.cell) for m in result.misfits}
    assert "\n MISFIT by rises with data (1 cell)" in repr(result)
    assert "MISFIT by rises with data (1 cell)" in result._repr_html_()
    result.save(tmp_path / "fit.nc")
    assert load_fit(tmp_path / "fit.nc").misfits == result.misfits
    control = fit(runs_of(line(-0.05)), **short)
    assert RISES not in {m.kind for m in control.misfits}


def test_a_fit_that_was_not_checked_has_none(small_fit: Fit) -> None:
    assert misfits_in(small_fit.info) == small_fit.misfits == ()
    assert "MISFIT" not in repr(small_fit)


# ------------------------------------------------------------------ answers


def test_forecasts_are_marked_where_a_check_fails(small_fit: Fit, ladder: pd.DataFrame) -> None:
    targets = ladder.iloc[[0, 20, 40]].drop(columns="loss")
    sound = small_fit.forecast(targets)
    assert "misfit" not in sound
    table = with_misfits(small_fit, *FOUND).forecast(targets)
    hit = (targets["method"] == "fmt").tolist()
    assert 0 < sum(hit) < 3
    assert table["misfit"].tolist() == ["rises with data; replicates" if h else "" for h in hit]
    pd.testing.assert_frame_equal(table.drop(columns="misfit"), sound)
    # Where no cell asked for fails, nothing is marked.
    assert "misfit" not in with_misfits(small_fit, *FOUND).forecast(targets[[not h for h in hit]])
    unseen = targets.head(1).assign(task="another", method="fmt")
    assert with_misfits(small_fit, *FOUND).forecast(unseen)["misfit"].tolist() != [""]


def test_comparisons_and_crossovers_are_marked(small_fit: Fit, ladder: pd.DataFrame) -> None:
    failed = with_misfits(small_fit, *FOUND)
    place = ladder.head(1)[["task", "model_size", "finetune_examples"]]
    table = failed.compare(place).set_index("method")["misfit"]
    assert table["fmt"] == "rises with data; replicates" and table["lora"] == ""
    row = {"model_size": 1e6, "points": 20}
    assert failed.crossover("lora", "fmt", **row)["misfit"][0] == "rises with data; replicates"
    assert "misfit" not in failed.crossover("lora", "prompt", **row)


def test_scores_are_marked_by_group(
    small_fit: Fit, ladder: pd.DataFrame, believed: Callable[..., Fit],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fake(runs: pd.DataFrame, **options: Any) -> Fit:
        return with_misfits(believed(runs), *FOUND)

    monkeypatch.setattr(backtest_module, "fit", fake)
    table = backtest(
        ladder, train="finetune_examples <= 600", test="finetune_examples > 600", by=["method"]
    ).set_index("group")["misfit"]
    assert table["all"] == table["method=fmt"] == "rises with data; replicates"
    assert table["method=lora"] == ""


# ------------------------------------------------------------------ the command line


@pytest.fixture
def failed_file(unconverged: Fit, tmp_path: Path) -> Path:
    """The file of a fit that failed checks."""
    path = tmp_path / "failed.nc"
    with_misfits(unconverged, *FOUND).save(path)
    return path


def test_answers_on_the_command_line_say_what_failed(
    tunecast_: Call, failed_file: Path, saved: Path, tmp_path: Path
) -> None:
    """On standard error, and in a column; the control is a fit that failed nothing."""
    at, out = tmp_path / "at.csv", tmp_path / "out.csv"
    at.write_text(TARGET)
    note = "note: The loss of debian-en-de / fmt rises."
    done = tunecast_("forecast", failed_file, "--at", at, "-o", out)
    assert done.code == 0 and note in done.err
    assert pd.read_csv(out)["misfit"].tolist() == ["rises with data; replicates"]
    shown = tunecast_("forecast", failed_file, "--at", at)
    assert "rises with data; replicates" in " ".join(shown.out.split())
    assert note in tunecast_("compare", failed_file, "--at", at).err
    cross = ("--model-size", "1e6", "--task", "debian-en-de")
    assert note in tunecast_("crossover", failed_file, "--a", "fmt", "--b", "lora", *cross).err
    other = tunecast_("crossover", failed_file, "--a", "prompt", "--b", "lora", *cross)
    assert other.code == 0 and "rises" not in other.err
    control = tunecast_("forecast", saved, "--at", at, "-o", out)
    assert "rises" not in control.err and "misfit" not in pd.read_csv(out)


def test_the_command_that_fits_says_what_failed_even_where_nothing_is_saved(
    tunecast_: Call, unconverged: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = with_misfits(unconverged, *FOUND)

    def fake(runs: pd.DataFrame, **options: Any) -> Fit:
        if not options["allow_unconverged"]:
            raise tunecast.models.UnconvergedError(failed)
        return failed

    monkeypatch.setattr(tunecast.models, "fit", fake)
    for more in ([], ["--allow-unconverged"]):
        done = tunecast_("fit", SMALL, "-o", tmp_path / "fit.nc", *more)
        assert done.code == 3
        assert "note: Replicates of debian-en-de / fmt differ." in done.err


# ------------------------------------------------------------------ the report


def test_a_report_says_what_failed(small_fit: Fit) -> None:
    said = warnings_of(with_misfits(small_fit, *FOUND))
    assert said[:2] == [m.sentence for m in FOUND]
    trust = " ".join(diagnostics_in_words(with_misfits(small_fit, *FOUND)))
    assert "it fails by rises with data (1 cell), replicates (1 cell)" in trust
    sound = " ".join(diagnostics_in_words(with_misfits(small_fit)))
    assert "It fails none of the checks" in sound
    assert "checks against" not in " ".join(diagnostics_in_words(small_fit))
