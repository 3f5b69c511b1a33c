"""What a step costs, against a count by hand."""

import numpy as np
import pytest
from conftest import importorskip

importorskip("torch")
importorskip("peft")
importorskip("transformers")

from training_cases import BUDGET, METHODS, made

from tunecast.training.batches import batches, choose
from tunecast.training.examples import Encoded
from tunecast.training.flops import step_cost
from tunecast.training.loading import Loaded
from tunecast.training.methods import FMT, Method
from tunecast.training.tuned import attach


def by_hand(base: Loaded, method: Method, batch: int, length: int, targets: int) -> int:
    """Return the FLOP of a step: two for each weight and token, for each of the products made.

    A matrix is multiplied once forward, once for the gradient of its input and once for that of
    its weights; what has no use is left out. Attention multiplies twice forward, and five times
    backward, since its backward pass makes the scores again.
    """
    config = base.model.config
    d, ffn, heads, vocabulary = 16, 32, config.num_attention_heads, config.vocab_size
    head = d // heads
    shapes = [(d, d), (d, head), (d, head), (d, d), (d, ffn), (d, ffn), (ffn, d)]
    tokens = batch * (length + (method.setting if method.label == "prompt" else 0))
    total = 0
    for layer in range(2):
        for index, (rows, columns) in enumerate(shapes):
            # Nothing below the first layer is trained, but its adapters and prompts are.
            needs_input = method.label != "lora" or layer > 0 or index > 2
            trains = method.label == "fmt"
            total += 2 * tokens * rows * columns * (1 + needs_input + trains)
            if method.label == "lora":
                # Of A and B both gradients of weights; of A that of its input where it is needed.
                total += 2 * tokens * 2 * columns * 3
                total += 2 * tokens * rows * 2 * (2 + needs_input)
        square = batch * (tokens // batch) ** 2
        total += 7 * 2 * square * d
    total += 2 * targets * d * vocabulary * (3 if method.label == "fmt" else 2)
    return total


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
def test_the_flops_of_a_step_equal_a_hand_count(
    method: Method, base: Loaded, task: Encoded
) -> None:
    cost = step_cost(attach(base, method), "cpu")
    for batch, length, targets in ((1, 5, 2), (8, 23, 40), (3, 40, 7)):
        assert cost(batch, length, targets) == by_hand(base, method, batch, length, targets)


def test_a_run_adds_up_what_it_costs(base: Loaded, task: Encoded) -> None:
    result = made(FMT(), base, task, rates=(1e-3, 1e-2))
    subset = [task.train[k] for k in choose(len(task.train), 40, 0)]
    expected = 0
    for members in batches(np.array([len(e.ids) for e in subset]), BUDGET.batch, 0, 0):
        part = [subset[k] for k in members]
        length = max(len(e.ids) for e in part) - 1
        expected += by_hand(base, FMT(), len(part), length, sum(e.targets for e in part))
    assert result.columns["train_flops"] == expected
    assert result.columns["search_flops"] == 2 * expected
    assert result.columns["train_tokens"] == sum(len(e.ids) for e in subset)
    assert float(str(result.columns["gpu_seconds"])) > 0
