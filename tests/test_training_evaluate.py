"""The loss of a model: which tokens count, and how sure their mean is."""

import copy
import math
from typing import Any

import numpy as np
import pytest
from conftest import importorskip

torch = importorskip("torch")
importorskip("peft")
importorskip("transformers")

from training_cases import collated

from tunecast.training.evaluate import evaluate, losses, ratio
from tunecast.training.examples import Encoded
from tunecast.training.loading import Loaded
from tunecast.training.methods import FMT, Prompt
from tunecast.training.tuned import Tuned, attach


def test_an_example_has_the_same_loss_whatever_stands_beside_it(
    base: Loaded, task: Encoded
) -> None:
    tuned = attach(base, Prompt(3))
    examples = sorted(task.train[:6], key=lambda e: len(e.ids))
    assert len(examples[0].ids) < len(examples[-1].ids)
    together = collated(examples)
    found = losses(tuned, together)
    for row, example in enumerate(examples):
        alone = losses(tuned, collated([example]))
        assert torch.allclose(found[together.rows == row], alone, atol=1e-5)


def test_a_model_that_caps_its_logits_goes_the_long_way(base: Loaded, task: Encoded) -> None:
    capped = copy.deepcopy(base.model)
    plain = type(capped).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = plain(self, *args, **kwargs)
        out.logits = 0.01 * torch.tanh(out.logits)
        return out

    capped.__class__ = type("Capped", (type(capped),), {"forward": forward})
    batch = collated(task.test[:2])
    loss = losses(Tuned(capped, 0), batch).mean().item()
    assert loss == pytest.approx(math.log(base.model.config.vocab_size), abs=0.02)
    assert losses(Tuned(base.model, 0), batch).mean().item() != pytest.approx(loss, abs=1e-3)


def test_the_error_of_a_loss_is_that_of_a_ratio() -> None:
    """Against the spread over many test sets drawn anew."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 30, size=(4000, 200))
    sums = counts * rng.normal(3, 0.5, size=counts.shape) + rng.normal(0, 2, size=counts.shape)
    found = np.array([ratio(s, c) for s, c in zip(sums, counts, strict=True)])
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.05)
    assert ratio(np.array([2.0, 4.0]), np.array([1, 3]))[0] == 1.5


def test_the_loss_is_a_mean_over_target_tokens(base: Loaded, task: Encoded) -> None:
    tuned = attach(base, FMT())
    nats = [losses(tuned, collated([e])) for e in task.test]
    loss, _ = evaluate(tuned, task.test, "cpu")
    assert loss == pytest.approx(torch.cat(nats).mean().item(), abs=1e-6)
    assert sum(map(len, nats)) == sum(e.targets for e in task.test)
