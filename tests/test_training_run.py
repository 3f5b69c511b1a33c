"""One run: the same again, the search of its rate, and what cannot be run."""

import math
from dataclasses import replace
from typing import Any

import pytest
from conftest import importorskip

torch = importorskip("torch")
importorskip("peft")
importorskip("transformers")

from training_cases import BUDGET, METHODS, made

from tunecast.models.errors import TunecastError
from tunecast.training import run as runs
from tunecast.training.evaluate import Diverged, evaluate
from tunecast.training.examples import Encoded, encode
from tunecast.training.loading import Loaded
from tunecast.training.methods import FMT, LoRA, Method, Prompt
from tunecast.training.run import Result
from tunecast.training.tasks import TaskSource, load_task
from tunecast.training.tuned import attach


def without_time(result: Result) -> dict[str, object]:
    timed = ("gpu_seconds", "tokens_per_second", "mfu")
    columns = {name: value for name, value in result.columns.items() if name not in timed}
    return {"loss": result.loss, "loss_se": result.loss_se, **columns}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
def test_the_same_seed_gives_the_identical_row(method: Method, base: Loaded, task: Encoded) -> None:
    first, again, other = (made(method, base, task, seed=seed) for seed in (3, 3, 4))
    assert without_time(first) == without_time(again)
    assert first.loss != other.loss
    assert all(p.grad is None and p.requires_grad for p in base.model.parameters())


def test_speed_and_utilisation_follow_from_the_costs(
    base: Loaded, task: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are of training alone; the share of the peak is left out where no sheet tells a peak."""
    assert made(LoRA(2), base, task).columns["mfu"] is None
    monkeypatch.setattr(runs, "peak_flops", lambda device: 1e9)
    columns = {k: float(str(v)) for k, v in made(LoRA(2), base, task).columns.items() if k in (
        "mfu", "tokens_per_second", "train_flops", "train_tokens", "gpu_seconds")}  # fmt: skip
    each = columns["train_flops"] / columns["train_tokens"]
    assert columns["mfu"] == pytest.approx(columns["tokens_per_second"] * each / 1e9)
    # Evaluation is part of the seconds that a run costs.
    assert columns["tokens_per_second"] * columns["gpu_seconds"] > columns["train_tokens"]


# --------------------------------------------------------------------------- choosing the rate


def test_the_rate_with_the_best_dev_loss_is_taken(base: Loaded, task: Encoded) -> None:
    rates = (1e-6, 3e-3, 1e3)
    alone = {
        rate: float(str(made(FMT(), base, task, rates=(rate,)).columns["dev_loss"]))
        for rate in rates[:2]
    }
    result = made(FMT(), base, task, rates=rates)
    assert alone[3e-3] < alone[1e-6]
    assert result.columns["learning_rate"] == 3e-3
    assert result.columns["dev_loss"] == alone[3e-3]
    assert result.columns["rate_candidates"] == 3
    assert result.columns["rate_at_edge"] is False
    assert made(FMT(), base, task, rates=rates[:2]).columns["rate_at_edge"] is True


def test_no_examples_test_the_base_model(base: Loaded, task: Encoded) -> None:
    result = made(FMT(), base, task, examples=0)
    assert result.loss == evaluate(attach(base, FMT()), task.test, "cpu")[0]
    assert result.columns["train_flops"] == 0


# --------------------------------------------------------------------------- what cannot be run


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"examples": 10_000}, "10000 training examples were asked for, but the task has 3.. "),
        ({"method": Prompt(60)}, "a prompt of 60 .* and an example of .. leave no room .* of 64"),
        ({"method": Prompt(64)}, "(leaves|leave) no room in a context of 64"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_sentence(
    base: Loaded, task: Encoded, change: dict[str, Any], sentence: str
) -> None:
    method = change.get("method", FMT())
    with pytest.raises(TunecastError, match=sentence) as caught:
        made(method, base, task, **{k: v for k, v in change.items() if k != "method"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "split"), [({"max_source": 1}, "train"), ({"max_target": 0}, "train")]
)
def test_limits_that_nothing_fits_are_said(
    base: Loaded, words_task: TaskSource, limits: dict[str, Any], split: str
) -> None:
    with pytest.raises(TunecastError, match=f"no {split} example of task 'words' fits into"):
        encode(load_task(words_task), replace(words_task, **limits), base.tokenizer, BUDGET)


def test_a_loss_that_is_not_finite_is_divergence(base: Loaded, task: Encoded) -> None:
    with pytest.raises(Diverged, match=r"became (nan|inf) at step \d+ at rate inf"):
        made(FMT(), base, task, rates=(math.inf,))
    assert math.isfinite(made(FMT(), base, task, rates=(1e-3, math.inf)).loss)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
def test_a_gpu_reaches_the_loss_of_the_cpu(
    method: Method, base: Loaded, task: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = made(method, base, task)
    monkeypatch.setattr(runs, "best_device", lambda: "cpu")
    assert on_gpu.loss == pytest.approx(made(method, base, task).loss, rel=0.03)
