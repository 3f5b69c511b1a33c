"""Runs: a base model, a method, some examples, and the loss that comes out.

A run may be made by itself or in a stack with others of its method on its base model; it comes to
the same. How many train side by side is measured.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path

import torch

from tunecast.models.errors import TunecastError
from tunecast.training.examples import (
    PERIOD,
    Budget,
    Encoded,
    Example,
    Pool,
    choose,
    pool_of,
)
from tunecast.training.ladder import Loaded, best_device
from tunecast.training.loop import (
    Cost,
    Diverged,
    Live,
    Member,
    Memory,
    Outcome,
    advance,
    evaluate,
    step_cost,
    sums_of,
    train,
    train_stack,
)
from tunecast.training.methods import Method, Tuned, attach
from tunecast.training.stacked import NotStackable, Stack

# --------------------------------------------------------------------------- runs and their search


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ask:
    """A run that is asked for, its learning rate to be chosen by dev loss among candidates.

    Parameters
    ----------
    method : FMT, LoRA or Prompt
        What to train.
    examples : int
        How many training examples, picked by the seed; 0 tests the base model as it is.
    rates : sequence of float
        Candidate learning rates, ascending. Each is trained on the whole budget.
    seed : int
        Chooses the subset, the order and the adapter's initial values.
    checkpoint : Path, optional
        Where an interrupted run left its state.
    """

    method: Method
    examples: int
    rates: Sequence[float]
    seed: int
    checkpoint: Path | None = None

    @property
    def tried(self) -> Sequence[float]:
        """The rates that are trained: without examples there is nothing to choose."""
        return self.rates if self.examples else self.rates[:1]

    def file(self, rate: float) -> Path | None:
        """Return where the state of one candidate is kept."""
        return self.checkpoint and self.checkpoint.with_suffix(f".{rate:g}.pt")


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


class Alone:
    """One process that makes a run by itself; `tunecast.training.sharded` has several."""

    count = 1

    def attach(self, base: Loaded, method: Method, *, seed: int, device: str) -> Tuned:
        """Return a base model with a method attached, where training will be."""
        return attach(base, method, seed=seed, device=device)

    def cost(self, base: Loaded, method: Method, device: str) -> Cost:
        """Return the FLOP of a training step of one process that does all of it."""
        return _cost(base, method, device)

    def train(
        self,
        tuned: Tuned,
        examples: Sequence[Example],
        dev: Sequence[Example],
        budget: Budget,
        *,
        rate: float,
        seed: int,
        device: str,
        cost: Cost,
        checkpoint: Path | None,
    ) -> Outcome:
        """Train and go back to the best checkpoint; see `tunecast.training.loop.train`."""
        return train(
            tuned, examples, dev, budget,
            rate=rate, seed=seed, device=device, cost=cost, checkpoint=checkpoint,
        )  # fmt: skip

    def evaluate(
        self, tuned: Tuned, examples: Sequence[Example], device: str
    ) -> tuple[float, float]:
        """Return the mean loss and its standard error; see `tunecast.training.loop.evaluate`."""
        return evaluate(tuned, examples, device)


ALONE = Alone()


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
    """Make one run by itself, its learning rate chosen by dev loss among candidates.

    Parameters
    ----------
    base : Loaded
        The base model.
    task : Encoded
        The task in its tokens.
    method, examples, rates, seed, checkpoint
        What is asked for; see `Ask`.
    budget : Budget
        How long.
    keep : Path, optional
        Folder for the trained parameters; adapters are saved in PEFT's format.
    team : Alone
        The processes that make the run together.

    Raises
    ------
    TunecastError
        If the task has fewer examples, or the context no room for them.
    Diverged
        If training diverged at every rate.
    """
    check(base, task, method, examples)
    device = best_device()
    ask = Ask(method=method, examples=examples, rates=rates, seed=seed, checkpoint=checkpoint)
    subset = [task.train[k] for k in choose(len(task.train), examples, seed)]
    cost = team.cost(base, method, device)
    found: dict[float, Outcome | Diverged] = {}
    for rate in ask.tried:
        try:
            found[rate] = team.train(
                team.attach(base, method, seed=seed, device=device),
                subset,
                task.dev,
                budget,
                rate=rate,
                seed=seed,
                device=device,
                cost=cost,
                checkpoint=ask.file(rate),
            )
        except Diverged as reason:
            found[rate] = reason
    tuned = team.attach(base, method, seed=seed, device=device)
    result = _result(base, task, ask, budget, found, tuned, team)
    if keep is not None:
        tuned.save(keep)
    return result


def run_stack(
    base: Loaded,
    task: Encoded,
    waiting: deque[Ask],
    budget: Budget,
    *,
    widest: Method,
    places: int,
) -> Iterator[tuple[Ask, Result | Diverged]]:
    """Make runs of one method side by side and yield each as it ends.

    The model of a result is the next one's too: use it before going on.

    Parameters
    ----------
    base, task, budget
        As in `run`.
    waiting : deque of Ask
        In the order in which to make them, each from one example or more; more may be added while
        others train. Every candidate rate takes a place.
    widest : FMT, LoRA or Prompt
        The method in the widest setting that is asked for.
    places : int
        How many train at a time.

    Raises
    ------
    TunecastError
        As in `run`.
    NotStackable
        If the base model cannot have more than one run in a pass.
    torch.OutOfMemoryError
        If there is no memory for so many.
    """
    device = best_device()
    stack = Stack(attach(base, widest, device=device), places)
    members: deque[Member] = deque()
    asked: dict[Member, tuple[Ask, float]] = {}
    found: dict[Ask, dict[float, Outcome | Diverged]] = {}

    @cache
    def started(method: Method, seed: int) -> Tuned:
        return attach(base, method, seed=seed, device=device)

    @cache
    def tested(method: Method) -> Tuned:
        return attach(base, method, device=device)

    def fill() -> None:
        while waiting:
            ask = waiting.popleft()
            check(base, task, ask.method, ask.examples)
            found[ask] = {}
            for rate in ask.rates:
                member = Member(
                    subset=choose(len(task.train), ask.examples, ask.seed),
                    rate=rate,
                    seed=ask.seed,
                    start=partial(started, ask.method, ask.seed),
                    cost=_cost(base, ask.method, device),
                    checkpoint=ask.file(rate),
                )
                asked[member] = (ask, rate)
                members.append(member)

    fill()
    pool = pool_of(task.train)
    for member, outcome in train_stack(stack, members, pool, task.dev, budget, device):
        ask, rate = asked.pop(member)
        found[ask][rate] = outcome
        if len(found[ask]) == len(ask.rates):
            try:
                tuned = tested(ask.method)
                yield ask, _result(base, task, ask, budget, found.pop(ask), tuned)
            except Diverged as reason:
                yield ask, reason
            fill()


def _result(
    base: Loaded,
    task: Encoded,
    ask: Ask,
    budget: Budget,
    found: Mapping[float, Outcome | Diverged],
    tuned: Tuned,
    team: Alone = ALONE,
) -> Result:
    """Return what a run measured at the best of the rates that were tried, and leave it there."""
    device = best_device()
    good = {rate: made for rate in ask.tried if isinstance(made := found[rate], Outcome)}
    if not good:
        raise Diverged("; ".join(f"{found[rate]} at rate {rate:g}" for rate in ask.tried))
    chosen = min(good, key=lambda rate: good[rate].progress.best_dev)
    at = good[chosen].progress
    tuned.load(good[chosen].best)
    loss, loss_se = team.evaluate(tuned, task.test, device)
    peak = peak_flops(device)
    columns: dict[str, object] = {
        "dev_loss": at.best_dev,
        "learning_rate": chosen if ask.examples else None,
        "rate_candidates": len(found) if ask.examples else 0,
        "rate_at_edge": len(found) > 1 and chosen in (min(found), max(found)),
        "method_setting": ask.method.setting,
        "trainable_params": sum(p.numel() for p in tuned.trainable.values()),
        "total_params": base.total,
        "batch": budget.batch,
        "epochs": budget.passes(ask.examples),
        "steps": at.step,
        "best_step": at.best_step,
        "best_is_last": at.best_step == good[chosen].steps,
        "train_tokens": at.tokens,
        "train_flops": at.flops,
        "search_flops": sum(outcome.progress.flops for outcome in good.values()),
        "gpu_seconds": round(at.seconds * team.count, 3),
        "tokens_per_second": at.tokens / at.training if at.training else None,
        "mfu": at.flops / (at.training * peak * team.count) if at.training and peak else None,
        "device": device,
        "test_examples": len(task.test),
    }
    return Result(loss, loss_se, columns, tuned)


# --------------------------------------------------------------------------- cost


@lru_cache(maxsize=64)
def _cost(base: Loaded, method: Method, device: str) -> Cost:
    return step_cost(attach(base, method, device=device), device)


# Dense bfloat16 multiplications in FLOP a second, by NVIDIA's data sheets.
PEAKS: Mapping[str, float] = {
    "A100": 312e12,
    "L40S": 362e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}


def peak_flops(device: str) -> float | None:
    """Return the FLOP a second that a device could reach; None where no data sheet says it."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((peak for model, peak in PEAKS.items() if model in name), None)


# --------------------------------------------------------------------------- how many side by side


# By what factor a stack of twice the size must be faster to be worth it, measured in short trials.
WORTH = 1.1
MOST_PLACES = 64


@lru_cache(maxsize=64)
def places_for(base: Loaded, task: Encoded, method: Method, budget: Budget) -> int:
    """Return how many runs to train side by side for the most runs a second, measured here.

    The number doubles for as long as that pays and memory suffices. A run of a stack
    keeps six numbers for each of its parameters: value, gradient, two moments, the best
    checkpoint, and a copy of the gradient.

    Parameters
    ----------
    base, task, budget
        As in `run`.
    method : FMT, LoRA or Prompt
        In the widest setting.
    """
    pool, device = pool_of(task.train), best_device()
    trained = attach(base, method, device=device).trainable.values()
    room = free_memory(device) / (6 * 4 * sum(p.numel() for p in trained))
    best, fastest, places = 1, 0.0, 1
    while places <= min(MOST_PLACES, room):
        try:
            speed = places / measured_step(base, task, pool, method, budget, places)[0]
        except (NotStackable, torch.OutOfMemoryError):
            break
        if speed < WORTH * fastest:
            break
        best, fastest, places = places, speed, 2 * places
    return best


def free_memory(device: str) -> int:
    """Return the bytes that a device has left."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def measured_step(
    base: Loaded,
    task: Encoded,
    pool: Pool,
    method: Method,
    budget: Budget,
    places: int,
    *,
    compiled: bool = False,
) -> tuple[float, float]:
    """Return the seconds and the FLOP of a step of so many runs, means of one round of lengths.

    With ``compiled``, the model's body goes through torch.compile first.

    Raises
    ------
    NotStackable
        If the base model cannot have more than one run in a pass.
    torch.OutOfMemoryError
        If there is no memory for so many.
    """
    device = best_device()
    stack = Stack(attach(base, method, device=device), places)
    if compiled:
        stack.tuned.inner.base_model.compile(dynamic=True)
    begun = attach(base, method, device=device)
    stack.tuned.model.train()
    # Enough passes for a warm-up and for what is measured, whatever the number of examples.
    budget = replace(budget, epochs=2 + PERIOD, evaluations=1)
    size = min(len(task.train), budget.batch * PERIOD)
    live = [
        Live(
            Member(
                subset=choose(len(task.train), size, seed),
                rate=1e-4,
                seed=seed,
                start=lambda: begun,
                cost=_cost(base, method, device),
            ),
            seed,
            stack,
            pool,
            budget,
        )
        for seed in range(places)
    ]
    # Other processes on a CPU would count as time of this one.
    clock = time.perf_counter if device == "cuda" else time.process_time
    began, flops = clock(), 0
    for steps in (1, PERIOD):
        began, flops = clock(), sum(run.at.flops for run in live)
        advance(stack, live, steps, pool, budget, device, Memory(fixed=True))
        live[0].first_bad()  # waits for the device
    seconds = clock() - began
    flops = sum(run.at.flops for run in live) - flops
    sums_of(stack, pool_of(task.dev), device, places)  # if memory does not suffice, now
    return seconds / PERIOD, flops / PERIOD


def check(base: Loaded, task: Encoded, method: Method, examples: int) -> None:
    """Refuse what cannot be trained before any time is spent on it.

    Raises
    ------
    TunecastError
        If the task has fewer examples, or the context no room for them and the prompt.
    """
    if not 0 <= examples <= len(task.train):
        raise TunecastError(
            f"{examples} training examples were asked for, but the task has {len(task.train)} "
            "within its length limits."
        )
    virtual = method.setting if method.label == "prompt" else 0
    longest = max(len(e.ids) for split in (task.train, task.dev, task.test) for e in split)
    if virtual + longest > base.context:
        raise TunecastError(
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
