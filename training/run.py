"""One run: a base model, a method, some examples, and the loss that comes out.

Examples are never mixed: each is a row of its own in a batch. Batches hold examples of like
length, so that little is padding; padding stands to the right, where no token that counts can see
it. The loss counts target tokens alone, and every mean is over tokens.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from tunecast.models.files import write_atomically
from tunecast.training.ladder import Loaded, autocast, best_device, cosine
from tunecast.training.methods import Method, Tuned, attach
from tunecast.training.tasks import Pair, Task, TaskSource, TrainingError

# Batches among which those of like length are put together: more leave less padding, fewer leave
# the order closer to a random one.
POOL = 50
# Examples of an evaluation batch.
EVALUATION_BATCH = 64
# Seconds of work that a kill may cost a long run.
SAVE_EVERY = 60.0


class Diverged(ArithmeticError):
    """A loss that is not a number, or infinite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How long a run trains and on what it is judged.

    Parameters
    ----------
    epochs : int
        Passes over the examples, at least.
    examples : int
        Examples shown in all, at least: small data get more passes. Both are upper limits once
        ``patience`` has run out.
    batch : int
        Examples of a step.
    evaluations : int
        How often the dev loss is measured, at equal distances.
    patience : int
        Evaluations without a better dev loss after which the run stops.
    warm_up : float
        Share of the steps over which the learning rate rises.
    clip : float
        Largest norm of a gradient.
    dev_examples, test_examples : int
        How many examples measure the dev and the test loss.
    generate : int
        Test examples for which text is generated and scored; 0 leaves those columns out.
    """

    epochs: int = 3
    examples: int = 1500
    batch: int = 16
    evaluations: int = 8
    patience: int = 3
    warm_up: float = 0.05
    clip: float = 1.0
    dev_examples: int = 200
    test_examples: int = 500
    generate: int = 0

    def passes(self, examples: int) -> int:
        """Return the epochs of a run with so many examples."""
        return max(self.epochs, math.ceil(self.examples / examples)) if examples else 0

    def steps(self, examples: int) -> int:
        """Return the steps of a run with so many examples."""
        return self.passes(examples) * math.ceil(examples / self.batch)


# --------------------------------------------------------------------------- examples and batches


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One example in tokens: the source with its marks, then the target with its end mark.

    Parameters
    ----------
    ids : ndarray of int32, shape (tokens,)
        All tokens.
    targets : int
        How many at the end are target tokens.
    """

    ids: np.ndarray
    targets: int


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A task in the tokens of one tokenizer, examples beyond the length limits left out."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
    test_pairs: tuple[Pair, ...]


def encode(task: Task, source: TaskSource, tokenizer: Any, budget: Budget) -> Encoded:
    """Return a task as token ids.

    An example is ``[bos] source [sep] target eos``; a line break stands for a mark of separation
    that the tokenizer does not have.

    Raises
    ------
    TrainingError
        If a split is empty once long examples are left out.
    """
    if tokenizer.eos_token_id is None:
        raise TrainingError("the tokenizer has no mark for the end of a text.")
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    middle = (
        tokenizer("\n", add_special_tokens=False).input_ids
        if tokenizer.sep_token_id is None
        else [tokenizer.sep_token_id]
    )
    found: dict[str, tuple[Example, ...]] = {}
    kept: list[Pair] = []
    for split, pairs, most in (
        ("train", task.train, source.pool),
        ("dev", task.dev, budget.dev_examples),
        ("test", task.test, budget.test_examples),
    ):
        examples: list[Example] = []
        for pair, left, right in _tokens(pairs, tokenizer):
            if len(examples) == most:
                break
            if len(left) <= source.max_source and len(right) <= source.max_target:
                ids = [*start, *left, *middle, *right, tokenizer.eos_token_id]
                examples.append(Example(np.asarray(ids, dtype=np.int32), len(right) + 1))
                if split == "test":
                    kept.append(pair)
        if not examples:
            raise TrainingError(
                f"no {split} example of task '{task.name}' fits into {source.max_source} source "
                f"and {source.max_target} target tokens."
            )
        found[split] = tuple(examples)
    return Encoded(found["train"], found["dev"], found["test"], tuple(kept))


def _tokens(pairs: Sequence[Pair], tokenizer: Any) -> Iterator[tuple[Pair, list[int], list[int]]]:
    for start in range(0, len(pairs), 1000):
        part = pairs[start : start + 1000]
        left, right = (
            tokenizer([pair[k] for pair in part], add_special_tokens=False).input_ids
            for k in (0, 1)
        )
        yield from zip(part, left, right, strict=True)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Examples side by side.

    Parameters
    ----------
    ids : Tensor of int64, shape (batch, length)
        Inputs: all tokens but the last, which has no successor.
    positions : Tensor of int64, shape (targets,)
        Where in the flattened ``ids`` the next token is a target token.
    labels : Tensor of int64, shape (targets,)
        Those target tokens.
    rows : Tensor of int64, shape (targets,)
        To which example each belongs.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor


def collate(examples: Sequence[Example], device: str) -> Batch:
    """Put examples into one batch."""
    length = max(len(e.ids) for e in examples) - 1
    ids = np.zeros((len(examples), length), dtype=np.int64)
    positions, labels, rows = [], [], []
    for row, example in enumerate(examples):
        n = len(example.ids)
        ids[row, : n - 1] = example.ids[:-1]
        first = row * length + n - 1 - example.targets
        positions.append(np.arange(first, first + example.targets))
        labels.append(example.ids[n - example.targets :].astype(np.int64))
        rows.append(np.full(example.targets, row))
    flat = (np.concatenate(parts) for parts in (positions, labels, rows))
    return Batch(*(torch.from_numpy(part).to(device) for part in (ids, *flat)))


def choose(pool: int, examples: int, seed: int) -> np.ndarray:
    """Return which of ``pool`` examples a seed picks; its smaller subsets lie in larger ones."""
    return np.random.default_rng([seed, 0]).permutation(pool)[:examples]


def batches(lengths: np.ndarray, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the batches of an epoch, examples of like length together, in random order."""
    rng = np.random.default_rng([seed, 1, epoch])
    order = rng.permutation(len(lengths))
    found = []
    for start in range(0, len(order), size * POOL):
        pool = order[start : start + size * POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        found += [pool[k : k + size] for k in range(0, len(pool), size)]
    return [found[k] for k in rng.permutation(len(found))]


# --------------------------------------------------------------------------- who does what


class Alone:
    """One process that makes a run by itself; `tunecast.training.sharded` has several."""

    count = 1

    def attach(self, base: Loaded, method: Method, *, seed: int, device: str) -> Tuned:
        """Return a copy of a base model with a method attached, where training will be."""
        return attach(base, method, seed=seed, device=device)

    def share(self, items: Sequence[int] | np.ndarray) -> Sequence[int] | np.ndarray:
        """Return which of some items this process takes: as many as every other."""
        return items

    def gather(self, values: np.ndarray, items: int) -> np.ndarray:
        """Return what all processes have for their shares of ``items`` items, in their order."""
        return values

    def loss(
        self, nats: torch.Tensor, rows: torch.Tensor, items: int
    ) -> tuple[torch.Tensor, float]:
        """Return what to differentiate here, and the mean over all processes' tokens.

        Parameters
        ----------
        nats : Tensor, shape (targets,)
            Losses of the tokens of this process's share.
        rows : Tensor of int64, shape (targets,)
            To which item of the share each belongs.
        items : int
            Of all shares together.
        """
        mean = nats.mean()
        return mean, mean.item()

    def first(self, value: float) -> float:
        """Return the value that the first process has."""
        return value

    def same(self, value: float) -> bool:
        """Return whether all processes have one value."""
        return True


ALONE = Alone()


# --------------------------------------------------------------------------- loss


def losses(tuned: Tuned, batch: Batch) -> torch.Tensor:
    """Return the cross-entropy of every target token in nats, shape (targets,)."""
    device = batch.ids.device.type
    with autocast(device):
        logits = tuned.logits(batch.ids, batch.positions)
    return torch.nn.functional.cross_entropy(logits.float(), batch.labels, reduction="none")


@torch.no_grad()
def evaluate(
    tuned: Tuned, examples: Sequence[Example], device: str, team: Alone = ALONE
) -> tuple[float, float]:
    """Return the mean loss over target tokens and its standard error over examples.

    The error is that of a ratio of sums: tokens of one example are not independent.

    Raises
    ------
    Diverged
        If the loss is not finite.
    """
    tuned.model.eval()
    order = sorted(range(len(examples)), key=lambda k: len(examples[k].ids))
    mine = team.share(order)
    sums, counts = [], []
    for start in range(0, len(mine), EVALUATION_BATCH):
        part = [examples[k] for k in mine[start : start + EVALUATION_BATCH]]
        batch = collate(part, device)
        total = torch.zeros(len(part), device=device, dtype=torch.float64)
        total.index_add_(0, batch.rows, losses(tuned, batch).double())
        sums.append(total.cpu().numpy())
        counts.append(np.array([example.targets for example in part]))
    tuned.model.train()
    return ratio(*(team.gather(np.concatenate(parts), len(order)) for parts in (sums, counts)))


def ratio(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Return the ratio of two sums and its standard error over the pairs.

    Parameters
    ----------
    sums : ndarray of float64, shape (examples,)
        Loss of each example in nats.
    counts : ndarray of int64, shape (examples,)
        Its target tokens.
    """
    mean = float(sums.sum() / counts.sum())
    if not math.isfinite(mean):
        raise Diverged(f"the loss became {mean}")
    n = len(sums)
    spread = ((sums - mean * counts) ** 2).sum() * n / max(1, n - 1)
    return mean, float(np.sqrt(spread) / counts.sum())


# --------------------------------------------------------------------------- cost


def step_cost(tuned: Tuned, device: str) -> Callable[[int, int, int], int]:
    """Return the cost of a training step in FLOP, as a function of its shape.

    The operations are counted, not estimated: those of a forward and a backward pass are a
    polynomial in the padded length (attention is its square), times the examples, plus a multiple
    of the target tokens (the vocabulary head). Passes of four shapes determine it, whatever the
    architecture. A multiplication with an addition counts as two; attention is counted as if it
    saw the whole square, as the literature does.

    Returns
    -------
    callable
        Takes examples, padded length and target tokens.
    """

    def count(length: int, targets: int) -> int:
        ids = torch.ones(1, length, dtype=torch.int64, device=device)
        where = torch.zeros(targets, dtype=torch.int64, device=device)
        with FlopCounterMode(display=False) as counter:
            losses(tuned, Batch(ids, where, where, where)).sum().backward()
        tuned.model.zero_grad()
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


# --------------------------------------------------------------------------- training


@dataclass(slots=True, eq=False)
class Progress:
    """Where a training run stands; what a resumed one needs besides the parameters."""

    step: int = 0
    best_step: int = 0
    best_dev: float = math.inf
    stale: int = 0
    flops: int = 0
    tokens: int = 0
    seconds: float = 0.0
    history: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a training run came to; the model holds its best checkpoint.

    Parameters
    ----------
    progress : Progress
        Steps, costs and dev losses.
    steps : int
        Steps of the whole budget.
    tuned : Tuned
        The trained model.
    """

    progress: Progress
    steps: int
    tuned: Tuned


def train(
    tuned: Tuned,
    examples: Sequence[Example],
    dev: Sequence[Example],
    budget: Budget,
    *,
    rate: float,
    seed: int,
    device: str = "cpu",
    checkpoint: Path | None = None,
    save_every: float = SAVE_EVERY,
    team: Alone = ALONE,
) -> Outcome:
    """Train and go back to the best checkpoint by dev loss.

    Parameters
    ----------
    tuned : Tuned
        Changed in place.
    examples, dev : sequence of Example
        What to train on and what to judge by. With no examples nothing is trained.
    budget : Budget
        How long.
    rate : float
        Peak learning rate of AdamW; the schedule is a cosine to 0 after a warm-up.
    seed : int
        Of the order.
    device : str
        Where the model is.
    checkpoint : Path, optional
        File in which to keep the state, and from which to go on if it is there; removed at the
        end. A run that went on from it equals an uninterrupted one.
    save_every : float
        Seconds between two states kept.
    team : Alone
        The processes that train together.

    Raises
    ------
    Diverged
        If a loss is not finite.
    """
    steps = budget.steps(len(examples))
    at = Progress()
    if steps == 0:
        at.best_dev, _ = evaluate(tuned, dev, device, team)
        return Outcome(at, 0, tuned)
    tuned.model.train()
    parameters = list(tuned.trainable.values())
    cost = step_cost(tuned, device)
    torch.manual_seed(seed)  # of the dropout, where a model has it
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, fused=True)
    lengths = np.array([len(example.ids) for example in examples])
    measure = {math.ceil(steps * k / budget.evaluations) for k in range(1, budget.evaluations + 1)}
    best = [p.detach().clone() for p in parameters]
    kept = _kept(checkpoint)
    # A kill may have come between the first process's state and the last one's.
    if team.same(0 if kept is None else kept["progress"]["step"]) and kept is not None:
        at, best = _restore(kept, parameters, optimizer)
    saved = started = time.perf_counter() - at.seconds
    for batch_of in _from(at.step, lengths, budget, seed):
        if at.stale >= budget.patience:
            break
        batch = collate([examples[k] for k in team.share(batch_of)], device)
        loss, mean = team.loss(losses(tuned, batch), batch.rows, len(batch_of))
        if not math.isfinite(mean):
            raise Diverged(f"the training loss became {mean} at step {at.step + 1}")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, budget.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate * cosine(at.step, steps, warm_up=budget.warm_up)
        optimizer.step()
        at.step += 1
        at.tokens += int(lengths[batch_of].sum())
        targets = sum(examples[k].targets for k in batch_of)
        at.flops += cost(len(batch_of), int(lengths[batch_of].max()) - 1, targets)
        if at.step in measure:
            dev_loss, _ = evaluate(tuned, dev, device, team)
            at.history.append((at.step, dev_loss))
            at.stale += 1
            if dev_loss < at.best_dev:
                at.best_dev, at.best_step, at.stale = dev_loss, at.step, 0
                best = [p.detach().clone() for p in parameters]
            at.seconds = time.perf_counter() - started
            waited = team.first(time.perf_counter() - saved)
            if checkpoint is not None and waited >= save_every:
                _keep(checkpoint, at, best, parameters, optimizer)
                saved = time.perf_counter()
    at.seconds = time.perf_counter() - started
    optimizer.zero_grad()  # a search keeps the best of its models
    with torch.no_grad():
        for parameter, value in zip(parameters, best, strict=True):
            parameter.copy_(value)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return Outcome(at, steps, tuned)


def _from(step: int, lengths: np.ndarray, budget: Budget, seed: int) -> Iterator[np.ndarray]:
    """Yield the batches that follow after ``step``."""
    for epoch in range(budget.passes(len(lengths))):
        whole = batches(lengths, budget.batch, seed, epoch)
        yield from whole[max(0, step - epoch * len(whole)) :]


def _keep(
    path: Path,
    at: Progress,
    best: Sequence[torch.Tensor],
    parameters: Sequence[torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    state = {
        "progress": {name: getattr(at, name) for name in Progress.__slots__},
        "best": list(best),
        "parameters": [p.detach() for p in parameters],
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def _kept(path: Path | None) -> dict[str, Any] | None:
    if path is None or not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def _restore(
    state: dict[str, Any], parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer
) -> tuple[Progress, list[torch.Tensor]]:
    with torch.no_grad():
        for parameter, value in zip(parameters, state["parameters"], strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    best = [value.to(p.device) for value, p in zip(state["best"], parameters, strict=True)]
    return Progress(**state["progress"]), best


# --------------------------------------------------------------------------- a run and its search


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What one run measured.

    Parameters
    ----------
    loss, loss_se : float
        Test loss in nats per target token and its standard error.
    columns : mapping
        Everything else that the row tells.
    tuned : Tuned or None
        The model at its best checkpoint; None where no single process holds it.
    """

    loss: float
    loss_se: float
    columns: Mapping[str, object]
    tuned: Tuned | None


def run(
    base: Loaded,
    task: Encoded,
    method: Method,
    *,
    examples: int,
    rates: Sequence[float],
    seed: int,
    budget: Budget,
    checkpoint: Path | None = None,
    keep: Path | None = None,
    team: Alone = ALONE,
) -> Result:
    """Make one run, its learning rate chosen by dev loss among candidates.

    Parameters
    ----------
    base : Loaded
        The base model.
    task : Encoded
        The task in its tokens.
    method : Method
        What to train.
    examples : int
        How many training examples, picked by the seed; 0 tests the base model as it is.
    rates : sequence of float
        Candidate learning rates, ascending. Each is trained on the whole budget.
    seed : int
        Chooses the subset, the order and the adapter's initial values.
    budget : Budget
        How long.
    checkpoint : Path, optional
        Where an interrupted run left its state.
    keep : Path, optional
        Folder for the trained parameters; adapters are saved in PEFT's format.
    team : Alone
        The processes that make the run together.

    Raises
    ------
    TrainingError
        If the task has fewer examples, or the context no room for them.
    Diverged
        If training diverged at every rate.
    """
    check(base, task, method, examples)
    device = best_device()
    subset = [task.train[k] for k in choose(len(task.train), examples, seed)]
    best: Outcome | None = None
    chosen, reasons, spent = rates[0], [], 0
    tried = rates if examples else rates[:1]
    for rate in tried:
        tuned = team.attach(base, method, seed=seed, device=device)
        file = None if checkpoint is None else checkpoint.with_suffix(f".{rate:g}.pt")
        try:
            outcome = train(
                tuned,
                subset,
                task.dev,
                budget,
                rate=rate,
                seed=seed,
                device=device,
                checkpoint=file,
                team=team,
            )
        except Diverged as reason:
            if file is not None:
                file.unlink(missing_ok=True)
            reasons.append(f"{reason} at rate {rate:g}")
            continue
        spent += outcome.progress.flops
        if best is None or outcome.progress.best_dev < best.progress.best_dev:
            best, chosen = outcome, rate
    if best is None:
        raise Diverged("; ".join(reasons))
    loss, loss_se = evaluate(best.tuned, task.test, device, team)
    at = best.progress
    columns: dict[str, object] = {
        "dev_loss": at.best_dev,
        "learning_rate": chosen if examples else None,
        "rate_candidates": len(tried) if examples else 0,
        "rate_at_edge": len(tried) > 1 and chosen in (min(tried), max(tried)),
        "method_setting": method.setting,
        "trainable_params": sum(p.numel() for p in best.tuned.trainable.values()),
        "total_params": base.total,
        "batch": budget.batch,
        "epochs": budget.passes(examples),
        "steps": at.step,
        "best_step": at.best_step,
        "best_is_last": at.best_step == best.steps,
        "train_tokens": at.tokens,
        "train_flops": at.flops,
        "search_flops": spent,
        "gpu_seconds": round(at.seconds * team.count, 3),
        "device": device,
        "test_examples": len(task.test),
    }
    if keep is not None:
        best.tuned.save(keep)
    return Result(loss, loss_se, columns, best.tuned)


def check(base: Loaded, task: Encoded, method: Method, examples: int) -> None:
    """Refuse what cannot be trained before any time is spent on it.

    Raises
    ------
    TrainingError
        If the task has fewer examples, or the context no room for them and the prompt.
    """
    if not 0 <= examples <= len(task.train):
        raise TrainingError(
            f"{examples} training examples were asked for, but the task has {len(task.train)} "
            "within its length limits."
        )
    virtual = method.setting if method.label == "prompt" else 0
    longest = max(len(e.ids) for split in (task.train, task.dev, task.test) for e in split)
    if virtual + longest > base.context:
        raise TrainingError(
            f"a prompt of {virtual} virtual tokens and an example of {longest} leave no room in a "
            f"context of {base.context}."
        )


def reason_of_failure(error: BaseException) -> str:
    """Return one sentence on why a run failed, the same for memory wherever it ran out."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if memory or "can't allocate memory" in str(error):
        return f"out of memory: {text}"[:200]
    return f"{type(error).__name__}: {text}"[:200]


def threads(count: int) -> None:
    """Keep this process to some threads: two that contend are slower than one."""
    torch.set_num_threads(count)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
