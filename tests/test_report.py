"""The report: its page computes what Python does, in a real browser, and shows it to everyone."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL

from tunecast.analysis.report import contents, html, write_html
from tunecast.analysis.thinned import Setting, Thinned
from tunecast.analysis.verdicts import isolated
from tunecast.models import Diagnostics, Fit
from tunecast.models.laws import LAWS
from tunecast.models.layout import lay_out
from tunecast.models.runs import read_runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SAME = 1e-6  # relative: single precision holds the draws, double the arithmetic
HOSTILE = {
    "task": "</script><script>alert(1)</script> \"quoted\" 'single' & <b>bold</b>",
    "fmt": "=cmd|' /C calc'!A0 \U0001f9ea",
    "lora": "\u05e2\u05d1\u05e8\u05d9\u05ea \u202eright to left",
    "prompt": "very long " * 30,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, or a skip where there is none."""
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Visit:
    """One page in a browser, with all that it complained of or asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(**options)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_function("page.drawn && page.mapped", timeout=60_000)

    def ask(self, **values: str) -> None:
        """Choose task and base model, loss, and type numbers, as a reader would."""
        for name in ("setting", "base"):
            if name in values:
                self.page.select_option(f"#ask-{name}", values.pop(name))
        if "kind" in values:
            self.page.check(f"input[name=kind][value={values.pop('kind')}]")
        for column, text in values.items():
            self.page.fill(f"input[type=number][data-column={column}]", text)
        self.settle()

    def slide(self, column: str, log10: float) -> float:
        """Move a slider and return the value that the page then shows."""
        self.page.evaluate(
            """([column, value]) => {
              const slider = document.querySelector(`input[type=range][data-column=${column}]`);
              slider.value = value; slider.dispatchEvent(new Event("input", { bubbles: true }));
            }""",
            [column, log10],
        )
        self.settle()
        return float(self.page.input_value(f"input[type=number][data-column={column}]"))

    def settle(self) -> None:
        self.page.evaluate(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def answers(self) -> dict[str, list[float]]:
        """Return q50, q25, q75, q05, q95, P(best) and the extrapolation of each method."""
        rows = self.page.evaluate(
            """[...document.querySelectorAll("#answers tr")].map((row) =>
              [row.cells[0].textContent, ...[...row.cells].slice(1).map((c) => c.dataset.value)])"""
        )
        return {name: list(np.hstack([json.loads(v) for v in rest])) for name, *rest in rows}


def in_python(
    thinned: Thinned, setting: Setting, base: str, kind: str, values: dict[str, float]
) -> dict[str, list[float]]:
    """Return the same numbers as `Visit.answers`, from Python's predictor."""
    named = "method" in thinned.fit.question.cell
    rows = [dict(setting.labels) | ({"method": m} if named else {}) for m in setting.methods]
    targets = pd.DataFrame(rows).assign(**{thinned.fit.question.curve: base}, **values)
    expected = thinned.expected(targets)
    draws = expected if kind == "expected" else thinned.new_run(targets)
    best = expected.argmin(axis=1)
    far = np.max([p.draws(targets).extrapolation for p in thinned.predictors], axis=0)
    return {
        " ".join(method.split()) or "all methods": [
            *np.quantile(draws[:, m], [0.5, 0.25, 0.75, 0.05, 0.95]),
            float((best == m).mean()),
            far[m],
        ]
        for m, method in enumerate(setting.methods)
    }


def same(found: dict[str, list[float]], wanted: dict[str, list[float]]) -> None:
    assert {" ".join(name.split()) for name in found} == set(wanted)
    for name, numbers in found.items():
        goal = np.array(wanted[" ".join(name.split())])
        # The page holds the logarithm of a loss to seven digits: seven of a loss that a run can
        # have, fewer of the astronomic ones that draws of a prior contain.
        room = SAME * np.maximum(1, np.abs(np.log(np.maximum(goal, 1e-300))) / 5) * goal
        assert (np.abs(numbers - goal) <= room).all(), (name, numbers, goal)


@pytest.fixture(scope="module")
def small(believed: Callable[..., Fit]) -> Fit:
    """A fit to the ladder with draws of the prior."""
    return believed(read_runs(SMALL, columns=["model_size", "finetune_examples"]), size=600)


@pytest.fixture(scope="module")
def written(small: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_html(contents(small), path)
    return path


def mixed(believed: Callable[..., Fit], runs: pd.DataFrame) -> Fit:
    """A fit of two laws with unequal weights, of which one has no factor."""
    first, second = believed(runs), believed(runs, law="power", seed=2)
    members = replace(first.members[0], weight=0.7), replace(second.members[0], weight=0.3)
    return replace(first, members=members)


@pytest.mark.browser
@pytest.mark.parametrize("law", [*LAWS, "two laws", "two factors"])
def test_the_page_computes_what_python_does(
    law: str, browser: Any, believed: Callable[..., Fit], tmp_path: Path, zhang: pd.DataFrame
) -> None:
    """Known and unseen base models, in and beyond the data, of tasks and methods."""
    keep = zhang["task"].isin(sorted(zhang["task"].unique())[:2])
    runs = zhang[keep & (zhang["finetune_examples"] > 0)].reset_index(drop=True)
    if law == "two laws":
        fit = mixed(believed, runs)
    elif law == "two factors":
        # A second number that every base model has, and that does not follow from its size.
        width = runs["base_model"].map(lambda name: 100.0 + 7 * (sum(name.encode()) % 11))
        runs = runs.assign(width=width)
        fit = believed(runs, law="additive", factors=("model_size", "width"))
    else:
        fit = believed(runs, law=law)
    path = tmp_path / "page.html"
    write_html(contents(fit), path)
    visit, thinned = Visit(browser, path), Thinned(fit)
    factors = fit.question.factors
    for index, setting in enumerate(thinned.settings):
        visit.ask(setting=str(index))
        for kind, data, size in (("new", 250.0, 3.3e8), ("expected", 4e7, 6.4e10)):
            values: dict[str, float] = dict.fromkeys(factors, size)
            values[fit.question.data] = np.clip(data, setting.low / 9, setting.high * 900)
            if "width" in values:
                values["width"] = 150.0
            visit.ask(kind=kind, **{k: repr(float(v)) for k, v in values.items()})
            same(visit.answers(), in_python(thinned, setting, "", kind, values))
        base = thinned.base_models(setting)[-1]
        visit.ask(base=base, kind="new")
        at = runs.loc[runs["base_model"] == base].iloc[0]
        values |= {name: float(at[name]) for name in factors}
        same(visit.answers(), in_python(thinned, setting, base, "new", values))
    assert visit.complaints == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 800, 1600])
def test_a_reader_moves_the_sliders(width: int, browser: Any, small: Fit, written: Path) -> None:
    visit = Visit(browser, written, viewport={"width": width, "height": 900})
    thinned = Thinned(small)
    (setting,) = thinned.settings
    for log_size, log_data in ((5.2, 2.0), (6.9, 4.7)):
        values = {
            "model_size": visit.slide("model_size", log_size),
            "finetune_examples": visit.slide("finetune_examples", log_data),
        }
        assert values["finetune_examples"] == pytest.approx(10**log_data, rel=1e-3)
        same(visit.answers(), in_python(thinned, setting, "", "new", values))
    page = visit.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("figure svg").count() == page.locator(".plot").count() >= 9
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.browser
def test_it_is_small_and_quick(browser: Any, written: Path) -> None:
    """Twice the time that a reader notices, because a build machine may be busy."""
    assert written.stat().st_size <= 4e6
    visit = Visit(browser, written)
    assert visit.page.evaluate("page.ready") <= 2000
    took = []
    for log10 in np.linspace(2, 5, 9):
        visit.slide("finetune_examples", log10)
        took.append(visit.page.evaluate("page.took"))
    assert np.median(took) <= 100


@pytest.mark.browser
def test_the_map_agrees_with_python(browser: Any, small: Fit, written: Path) -> None:
    visit, thinned = Visit(browser, written), Thinned(small)
    table = visit.page.evaluate("page.figures.map.data[0].values")
    assert len(table) == 36 * 24
    methods = thinned.settings[0].methods
    for cell in (table[5], table[400], table[-1]):
        place = {"model_size": cell["size"], "finetune_examples": cell["data"]}
        targets = pd.DataFrame({"task": "debian-en-de", "method": list(methods)}).assign(**place)
        best = thinned.expected(targets).argmin(axis=1)
        share = float((best == methods.index(cell["method"])).mean())
        assert cell["p_best"] == pytest.approx(share, abs=1e-9)


@pytest.mark.browser
def test_one_method_is_reported_without_a_comparison(
    browser: Any, believed: Callable[..., Fit], ladder: pd.DataFrame, tmp_path: Path
) -> None:
    runs = ladder[ladder["method"] == "lora"].reset_index(drop=True)
    for name, cell in (("told", ("task", "method")), ("alike", ("task",))):
        fit, path = believed(runs, cell=cell), tmp_path / f"{name}.html"
        write_html(contents(fit), path)
        visit = Visit(browser, path)
        assert visit.page.locator("#best").count() == 0
        values = {"model_size": 2e6, "finetune_examples": 5e4}
        visit.ask(model_size="2e6", finetune_examples="5e4")
        setting = Thinned(fit).settings[0]
        same(visit.answers(), in_python(Thinned(fit), setting, "", "new", values))
        assert visit.complaints == []


@pytest.mark.browser
def test_every_figure_gives_its_numbers(browser: Any, written: Path) -> None:
    visit = Visit(browser, written)
    buttons = visit.page.locator("button[data-csv]")
    assert buttons.count() == visit.page.locator(".plot").count()
    for i in range(buttons.count()):
        with visit.page.expect_download() as caught:
            buttons.nth(i).click()
        frame = pd.read_csv(caught.value.path())
        assert len(frame) >= 3, caught.value.suggested_filename
        assert not frame.astype(str).isin(["[object Object]", "undefined"]).any(axis=None)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_reader_is_shut_out(scheme: str, browser: Any, written: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    visit = Visit(browser, written, color_scheme=scheme)
    found = axe.run(visit.page).response["violations"]
    grave = [(v["id"], v["nodes"][0]["html"][:200]) for v in found]
    assert [v for v, f in zip(grave, found, strict=True) if f["impact"] in GRAVE] == []


GRAVE = ("serious", "critical")


@pytest.mark.browser
def test_the_keyboard_reaches_the_slider(browser: Any, written: Path) -> None:
    visit = Visit(browser, written)
    before = visit.answers()
    visit.page.focus("input[type=range][data-column=finetune_examples]")
    visit.page.keyboard.press("Home")
    visit.settle()
    assert visit.answers() != before
    assert "nats" in visit.page.inner_text("#spoken")


@pytest.mark.browser
def test_hostile_names_are_shown_as_text(
    browser: Any, believed: Callable[..., Fit], ladder: pd.DataFrame, tmp_path: Path
) -> None:
    runs = ladder.assign(task=HOSTILE["task"], method=ladder["method"].map(HOSTILE))
    runs["base_model"] = "<img src=x onerror=alert(1)>" + runs["base_model"]
    fit, path = believed(runs), tmp_path / "page.html"
    write_html(contents(fit), path)
    visit = Visit(browser, path, viewport={"width": 400, "height": 900})
    shown = visit.page.inner_text("body")
    for name in HOSTILE.values():
        assert " ".join(name.split()) in " ".join(shown.split())
    assert visit.page.locator("b", has_text="bold").count() == 0
    assert visit.page.locator("img").count() == 0
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 400
    said = visit.page.inner_text("#answer p.lead >> nth=0")
    assert "\u202e" not in said and said.count("\u2068") == said.count("\u2069") == 1
    setting = Thinned(fit).settings[0]
    values = {"model_size": 3e6, "finetune_examples": 7e4}
    visit.ask(model_size="3e6", finetune_examples="7e4")
    same(visit.answers(), in_python(Thinned(fit), setting, "", "new", values))
    with visit.page.expect_download() as caught:
        visit.page.click("button[data-csv=whatif]")
    saved = Path(caught.value.path()).read_text(encoding="utf-8")
    assert "'=cmd" in saved and not re.search(r"^=", saved, flags=re.MULTILINE)
    assert visit.complaints == []


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


def test_a_report_needs_no_sampler(written: Path, small: Fit, tmp_path: Path) -> None:
    small.save(tmp_path / "fit.nc")
    code = (
        "import sys; from tunecast.models import load_fit; "
        "from tunecast.analysis.report import contents, html; "
        f"html(contents(load_fit({str(tmp_path / 'fit.nc')!r}))); "
        "print(sorted({'pymc', 'torch', 'matplotlib.pyplot'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_fit_shows_itself_in_a_notebook(small: Fit) -> None:
    bad = replace(small, diagnostics=Diagnostics(1.5, 10, 10, 0, 1.0, 600))
    runs = small.runs.assign(task="<b>task</b>")
    (member,) = small.members
    hostile = replace(member, layout=lay_out(runs, member.layout.question))
    shown = replace(bad, members=(hostile,), runs=runs)._repr_html_()
    assert "DID NOT CONVERGE" in shown and "49 runs" in shown
    assert "&lt;b&gt;task" in shown and "<b>task" not in shown
    assert "DID NOT" not in small._repr_html_()


def test_an_unconverged_fit_says_so_at_the_top(small: Fit) -> None:
    bad = replace(small, diagnostics=Diagnostics(1.5, 10, 10, 0, 1.0, 600))
    page, good = html(contents(bad)), html(contents(small))
    alarm = "THIS FIT DID NOT CONVERGE"
    assert alarm in page and page.index(alarm) < page.index('id="answer"')
    assert alarm not in good
