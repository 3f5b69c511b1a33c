"""Stacks in little memory and in bfloat16, and what a step costs a host."""

from collections import Counter, deque
from functools import partial
from typing import Any

import numpy as np
import pytest
from conftest import importorskip

torch = importorskip("torch")
importorskip("peft")
importorskip("transformers")

from stack_cases import BUDGET, SETTINGS, alone, stacked_run, subset_of, widest
from torch.utils._python_dispatch import TorchDispatchMode

from tunecast.training import evaluate as evaluation
from tunecast.training import loop, stacked
from tunecast.training.batches import pool_of
from tunecast.training.examples import Encoded
from tunecast.training.loading import Loaded
from tunecast.training.loop import Memory, train_stack
from tunecast.training.progress import Outcome
from tunecast.training.stacked import Stack
from tunecast.training.tuned import attach

# PEFT asks transformers for a name that is to go.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

# --------------------------------------------------------------------------- memory and precision


@pytest.mark.parametrize("label", list(SETTINGS))
@pytest.mark.parametrize(
    "memory",
    [Memory(parts=3), Memory(checkpointing=True)],
    ids=["accumulated", "checkpointed"],
)
def test_less_memory_gives_the_same_losses(
    label: str, memory: Memory, base: Loaded, task: Encoded
) -> None:
    histories = []
    for kept in (Memory(), memory):
        members = [
            stacked_run(base, task, label, k, subset=subset_of(task, 50, k)) for k in range(2)
        ]
        stack = Stack(widest(base, label), 2)
        if kept.checkpointing:
            stack.checkpointing()
        found = train_stack(
            stack, deque(members), pool_of(task.train), task.dev, BUDGET, "cpu", memory=kept
        )
        histories.append([outcome.progress.history for _, outcome in found])  # type: ignore[union-attr]
    assert np.allclose(histories[0], histories[1], rtol=0, atol=1e-5)


def test_a_step_that_does_not_fit_is_made_in_parts(
    base: Loaded, task: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First with checkpointing, then in halves: what fits in the end gives the same run."""
    asked = stacked_run(base, task, "fmt", 0, subset=subset_of(task, 50, 0))
    whole = alone(base, task, asked, BUDGET)
    plain = loop.losses

    def short(model: Any, batch: Any) -> Any:
        if batch.labels.requires_grad or (torch.is_grad_enabled() and len(batch.ids) > 2):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(model, batch)

    monkeypatch.setattr(loop, "losses", short)
    memory = Memory()
    ((_, parted),) = train_stack(
        Stack(asked.start(), 1),
        deque([asked]),
        pool_of(task.train),
        task.dev,
        BUDGET,
        "cpu",
        memory=memory,
    )
    assert isinstance(parted, Outcome)
    assert memory == Memory(checkpointing=True, parts=2)
    assert np.allclose(parted.progress.history, whole.progress.history, rtol=0, atol=1e-5)
    assert parted.progress.flops == whole.progress.flops

    def none(model: Any, batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(loop, "losses", none)
    with pytest.raises(torch.OutOfMemoryError):
        alone(base, task, asked, BUDGET)


@pytest.mark.parametrize("label", list(SETTINGS))
def test_bfloat16_keeps_its_parameters_in_float32(
    label: str, base: Loaded, task: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the losses are near those of float32, and differ from them."""
    asked = stacked_run(base, task, label, 0, subset=subset_of(task, 60, 0))
    exact = alone(base, task, asked, BUDGET)
    half = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    for module in (evaluation, stacked):
        monkeypatch.setattr(module, "autocast", lambda device: half())
    members = [asked, stacked_run(base, task, label, 1, subset=subset_of(task, 60, 1))]
    stack = Stack(widest(base, label), 2)
    found = dict(train_stack(stack, deque(members), pool_of(task.train), task.dev, BUDGET, "cpu"))
    outcome = found[asked]
    assert isinstance(outcome, Outcome)
    assert {value.dtype for value in outcome.best.values()} == {torch.float32}
    assert stack.values.dtype == stack.grads.dtype == torch.float32
    gap = np.abs(np.subtract(outcome.progress.history, exact.progress.history)).max()
    assert 0 < gap < 0.05


# --------------------------------------------------------------------------- host and device


class Waits(TorchDispatchMode):
    """Count the operations for whose values a host would have to wait."""

    NAMES = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split(".")[0] in self.NAMES:
            self.found[func.name()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("places", [1, 3])
@pytest.mark.parametrize("label", list(SETTINGS))
def test_no_step_waits_for_the_device(
    label: str, places: int, base: Loaded, task: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither forward, backward, clipping nor the optimizer; the test of the test is an `item`."""
    plain, waits, steps = loop.step, Waits(), 0

    def step(*args: Any) -> Any:
        nonlocal steps
        steps += 1
        with waits:
            return plain(*args)

    monkeypatch.setattr(loop, "step", step)
    members = [
        stacked_run(base, task, label, k, subset=subset_of(task, 50, k)) for k in range(places)
    ]
    template = members[0].start() if places == 1 else widest(base, label)
    list(
        train_stack(
            Stack(template, places), deque(members), pool_of(task.train), task.dev, BUDGET, "cpu"
        )
    )
    assert steps > 10
    assert not waits.found
    with waits:
        torch.ones(1).item()
    assert waits.found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("label", list(SETTINGS))
def test_a_stack_on_a_gpu_waits_for_nothing_and_learns_as_alone(
    label: str, base: Loaded, task: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(k: int) -> Any:
        return attach(base, SETTINGS[label][k], seed=k, device="cuda")

    plain = loop.step

    def step(*args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return plain(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    members = [stacked_run(base, task, label, k, start=partial(started, k)) for k in range(3)]
    widest_there = attach(base, max(SETTINGS[label], key=lambda m: m.setting), device="cuda")
    monkeypatch.setattr(loop, "step", step)
    found = dict(
        train_stack(
            Stack(widest_there, 3),
            deque(members),
            pool_of(task.train),
            task.dev,
            BUDGET,
            "cuda",
        )
    )
    for k, asked in enumerate(members):
        solo = alone(base, task, stacked_run(base, task, label, k), BUDGET)
        outcome = found[asked]
        assert isinstance(outcome, Outcome)
        assert outcome.progress.best_dev == pytest.approx(solo.progress.best_dev, rel=0.03)
