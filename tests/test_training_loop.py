"""The training loop against transformers and PEFT themselves, and against itself resumed."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import importorskip, interrupted_at

torch = importorskip("torch")
peft = importorskip("peft")
importorskip("transformers")

from training_cases import BUDGET, METHODS, RATES

from tunecast.training import loop
from tunecast.training.batches import Batch, batches, choose
from tunecast.training.budget import cosine
from tunecast.training.evaluate import evaluate
from tunecast.training.examples import Encoded, Example
from tunecast.training.loading import Loaded
from tunecast.training.loop import train
from tunecast.training.methods import FMT, Method
from tunecast.training.tuned import Tuned, attach


def as_theirs(examples: list[Example], pad: int) -> dict[str, Any]:
    """Return a batch as transformers wants it: mask, and labels of -100 where nothing counts."""
    length = max(len(e.ids) for e in examples)
    ids = torch.full((len(examples), length), pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, example in enumerate(examples):
        n = len(example.ids)
        values = torch.from_numpy(example.ids.astype(np.int64))
        ids[row, :n], mask[row, :n] = values, 1
        labels[row, n - example.targets : n] = values[n - example.targets :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_twenty_steps_give_the_losses_of_the_originals(
    method: Method, base: Loaded, task: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, step by step, to 1e-5; the pad is a real token, which must not matter."""
    examples, rate, steps = list(task.train[:160]), RATES[method.label], 20
    ours: list[float] = []
    plain = loop.losses

    def watched(tuned: Tuned, batch: Batch) -> Any:
        found = plain(tuned, batch)
        ours.append(found.mean().item())
        return found

    monkeypatch.setattr(loop, "losses", watched)
    tuned = attach(base, method, seed=5)
    train(tuned, examples, task.dev, BUDGET, rate=rate, seed=7)

    torch.manual_seed(5)
    model = copy.deepcopy(base.model)
    if (config := method.config()) is not None:
        model = peft.get_peft_model(model, config)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    order = batches(np.array([len(e.ids) for e in examples]), BUDGET.batch, 7, 0)
    theirs = []
    for step, members in enumerate(order):
        loss = model(**as_theirs([examples[k] for k in members], pad=9)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, BUDGET.clip)
        optimizer.param_groups[0]["lr"] = rate * cosine(step, steps, warm_up=BUDGET.warm_up)
        optimizer.step()
        theirs.append(loss.item())
    assert len(ours) == len(theirs) == steps
    assert np.max(np.abs(np.subtract(ours, theirs))) < 1e-5
    assert theirs[-1] < theirs[0], "nothing was learned, so nothing was compared"


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
def test_a_resumed_run_equals_an_uninterrupted_one(
    method: Method, base: Loaded, task: Encoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "states" / "run.pt"
    options: dict[str, Any] = {"rate": RATES[method.label], "seed": 1, "save_every": 0.0}
    budget = replace(BUDGET, epochs=3)
    whole = train(attach(base, method), task.train[:50], task.dev, budget, **options)

    plain, cut = loop.losses, 15
    monkeypatch.setattr(loop, "losses", interrupted_at(cut, plain))
    with pytest.raises(KeyboardInterrupt):
        train(attach(base, method), task.train[:50], task.dev, budget, checkpoint=state, **options)
    assert state.exists()
    monkeypatch.setattr(loop, "losses", plain)
    calls = 0

    def counted(tuned: Tuned, batch: Batch) -> Any:
        nonlocal calls
        calls += 1
        return plain(tuned, batch)

    monkeypatch.setattr(loop, "losses", counted)
    rest = train(
        attach(base, method), task.train[:50], task.dev, budget, checkpoint=state, **options
    )
    assert calls == whole.steps - 11, "it did not go on from the last state before the cut"
    assert not state.exists()
    assert rest.progress.history == whole.progress.history
    assert rest.progress.flops == whole.progress.flops
    assert rest.progress.tokens == whole.progress.tokens
    for name, value in rest.best.items():
        assert torch.equal(value, whole.best[name]), name


def test_the_best_checkpoint_is_the_one_that_is_tested(base: Loaded, task: Encoded) -> None:
    """Few examples and many passes: the dev loss rises again, and the run ends early."""
    budget = replace(BUDGET, examples=2000, evaluations=20, patience=3)
    subset = [task.train[k] for k in choose(len(task.train), 5, 0)]
    tuned = attach(base, FMT())
    outcome = train(tuned, subset, task.dev, budget, rate=1e-2, seed=0)
    at = outcome.progress
    assert at.best_step < at.step < outcome.steps
    assert at.best_dev == min(loss for _, loss in at.history)
    assert evaluate(tuned, task.dev, "cpu")[0] == pytest.approx(at.best_dev, abs=1e-9)
