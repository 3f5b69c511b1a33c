"""The training loop: runs alone and side by side, with one schedule, stopping and evaluation.

Within a step the host waits for nothing: batches are laid out on the device ahead, and the losses
stay there until the dev loss is measured. The loss counts target tokens alone, and every mean is
over tokens.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tunecast.training.batches import PERIOD, Batch, Pool, collate, pool_of, to_device
from tunecast.training.budget import Budget, cosine
from tunecast.training.evaluate import Diverged, evaluate, losses, ratio, sums_of
from tunecast.training.examples import Example
from tunecast.training.flops import Cost, step_cost
from tunecast.training.progress import SAVE_EVERY, Outcome, Progress
from tunecast.training.stacked import Stack
from tunecast.training.stacked_runs import Live, StackedRun
from tunecast.training.tuned import Tuned

# Steps that are laid out on the device at once, at most.
SPAN = 64


@dataclass(slots=True)
class Memory:
    """What is done to fit a step into memory: nothing, at first.

    Parameters
    ----------
    checkpointing : bool
        Whether only the inputs of layers are kept for the backward pass, which makes the rest anew.
    parts : int
        In how many parts the examples of a step go through the model; their gradients add up.
    fixed : bool
        Whether that is all that may be done.
    """

    checkpointing: bool = False
    parts: int = 1
    fixed: bool = False

    def tighten(self, stack: Stack, batch: int) -> bool:
        """Do more, and say whether there was anything left to do."""
        if self.fixed:
            return False
        if not self.checkpointing and stack.tuned.inner.supports_gradient_checkpointing:
            self.checkpointing = True
            stack.checkpointing()
        elif self.parts < batch:
            self.parts *= 2
        else:
            return False
        return True


def train(
    tuned: Tuned,
    examples: Sequence[Example],
    dev: Sequence[Example],
    budget: Budget,
    *,
    rate: float,
    seed: int,
    device: str = "cpu",
    cost: Cost | None = None,
    checkpoint: Path | None = None,
    save_every: float = SAVE_EVERY,
) -> Outcome:
    """Train one run by itself and go back to its best checkpoint by dev loss.

    Parameters
    ----------
    tuned : Tuned
        Changed in place.
    examples, dev : sequence of Example
        What to train on and what to judge by. With no examples nothing is trained.
    budget : Budget
        How long.
    rate, seed, cost, checkpoint
        See `StackedRun`; by default the cost is counted.
    device : str
        Where the model is.
    save_every : float
        Seconds between two states kept.

    Raises
    ------
    Diverged
        If a loss is not finite.
    """
    if not examples:
        return Outcome(Progress(best_dev=evaluate(tuned, dev, device)[0]), 0, tuned.trainable)
    asked = StackedRun(
        subset=np.arange(len(examples)),
        rate=rate,
        seed=seed,
        start=lambda: tuned,
        cost=cost or step_cost(tuned, device),
        checkpoint=checkpoint,
    )
    stack, waiting = Stack(tuned, 1), deque([asked])
    ((_, outcome),) = train_stack(
        stack, waiting, pool_of(examples), dev, budget, device, save_every=save_every
    )
    if isinstance(outcome, Diverged):
        raise outcome
    tuned.load(outcome.best)
    return outcome


def train_stack(
    stack: Stack,
    waiting: deque[StackedRun],
    pool: Pool,
    dev: Sequence[Example],
    budget: Budget,
    device: str,
    *,
    memory: Memory | None = None,
    save_every: float = SAVE_EVERY,
) -> Iterator[tuple[StackedRun, Outcome | Diverged]]:
    """Train runs side by side, as many as have a place, and yield each as it ends.

    Parameters
    ----------
    stack : Stack
        The places.
    waiting : deque of StackedRun
        Runs in the order in which they are to be made; more may be added while others train.
    pool : Pool
        The examples that the runs' subsets are of.
    dev : sequence of Example
        What all are judged by.
    budget : Budget
        How long each trains.
    device : str
        Where the stack is.
    memory : Memory, optional
        What is done from the start to save memory.
    save_every : float
        Seconds between two states kept of a run.
    """
    judged, memory = pool_of(dev), memory or Memory()
    stack.tuned.model.train()
    live: list[Live] = []
    clock = 0
    since = time.perf_counter()
    while waiting or live:
        # A run enters in step with the others, when the lengths of their batches begin anew.
        if waiting and clock % PERIOD == 0:
            began = time.perf_counter()
            taken = {run.place for run in live}
            free = [place for place in range(len(stack.values)) if place not in taken]
            while waiting and free:
                live.append(Live(waiting.popleft(), free.pop(0), stack, pool, budget))
            since += time.perf_counter() - began
        span = min(run.until_measured() for run in live)
        if waiting and len(live) < len(stack.values):
            span = min(span, PERIOD - clock % PERIOD)
        span = min(span, SPAN)
        advance(stack, live, span, pool, budget, device, memory)
        clock += span
        due = [run for run in live if run.at.step in run.measured]
        if not due:
            continue
        bad = {run: run.first_bad() for run in due}
        now = time.perf_counter()  # the losses have been read, so the device is done
        _share(now - since, live)
        since = now
        good = [run for run in due if bad[run] is None]
        if good:
            stack.take([run.place for run in good])
            sums = sums_of(stack, judged, device, len(good))
            now = time.perf_counter()
            for run, row in zip(good, sums, strict=True):
                run.at.seconds += (now - since) / len(good)
                try:
                    run.judge(ratio(row, judged.targets)[0])
                except Diverged as reason:
                    bad[run] = reason
        for run in due:
            ended = bad[run] or run.outcome(stack, budget)
            if ended is None:
                run.keep(save_every)
                continue
            live.remove(run)
            if run.asked.checkpoint is not None:
                run.asked.checkpoint.unlink(missing_ok=True)
            yield run.asked, ended
        if not live:
            clock = 0
        since = time.perf_counter()


def _share(seconds: float, live: Sequence[Live]) -> None:
    """Share out the time of training steps by what each run had of them."""
    flops = [run.at.flops - run.shared for run in live]
    for run, mine in zip(live, flops, strict=True):
        part = seconds * mine / sum(flops)
        run.at.seconds += part
        run.at.training += part
        run.shared = run.at.flops


def advance(
    stack: Stack,
    live: Sequence[Live],
    span: int,
    pool: Pool,
    budget: Budget,
    device: str,
    memory: Memory,
) -> None:
    """Train all runs for some steps, with less memory where it runs out.

    Parameters
    ----------
    stack : Stack
        The places.
    live : sequence of Live
        The runs in them, which take part in every step.
    span : int
        How many steps.
    pool, budget, device
        As in `train_stack`.
    memory : Memory
        What is done to save memory; changed where more has to be done.

    Raises
    ------
    torch.OutOfMemoryError
        If it runs out all the same.
    """
    stack.take([run.place for run in live])
    plan = [[run.asked.subset[next(run.order)] for run in live] for _ in range(span)]
    done = 0
    while done < span:
        short = False
        laid = _laid_out(pool, plan[done:], memory.parts, device)
        try:
            for members, (parts, totals) in zip(plan[done:], laid, strict=True):
                found = step(stack, live, parts, totals, budget)
                for k, (run, mine) in enumerate(zip(live, members, strict=True)):
                    run.losses.append(found[k : k + 1])
                    run.at.stepped(pool, mine, run.asked.cost)
                done += 1
        except torch.OutOfMemoryError:
            if not memory.tighten(stack, budget.batch):
                raise
            short = True
        if short and torch.cuda.is_available():
            torch.cuda.empty_cache()  # here, where the failed pass is no longer referred to


def _laid_out(
    pool: Pool, plan: Sequence[Sequence[np.ndarray]], parts: int, device: str
) -> list[tuple[list[Batch], torch.Tensor]]:
    """Return the batches of some steps and the target tokens of each run, on the device."""
    cut = [[np.array_split(mine, parts) for mine in members] for members in plan]
    made = [
        collate(pool, [pieces[k] for pieces in step]) for step in cut
        for k in range(parts) if any(len(pieces[k]) for pieces in step)
    ]  # fmt: skip
    there = iter(to_device(made, device))
    totals = torch.tensor(
        [[int(pool.targets[mine].sum()) for mine in members] for members in plan],
        dtype=torch.float32,
    ).to(device, non_blocking=True)
    return [
        ([next(there) for k in range(parts) if any(len(pieces[k]) for pieces in step)], total)
        for step, total in zip(cut, totals, strict=True)
    ]


def step(
    stack: Stack,
    live: Sequence[Live],
    parts: Sequence[Batch],
    totals: torch.Tensor,
    budget: Budget,
) -> torch.Tensor:
    """Make one step of every run and return their losses, shape (runs,)."""
    found = torch.zeros_like(totals)
    for number, batch in enumerate(parts):
        loss = batch.by_run(losses(stack, batch)) / totals
        stack.backward(loss.sum(), first=number == 0)
        found += loss.detach()
    stack.clip(budget.clip)
    for run in live:
        along = cosine(run.at.step, run.steps, warm_up=budget.warm_up)
        run.optimizer.param_groups[0]["lr"] = run.asked.rate * along
        run.optimizer.step()
    return found
