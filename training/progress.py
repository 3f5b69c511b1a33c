"""Where a training run stands, what is kept of it on disk, and what it came to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from tunecast.models.files import write_atomically
from tunecast.training.batches import Pool
from tunecast.training.flops import Cost

# Seconds of work that a kill may cost a long run.
SAVE_EVERY = 60.0


@dataclass(slots=True, eq=False)
class Progress:
    """Where a training run stands; what a resumed one needs besides the parameters.

    Of the time that runs of a stack take together each has a share, by its FLOP.

    Parameters
    ----------
    step, best_step : int
        Steps made, and after which of them the dev loss was best.
    best_dev : float
        The best dev loss in nats per target token.
    stale : int
        Evaluations since then.
    flops, tokens : int
        What the steps cost and saw.
    seconds, training : float
        Time in all, and the part of it that is not evaluation.
    history : list of (int, float)
        Each step with an evaluation and its dev loss.
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
