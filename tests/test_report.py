"""A report whatever its format: which places it answers, what it needs, and what it says first."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
from conftest import HOSTILE

from tunecast.analysis.report.contents import contents
from tunecast.analysis.report.page import html
from tunecast.analysis.report.verdicts import isolated
from tunecast.models import Diagnostics, Fit
from tunecast.models.hierarchy.table import index_runs


def test_many_tasks_are_answered_where_most_runs_are(
    believed: Callable[..., Fit], ladder: pd.DataFrame
) -> None:
    copies = [ladder.assign(task=f"task {i}") for i in range(6)]
    copies[2] = copies[2].drop(index=ladder.index[:4])
    told = contents(believed(pd.concat(copies, ignore_index=True)))
    assert [a.target["task"] for a in told.answers] == ["task 0", "task 1", "task 3", "task 4"]
    assert told.unanswered == 2


def test_a_name_cannot_turn_the_numbers_around_it() -> None:
    """A right-to-left override in a method once showed 4.82 nats as 28.4."""
    turned = isolated(HOSTILE["lora"])
    assert turned[0] == "\u2068" and turned[-1] == "\u2069" and "\u202e" not in turned
    assert isolated("a\u202eb\u2069") == "ab"
    assert isolated("lora") == "lora"


def test_a_report_needs_no_sampler(small_fit: Fit, tmp_path: Path) -> None:
    small_fit.save(tmp_path / "fit.nc")
    code = (
        "import sys; from tunecast.models import load_fit; "
        "from tunecast.analysis.report.contents import contents; "
        "from tunecast.analysis.report.page import html; "
        f"html(contents(load_fit({str(tmp_path / 'fit.nc')!r}))); "
        "print(sorted({'pymc', 'torch', 'matplotlib.pyplot'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_fit_shows_itself_in_a_notebook(small_fit: Fit) -> None:
    bad = replace(small_fit, diagnostics=Diagnostics(1.5, 10, 10, 0, 1.0, 600))
    runs = small_fit.runs.assign(task="<b>task</b>")
    (posterior,) = small_fit.posteriors
    hostile = replace(posterior, table=index_runs(runs, small_fit.spec))
    shown = replace(bad, posteriors=(hostile,), runs=runs)._repr_html_()
    assert "DID NOT CONVERGE" in shown and "49 runs" in shown
    assert "&lt;b&gt;task" in shown and "<b>task" not in shown
    assert "DID NOT" not in small_fit._repr_html_()


def test_an_unconverged_fit_says_so_at_the_top(small_fit: Fit) -> None:
    bad = replace(small_fit, diagnostics=Diagnostics(1.5, 10, 10, 0, 1.0, 600))
    page, good = html(contents(bad)), html(contents(small_fit))
    alarm = "THIS FIT DID NOT CONVERGE"
    assert alarm in page and page.index(alarm) < page.index('id="answer"')
    assert alarm not in good
