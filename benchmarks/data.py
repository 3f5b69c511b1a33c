"""The public tables that the benchmarks read, in the columns of a run table.

They are kept outside the package, in a folder ``data`` with one folder for each table: beside the
repository in ``shared/``, or wherever the environment variable TUNECAST_SHARED says.
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

#: Families with one tokenizer and at least three sizes, whose losses therefore compare.
FAMILIES = ("Cerebras", "GPT2", "LaMini", "OPT")

#: Multilingual models with vocabularies of their own, so that their losses a token do not compare
#: with those of GPT2 and T5, where the table files them.
OWN_VOCABULARY = {
    "ai-forever/mGPT": "mGPT",
    "google/mt5-base": "mT5",
    "google/mt5-large": "mT5",
}


def rectified_ft() -> pd.DataFrame:
    """900 full fine-tuning runs: 30 models x 15 sizes x {FLAN, Gigaword}, arXiv:2402.02314."""
    frame = pd.read_csv(shared("rectified_ft"))
    frame["family"] = frame["base_model"].map(OWN_VOCABULARY).fillna(frame["family"])
    return frame


def revisiting_nsl() -> pd.DataFrame:
    """712 points of 20 language learning curves with their published split, arXiv:2209.06640.

    There is no model size and no fine-tuning: ``method`` is ``pretrain``, ``finetune_examples``
    holds the examples seen. ``is_train`` 1 marks the rows to fit, 0 those to forecast.
    """
    frame = pd.read_csv(shared("revisiting_nsl_language"))
    frame = frame.rename(columns={"model": "base_model", "seen_examples": "finetune_examples"})
    frame["task"] = frame["domain"] + "/" + frame["task"]
    frame["method"] = "pretrain"
    curve = frame["task"] + "/" + frame["base_model"]
    # A curve may have two measurements at one size, so the size alone does not name a row.
    position = frame.groupby(curve).cumcount().astype(str)
    frame["run_id"] = curve + "/" + position
    columns = ["run_id", "task", "method", "base_model", "finetune_examples", "loss", "is_train"]
    return frame[columns]


def scalebench(name: str) -> pd.DataFrame:
    """Rows of four tables of ScaleBench with their published ``split``, arXiv:2604.22753.

    ``finetune_examples`` holds what serves as the data axis: ``parallel_size`` (parallel), ``D2``
    (sparsity; ``D1`` is the same in all), ``num_characters`` (vocab), and the share of a domain in
    the data (domain_mixture, where each run gives a loss of each of five domains).
    """
    frame = pd.read_csv(shared("scalebench", f"{name}.csv"))
    if name == "domain_mixture":
        frame["mixture"] = frame.groupby("group").cumcount()
        parts = [
            frame[["group", "mixture", "split"]].assign(
                task=f"domain {k}",
                finetune_examples=frame[f"proportion_domain_{k}"],
                loss=frame[f"loss_domain_{k}"],
                base_model=frame["group"],
                model_size=frame["group"].str.removesuffix("M").astype(float) * 1e6,
            )
            for k in range(1, 6)
        ]
        frame = pd.concat(parts, ignore_index=True)
    elif name == "parallel":
        frame["task"] = frame["group"]
        frame["model_size"] = frame["num_params"].astype(float)
        frame["finetune_examples"] = frame["parallel_size"].astype(float)
        frame["base_model"] = frame["num_params"].astype(str)
    elif name == "sparsity":
        frame["task"] = name
        frame["finetune_examples"] = frame["D2"]
        frame["base_model"] = frame[["P", "N_active"]].astype(str).agg("/".join, axis=1)
    else:
        frame["task"] = name
        frame["model_size"] = frame["non_vocab_parameters"]
        frame["finetune_examples"] = frame["num_characters"]
        frame["loss"] = frame["unigram_normalized_loss"]
    frame["run_id"] = [f"{name}/{i}" for i in range(len(frame))]
    return frame.assign(method="pretrain")


def tiny_ladder() -> pd.DataFrame:
    """49 small runs of full fine-tuning, LoRA and prompt tuning made for this project."""
    return pd.read_csv(shared("tiny_ladder"))


def largest_of_families(frame: pd.DataFrame) -> list[str]:
    """Return the ``base_model`` of the largest size of each family in :data:`FAMILIES`."""
    members = frame[frame["family"].isin(FAMILIES)].drop_duplicates("base_model")
    largest = members.loc[members.groupby("family")["model_size"].idxmax()]
    return largest["base_model"].tolist()


def shared(name: str, file: str = "runs.csv") -> Path:
    """Return the path of a public table.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    """
    root = os.environ.get("TUNECAST_SHARED")
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    path = (Path(root) if root else beside) / name / file
    if not path.is_file():
        raise FileNotFoundError(
            f"no table '{name}' at {path}: set TUNECAST_SHARED to the folder that holds "
            f"'{name}/{file}'"
        )
    return path
