"""What all tests share. Warnings are errors (pyproject.toml), and nothing depends on the clock."""

import os

# Before anything imports them: figures without a display, one thread for each process.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import pytest
from hypothesis import settings

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
