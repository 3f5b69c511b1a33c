"""Runs of a stack: each in its place, with its own order, optimizer, best checkpoint and state."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tunecast.training.batches import Pool, order_from
from tunecast.training.budget import Budget
from tunecast.training.evaluate import Diverged
from tunecast.training.flops import Cost
from tunecast.training.progress import Outcome, Progress
from tunecast.training.stacked import Stack
from tunecast.training.tuned import Tuned


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StackedRun:
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
        FLOP of a step; see `tunecast.training.flops.step_cost`.
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


class Live:
    """A run in its place of a stack, from its first step to its end.

    Parameters
    ----------
    asked : StackedRun
        What is to be trained; it goes on from its checkpoint if that is there.
    place : int
        Which row of the stack is the run's.
    stack : Stack
        Where the run's parameters are put.
    pool : Pool
        The examples that the run's subset is of.
    budget : Budget
        How long it trains.
    """

    def __init__(
        self, asked: StackedRun, place: int, stack: Stack, pool: Pool, budget: Budget
    ) -> None:
        self.asked = asked
        self.place = place
        self.steps = budget.steps(len(asked.subset))
        self.measured = budget.measured(len(asked.subset))
        tuned = asked.start()
        self.shapes = {name: p.shape for name, p in tuned.trainable.items()}
        stack.enter(place, tuned)
        self.row = stack.rows[place]
        self.optimizer = torch.optim.AdamW([self.row], lr=asked.rate, weight_decay=0.0, fused=True)
        self.at = Progress()
        self.best = self.row.detach().clone()
        torch.manual_seed(asked.seed)  # of the dropout, where a model has it
        if asked.checkpoint is not None and asked.checkpoint.exists():
            self._restore(asked.checkpoint)
        self.order = order_from(self.at.step, pool.lengths[asked.subset], budget, asked.seed)
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
        path = self.asked.checkpoint
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
