"""What a training step costs in FLOP, counted from the operations that it makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from tunecast.training.batches import Batch
from tunecast.training.evaluate import losses
from tunecast.training.loading import Loaded
from tunecast.training.methods import Method
from tunecast.training.tuned import Tuned, attach

type Cost = Callable[[int, int, int], int]


@lru_cache(maxsize=64)
def cost_of(base: Loaded, method: Method, device: str) -> Cost:
    """Return the cost of a training step of a method on a base model; see `step_cost`."""
    return step_cost(attach(base, method, device=device), device)


def step_cost(tuned: Tuned, device: str) -> Cost:
    """Return the cost of a training step in FLOP, as a function of its shape.

    The operations are counted, not estimated: those of a forward and a backward pass are a
    polynomial in the padded length (attention is its square), times the examples, plus a multiple
    of the target tokens (the vocabulary head). Passes of four shapes determine it, whatever the
    architecture. A multiplication with an addition counts as two; attention is counted as if it
    saw the whole square, as the literature does.

    Parameters
    ----------
    tuned : Tuned
        What is trained; it stays as it is.
    device : str
        Where it is; ``"meta"`` counts from shapes alone.

    Returns
    -------
    callable
        Takes examples, padded length and target tokens.
    """
    trained = list(tuned.trainable.values())

    def count(length: int, targets: int) -> int:
        ids = torch.ones(1, length, dtype=torch.int64, device=device)
        where = torch.zeros(targets, dtype=torch.int64, device=device)
        with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
            loss = losses(tuned, Batch(ids, where, where, where, (targets,))).sum()
            torch.autograd.grad(loss, trained)
        return counter.get_total_flops()

    at = (2, 4, 6)
    once = [count(length, 1) for length in at]
    head = count(at[0], 2) - once[0]
    # Newton's form of the parabola through three points a distance of 2 apart.
    first, second = once[1] - once[0], once[2] - 2 * once[1] + once[0]

    def cost(examples: int, length: int, targets: int) -> int:
        x = length - at[0]
        body = once[0] - head + (first * x) // 2 + (second * x * (x - 2)) // 8
        return examples * body + targets * head

    return cost


def _attention(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object
) -> int:
    """Return the FLOP of attention: scores, and their sums of values."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def _attention_backward(
    gradient: Sequence[int],
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    *_: object,
    **__: object,
) -> int:
    """Return the FLOP of its gradients: the scores again, and gradients of all four factors."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (3 * width + 2 * value[3])


# The kernels of fused attention. Torch itself knows what they cost, but up to 2.14 not those of a
# CPU, and in 2.9 not where several heads share a key.
_ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}{end}"): count
    for kernel in (
        "flash_attention",
        "efficient_attention",
        "cudnn_attention",
        "flash_attention_for_cpu",
    )
    for end, count in (("", _attention), ("_backward", _attention_backward))
}
