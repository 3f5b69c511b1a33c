"""Runs side by side: how many at a time make the most runs a second, and how they are made."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, lru_cache, partial

import torch

from tunecast.training.batches import PERIOD, Pool, choose, pool_of
from tunecast.training.budget import Budget
from tunecast.training.devices import best_device, free_memory
from tunecast.training.evaluate import Diverged, sums_of
from tunecast.training.examples import Encoded
from tunecast.training.flops import cost_of
from tunecast.training.loading import Loaded
from tunecast.training.loop import Memory, advance, train_stack
from tunecast.training.methods import Method
from tunecast.training.progress import Outcome
from tunecast.training.run import Ask, Result, check, result_of
from tunecast.training.stacked import NotStackable, Stack
from tunecast.training.stacked_runs import Live, StackedRun
from tunecast.training.tuned import Tuned, attach


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
    members: deque[StackedRun] = deque()
    asked: dict[StackedRun, tuple[Ask, float]] = {}
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
                member = StackedRun(
                    subset=choose(len(task.train), ask.examples, ask.seed),
                    rate=rate,
                    seed=ask.seed,
                    start=partial(started, ask.method, ask.seed),
                    cost=cost_of(base, ask.method, device),
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
                yield ask, result_of(base, task, ask, budget, found.pop(ask), tuned)
            except Diverged as reason:
                yield ask, reason
            fill()


# --------------------------------------------------------------------------- how many


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

    Parameters
    ----------
    base, task, method, budget
        As in `places_for`.
    pool : Pool
        The training examples of the task.
    places : int
        How many runs.
    compiled : bool
        Whether the model's body goes through torch.compile first.

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
            StackedRun(
                subset=choose(len(task.train), size, seed),
                rate=1e-4,
                seed=seed,
                start=lambda: begun,
                cost=cost_of(base, method, device),
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
