"""Examples: a task in the tokens of a model, each example a row of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunecast.models.errors import TunecastError
from tunecast.training.budget import Budget
from tunecast.training.splits import Pair
from tunecast.training.tasks import Task, TaskSource


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One example in tokens: the source with its marks, then the target with its end mark.

    Parameters
    ----------
    ids : ndarray of int32, shape (tokens,)
        All tokens.
    targets : int
        How many at the end are target tokens.
    """

    ids: np.ndarray
    targets: int


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A task in the tokens of one tokenizer, examples beyond the length limits left out.

    Parameters
    ----------
    train, dev, test : tuple of Example
        The splits, in the order of the task's.
    test_pairs : tuple of (str, str)
        The text of each test example.
    """

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
    test_pairs: tuple[Pair, ...]


def encode(task: Task, source: TaskSource, tokenizer: Any, budget: Budget) -> Encoded:
    """Return a task as token ids.

    An example is ``[bos] source [sep] target eos``; a line break stands for a mark of separation
    that the tokenizer does not have.

    Parameters
    ----------
    task : Task
        The text.
    source : TaskSource
        Where it came from: the longest examples, and how many training examples there may be.
    tokenizer : transformers.PreTrainedTokenizerBase
        It must have a mark for the end of a text.
    budget : Budget
        How many dev and test examples there may be.

    Raises
    ------
    TunecastError
        If a split is empty once long examples are left out, or the end cannot be marked.
    """
    if tokenizer.eos_token_id is None:
        raise TunecastError("the tokenizer has no mark for the end of a text.")
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    middle = (
        tokenizer("\n", add_special_tokens=False).input_ids
        if tokenizer.sep_token_id is None
        else [tokenizer.sep_token_id]
    )
    found: dict[str, tuple[Example, ...]] = {}
    kept: list[Pair] = []
    for split, pairs, most in (
        ("train", task.train, source.pool),
        ("dev", task.dev, budget.dev_examples),
        ("test", task.test, budget.test_examples),
    ):
        examples: list[Example] = []
        for pair, left, right in _tokens(pairs, tokenizer):
            if len(examples) == most:
                break
            if len(left) <= source.max_source and len(right) <= source.max_target:
                ids = [*start, *left, *middle, *right, tokenizer.eos_token_id]
                examples.append(Example(np.asarray(ids, dtype=np.int32), len(right) + 1))
                if split == "test":
                    kept.append(pair)
        if not examples:
            raise TunecastError(
                f"no {split} example of task '{task.name}' fits into {source.max_source} source "
                f"and {source.max_target} target tokens."
            )
        found[split] = tuple(examples)
    return Encoded(found["train"], found["dev"], found["test"], tuple(kept))


def _tokens(pairs: Sequence[Pair], tokenizer: Any) -> Iterator[tuple[Pair, list[int], list[int]]]:
    for start in range(0, len(pairs), 1000):
        part = pairs[start : start + 1000]
        left, right = (
            tokenizer([pair[k] for pair in part], add_special_tokens=False).input_ids
            for k in (0, 1)
        )
        yield from zip(part, left, right, strict=True)
