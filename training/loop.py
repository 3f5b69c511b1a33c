"""The training loop: runs alone and side by side, with one schedule, stopping and evaluation.

Within a step the host waits for nothing: batches are laid out on the device ahead, and the losses
stay there until the dev loss is measured. The loss counts target tokens alone, and every mean is
over tokens.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from tunecast.models.files import write_atomically
from tunecast.training.examples import (
    PERIOD,
    Batch,
    Budget,
    Example,
    Pool,
    collate,
    order_from,
    pool_of,
    to_device,
)
from tunecast.training.ladder import autocast, cosine
from tunecast.training.methods import Tuned
from tunecast.training.stacked import Stack

# Examples of each run in an evaluation batch.
EVALUATION_BATCH = 64
# Steps that are laid out on the device at once, at most.
SPAN = 64
# Seconds of work that a kill may cost a long run.
SAVE_EVERY = 60.0


class Diverged(ArithmeticError):
    """A loss that is not a number, or infinite."""


# --------------------------------------------------------------------------- loss


def losses(model: Tuned | Stack, batch: Batch) -> torch.Tensor:
    """Return the cross-entropy of every target token in nats, shape (targets,)."""
    with autocast(batch.ids.device.type):
        logits = model.logits(batch.ids, batch.positions, batch.counts)
    return torch.nn.functional.cross_entropy(logits.float(), batch.labels, reduction="none")


def evaluate(tuned: Tuned, examples: Sequence[Example], device: str) -> tuple[float, float]:
    """Return the mean loss over target tokens and its standard error over examples.

    The error is that of a ratio of sums: tokens of one example are not independent.

    Raises
    ------
    Diverged
        If the loss is not finite.
    """
    pool = pool_of(examples)
    (sums,) = sums_of(tuned, pool, device, runs=1)
    return ratio(sums, pool.targets)


@torch.no_grad()
def sums_of(model: Tuned | Stack, pool: Pool, device: str, runs: int) -> np.ndarray:
    """Return the loss of each example in nats for each run, shape (runs, examples)."""
    module = model.tuned.model if isinstance(model, Stack) else model.model
    module.eval()
    order = np.argsort(pool.lengths, kind="stable")
    parts = [order[k : k + EVALUATION_BATCH] for k in range(0, len(order), EVALUATION_BATCH)]
    totals = []
    for batch in to_device([collate(pool, [part] * runs) for part in parts], device):
        total = torch.zeros(len(batch.ids), device=device, dtype=torch.float64)
        total.index_add_(0, batch.rows, losses(model, batch).double())
        totals.append(total.view(runs, -1))
    module.train()
    found = np.empty((runs, len(order)))
    found[:, order] = torch.cat(totals, dim=1).cpu().numpy()
    return found


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


type Cost = Callable[[int, int, int], int]


def _attention(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object
) -> int:
    """Return the FLOP of attention: scores, and their sums of values."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def _attention_backward(
    gradient: Sequence[int],
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    *_: object,
    **__: object,
) -> int:
    """Return the FLOP of its gradients: the scores again, and gradients of all four factors."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (3 * width + 2 * value[3])


# The kernels of fused attention, on CPUs and on GPUs.
KERNELS = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
# Torch up to 2.14 counts these on GPUs alone, and 2.9 not where several heads share a key.
_ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}{end}"): count
    for kernel in KERNELS
    for end, count in (("", _attention), ("_backward", _attention_backward))
}


def step_cost(tuned: Tuned, device: str) -> Cost:
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
    trained = list(tuned.trainable.values())

    def count(length: int, targets: int) -> int:
        ids = torch.ones(1, length, dtype=torch.int64, device=device)
        where = torch.zeros(targets, dtype=torch.int64, device=device)
        with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
            loss = losses(tuned, Batch(ids, where, where, where, (targets,))).sum()
            torch.autograd.grad(loss, trained)
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
    """Where a training run stands; what a resumed one needs besides the parameters.

    Of the time that runs of a stack take together each has a share, by its FLOP; ``training`` is
    the part of ``seconds`` that is not evaluation.
    """

    step: int = 0
    best_step: int = 0
    best_dev: float = math.inf
    stale: int = 0
    flops: int = 0
    tokens: int = 0
    seconds: float = 0.0
    training: float = 0.0
    history: list[tuple[int, float]] = field(default_factory=list)

    def stepped(self, pool: Pool, batch: np.ndarray, cost: Cost) -> None:
        """Count a step on these examples of a pool."""
        self.step += 1
        self.tokens += int(pool.lengths[batch].sum())
        self.flops += cost(
            len(batch), int(pool.lengths[batch].max()) - 1, int(pool.targets[batch].sum())
        )

    def judged(self, dev_loss: float) -> bool:
        """Take note of a dev loss, and say whether it is the best so far."""
        self.history.append((self.step, dev_loss))
        self.stale += 1
        best = dev_loss < self.best_dev
        if best:
            self.best_dev, self.best_step, self.stale = dev_loss, self.step, 0
        return best

    def keep(self, path: Path, optimizer: torch.optim.Optimizer, **values: Any) -> None:
        """Write the state of a run: this, its optimizer, the random numbers and its parameters."""
        state = {
            "progress": asdict(self),
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
            **values,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: torch.save(state, temporary))

    @classmethod
    def restored(cls, state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> Self:
        """Return where a state that was kept stands, and bring back all but its parameters."""
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"].cpu())
        return cls(**state["progress"])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Member:
    """One training run, to be given a place in a stack.

    Parameters
    ----------
    subset : ndarray of int64, shape (examples,)
        Which examples of the pool; at least one.
    rate : float
        Peak learning rate of AdamW; the schedule is a cosine to 0 after a warm-up.
    seed : int
        Of the order.
    start : callable
        Makes the model whose parameters the run starts from.
    cost : callable
        FLOP of a step; see `step_cost`.
    checkpoint : Path or None
        File in which to keep the state, and from which to go on if it is there; removed at the
        end. A run that went on from it equals an uninterrupted one.
    """

    subset: np.ndarray
    rate: float
    seed: int
    start: Callable[[], Tuned]
    cost: Cost
    checkpoint: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a training run came to.

    Parameters
    ----------
    progress : Progress
        Steps, costs and dev losses.
    steps : int
        Steps of the whole budget.
    best : mapping of str to Tensor
        The trained parameters at the best checkpoint.
    """

    progress: Progress
    steps: int
    best: Mapping[str, torch.Tensor]


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
        See `Member`; by default the cost is counted.
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
    member = Member(
        subset=np.arange(len(examples)),
        rate=rate,
        seed=seed,
        start=lambda: tuned,
        cost=cost or step_cost(tuned, device),
        checkpoint=checkpoint,
    )
    stack, waiting = Stack(tuned, 1), deque([member])
    ((_, outcome),) = train_stack(
        stack, waiting, pool_of(examples), dev, budget, device, save_every=save_every
    )
    if isinstance(outcome, Diverged):
        raise outcome
    tuned.load(outcome.best)
    return outcome


def train_stack(
    stack: Stack,
    waiting: deque[Member],
    pool: Pool,
    dev: Sequence[Example],
    budget: Budget,
    device: str,
    *,
    memory: Memory | None = None,
    save_every: float = SAVE_EVERY,
) -> Iterator[tuple[Member, Outcome | Diverged]]:
    """Train runs side by side, as many as have a place, and yield each as it ends.

    Parameters
    ----------
    stack : Stack
        The places.
    waiting : deque of Member
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
            if run.member.checkpoint is not None:
                run.member.checkpoint.unlink(missing_ok=True)
            yield run.member, ended
        if not live:
            clock = 0
        since = time.perf_counter()


class Live:
    """A run in its place of a stack."""

    def __init__(
        self, member: Member, place: int, stack: Stack, pool: Pool, budget: Budget
    ) -> None:
        self.member = member
        self.place = place
        self.steps = budget.steps(len(member.subset))
        self.measured = budget.measured(len(member.subset))
        tuned = member.start()
        self.shapes = {name: p.shape for name, p in tuned.trainable.items()}
        stack.enter(place, tuned)
        self.row = stack.rows[place]
        self.optimizer = torch.optim.AdamW([self.row], lr=member.rate, weight_decay=0.0, fused=True)
        self.at = Progress()
        self.best = self.row.detach().clone()
        torch.manual_seed(member.seed)  # of the dropout, where a model has it
        if member.checkpoint is not None and member.checkpoint.exists():
            self._restore(member.checkpoint)
        self.order = order_from(self.at.step, pool.lengths[member.subset], budget, member.seed)
        self.losses: list[torch.Tensor] = []
        self.shared = self.at.flops  # those whose time has been shared out
        self.saved = time.perf_counter()

    def until_measured(self) -> int:
        """Return the steps until the dev loss is measured."""
        return min(step for step in self.measured if step > self.at.step) - self.at.step

    def first_bad(self) -> Diverged | None:
        """Return what is to be said of the first training loss that is not finite."""
        found = torch.cat(self.losses).cpu().numpy()
        self.losses.clear()
        bad = np.flatnonzero(~np.isfinite(found))
        if not len(bad):
            return None
        step = self.at.step - len(found) + int(bad[0]) + 1
        return Diverged(f"the training loss became {found[bad[0]]} at step {step}")

    def judge(self, dev_loss: float) -> None:
        """Take note of a dev loss."""
        if self.at.judged(dev_loss):
            self.best = self.row.detach().clone()

    def outcome(self, stack: Stack, budget: Budget) -> Outcome | None:
        """Return what the run came to, if it has ended."""
        if self.at.step < self.steps and self.at.stale < budget.patience:
            return None
        return Outcome(self.at, self.steps, stack.unpacked(self.best, self.shapes))

    def keep(self, save_every: float) -> None:
        """Keep the state, if that was not done for a while."""
        path = self.member.checkpoint
        if path is None or time.perf_counter() - self.saved < save_every:
            return
        row = self.row.detach().clone()  # without the rows of the others
        self.at.keep(path, self.optimizer, best=self.best, row=row)
        self.saved = time.perf_counter()

    def _restore(self, path: Path) -> None:
        state = torch.load(path, weights_only=True, map_location=self.row.device)
        if state["row"].shape != self.row.shape:
            return  # it was kept in a stack of another width, and begins anew
        with torch.no_grad():
            self.row.copy_(state["row"])
        self.best.copy_(state["best"])
        self.at = Progress.restored(state, self.optimizer)


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

    Raises
    ------
    torch.OutOfMemoryError
        If it runs out all the same.
    """
    stack.take([run.place for run in live])
    plan = [[run.member.subset[next(run.order)] for run in live] for _ in range(span)]
    done = 0
    while done < span:
        short = False
        laid = _laid_out(pool, plan[done:], memory.parts, device)
        try:
            for members, (parts, totals) in zip(plan[done:], laid, strict=True):
                found = _step(stack, live, parts, totals, budget)
                for k, (run, mine) in enumerate(zip(live, members, strict=True)):
                    run.losses.append(found[k : k + 1])
                    run.at.stepped(pool, mine, run.member.cost)
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


def _step(
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
        run.optimizer.param_groups[0]["lr"] = run.member.rate * along
        run.optimizer.step()
    return found
