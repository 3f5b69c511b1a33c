"""One process among several that make a run together, each with a piece of every parameter (FSDP).

The subset, batches, schedule, stopping and search are those of one process. Each process takes its
share of a batch, and gradients are means over the tokens of all shares, so that the losses are
those of one process too. Parameters, gradients and the optimizer are cut into as many
pieces as there are processes (Zhao et al. 2023, arXiv:2304.11277); where there is a GPU a layer is
put together in bfloat16, and the pieces stay in float32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tunecast.training.batches import collate, order_from, pool_of, to_device
from tunecast.training.budget import Budget, cosine
from tunecast.training.devices import best_device
from tunecast.training.evaluate import Diverged, losses, ratio, sums_of
from tunecast.training.examples import Example
from tunecast.training.flops import Cost, step_cost
from tunecast.training.loading import Loaded
from tunecast.training.methods import Method
from tunecast.training.progress import SAVE_EVERY, Outcome, Progress
from tunecast.training.run import Alone
from tunecast.training.tuned import Tuned, fitted

# The file of the base model, in the folder that all processes share.
GIVEN_MODEL = "model.pt"


class Whole(torch.nn.Module):
    """A tuned model as one module, so that all its parameters are put together in one place.

    Parameters
    ----------
    tuned : Tuned
        Its logits are what the module gives.
    """

    def __init__(self, tuned: Tuned) -> None:
        super().__init__()
        self.model = tuned.model
        self._tuned = tuned

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return `Tuned.logits`."""
        return self._tuned.logits(ids, positions)


class Sharded(Tuned):
    """A tuned model of which this process holds a piece of every parameter.

    Parameters
    ----------
    tuned : Tuned
        The same in every process; it is used up.
    device : str
        Where the pieces go.
    """

    def __init__(self, tuned: Tuned, device: str) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        self.model, self.virtual, self.inner = tuned.model, tuned.virtual, tuned.inner
        self.scale = tuned.scale
        half = torch.bfloat16 if device == "cuda" else None
        how: dict[str, Any] = {
            "mesh": init_device_mesh(device, (dist.get_world_size(),)),
            # Else the outermost module would keep what it has put together, and what is copied
            # into the pieces afterwards, such as the best checkpoint, would not be seen.
            "reshard_after_forward": True,
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=half, reduce_dtype=None if half is None else torch.float32
            ),
        }
        layers = set(getattr(self.inner, "_no_split_modules", None) or ())
        for module in self.inner.modules():
            if type(module).__name__ in layers:
                fully_shard(module, **how)
        self._whole: Any = fully_shard(Whole(tuned), **how)

    def logits(
        self, ids: torch.Tensor, positions: torch.Tensor, counts: Sequence[int] = ()
    ) -> torch.Tensor:
        """Return the logits of the next token at some positions; see `Tuned.logits`."""
        del counts
        logits: torch.Tensor = self._whole(ids, positions)
        return logits


class Ranks(Alone):
    """One process, this one, among those that make a run together.

    Parameters
    ----------
    folder : Path
        Where the base model is.
    """

    def __init__(self, folder: Path) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.device = best_device()
        self._folder = folder

    def attach(self, base: Loaded, method: Method, *, seed: int, device: str) -> Tuned:
        """Return this process's piece of a base model with a method attached."""
        # From the file each time: its pages are shared by all processes until they are cut.
        model = torch.load(self._folder / GIVEN_MODEL, mmap=True, weights_only=False)
        return Sharded(fitted(model, base.context, method, seed=seed), device)

    def cost(self, base: Loaded, method: Method, device: str) -> Cost:
        """Return the FLOP of a training step, counted where shapes alone are."""
        model = torch.load(self._folder / GIVEN_MODEL, mmap=True, weights_only=False)
        tuned = fitted(model, base.context, method)
        tuned.model.to("meta")
        return step_cost(tuned, "meta")

    def evaluate(
        self, tuned: Tuned, examples: Sequence[Example], device: str
    ) -> tuple[float, float]:
        """Return the mean loss of all processes' examples and its standard error."""
        pool = pool_of(examples)
        order = np.argsort(pool.lengths, kind="stable")
        mine = self.share(order)
        part = [examples[k] for k in mine]
        (sums,) = sums_of(tuned, pool_of(part), device, runs=1)
        return ratio(self.gather(sums, len(order)), pool.targets[order])

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
        save_every: float = SAVE_EVERY,
    ) -> Outcome:
        """Train as one of several processes; see `tunecast.training.loop.train`.

        The best checkpoint is in the outcome, and not put back.
        """
        at, steps = Progress(), budget.steps(len(examples))
        parameters = tuned.trainable
        if not steps:
            at.best_dev, _ = self.evaluate(tuned, dev, device)
            return Outcome(at, 0, parameters)
        tuned.model.train()
        pool, measured = pool_of(examples), budget.measured(len(examples))
        torch.manual_seed(seed)  # of the dropout, where a model has it
        optimizer = torch.optim.AdamW(
            list(parameters.values()), lr=rate, weight_decay=0.0, fused=True
        )
        best = _copied(parameters)
        kept = None
        if checkpoint is not None and checkpoint.exists():
            kept = torch.load(checkpoint, weights_only=True)
        # A kill may have come between the first process's state and the last one's.
        if self.same(0 if kept is None else kept["progress"]["step"]) and kept is not None:
            tuned.load(kept["parameters"])
            best = kept["best"]
            at = Progress.restored(kept, optimizer)
        saved = time.perf_counter()
        since = saved
        for batch_of in order_from(at.step, pool.lengths, budget, seed):
            if at.stale >= budget.patience:
                break
            (batch,) = to_device([collate(pool, [np.array(self.share(batch_of))])], device)
            loss, mean = self.loss(losses(tuned, batch), batch.rows, len(batch_of))
            if not math.isfinite(mean):
                raise Diverged(f"the training loss became {mean} at step {at.step + 1}")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), budget.clip)
            for group in optimizer.param_groups:
                group["lr"] = rate * cosine(at.step, steps, warm_up=budget.warm_up)
            optimizer.step()
            at.stepped(pool, batch_of, cost)
            if at.step not in measured:
                continue
            now = time.perf_counter()  # the losses have been read, so the device is done
            at.training += now - since
            dev_loss, _ = self.evaluate(tuned, dev, device)
            if at.judged(dev_loss):
                best = _copied(parameters)
            at.seconds += time.perf_counter() - since
            since = time.perf_counter()
            if self.first(since - saved) >= save_every and checkpoint is not None:
                values = {name: p.detach() for name, p in parameters.items()}
                at.keep(checkpoint, optimizer, best=best, parameters=values)
                saved = since
        optimizer.zero_grad()
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
        return Outcome(at, steps, best)

    def share(self, items: Sequence[int] | np.ndarray) -> list[int]:
        """Return every ``count``-th item; the last one is repeated until all have as many."""
        each = -(-len(items) // self.count)
        taken = range(self.rank, each * self.count, self.count)
        return [items[min(k, len(items) - 1)] for k in taken]

    def gather(self, values: np.ndarray, items: int) -> np.ndarray:
        """Return what all processes have for their shares, repetitions left out."""
        mine = torch.from_numpy(values).to(self.device)
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(parts, mine)
        return torch.stack(parts, dim=1).flatten()[:items].cpu().numpy()

    def loss(
        self, nats: torch.Tensor, rows: torch.Tensor, items: int
    ) -> tuple[torch.Tensor, float]:
        """Return what to differentiate here, and the mean over all processes' tokens."""
        counts = rows < len(range(self.rank, items, self.count))  # a repetition does not count
        total = (nats * counts).sum()
        both = torch.stack([total.detach().double(), counts.sum().double()])
        dist.all_reduce(both)
        # Gradients are divided by the number of processes when they are added up.
        return total * (self.count / both[1].item()), (both[0] / both[1]).item()

    def first(self, value: float) -> float:
        """Return the value that the first process has."""
        told = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(told, src=0)
        return told.item()

    def same(self, value: float) -> bool:
        """Return whether all processes have one value."""
        least_most = torch.tensor([value, -value], dtype=torch.float64, device=self.device)
        dist.all_reduce(least_most, op=dist.ReduceOp.MIN)
        return bool(least_most[0] == -least_most[1])


def _copied(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}
