"""Runs: a base model, a method, some examples, and the loss that comes out.

A run may be made by itself or in a stack with others of its method on its base model
(`tunecast.training.side_by_side`); it comes to the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunecast.models.errors import TunecastError
from tunecast.training.batches import choose
from tunecast.training.budget import Budget
from tunecast.training.devices import best_device, peak_flops
from tunecast.training.evaluate import Diverged, evaluate
from tunecast.training.examples import Encoded, Example
from tunecast.training.flops import Cost, cost_of
from tunecast.training.loading import Loaded
from tunecast.training.loop import train
from tunecast.training.methods import Method
from tunecast.training.progress import Outcome
from tunecast.training.tuned import Tuned, attach


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
        return cost_of(base, method, device)

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
        """Return the mean loss and its standard error, as `tunecast.training.evaluate` has it."""
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
    result = result_of(base, task, ask, budget, found, tuned, team)
    if keep is not None:
        tuned.save(keep)
    return result


def result_of(
    base: Loaded,
    task: Encoded,
    ask: Ask,
    budget: Budget,
    found: Mapping[float, Outcome | Diverged],
    tuned: Tuned,
    team: Alone = ALONE,
) -> Result:
    """Return what a run measured at the best of the rates that were tried, and leave it there.

    Parameters
    ----------
    base, task, budget, team
        As in `run`.
    ask : Ask
        What was asked for.
    found : mapping of float to Outcome or Diverged
        What each rate came to.
    tuned : Tuned
        A model with the method attached; it gets the parameters of the best checkpoint.

    Raises
    ------
    Diverged
        If training diverged at every rate.
    """
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
