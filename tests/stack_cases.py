"""What tests of stacks share: runs of one method that differ in all else, and each alone."""

from functools import partial
from typing import Any

import numpy as np

from tunecast.training.batches import choose
from tunecast.training.budget import Budget
from tunecast.training.examples import Encoded
from tunecast.training.flops import step_cost
from tunecast.training.loading import Loaded
from tunecast.training.loop import train
from tunecast.training.methods import FMT, LoRA, Method, Prompt
from tunecast.training.progress import Outcome
from tunecast.training.stacked_runs import StackedRun
from tunecast.training.tuned import Tuned, attach

BUDGET = Budget(
    epochs=1, examples=1, batch=4, evaluations=5, patience=9, dev_examples=8, test_examples=12
)
# Runs of one method that differ in everything that runs may differ in.
SETTINGS: dict[str, tuple[Method, ...]] = {
    "fmt": (FMT(), FMT(), FMT()),
    "lora": (LoRA(rank=2), LoRA(rank=5), LoRA(rank=1)),
    "prompt": (Prompt(length=3), Prompt(length=7), Prompt(length=1)),
}
# Such that a step does not overshoot: beyond, two runs of PEFT itself that differ in the order of
# a sum are 0.01 apart after 100 steps.
RATES = {"fmt": (3e-3, 1e-3, 5e-3), "lora": (3e-3, 2e-3, 1e-3), "prompt": (1e-1, 3e-2, 3e-1)}
COUNTS = (400, 90, 37)


def subset_of(task: Encoded, count: int, seed: int) -> np.ndarray:
    return choose(len(task.train), min(count, len(task.train)), seed)


def stacked_run(base: Loaded, task: Encoded, label: str, k: int, **change: Any) -> StackedRun:
    method = SETTINGS[label][k]
    asked: dict[str, Any] = {
        "subset": subset_of(task, COUNTS[k], seed=k),
        "rate": RATES[label][k],
        "seed": k,
        "start": partial(attach, base, method, seed=k),
        "cost": step_cost(attach(base, method), "cpu"),
        **change,
    }
    return StackedRun(**asked)


def widest(base: Loaded, label: str) -> Tuned:
    return attach(base, max(SETTINGS[label], key=lambda method: method.setting))


def alone(base: Loaded, task: Encoded, asked: StackedRun, budget: Budget) -> Outcome:
    examples = [task.train[k] for k in asked.subset]
    return train(asked.start(), examples, task.dev, budget, rate=asked.rate, seed=asked.seed)
