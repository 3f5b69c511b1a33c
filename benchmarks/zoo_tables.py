"""Run tables that are hard in many ways: what is hard about each, and its split.

A table is a frame with a column ``split``; rows of ``train`` are fitted, those of ``test``
forecast, others left out. Options are those that a user of the table would have to say, nothing
tuned. Public tables lie where `data` says; made ones come from `zoo_simulated`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from data import rectified_ft, revisiting_nsl, scalebench, shared, tiny_ladder

from tunecast.models import read_runs


@dataclass(frozen=True)
class Table:
    """Rows to fit and rows to forecast.

    Parameters
    ----------
    train, test : DataFrame
        In the columns of a run table.
    options : mapping
        Of `tunecast.models.fit`.
    by : tuple of str
        Columns of ``test`` whose levels are scored apart.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    options: Mapping[str, Any]
    by: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Changes with rows, split and options."""
        text = self.train.to_csv() + self.test.to_csv() + repr((self.options, self.by))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Entry:
    """How a table of the zoo is made.

    Parameters
    ----------
    name : str
        Of the table and its split.
    hard : str
        What is hard about it.
    make : callable
        Returns the rows, with ``split``.
    options, by
        See `Table`.
    """

    name: str
    hard: str
    make: Callable[[], pd.DataFrame]
    options: Mapping[str, Any] = field(default_factory=dict)
    by: tuple[str, ...] = ()

    def table(self) -> Table:
        """Return the table.

        Raises
        ------
        FileNotFoundError
            When it is a public table that is not there.
        """
        rows = self.make()
        part = {
            name: rows[rows["split"] == name].drop(columns="split").reset_index(drop=True)
            for name in ("train", "test")
        }
        return Table(part["train"], part["test"], self.options, self.by)


def zoo(name: str) -> pd.DataFrame:
    """Return a table of the folder ``zoo``, with the split that its origin suggests."""
    return pd.read_csv(shared("zoo", f"{name}.csv"))


def held_out(rows: pd.DataFrame, test: pd.Series) -> pd.DataFrame:
    """Return the rows with a split by a condition."""
    return rows.assign(split=np.where(test, "test", "train"))


def within(name: str, column: str, most: float) -> Callable[[], pd.DataFrame]:
    """Return what makes a second split: the rows of ``train`` with more than so much held out."""

    def make() -> pd.DataFrame:
        rows = zoo(name)
        rows = rows[rows["split"] == "train"]
        return held_out(rows, rows[column] > most)

    return make


def glue() -> pd.DataFrame:
    """Return the fine-tuned encoders with what is new about each held-out row."""
    rows = zoo("glue_new_groups")
    seen = rows[rows["split"] == "train"]
    task, model = (~rows[c].isin(seen[c].unique()) for c in ("task", "base_model"))
    return rows.assign(unseen=np.select([task & model, task, model], ["both", "task", "model"], ""))


def rectified() -> pd.DataFrame:
    """Return fine-tuning runs of 30 models with all that needs more data held out."""
    rows = rectified_ft()
    rows = rows[rows["finetune_examples"] > 0]
    return held_out(rows, rows["finetune_examples"] > 6_400)


def learning_curves() -> pd.DataFrame:
    """Return language learning curves with their published split."""
    rows = revisiting_nsl()
    return held_out(rows, rows["is_train"] == 0)


def mixture() -> pd.DataFrame:
    """Return losses of five domains against their share of the data, largest model held out."""
    rows = scalebench("domain_mixture")
    rows = rows[rows["finetune_examples"] > 0]
    return held_out(rows, rows["model_size"] == rows["model_size"].max())


def largest(read: Callable[[], pd.DataFrame], column: str, least: float | None = None) -> Any:
    """Return what makes a split: the largest value of a column held out, or all from ``least``."""

    def make() -> pd.DataFrame:
        rows = read()
        return held_out(rows, rows[column] >= (rows[column].max() if least is None else least))

    return make


def ladder() -> pd.DataFrame:
    return read_runs("ladder")


TOKENS = {"data": "train_tokens"}
EXAMPLES, SIZE = "finetune_examples", "model_size"

REAL = (
    Entry(
        "steplaw_best", "15 runs, one a curve; larger sizes held out",
        lambda: zoo("steplaw_best"), TOKENS,
    ),
    Entry(
        "steplaw_best, data", "10 runs, one a curve; more data held out",
        within("steplaw_best", "train_tokens", 30e9), TOKENS,
    ),
    Entry(
        "openlm_overtraining", "24 cells, five hundredfold token multipliers, four sizes to fit",
        lambda: zoo("openlm_overtraining"), TOKENS,
    ),
    Entry(
        "openlm_overtraining, data", "token multipliers above 80 held out",
        within("openlm_overtraining", "token_multiplier", 80), TOKENS,
    ),
    Entry(
        "glue_new_groups", "loss rises with data; unseen task, unseen checkpoint, both",
        glue, by=("unseen",),
    ),
    Entry(
        "glue_new_groups, data", "loss rises with data; more data held out",
        within("glue_new_groups", EXAMPLES, 500),
    ),
    Entry(
        "three_sizes_error_rates", "error rates, two to five data sizes a curve",
        lambda: zoo("three_sizes_error_rates"),
    ),
    Entry(
        "datablations", "thousands of epochs, loss up to 11; the largest size held out",
        lambda: zoo("datablations"), TOKENS,
    ),
    Entry(
        "datablations, data", "thousands of epochs; more tokens held out",
        within("datablations", "train_tokens", 84e9), TOKENS,
    ),
    Entry(
        "llama3_isoflop", "isoFLOP curves, losses below 1; dearest 30 % held out",
        lambda: zoo("llama3_isoflop"), TOKENS,
    ),
    Entry("rectified_ft", "30 models of 8 families, slopes drift; D > 6,400 held out", rectified),
    Entry(
        "revisiting_nsl", "20 long learning curves without a model size; published split",
        learning_curves, {"factors": ()},
    ),
    Entry("domain_mixture", "the data axis is a share, few values; largest size held out", mixture),
    Entry("parallel", "the data axis is the parallel size, 1 to 4", lambda: scalebench("parallel")),
    Entry(
        "sparsity", "mixtures of experts: two factors, three data sizes",
        lambda: scalebench("sparsity"), {"factors": ("P", "N_active")},
    ),
    Entry(
        "vocab", "losses below 0, which have no logarithm: a refusal is right",
        lambda: scalebench("vocab"), {"factors": ("model_size", "vocab_size")},
    ),
    Entry("tiny_ladder, size", "two sizes to fit", largest(tiny_ladder, SIZE)),
    Entry("tiny_ladder, data", "three data sizes to fit", largest(tiny_ladder, EXAMPLES, 2_000)),
    Entry("ladder, size", "three sizes to fit", largest(ladder, SIZE)),
    Entry("ladder, data", "four data sizes to fit", largest(ladder, EXAMPLES, 1_200)),
)  # fmt: skip
