"""Stacked runs against the same runs one by one and against PEFT."""

import copy
import math
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import importorskip

torch = importorskip("torch")
peft = importorskip("peft")
importorskip("transformers")

from stack_cases import BUDGET, RATES, SETTINGS, alone, stacked_run, subset_of, widest

from tunecast.training import loop
from tunecast.training.batches import order_from, pool_of
from tunecast.training.budget import Budget, cosine
from tunecast.training.evaluate import Diverged, evaluate
from tunecast.training.examples import Encoded
from tunecast.training.loading import Loaded
from tunecast.training.loop import train_stack
from tunecast.training.methods import LoRA, Method
from tunecast.training.progress import Outcome
from tunecast.training.stacked import NotStackable, Stack
from tunecast.training.tuned import attach

# PEFT asks transformers for a name that is to go.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record the loss of every run at every step."""
    found: list[Any] = []
    plain = loop.step

    def step(*args: Any) -> Any:
        found.append(plain(*args))
        return found[-1]

    monkeypatch.setattr(loop, "step", step)
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
    members = [stacked_run(base, task, label, k, subset=np.arange(200)) for k in range(3)]
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
    """Four runs in two places, of 37 to 400 examples: each as if it had been alone."""
    budget = replace(BUDGET, epochs=2, patience=2)
    members = [stacked_run(base, task, label, k % 3, seed=k) for k in range(4)]
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
    members = [stacked_run(base, task, "lora", 0, subset=subset_of(task, 60, 0)) for _ in range(2)]
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
            stacked_run(
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
    assert calls == 50 + 60 - 48, "it did not go on from the last state before the cut"
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
