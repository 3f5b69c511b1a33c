"""Pictures: what is in them, asked of the artists; how they look is for people to judge."""

import math
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from tunecast.analysis.labels import colours, short
from tunecast.analysis.plots.best import best_figure
from tunecast.analysis.plots.coverage import coverage_figure
from tunecast.analysis.plots.crossover import crossover_figure
from tunecast.analysis.plots.forecast import forecast_figure, plot_forecast
from tunecast.analysis.plots.frame import save_figure
from tunecast.models import Fit
from tunecast.models.laws.simulate import published_loss
from tunecast.models.runs import read_runs

NORMAL = {"q05": -1.645, "q25": -0.674, "q50": 0.0, "q75": 0.674, "q95": 1.645}


@dataclass
class FakeFit:
    """A fit whose forecasts are the published law with a known spread: no sampling."""

    runs: pd.DataFrame
    spread: float = 0.02
    converged: bool = True
    simulated: bool = True
    factors: tuple[str, ...] = ("model_size",)
    info: dict[str, Any] = field(init=False)
    diagnostics: Any = field(init=False)

    def __post_init__(self) -> None:
        self.info = {
            "data": "finetune_examples",
            "curve": "base_model",
            "factors": self.factors,
            "cell": ("task", "method", "family"),
            "simulated": self.simulated,
        }
        self.diagnostics = SimpleNamespace(converged=self.converged, reasons=())

    def forecast(self, targets: pd.DataFrame, *, seed: int | None = None) -> pd.DataFrame:
        del seed
        loss = published_loss(targets)
        quantiles = {f"loss_{q}": loss * np.exp(z * self.spread) for q, z in NORMAL.items()}
        return targets.assign(**quantiles, extrapolation=1.0)

    def compare(self, targets: pd.DataFrame, *, methods: Any = None) -> pd.DataFrame:
        names = list(methods or dict.fromkeys(self.runs["method"]))
        rows = targets.merge(pd.DataFrame({"method": names}), how="cross")
        weight = np.exp(-published_loss(rows) / self.spread)
        keys = list(targets.columns)
        total = pd.Series(weight).groupby([rows[key] for key in keys]).transform("sum")
        return rows.assign(p_best=weight / total.to_numpy())


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    frame = read_runs("zhang2024-simulated", columns=["model_size", "finetune_examples"])
    return frame[frame["task"] == "wmt14-en-de"].reset_index(drop=True)


@pytest.fixture(scope="module")
def trained(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs["model_size"] < 16e9]


@pytest.fixture(scope="module")
def heldout(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs["model_size"] == 16e9]


TARGET = ["task", "method", "family", "model_size", "finetune_examples"]


def fake(runs: pd.DataFrame, **options: Any) -> Fit:
    return cast(Fit, FakeFit(runs, **options))


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


def drawn(figure: Figure) -> None:
    """Lay the figure out, which is where warnings come from, and they are errors."""
    figure.draw_without_rendering()


def test_a_forecast_says_how_many_of_the_heldout_runs_it_held(
    trained: pd.DataFrame, heldout: pd.DataFrame
) -> None:
    """The spread is known, so the number can be counted apart; a narrow one is the control."""
    for spread in (0.05, 0.005):
        figure = forecast_figure(fake(trained, spread=spread), heldout[TARGET], heldout=heldout)
        drawn(figure)
        gap = np.abs(np.log(heldout["loss"] / published_loss(heldout)))
        inside = int((gap <= 1.645 * spread).sum())
        assert f"{inside} of {len(heldout)} held-out runs lie in the 90 % intervals" in words(
            figure
        )
        assert 0 < inside, spread
        assert (inside == len(heldout)) == (spread == 0.05)


def test_a_forecast_shows_runs_bands_and_names(
    trained: pd.DataFrame, heldout: pd.DataFrame
) -> None:
    figure = forecast_figure(fake(trained), heldout[TARGET], heldout=heldout)
    (ax,) = figure.axes
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "fine-tuning examples"
    assert ax.get_ylabel() == "test loss (nats per target token)"
    assert ax.get_title() == "wmt14-en-de, 16B parameters"
    points = [len(cast(Any, c).get_offsets()) for c in ax.collections if hasattr(c, "get_sizes")]
    assert sum(points) >= len(heldout) + len(trained)
    text = words(figure)
    for word in ("fmt", "lora", "prompt", "SIMULATED", "diamonds: runs the fit has not seen"):
        assert word in text
    assert "NOT CONVERGED" not in text


def test_a_curve_is_dashed_where_its_method_has_no_data(
    trained: pd.DataFrame, heldout: pd.DataFrame
) -> None:
    (ax,) = forecast_figure(fake(trained), heldout[TARGET]).axes
    blue = colours(["fmt"])["fmt"]
    dashed, solid = (line for line in ax.lines if line.get_color() == blue)
    assert dashed.is_dashed() and not solid.is_dashed()
    assert np.asarray(dashed.get_xdata()).min() == pytest.approx(8_000)
    assert np.asarray(solid.get_xdata()).min() >= 100_000 * (1 - 1e-9)


def test_only_what_lies_beyond_the_data_is_shaded(
    trained: pd.DataFrame, heldout: pd.DataFrame
) -> None:
    figure = forecast_figure(fake(trained), heldout[TARGET])
    assert "beyond" not in words(figure)
    further = heldout[TARGET].assign(finetune_examples=1e8)
    figure = forecast_figure(fake(trained), further)
    assert words(figure).count("beyond\nthe data") == 1
    drawn(figure)


def test_the_lowest_of_all_methods_is_found_where_one_alone_was_asked(
    trained: pd.DataFrame, heldout: pd.DataFrame
) -> None:
    """The targets at the largest data size are all FMT's, which is not the best there."""
    furthest = heldout["finetune_examples"] == 4_500_000
    assert set(heldout.loc[furthest, "method"]) == {"fmt"}
    everywhere = heldout[TARGET].head(1).drop(columns=["method", "finetune_examples"])
    grid = everywhere.merge(pd.DataFrame({"method": ["fmt", "lora", "prompt"]}), how="cross")
    loss = published_loss(grid.assign(finetune_examples=4.5e6))
    best = grid["method"][int(loss.argmin())]
    assert best != "fmt"
    figure = forecast_figure(fake(trained), heldout[TARGET])
    said = words(figure).replace("\n", " ")
    assert f"At 4.5M examples, {best} has the lowest median: {loss.min():.3g} nats" in said


def test_a_figure_of_what_did_not_converge_says_so(
    trained: pd.DataFrame, heldout: pd.DataFrame
) -> None:
    sound = fake(trained, simulated=False)
    bad = fake(trained, simulated=False, converged=False)
    for make in (forecast_figure, best_figure):
        assert "NOT CONVERGED" not in words(make(sound, heldout[TARGET]))
        text = words(make(bad, heldout[TARGET]))
        assert text.count("NOT CONVERGED") == 2, "in the title and across the panel"
        assert "SIMULATED" not in text


def test_the_shares_of_the_best_add_to_one(trained: pd.DataFrame, heldout: pd.DataFrame) -> None:
    targets = heldout[TARGET].drop(columns="method").drop_duplicates()
    figure = best_figure(fake(trained), targets)
    (ax,) = figure.axes
    top = max(
        np.asarray(path.vertices)[:, 1].max() for c in ax.collections for path in c.get_paths()
    )
    assert top == pytest.approx(1)
    assert "At 4.5M examples, lora is best with probability" in words(figure).replace("\n", " ")
    drawn(figure)
    two = best_figure(fake(trained), targets, methods=["fmt", "lora"])
    assert "prompt" not in words(two)


@pytest.mark.parametrize("p_none", [0.2, 1.0])
def test_a_crossing_is_drawn_where_it_is(trained: pd.DataFrame, p_none: float) -> None:
    quantiles = (2e4, 5e4, 1.2e5, 3e5, 2e6) if p_none < 1 else (math.nan,) * 5
    row = {f"first_q{q}": v for q, v in zip(("05", "25", "50", "75", "95"), quantiles, strict=True)}
    answer = pd.DataFrame(
        [{"a": "fmt", "b": "lora", "p_none": p_none, "p_one": 1 - p_none, "p_two": 0.0, **row}]
    )
    target = pd.DataFrame([{"task": "wmt14-en-de", "family": "en-de", "model_size": 1e9}])
    figure = crossover_figure(fake(trained), target, answer)
    drawn(figure)
    (ax,) = figure.axes
    bars = [line for line in ax.lines if line.get_color() == "black"]
    if p_none < 1:
        assert "cross with probability 80 %, at about 120k" in words(figure).replace("\n", " ")
        assert list(np.asarray(bars[0].get_xdata())) == [2e4, 2e6]
    else:
        assert "cross with probability 0 %" in words(figure)
        assert bars == []


def test_coverage_is_drawn_against_what_it_should_be() -> None:
    scores = {"task": "t", "n": 40, "converged": True}
    for nominal in (50, 80, 90, 95):
        share = nominal / 100 - 0.05
        scores |= {f"cover{nominal}": share}
        scores |= {f"cover{nominal}_low": share - 0.1, f"cover{nominal}_high": share + 0.1}
    figure = coverage_figure(pd.DataFrame([scores, scores | {"converged": False}]))
    drawn(figure)
    assert len(figure.axes) == 2
    assert figure.axes[0].get_title() == "t, 40 runs"
    assert "held 85 % of 40 runs" in words(figure)
    assert "NOT CONVERGED" in words(figure)


def test_a_loss_that_falls_by_half_gets_a_log_axis(trained: pd.DataFrame) -> None:
    targets = trained[TARGET].drop_duplicates().head(1)
    sizes = pd.DataFrame({"finetune_examples": np.geomspace(1e2, 1e6, 20)})
    curves = fake(trained).forecast(
        targets.drop(columns="finetune_examples").merge(sizes, how="cross")
    )
    for factor, scale in ((1.0, "linear"), (np.geomspace(4, 1, 20), "log")):
        steep = curves.copy()
        for q in NORMAL:
            steep[f"loss_{q}"] *= factor
        ax: Axes = Figure().add_subplot()
        assert plot_forecast(ax, steep) is ax
        assert ax.get_yscale() == scale


def test_too_many_panels_are_refused(trained: pd.DataFrame) -> None:
    targets = trained[TARGET].head(1).drop(columns="model_size")
    sizes = pd.DataFrame({"model_size": np.linspace(1e9, 2e9, 7)})
    with pytest.raises(ValueError, match=r"at most 6 panels.*need 7"):
        forecast_figure(fake(trained), targets.merge(sizes, how="cross"))


def test_methods_have_colours_of_their_own() -> None:
    names = ["fmt", "mine", "lora", "yours", "prompt", "bitfit"]
    assert len(set(colours(names).values())) == len(names)
    assert colours(["lora"])["lora"] == colours(names)["lora"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5"), (60, "60"), (999.6, "1k"), (1_240_480, "1.24M"), (16e9, "16B"), (2e12, "2T")],
)
def test_short(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_a_figure_is_saved_whole(tmp_path: Path, trained: pd.DataFrame, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    save_figure(forecast_figure(fake(trained), trained[TARGET].head(1)), path)
    assert path.stat().st_size > 1000
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_no_pyplot_and_no_display_are_needed() -> None:
    code = (
        "import importlib, pkgutil, sys\n"
        "from tunecast.analysis import plots\n"
        "names = [part.name for part in pkgutil.iter_modules(plots.__path__)]\n"
        "for name in names: importlib.import_module(f'tunecast.analysis.plots.{name}')\n"
        "print(len(names) > 5, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"DISPLAY": ""},
    )
    assert done.stdout.strip() == "True False"
