"""One run by several new processes of this machine, from their start to what they measured."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException, start_processes

from tunecast.training.budget import Budget
from tunecast.training.devices import best_device, threads
from tunecast.training.examples import Encoded
from tunecast.training.loading import Loaded
from tunecast.training.methods import Method
from tunecast.training.processes import obey_the_parent
from tunecast.training.ranks import GIVEN_MODEL, Ranks
from tunecast.training.run import Result, run

GIVEN, FOUND = "given.pickle", "found.pickle"


def run_sharded(
    base: Loaded,
    task: Encoded,
    method: Method,
    *,
    examples: int,
    rates: Sequence[float],
    seed: int,
    budget: Budget,
    shards: int,
    checkpoint: Path | None = None,
) -> Result:
    """Make one run in several new processes of this machine.

    Parameters
    ----------
    base, task, method, examples, rates, seed, budget, checkpoint
        As of `tunecast.training.run.run`. Each process keeps a state of its own.
    shards : int
        How many processes; as many GPUs, or none.

    Returns
    -------
    Result
        Without a model: no process holds all of it.

    Raises
    ------
    TunecastError, Diverged
        As `tunecast.training.run.run` does.
    RuntimeError
        If a process is killed.
    """
    at = None if checkpoint is None else checkpoint.parent
    if at is not None:
        at.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=at) as name:
        folder = Path(name)
        torch.save(base.model, folder / GIVEN_MODEL)
        asked = {
            "examples": examples,
            "rates": tuple(rates),
            "seed": seed,
            "budget": budget,
            "checkpoint": checkpoint,
        }
        given = (replace(base, model=None), task, method, asked)
        (folder / GIVEN).write_bytes(pickle.dumps(given))
        group = start_processes(
            _rank, (shards, folder, os.getpid()), nprocs=shards, join=False, start_method="spawn"
        )
        try:
            while not group.join():
                pass
        except ProcessExitedException as error:
            raise _first_error(folder) or RuntimeError(
                f"process {error.error_index + 1} of {shards} was killed by the system, as it does "
                "when out of memory"
            ) from None
        except BaseException:
            for process in group.processes:
                process.kill()
            raise
        loss, loss_se, columns = pickle.loads((folder / FOUND).read_bytes())
    return Result(loss, loss_se, columns, None)


def _first_error(folder: Path) -> Exception | None:
    """Return what went wrong first: the other processes only lost their connection to it."""
    files = sorted(folder.glob("error-*"), key=lambda file: file.stat().st_mtime_ns)
    if not files:
        return None
    error: Exception = pickle.loads(files[0].read_bytes())
    return error


def _rank(rank: int, count: int, folder: Path, parent: int) -> None:
    """Make the run as one of ``count`` processes."""
    obey_the_parent(parent)
    threads(1)
    cuda = best_device() == "cuda"
    if cuda:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if cuda else "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count
    )
    base, task, method, asked = pickle.loads((folder / GIVEN).read_bytes())
    if (state := asked.pop("checkpoint")) is not None:
        state = state.with_name(f"{state.name}-{rank}-of-{count}")
    try:
        result = run(base, task, method, **asked, checkpoint=state, team=Ranks(folder))
    except Exception as error:
        try:
            told = pickle.dumps(error)
        except Exception:  # some libraries raise what cannot be sent
            told = pickle.dumps(RuntimeError(str(error)))
        temporary = folder / f"telling-{rank}"
        temporary.write_bytes(told)
        temporary.rename(folder / f"error-{rank}")
        # The others wait for this process, and it for them: nobody can end in good order.
        os._exit(1)
    if rank == 0:
        (folder / FOUND).write_bytes(
            pickle.dumps((result.loss, result.loss_se, dict(result.columns)))
        )
    dist.barrier()
    dist.destroy_process_group()
