"""One run: its losses against transformers and PEFT themselves, its costs against a hand count."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import importorskip, interrupted_at

torch = importorskip("torch")
peft = importorskip("peft")
importorskip("transformers")

from tunecast.models.errors import TunecastError
from tunecast.training import loop
from tunecast.training import run as runs
from tunecast.training.examples import (
    Batch,
    Budget,
    Encoded,
    Example,
    batches,
    choose,
    collate,
    encode,
    pool_of,
)
from tunecast.training.ladder import Loaded, cosine
from tunecast.training.loop import Diverged, evaluate, ratio, step_cost, train
from tunecast.training.methods import FMT, LoRA, Method, Prompt, Tuned, attach
from tunecast.training.run import run
from tunecast.training.tasks import TaskSource, load_task

METHODS: tuple[Method, ...] = (FMT(), LoRA(rank=2), Prompt(length=3))
BUDGET = Budget(
    epochs=1, examples=1, batch=8, evaluations=4, patience=4, dev_examples=8, test_examples=12
)
RATES = {"fmt": 3e-3, "lora": 1e-2, "prompt": 1e-1}


@pytest.fixture(scope="session")
def task(words_task: TaskSource, base: Loaded) -> Encoded:
    return encode(load_task(words_task), words_task, base.tokenizer, BUDGET)


def collated(examples: Sequence[Example]) -> Batch:
    return collate(pool_of(examples), [np.arange(len(examples))])


def made(method: Method, base: Loaded, task: Encoded, **change: Any) -> runs.Result:
    asked: dict[str, Any] = {
        "examples": 40, "rates": (RATES[method.label],), "seed": 0, "budget": BUDGET, **change
    }  # fmt: skip
    return run(base, task, method, **asked)


def without_time(result: runs.Result) -> dict[str, object]:
    timed = ("gpu_seconds", "tokens_per_second", "mfu")
    columns = {name: value for name, value in result.columns.items() if name not in timed}
    return {"loss": result.loss, "loss_se": result.loss_se, **columns}


# --------------------------------------------------------------------------- against the originals


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
        if found.requires_grad and len(batch.ids) > 1:  # neither an evaluation nor the FLOP count
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


def test_an_example_has_the_same_loss_whatever_stands_beside_it(
    base: Loaded, task: Encoded
) -> None:
    tuned = attach(base, Prompt(3))
    examples = sorted(task.train[:6], key=lambda e: len(e.ids))
    assert len(examples[0].ids) < len(examples[-1].ids)
    together = collated(examples)
    found = loop.losses(tuned, together)
    for row, example in enumerate(examples):
        alone = loop.losses(tuned, collated([example]))
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
    loss = loop.losses(Tuned(capped, 0), batch).mean().item()
    assert loss == pytest.approx(math.log(base.model.config.vocab_size), abs=0.02)
    assert loop.losses(Tuned(base.model, 0), batch).mean().item() != pytest.approx(loss, abs=1e-3)


# --------------------------------------------------------------------------- the same again


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
def test_the_same_seed_gives_the_identical_row(method: Method, base: Loaded, task: Encoded) -> None:
    first, again, other = (made(method, base, task, seed=seed) for seed in (3, 3, 4))
    assert without_time(first) == without_time(again)
    assert first.loss != other.loss
    assert all(p.grad is None and p.requires_grad for p in base.model.parameters())


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
def test_a_resumed_run_equals_an_uninterrupted_one(
    method: Method, base: Loaded, task: Encoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "states" / "run.pt"
    options: dict[str, Any] = {"rate": RATES[method.label], "seed": 1, "save_every": 0.0}
    budget = replace(BUDGET, epochs=3)
    whole = train(attach(base, method), task.train[:50], task.dev, budget, **options)

    plain, cut = loop.losses, 23
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
    assert calls < cut + 10, "it began anew"
    assert not state.exists()
    assert rest.progress.history == whole.progress.history
    assert rest.progress.flops == whole.progress.flops
    assert rest.progress.tokens == whole.progress.tokens
    for name, value in rest.best.items():
        assert torch.equal(value, whole.best[name]), name


# --------------------------------------------------------------------------- order and subsets


def test_an_epoch_shows_every_example_once_and_wastes_little() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=403)
    found = batches(lengths, 8, seed=1, epoch=2)
    assert sorted(np.concatenate(found)) == list(range(403))
    assert [b.tolist() for b in found] == [b.tolist() for b in batches(lengths, 8, 1, 2)]
    assert [b.tolist() for b in found] != [b.tolist() for b in batches(lengths, 8, 1, 3)]

    def padded(groups: list[np.ndarray]) -> int:
        return sum(len(g) * int(lengths[g].max()) for g in groups)

    anyhow = np.array_split(np.random.default_rng(1).permutation(403), 51)
    assert padded(found) < 1.05 * lengths.sum() < padded(anyhow)


def test_a_seed_has_its_own_subset_and_smaller_ones_lie_inside_larger_ones() -> None:
    assert set(choose(100, 10, 0)) < set(choose(100, 30, 0))
    assert set(choose(100, 30, 0)) != set(choose(100, 30, 1))
    assert len(set(choose(100, 100, 2))) == 100


def test_epochs_are_budgeted_and_small_data_get_more() -> None:
    budget = Budget(epochs=2, examples=100, batch=8)
    assert [budget.passes(n) for n in (0, 10, 49, 50, 1000)] == [0, 10, 3, 2, 2]
    assert budget.steps(10) == 20
    assert budget.steps(1000) == 250


# --------------------------------------------------------------------------- what is measured


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
    nats = [loop.losses(tuned, collated([e])) for e in task.test]
    loss, _ = evaluate(tuned, task.test, "cpu")
    assert loss == pytest.approx(torch.cat(nats).mean().item(), abs=1e-6)
    assert sum(map(len, nats)) == sum(e.targets for e in task.test)


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


@pytest.mark.parametrize(
    "make", [MemoryError, lambda: torch.OutOfMemoryError("CUDA out of memory")]
)
def test_every_kind_of_full_memory_is_called_so(make: Callable[[], Exception]) -> None:
    assert runs.reason_of_failure(make()).startswith("out of memory")
    message = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nmore"
    assert runs.reason_of_failure(RuntimeError(message)).startswith("out of memory")
    assert runs.reason_of_failure(RuntimeError("x is\ny")) == "RuntimeError: x is"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
def test_a_gpu_reaches_the_loss_of_the_cpu(
    method: Method, base: Loaded, task: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = made(method, base, task)
    monkeypatch.setattr(runs, "best_device", lambda: "cpu")
    assert on_gpu.loss == pytest.approx(made(method, base, task).loss, rel=0.03)
