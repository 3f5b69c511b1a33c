"""Stacked runs against the same runs one by one and against PEFT; what a step costs a host."""

import copy
import json
import math
import os
import subprocess
import sys
from collections import Counter, deque
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import importorskip

torch = importorskip("torch")
peft = importorskip("peft")
transformers = importorskip("transformers")


from torch.utils._python_dispatch import TorchDispatchMode

from tunecast.training import loop, stacked
from tunecast.training import run as runs
from tunecast.training.examples import Budget, Encoded, choose, encode, order_from, pool_of
from tunecast.training.ladder import Loaded, cosine
from tunecast.training.loop import (
    Diverged,
    Member,
    Memory,
    Outcome,
    evaluate,
    train,
    train_stack,
)
from tunecast.training.methods import FMT, LoRA, Method, Prompt, attach
from tunecast.training.run import places_for
from tunecast.training.stacked import NotStackable, Stack
from tunecast.training.tasks import TaskSource, load_task

# PEFT asks transformers for a name that is to go.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

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


@pytest.fixture(scope="session")
def task(words_task: TaskSource, base: Loaded) -> Encoded:
    return encode(load_task(words_task), words_task, base.tokenizer, BUDGET)


def subset_of(task: Encoded, count: int, seed: int) -> np.ndarray:
    return choose(len(task.train), min(count, len(task.train)), seed)


def member(base: Loaded, task: Encoded, label: str, k: int, **change: Any) -> Member:
    method = SETTINGS[label][k]
    asked: dict[str, Any] = {
        "subset": subset_of(task, COUNTS[k], seed=k),
        "rate": RATES[label][k],
        "seed": k,
        "start": partial(attach, base, method, seed=k),
        "cost": loop.step_cost(attach(base, method), "cpu"),
        **change,
    }
    return Member(**asked)


def widest(base: Loaded, label: str) -> Any:
    return attach(base, max(SETTINGS[label], key=lambda method: method.setting))


def alone(base: Loaded, task: Encoded, asked: Member, budget: Budget) -> Outcome:
    examples = [task.train[k] for k in asked.subset]
    return train(asked.start(), examples, task.dev, budget, rate=asked.rate, seed=asked.seed)


def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record the loss of every run at every step."""
    found: list[Any] = []
    plain = loop._step

    def step(*args: Any) -> Any:
        found.append(plain(*args))
        return found[-1]

    monkeypatch.setattr(loop, "_step", step)
    return found


# --------------------------------------------------------------------------- the same as one by one


@pytest.mark.parametrize("label", list(SETTINGS))
def test_a_stack_gives_the_losses_of_runs_alone_and_of_peft(
    label: str, base: Loaded, task: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over 100 steps in float32: to 1e-5, step by step, and the same best checkpoint."""
    examples, steps = list(task.train[:200]), 100
    budget = replace(BUDGET, epochs=2)
    assert budget.steps(len(examples)) == steps
    members = [member(base, task, label, k, subset=np.arange(200)) for k in range(3)]
    losses = seen(monkeypatch)
    made = train_stack(
        Stack(widest(base, label), 3), deque(members), pool_of(task.train), task.dev, budget, "cpu"
    )
    outcomes = dict(made)
    together = torch.stack(losses).numpy()
    assert together.shape == (steps, 3)
    for k, asked in enumerate(members):
        losses.clear()
        solo = alone(base, task, asked, budget)
        assert np.abs(together[:, k] - torch.cat(losses).numpy()).max() < 1e-5
        outcome = outcomes[asked]
        assert isinstance(outcome, Outcome)
        assert outcome.progress.best_step == solo.progress.best_step
        assert outcome.progress.flops == solo.progress.flops
        assert outcome.progress.tokens == solo.progress.tokens
        assert np.allclose(outcome.progress.history, solo.progress.history, rtol=0, atol=1e-5)
        theirs = with_peft(base, SETTINGS[label][k], examples, budget, RATES[label][k], k)
        assert np.abs(together[:, k] - theirs).max() < 1e-5
        before, _ = evaluate(asked.start(), task.dev, "cpu")
        learned = before - solo.progress.best_dev
        assert learned > 0.005, "nothing was learned, so nothing was compared"
    # The control: another run's losses are not within the tolerance.
    assert np.abs(together[:, 0] - together[:, 1]).max() > 1e-2


def with_peft(
    base: Loaded, method: Method, examples: list[Any], budget: Budget, rate: float, seed: int
) -> np.ndarray:
    """Return the losses of a loop that is written with transformers, PEFT and torch alone."""
    torch.manual_seed(seed)
    model = copy.deepcopy(base.model)
    if (config := method.config()) is not None:
        model = peft.get_peft_model(model, config)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    lengths = np.array([len(e.ids) for e in examples])
    steps, found = budget.steps(len(examples)), []
    for step, members in enumerate(order_from(0, lengths, budget, seed)):
        part = [examples[k] for k in members]
        ids = torch.full((len(part), max(len(e.ids) for e in part)), 9)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, example in enumerate(part):
            n = len(example.ids)
            values = torch.from_numpy(example.ids.astype(np.int64))
            ids[row, :n], mask[row, :n] = values, 1
            labels[row, n - example.targets : n] = values[n - example.targets :]
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, budget.clip)
        optimizer.param_groups[0]["lr"] = rate * cosine(step, steps, warm_up=budget.warm_up)
        optimizer.step()
        found.append(loss.item())
    return np.array(found)


@pytest.mark.parametrize("label", list(SETTINGS))
def test_runs_of_all_lengths_come_and_go(label: str, base: Loaded, task: Encoded) -> None:
    """Five runs in two places, of 37 to 300 examples: each as if it had been alone."""
    budget = replace(BUDGET, epochs=2, patience=2)
    members = [member(base, task, label, k % 3, seed=k) for k in range(4)]
    waiting = deque(members[:3])
    found = {}
    for asked, outcome in train_stack(
        Stack(widest(base, label), 2), waiting, pool_of(task.train), task.dev, budget, "cpu"
    ):
        found[asked] = outcome
        if len(found) == 1:  # one more comes while others train
            waiting.append(members[3])
    assert set(found) == set(members)
    for asked in members:
        solo, outcome = alone(base, task, asked, budget), found[asked]
        assert isinstance(outcome, Outcome)
        assert outcome.progress.step == solo.progress.step
        assert outcome.progress.best_step == solo.progress.best_step
        assert outcome.progress.flops == solo.progress.flops
        assert outcome.progress.best_dev == pytest.approx(solo.progress.best_dev, abs=1e-5)
        for name, value in solo.best.items():
            assert value.shape == outcome.best[name].shape
            assert torch.allclose(value, outcome.best[name], atol=1e-3), name


# --------------------------------------------------------------------------- divergence, stopping


def test_a_run_that_diverges_leaves_the_others_alone(base: Loaded, task: Encoded) -> None:
    members = [member(base, task, "lora", 0, subset=subset_of(task, 60, 0)) for _ in range(2)]
    members[0] = replace(members[0], rate=math.inf)
    found = dict(
        train_stack(
            Stack(widest(base, "lora"), 2),
            deque(members),
            pool_of(task.train),
            task.dev,
            BUDGET,
            "cpu",
        )
    )
    assert isinstance(found[members[0]], Diverged)
    assert str(found[members[0]]) == "the training loss became nan at step 2"
    solo, outcome = alone(base, task, members[1], BUDGET), found[members[1]]
    assert isinstance(outcome, Outcome)
    assert outcome.progress.best_dev == pytest.approx(solo.progress.best_dev, abs=1e-5)


def test_a_killed_stack_resumes(
    base: Loaded, task: Encoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = replace(BUDGET, epochs=3)

    def made(name: str) -> dict[float, Any]:
        members = [
            member(
                base,
                task,
                "lora",
                0,
                rate=rate,
                subset=subset_of(task, 80, 0),
                checkpoint=tmp_path / f"{name}{rate}.pt",
            )
            for rate in (1e-3, 3e-3)
        ]
        found = train_stack(
            Stack(widest(base, "lora"), 2),
            deque(members),
            pool_of(task.train),
            task.dev,
            budget,
            "cpu",
            save_every=0.0,
        )
        return {asked.rate: outcome for asked, outcome in found}

    whole = made("whole")
    plain, calls = loop.losses, 0

    def interrupted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 50:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(loop, "losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made("cut")
    assert len(list(tmp_path.iterdir())) == 2
    rest = made("cut")
    assert calls < 50 + 50, "it began anew"
    assert not list(tmp_path.iterdir())
    for rate, outcome in whole.items():
        assert rest[rate].progress.history == outcome.progress.history
        assert rest[rate].progress.flops == outcome.progress.flops


def test_a_model_that_cannot_be_stacked_is_told_apart(base: Loaded) -> None:
    """One with dropout, one whose layers see the whole batch; without either it can."""
    dropping = copy.deepcopy(base.model)
    dropping.config.attention_dropout = 0.1
    with pytest.raises(NotStackable, match="dropout"):
        Stack(attach(replace_model(base, dropping), LoRA(2)), 2)

    mixing = copy.deepcopy(base.model)
    norm = mixing.model.norm
    plain = type(norm).forward
    norm.__class__ = type(
        "Mixing", (type(norm),), {"forward": lambda self, x: plain(self, x - x.mean(0))}
    )
    with pytest.raises(NotStackable, match="mix"):
        Stack(attach(replace_model(base, mixing), LoRA(2)), 2)
    Stack(attach(base, LoRA(2)), 2)


def replace_model(base: Loaded, model: Any) -> Loaded:
    return Loaded(model, base.tokenizer, base.size, base.total, base.context)


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
        members = [member(base, task, label, k, subset=subset_of(task, 50, k)) for k in range(2)]
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
    asked = member(base, task, "fmt", 0, subset=subset_of(task, 50, 0))
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
    asked = member(base, task, label, 0, subset=subset_of(task, 60, 0))
    exact = alone(base, task, asked, BUDGET)
    half = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    for module in (loop, stacked):
        monkeypatch.setattr(module, "autocast", lambda device: half())
    members = [asked, member(base, task, label, 1, subset=subset_of(task, 60, 1))]
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
    plain, waits, steps = loop._step, Waits(), 0

    def step(*args: Any) -> Any:
        nonlocal steps
        steps += 1
        with waits:
            return plain(*args)

    monkeypatch.setattr(loop, "_step", step)
    members = [member(base, task, label, k, subset=subset_of(task, 50, k)) for k in range(places)]
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


# --------------------------------------------------------------------------- the order of the data


def test_runs_side_by_side_are_padded_to_about_one_length(base: Loaded, task: Encoded) -> None:
    """Batches of different seeds and numbers of examples, at one time; shuffled ones as control."""
    lengths = pool_of(task.train).lengths
    plans = []
    for seed, count in enumerate((380, 380, 200, 90)):
        subset = subset_of(task, count, seed)
        order = order_from(0, lengths[subset], replace(BUDGET, epochs=9), seed)
        plans.append([lengths[subset[mine]] for _, mine in zip(range(180), order, strict=False)])
    rng = np.random.default_rng(0)
    shuffled = [[plan[k] for k in rng.permutation(len(plan))] for plan in plans]

    def fill(plans: list[Any]) -> float:
        used = sum(int(batch.sum()) for plan in plans for batch in plan)
        return used / sum(
            max(int(batch.max()) for batch in step) * sum(map(len, step))
            for step in zip(*plans, strict=True)
        )

    assert fill(plans) > 0.9 > 0.85 > fill(shuffled)


# --------------------------------------------------------------------------- how many side by side


def test_the_number_of_places_is_the_fastest_measured(
    base: Loaded, task: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where more stop paying, where memory ends, where stacking is slower, and where it cannot."""

    def chosen(method: Method, seconds: dict[int, Any]) -> int:
        def measured_step(*args: Any) -> tuple[float, float]:
            found = seconds[args[-1]]
            if isinstance(found, Exception):
                raise found
            return float(found), 1.0

        monkeypatch.setattr(runs, "measured_step", measured_step)
        places_for.cache_clear()
        return places_for(base, task, method, BUDGET)

    full = torch.OutOfMemoryError("CUDA out of memory.")
    assert chosen(LoRA(2), {1: 1.0, 2: 1.1, 4: 1.3, 8: 2.0, 16: 3.9}) == 8
    assert chosen(LoRA(2), {1: 1.0, 2: 1.0, 4: full}) == 2
    assert chosen(LoRA(2), {1: 1.0, 2: 2.1}) == 1
    assert chosen(LoRA(2), {1: 1.0, 2: NotStackable("no")}) == 1
    assert chosen(LoRA(2), {1: full}) == 1
    monkeypatch.setattr(runs, "free_memory", lambda device: 5 * 6 * 4 * 14288)
    assert chosen(FMT(), dict.fromkeys((1, 2, 4), 1.0)) == 4


def test_a_step_is_measured(base: Loaded, task: Encoded) -> None:
    pool = pool_of(task.train)
    one, many = (runs.measured_step(base, task, pool, LoRA(2), BUDGET, places) for places in (1, 8))
    assert min(one[0], many[0]) > 0
    # Eight runs of other examples, so not quite eight times as much.
    assert many[1] == pytest.approx(8 * one[1], rel=0.2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("label", list(SETTINGS))
def test_a_stack_on_a_gpu_waits_for_nothing_and_learns_as_alone(
    label: str, base: Loaded, task: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(k: int) -> Any:
        return attach(base, SETTINGS[label][k], seed=k, device="cuda")

    plain = loop._step

    def step(*args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return plain(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    members = [member(base, task, label, k, start=partial(started, k)) for k in range(3)]
    widest_there = attach(base, max(SETTINGS[label], key=lambda m: m.setting), device="cuda")
    monkeypatch.setattr(loop, "_step", step)
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
        solo = alone(base, task, member(base, task, label, k), BUDGET)
        outcome = found[asked]
        assert isinstance(outcome, Outcome)
        assert outcome.progress.best_dev == pytest.approx(solo.progress.best_dev, rel=0.03)


@pytest.mark.slow
def test_the_gpu_benchmark_runs_as_a_toy(tmp_path: Path) -> None:
    out = tmp_path / "toy.json"
    script = Path(__file__).parent.parent / "benchmarks" / "training_gpu.py"
    command = [sys.executable, str(script), "--out", str(out)]
    done = subprocess.run(
        [*command, "--device", "cpu", "--small"], capture_output=True, text=True, check=True
    )
    assert "no GPU: a toy on a CPU" in done.stdout
    found = json.loads(out.read_text())
    ways = {row["method"]: row["ways"] for row in found["results"]}
    assert set(ways["lora"]) == {"tunecast", "stack of 4", "peft", "trl"}
    assert set(ways["fmt"]) == {"tunecast", "stack of 4", "peft", "trl", "2 processes"}
    assert ways["lora"]["stack of 4"]["times_peft"] > 0
    refused = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert refused.returncode == 2
    assert refused.stderr == "there is no GPU here; --device cpu --small tries the script.\n"
