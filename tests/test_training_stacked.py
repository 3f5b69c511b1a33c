"""Stacked runs against the same runs one by one and against PEFT; what a step costs a host."""

import copy
from collections import deque
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


from tunecast.training import loop
from tunecast.training.examples import (
    Budget,
    Encoded,
    choose,
    encode,
    order_from,
    pool_of,
)
from tunecast.training.ladder import Hub, Loaded, cosine, load_base
from tunecast.training.loop import Member, Outcome, evaluate, train, train_stack
from tunecast.training.methods import FMT, LoRA, Method, Prompt, attach
from tunecast.training.stacked import Stack
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
def base(small_base: Hub, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load_base(small_base, tmp_path_factory.mktemp("cache"))


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
