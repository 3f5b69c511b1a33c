"""What all tests share. Warnings are errors (pyproject.toml), and nothing depends on the clock."""

import os

# Before anything imports them: figures without a display, one thread for each process.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What the training tests need is made by themselves; none of them asks a network.
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from hypothesis import settings

from tunecast.models.fits import Diagnostics, Fit, Member
from tunecast.models.hierarchy import simulate_prior
from tunecast.models.inference import question_of
from tunecast.models.layout import lay_out
from tunecast.models.priors import WEAK, PriorTable
from tunecast.models.runs import read_runs

# The same examples every time: a red build must be one that anybody can repeat.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def _ladder() -> pd.DataFrame:
    return read_runs("ladder", columns=["model_size", "finetune_examples"])


@pytest.fixture
def ladder(_ladder: pd.DataFrame) -> pd.DataFrame:
    """The embedded table of 49 measured runs, each test its own copy."""
    return _ladder.copy()


@pytest.fixture(scope="session")
def _zhang() -> pd.DataFrame:
    return read_runs("zhang2024-simulated", columns=["model_size", "finetune_examples"])


@pytest.fixture
def zhang(_zhang: pd.DataFrame) -> pd.DataFrame:
    """The embedded simulated table: several tasks, methods and families, a copy for each test."""
    return _zhang.copy()


@pytest.fixture(scope="session")
def believed() -> Callable[..., Fit]:
    """Make a fit whose draws come from the prior: every answer, without sampling a posterior."""

    def make(
        runs: pd.DataFrame,
        *,
        law: str = "rectified",
        size: int = 200,
        seed: int = 1,
        priors: PriorTable = WEAK,
        **ask: Any,
    ) -> Fit:
        layout = lay_out(runs, question_of(runs, law=law, **ask))
        draws, _ = simulate_prior(layout, priors, size, seed)
        good = Diagnostics(1.0, 1e3, 1e3, 0, 1.0, size)
        return Fit((Member(layout, priors, draws, 1.0),), runs, {"seed": seed}, good)

    return make
