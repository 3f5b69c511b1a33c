"""Runs by several processes: the losses of one process, its errors, and its resumption."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import importorskip, interrupted_at

torch = importorskip("torch")
importorskip("peft")

import torch.distributed as dist

from tunecast.models.errors import TunecastError
from tunecast.models.runs import read_runs
from tunecast.training import ranks as ranks_module
from tunecast.training.base_models import Hub
from tunecast.training.budget import Budget
from tunecast.training.evaluate import Diverged
from tunecast.training.examples import Encoded, encode
from tunecast.training.loading import Loaded
from tunecast.training.methods import FMT, LoRA, Method, Prompt
from tunecast.training.progress import Outcome
from tunecast.training.ranks import GIVEN_MODEL, Ranks, Sharded
from tunecast.training.recipes import Recipe, grid
from tunecast.training.run import Result, run
from tunecast.training.sharded import run_sharded
from tunecast.training.sweep import make, sweep
from tunecast.training.tasks import TaskSource, load_task

METHODS: tuple[Method, ...] = (FMT(), LoRA(rank=2), Prompt(length=3))
# Shares that come out even nowhere: batches of 8 and one of 1, 9 dev and 13 test examples.
EXAMPLES = 41
BUDGET = Budget(
    epochs=2, examples=1, batch=8, evaluations=4, patience=4, dev_examples=9, test_examples=13
)
TIMED = ("gpu_seconds", "tokens_per_second", "mfu")
RATES = {"fmt": (3e-3, 1e-2), "lora": (1e-2, 3e-2), "prompt": (1e-1, 3e-1)}


@pytest.fixture(scope="session")
def task(words_task: TaskSource, base: Loaded) -> Encoded:
    return encode(load_task(words_task), words_task, base.tokenizer, BUDGET)


def asked(method: Method, **change: Any) -> dict[str, Any]:
    rates = RATES.get(method.label, (1e-3,))
    return {"examples": EXAMPLES, "rates": rates, "seed": 0, "budget": BUDGET, **change}


def assert_alike(ours: Result, theirs: Result) -> None:
    """Sums in another order, in float32: 20 steps of Adam let a difference of 1e-7 grow."""
    assert ours.loss == pytest.approx(theirs.loss, abs=1e-5)
    assert ours.loss_se == pytest.approx(theirs.loss_se, abs=1e-5)
    for name in ("train_flops", "search_flops"):
        # Without numbers the backward pass of attention is not counted as recomputing its softmax.
        assert ours.columns[name] == pytest.approx(theirs.columns[name], rel=0.05)
    close = ("dev_loss", "train_flops", "search_flops", *TIMED)
    exact = {name for name in theirs.columns if name not in close}
    assert {name: ours.columns[name] for name in exact} == {
        name: theirs.columns[name] for name in exact
    }
    assert ours.columns["dev_loss"] == pytest.approx(theirs.columns["dev_loss"], abs=1e-5)


# --------------------------------------------------------------------------- two processes


@pytest.mark.parametrize(
    "method",
    [FMT(), *(pytest.param(method, marks=pytest.mark.slow) for method in METHODS[1:])],
    ids=lambda m: m.label,
)
def test_two_processes_give_the_run_of_one(
    method: Method, base: Loaded, task: Encoded, tmp_path: Path
) -> None:
    alone = run(base, task, method, **asked(method))
    together = run_sharded(
        base, task, method, **asked(method, checkpoint=tmp_path / "running" / "a"), shards=2
    )
    assert_alike(together, alone)
    assert not list((tmp_path / "running").iterdir())
    other = run(base, task, method, **asked(method, seed=1))
    assert abs(other.loss - alone.loss) > 1e-4, "another run would have passed too"


@dataclass(frozen=True, slots=True)
class Bomb(FMT):
    """Kills the second process when it attaches the method."""

    label = "bomb"

    def config(self) -> None:
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Broken(FMT):
    """Fails in the second process, for which the first one waits."""

    label = "broken"

    def config(self) -> None:
        if dist.get_rank() == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "error", "sentence"),
    [
        (Bomb(), RuntimeError, "process 2 of 2 was killed by the system"),
        (Broken(), torch.OutOfMemoryError, "CUDA out of memory"),
    ],
)
def test_what_goes_wrong_in_one_process_ends_them_all(
    method: Method, error: type[Exception], sentence: str, base: Loaded, task: Encoded
) -> None:
    with pytest.raises(error, match=sentence):
        run_sharded(base, task, method, **asked(method), shards=2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
def test_all_gpus_give_the_run_of_one(method: Method, base: Loaded, task: Encoded) -> None:
    """In bfloat16, where the norms of layers are rounded in pieces and are not in one process."""
    alone = run(base, task, method, **asked(method))
    together = run_sharded(base, task, method, **asked(method), shards=torch.cuda.device_count())
    assert together.columns["device"] == "cuda"
    assert together.loss == pytest.approx(alone.loss, rel=0.02)


# --------------------------------------------------------------------------- a group of one


@pytest.fixture
def ranks(base: Loaded, tmp_path: Path) -> Iterator[Ranks]:
    """All that several processes do, in this one."""
    torch.save(base.model, tmp_path / GIVEN_MODEL)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks(tmp_path)
    dist.destroy_process_group()


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
def test_pieces_make_the_run_of_the_whole(
    method: Method, base: Loaded, task: Encoded, ranks: Ranks
) -> None:
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    together = run(base, task, method, **asked(method), team=ranks)
    assert isinstance(together.tuned, Sharded)
    assert_alike(together, run(base, task, method, **asked(method)))
    assert all(torch.equal(p, before[name]) for name, p in base.model.named_parameters())


def test_what_is_tested_is_the_best_checkpoint(base: Loaded, task: Encoded, ranks: Ranks) -> None:
    """It is put back after training, when the pieces may have been put together already."""
    many = asked(FMT(), examples=9, rates=(3e-2,), budget=replace(BUDGET, epochs=30, patience=9))
    alone = run(base, task, FMT(), **many)
    assert not alone.columns["best_is_last"], "the last would have done"
    assert_alike(run(base, task, FMT(), **many, team=ranks), alone)


def test_a_run_that_diverges_says_so(base: Loaded, task: Encoded, ranks: Ranks) -> None:
    with pytest.raises(Diverged, match="at rate inf"):
        run(base, task, FMT(), **asked(FMT(), rates=(float("inf"),)), team=ranks)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
def test_a_resumed_run_in_pieces_equals_an_uninterrupted_one(
    method: Method, base: Loaded, task: Encoded, ranks: Ranks, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def trained(checkpoint: Path | None = None) -> Outcome:
        tuned = ranks.attach(base, method, seed=3, device="cpu")
        rate = RATES[method.label][0]
        examples = list(task.train[:EXAMPLES])
        return ranks.train(
            tuned, examples, task.dev, BUDGET, rate=rate, seed=1, device="cpu",
            cost=lambda *shape: 1, checkpoint=checkpoint, save_every=0.0,
        )  # fmt: skip

    whole, state = trained(), tmp_path / "state.pt"
    plain = ranks_module.losses
    monkeypatch.setattr(ranks_module, "losses", interrupted_at(8, plain))
    with pytest.raises(KeyboardInterrupt):
        trained(checkpoint=state)
    at = torch.load(state)["progress"]["step"]
    assert 0 < at < whole.steps
    monkeypatch.setattr(ranks_module, "losses", plain)
    rest = trained(checkpoint=state)
    assert rest.progress.history == whole.progress.history
    ours: dict[str, Any] = {**rest.best}
    for name, value in whole.best.items():
        assert torch.equal(ours[name].to_local(), value.to_local()), name  # type: ignore[attr-defined]


# --------------------------------------------------------------------------- sweeps


def recipe_of(words_task: TaskSource, small_base: Hub, **change: Any) -> Recipe:
    return Recipe(
        name="test",
        cells=grid([words_task], [small_base], [FMT()], (EXAMPLES,)),
        seeds=(0,),
        rates={"fmt": RATES["fmt"]},
        budget=replace(BUDGET, **change),
    )


@pytest.mark.slow
@pytest.mark.parametrize("ray", [None, "local"])
def test_a_sweep_in_pieces_writes_the_row_of_any_other(
    small_base: Hub, words_task: TaskSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    ray: str | None,
) -> None:  # fmt: skip
    """With two GPUs that are not there: the processes find none and use the CPU."""
    monkeypatch.setattr(make, "gpus_here", lambda: 2)
    recipe = recipe_of(words_task, small_base)
    if ray is not None:
        importorskip("ray").init(num_cpus=1, num_gpus=2, include_dashboard=False)
    try:
        sweep(recipe, tmp_path / "pieces.csv", cache=tmp_path, gpus=2, ray=ray)
    finally:
        if ray is not None:
            importorskip("ray").shutdown()
    sweep(recipe, tmp_path / "whole.csv", cache=tmp_path)
    (ours,), (theirs,) = (
        read_runs(tmp_path / f"{name}.csv").to_dict("records") for name in ("pieces", "whole")
    )
    near = {name for name in ours if name in ("loss", "loss_se", "dev_loss")}
    for name in near:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-5)
    assert ours["status"] == "done"
    same = ours.keys() - near - {*TIMED, "train_flops", "search_flops", "reason"}
    assert {n: ours[n] for n in same if ours[n] == ours[n]} == {
        n: theirs[n] for n in same if theirs[n] == theirs[n]
    }


def test_text_is_not_generated_in_pieces(
    small_base: Hub, words_task: TaskSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "gpus_here", lambda: 2)
    with pytest.raises(TunecastError, match="generates text, which one GPU alone can do"):
        sweep(recipe_of(words_task, small_base, generate=2), tmp_path / "runs.csv", gpus=2)


def test_more_gpus_than_there_are_is_said(
    small_base: Hub, words_task: TaskSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "gpus_here", lambda: 4)
    with pytest.raises(TunecastError, match="asks for 8 GPUs, but this machine has 4"):
        sweep(recipe_of(words_task, small_base), tmp_path / "runs.csv", gpus=8)
