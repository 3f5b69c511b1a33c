"""How long a run trains: its budget, and the schedule of its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass


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

    def measured(self, examples: int) -> frozenset[int]:
        """Return the steps after which the dev loss is measured."""
        steps = self.steps(examples)
        return frozenset(
            math.ceil(steps * k / self.evaluations) for k in range(1, self.evaluations + 1)
        )


def cosine(step: int, steps: int, *, warm_up: float, floor: float = 0.0) -> float:
    """Return the share of the peak learning rate at ``step``, counted from 0.

    It rises linearly over the first ``warm_up`` (a share of ``steps``) and falls to ``floor``
    along half a cosine.

    Parameters
    ----------
    step, steps : int
        The step, and how many there are.
    warm_up, floor : float
        Where the share stops rising, and where it ends.
    """
    warm = max(1, math.ceil(warm_up * steps))
    if step < warm:
        return (step + 1) / warm
    along = (step - warm) / max(1, steps - warm)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * along))
