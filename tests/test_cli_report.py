"""The command ``report``, and the ledger whose forecasts it can score."""

import re
from pathlib import Path

import pandas as pd
import pytest
from commands import Call
from conftest import SMALL, TARGET


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
