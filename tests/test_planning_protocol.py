"""What a plan asks of a fit is the protocol and nothing else: it plans with a model of 40 lines."""

import ast
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from linear_gaussian import NOISE, RUNS, USELESS, A, closed_form

from tunecast.models import planning
from tunecast.models.hierarchy.predict import Draws
from tunecast.models.hierarchy.table import Spec
from tunecast.models.inference.diagnostics import Diagnostics
from tunecast.models.planning import plan

SPEC = Spec("linear", (), "size", ("method",), "base")
GOOD = Diagnostics(1.0, 1e3, 1e3, 0, 1.0, 1000)


@dataclass(frozen=True)
class LinearGaussian:
    """Runs and goal of `linear_gaussian`: ``size`` 1 to 4 are the runs, 5 is the goal."""

    num_draws: int = 1000
    laws: tuple[str, ...] = ("linear",)
    spec: Spec = SPEC
    diagnostics: Diagnostics = GOOD
    info: dict[str, Any] = field(default_factory=lambda: {"seed": 0})
    runs: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"method": ["a"]}))

    @property
    def theta(self) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((1000, 3))[: self.num_draws]

    def check_targets(self, targets: pd.DataFrame, *, who: str) -> pd.DataFrame:
        return targets.assign(task="t", base="b").reset_index(drop=True)

    def draws(self, targets: pd.DataFrame, *, seed: int | None = None) -> Draws:
        at = targets["size"].to_numpy(int) - 1
        log_loss = self.theta @ np.vstack([RUNS, A])[at].T
        scale = np.broadcast_to(np.append(NOISE, 0.1)[at], log_loss.shape)
        loss, df = np.exp(log_loss), np.full(self.num_draws, np.inf)
        return Draws(loss, loss, np.ones(len(at)), scale, df)

    def thinned(self, draws: int) -> "LinearGaussian":
        return replace(self, num_draws=min(draws, self.num_draws))

    def cell_parameters(self) -> dict[tuple[str, ...], dict[str, np.ndarray]]:
        return {("a",): {"A": self.theta @ A, "D_l": np.zeros(self.num_draws)}}


CANDIDATES = pd.DataFrame({"method": "a", "size": [1, 2, 3, 4], "cost": 1.0})


@pytest.mark.parametrize("goal", ["forecast", "parameters"])
def test_a_plan_of_any_model_reaches_the_closed_form(goal: str) -> None:
    """The goal is the same number, once as a loss and once as a parameter; D_l is left out."""
    targets = pd.DataFrame({"method": ["a"], "size": [5]}) if goal == "forecast" else None
    found = plan(LinearGaussian(), CANDIDATES, goal=goal, targets=targets, runs=3)
    chosen = [int(size) - 1 for size in found.runs["size"]]
    truth = np.diff([closed_form(chosen[:i]) for i in range(4)])
    error = found.runs["gain_se"].to_numpy()
    assert (np.abs(found.runs["gain"].to_numpy() - truth) < 4 * error).all()
    assert truth[0] > 10 * error[0]  # which is not so little that 0 would do as well
    # Greedy: at each step the most telling run, but for the errors of two estimates.
    for i in range(3):
        others = set(range(4)) - set(chosen[: i + 1])
        best = max(closed_form([*chosen[:i], other]) for other in others)
        assert closed_form(chosen[: i + 1]) > best - 4 * np.sqrt(2) * error[i]
    # On its own it tells nothing, but beside others it tells of their nuisance.
    assert chosen[0] != USELESS


def test_planning_imports_nothing_above_it() -> None:
    """Neither fits, which plan by their methods, nor analysis, nor what samples."""
    code = (
        "import sys, tunecast.models.planning\n"
        "above = ('models.fits', 'models.api', 'models.inference.sampling', 'models.compile',\n"
        "         'analysis', 'training')\n"
        "print([m for m in above if f'tunecast.{m}' in sys.modules])\n"
        "import tunecast.models.fits.fit\n"  # the control: it is built on plans
        "print([m for m in above if f'tunecast.{m}' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "[]",
        "['models.fits', 'models.inference.sampling']",
    ], done.stderr


def test_nor_does_any_part_of_it_when_it_is_called() -> None:
    """Imports inside functions included."""

    def imported(folder: Path) -> set[str]:
        trees = [ast.parse(path.read_text()) for path in folder.glob("*.py")]
        nodes = [node for tree in trees for node in ast.walk(tree)]
        found = {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
        return found | {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}

    folder = Path(planning.__file__).parent
    above = ("tunecast.models.fits", "tunecast.analysis", "tunecast.models.inference.sampling")
    assert not [m for m in imported(folder) if m.startswith(above)]
    assert [m for m in imported(folder.parent / "fits") if m.startswith(above)]  # the control
