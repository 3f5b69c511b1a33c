"""What tests of training share: methods, a budget of seconds, and runs that are made with them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tunecast.training.batches import Batch, collate, pool_of
from tunecast.training.budget import Budget
from tunecast.training.examples import Encoded, Example
from tunecast.training.loading import Loaded
from tunecast.training.methods import FMT, LoRA, Method, Prompt
from tunecast.training.run import Result, run

METHODS: tuple[Method, ...] = (FMT(), LoRA(rank=2), Prompt(length=3))
BUDGET = Budget(
    epochs=1, examples=1, batch=8, evaluations=4, patience=4, dev_examples=8, test_examples=12
)
RATES = {"fmt": 3e-3, "lora": 1e-2, "prompt": 1e-1}


def collated(examples: Sequence[Example]) -> Batch:
    return collate(pool_of(examples), [np.arange(len(examples))])


def made(method: Method, base: Loaded, task: Encoded, **change: Any) -> Result:
    asked: dict[str, Any] = {
        "examples": 40, "rates": (RATES[method.label],), "seed": 0, "budget": BUDGET, **change
    }  # fmt: skip
    return run(base, task, method, **asked)
