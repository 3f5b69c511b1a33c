"""A report's page in a real browser: it computes what Python does, and shows it to everyone."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browsing import Visit, in_python, same
from conftest import HOSTILE, importorskip

from tunecast.analysis.report.contents import contents
from tunecast.analysis.report.page import write_html
from tunecast.analysis.report.page_draws import PageDraws
from tunecast.models import Fit
from tunecast.models.laws import LAWS

pytestmark = pytest.mark.browser

GRAVE = ("serious", "critical")


@pytest.fixture(scope="module")
def written(small_fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_html(contents(small_fit), path)
    return path


@pytest.fixture(scope="module")
def opened(browser: Any, written: Path) -> Iterator[Visit]:
    visit = Visit(browser, written)
    yield visit
    visit.close()


@pytest.fixture
def visit(opened: Visit) -> Visit:
    """The page of the small fit, open, with every control where it stands at first."""
    opened.page.evaluate("form.reset(), reset()")
    opened.settle()
    return opened


@pytest.fixture
def visit_to(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Open a page of one's own, by its path and the options of a browser's page."""
    visits: list[Visit] = []

    def visit(path: Path, **options: Any) -> Visit:
        visits.append(Visit(browser, path, **options))
        return visits[-1]

    yield visit
    for each in visits:
        each.close()


def mixed(believed: Callable[..., Fit], runs: pd.DataFrame) -> Fit:
    """A fit of two laws with unequal weights, of which one has no factor."""
    first, second = believed(runs), believed(runs, law="power", seed=2)
    both = replace(first.posteriors[0], weight=0.7), replace(second.posteriors[0], weight=0.3)
    return replace(first, posteriors=both)


@pytest.mark.parametrize("law", [*LAWS, "two laws", "two factors", "thin curves"])
def test_the_page_computes_what_python_does(
    law: str,
    visit_to: Callable[..., Visit],
    believed: Callable[..., Fit],
    tmp_path: Path,
    zhang: pd.DataFrame,
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
    elif law == "thin curves":  # the base model that is asked for below has one run
        last = runs["base_model"].isin(runs.groupby("task")["base_model"].max())
        fit = believed(runs[~last | (runs["finetune_examples"] == 1e5)].reset_index(drop=True))
        assert fit.posteriors[0].table.run_alone.any()
    else:
        fit = believed(runs, law=law)
    path = tmp_path / "page.html"
    write_html(contents(fit), path)
    visit, held = visit_to(path), PageDraws(fit)
    factors = fit.spec.factors
    for index, stratum in enumerate(held.strata):
        visit.ask(setting=str(index))
        middle = float(np.sqrt(stratum.low * stratum.high))
        asked = (("new", 250.0, 3.3e8), ("new", middle, 3.3e8), ("expected", 4e7, 6.4e10))
        for kind, data, size in asked:
            values: dict[str, float] = dict.fromkeys(factors, size)
            values[fit.spec.data] = np.clip(data, stratum.low / 9, stratum.high * 900)
            if "width" in values:
                values["width"] = 150.0
            visit.ask(kind=kind, **{k: repr(float(v)) for k, v in values.items()})
            same(visit.answers(), in_python(held, stratum, "", kind, values))
        base = held.base_models(stratum)[-1]
        visit.ask(base=base, kind="new")
        at = runs.loc[runs["base_model"] == base].iloc[0]
        values |= {name: float(at[name]) for name in factors}
        same(visit.answers(), in_python(held, stratum, base, "new", values))
        values[fit.spec.data] = middle
        visit.ask(**{fit.spec.data: repr(middle)})
        same(visit.answers(), in_python(held, stratum, base, "new", values))
    assert visit.complaints == []


@pytest.mark.parametrize("width", [400, 800, 1600])
def test_a_reader_moves_the_sliders(
    width: int, visit_to: Callable[..., Visit], small_fit: Fit, written: Path
) -> None:
    visit = visit_to(written, viewport={"width": width, "height": 900})
    held = PageDraws(small_fit)
    (stratum,) = held.strata
    for log_size, log_data in ((5.2, 2.0), (6.9, 4.7)):
        values = {
            "model_size": visit.slide("model_size", log_size),
            "finetune_examples": visit.slide("finetune_examples", log_data),
        }
        assert values["finetune_examples"] == pytest.approx(10**log_data, rel=1e-3)
        same(visit.answers(), in_python(held, stratum, "", "new", values))
    page = visit.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("figure svg").count() == page.locator(".plot").count() >= 9
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith(("file:", "data:"))] == []


def test_it_is_small(written: Path) -> None:
    assert written.stat().st_size <= 4e6


def test_the_map_agrees_with_python(visit: Visit, small_fit: Fit) -> None:
    held = PageDraws(small_fit)
    table = visit.page.evaluate("page.figures.map.data[0].values")
    assert len(table) == 36 * 24
    methods = held.strata[0].methods
    for cell in (table[5], table[400], table[-1]):
        place = {"model_size": cell["size"], "finetune_examples": cell["data"]}
        targets = pd.DataFrame({"task": "debian-en-de", "method": list(methods)}).assign(**place)
        best = held.expected(targets).argmin(axis=1)
        share = float((best == methods.index(cell["method"])).mean())
        assert cell["p_best"] == pytest.approx(share, abs=1e-9)


def test_one_method_is_reported_without_a_comparison(
    visit_to: Callable[..., Visit],
    believed: Callable[..., Fit],
    ladder: pd.DataFrame,
    tmp_path: Path,
) -> None:
    runs = ladder[ladder["method"] == "lora"].reset_index(drop=True)
    for name, cell in (("told", ("task", "method")), ("alike", ("task",))):
        fit, path = believed(runs, cell=cell), tmp_path / f"{name}.html"
        write_html(contents(fit), path)
        visit, held = visit_to(path), PageDraws(fit)
        assert visit.page.locator("#best").count() == 0
        values = {"model_size": 2e6, "finetune_examples": 5e4}
        visit.ask(model_size="2e6", finetune_examples="5e4")
        same(visit.answers(), in_python(held, held.strata[0], "", "new", values))
        assert visit.complaints == []


def test_every_figure_gives_its_numbers(visit: Visit) -> None:
    buttons = visit.page.locator("button[data-csv]")
    assert buttons.count() == visit.page.locator(".plot").count()
    for i in range(buttons.count()):
        with visit.page.expect_download() as caught:
            buttons.nth(i).click()
        frame = pd.read_csv(caught.value.path())
        assert len(frame) >= 3, caught.value.suggested_filename
        assert not frame.astype(str).isin(["[object Object]", "undefined"]).any(axis=None)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_reader_is_shut_out(scheme: str, visit_to: Callable[..., Visit], written: Path) -> None:
    axe = importorskip("axe_playwright_python.sync_playwright").Axe()
    visit = visit_to(written, color_scheme=scheme)
    found = axe.run(visit.page).response["violations"]
    grave = [(v["id"], v["nodes"][0]["html"][:200]) for v in found]
    assert [v for v, f in zip(grave, found, strict=True) if f["impact"] in GRAVE] == []


def test_the_keyboard_reaches_the_slider(visit: Visit) -> None:
    before = visit.answers()
    visit.page.focus("input[type=range][data-column=finetune_examples]")
    visit.page.keyboard.press("Home")
    visit.settle()
    assert visit.answers() != before
    assert "nats" in visit.page.inner_text("#spoken")


def test_hostile_names_are_shown_as_text(
    visit_to: Callable[..., Visit],
    believed: Callable[..., Fit],
    ladder: pd.DataFrame,
    tmp_path: Path,
) -> None:
    runs = ladder.assign(task=HOSTILE["task"], method=ladder["method"].map(HOSTILE))
    runs["base_model"] = "<img src=x onerror=alert(1)>" + runs["base_model"]
    fit, path = believed(runs), tmp_path / "page.html"
    write_html(contents(fit), path)
    visit, held = visit_to(path, viewport={"width": 400, "height": 900}), PageDraws(fit)
    shown = visit.page.inner_text("body")
    for name in HOSTILE.values():
        assert " ".join(name.split()) in " ".join(shown.split())
    assert visit.page.locator("b", has_text="bold").count() == 0
    assert visit.page.locator("img").count() == 0
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 400
    said = visit.page.inner_text("#answer p.lead >> nth=0")
    assert "\u202e" not in said and said.count("\u2068") == said.count("\u2069") == 1
    values = {"model_size": 3e6, "finetune_examples": 7e4}
    visit.ask(model_size="3e6", finetune_examples="7e4")
    same(visit.answers(), in_python(held, held.strata[0], "", "new", values))
    with visit.page.expect_download() as caught:
        visit.page.click("button[data-csv=whatif]")
    saved = Path(caught.value.path()).read_text(encoding="utf-8")
    assert "'=cmd" in saved and not re.search(r"^=", saved, flags=re.MULTILINE)
    assert visit.complaints == []
