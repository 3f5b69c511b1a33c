"""A recipe without a network: its text as files of tokens, carried to where there is none.

`pack` writes a folder that stands in for the cache on the other machine: the ladder's tokenizer,
its documents and its tasks, all in tokens. The text of the built-in tasks is not to be
redistributed, and no more are these files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunecast.models.errors import TunecastError
from tunecast.models.files import write_atomically
from tunecast.training.base_models import BaseModel, Rung
from tunecast.training.budget import Budget
from tunecast.training.examples import Encoded, Example, encode
from tunecast.training.loading import load_base
from tunecast.training.pretraining import document_tokens, tokenizer_folder, tokens_folder
from tunecast.training.recipes import Recipe
from tunecast.training.splits import SPLITS, digest_of
from tunecast.training.tasks import TaskSource, corpus, load_task


def pack(recipe: Recipe, folder: Path, cache: Path) -> int:
    """Write the tokens of a recipe and return their bytes.

    Parameters
    ----------
    recipe : Recipe
        Its base models must be rungs of a ladder.
    folder : Path
        What is to be copied; there, ``TUNECAST_CACHE`` must name it.
    cache : Path
        Where the text is.

    Raises
    ------
    TunecastError
        If a base model is none of our own.
    """
    from transformers import AutoTokenizer

    for cell in recipe.cells:
        if not isinstance(cell.base, Rung):
            raise TunecastError(
                f"the tokens of '{cell.base.name}' cannot be carried: it is no rung of a ladder."
            )
        plan = cell.base.pretraining
        source, there = tokenizer_folder(plan, cache), tokens_folder(plan, folder)
        tokenizer = AutoTokenizer.from_pretrained(source)
        documents = there / "documents.npy"
        if not documents.exists():
            shutil.copytree(source, there / "tokenizer" / source.name, dirs_exist_ok=True)
            found = document_tokens(corpus(plan.corpus, cache, plan.languages), tokenizer)
            small = found.astype(np.uint16 if len(tokenizer) <= 2**16 else np.int32)
            write_atomically(documents, lambda path, ids=small: np.save(path, ids))  # type: ignore[misc]
        file = tokens_of(cell.task, cell.base, recipe.budget, folder)
        if not file.exists():
            task = encode(load_task(cell.task, cache), cell.task, tokenizer, recipe.budget)
            write_atomically(file, lambda path, task=task: write_tokens(task, path))  # type: ignore[misc]
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def tokens_of(task: TaskSource, base: Rung, budget: Budget, cache: Path) -> Path:
    """Return the file of a task in the tokens of a ladder."""
    facts = (task, budget.dev_examples, budget.test_examples)
    return tokens_folder(base.pretraining, cache) / f"{digest_of([repr(facts)])[:16]}.npz"


def in_tokens(task: TaskSource, base: BaseModel, budget: Budget, cache: Path) -> Encoded:
    """Return a task in the tokens of a base model, from files of tokens if they are here."""
    if isinstance(base, Rung) and (file := tokens_of(task, base, budget, cache)).exists():
        return read_tokens(file)
    return encode(load_task(task, cache), task, load_base(base, cache).tokenizer, budget)


def write_tokens(task: Encoded, path: Path) -> None:
    """Write a task in tokens."""
    parts: dict[str, Any] = {"test_pairs": np.array(json.dumps(task.test_pairs))}
    for split in SPLITS:
        examples: Sequence[Example] = getattr(task, split)
        parts[f"{split}_ids"] = np.concatenate([example.ids for example in examples])
        parts[f"{split}_lengths"] = np.array([len(example.ids) for example in examples])
        parts[f"{split}_targets"] = np.array([example.targets for example in examples])
    np.savez_compressed(path, **parts)


def read_tokens(path: Path) -> Encoded:
    """Read what `write_tokens` wrote."""
    with np.load(path) as parts:
        splits = {
            split: tuple(
                Example(ids, int(targets))
                for ids, targets in zip(
                    np.split(parts[f"{split}_ids"], np.cumsum(parts[f"{split}_lengths"])[:-1]),
                    parts[f"{split}_targets"],
                    strict=True,
                )
            )
            for split in SPLITS
        }
        pairs = tuple((a, b) for a, b in json.loads(str(parts["test_pairs"])))
    return Encoded(**splits, test_pairs=pairs)
