"""A sweep: every run of a recipe that the table does not hold yet, one row as each ends.

Each worker is a process with one thread. It takes a cell, makes its runs one after the other and
appends their rows itself, so that whatever stops the sweep costs no more than the runs under way;
those keep their state too, if they are long, and go on from it.
"""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tunecast.models.files import default_cache
from tunecast.models.runs import Run, RunTableError, append_run, read_runs
from tunecast.training.examples import Budget, Encoded
from tunecast.training.ladder import BaseModel, Hub, Loaded, Rung, best_device, load_base
from tunecast.training.loop import Diverged
from tunecast.training.methods import FMT
from tunecast.training.offline import in_tokens
from tunecast.training.quality import scores
from tunecast.training.recipes import Cell, Recipe
from tunecast.training.run import (
    Ask,
    Result,
    check,
    places_for,
    reason_of_failure,
    run,
    run_stack,
    threads,
)
from tunecast.training.tasks import TaskSource, TrainingError

# The share of a matrix multiplication's speed that training reaches, where no row tells it.
UTILISATION = 0.5
# The share of a pre-training after which its whole duration is forecast.
CALIBRATED = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The runs of one cell that are still to be made.

    Parameters
    ----------
    cell : Cell
        What they have in common.
    seeds : tuple of int
        Which are missing.
    rates : tuple of float
        Candidates of the search, or the one rate that it found.
    candidates, at_edge : int or None, bool or None
        Where a search has been made: how many rates it tried, and whether the best was the last.
    """

    cell: Cell
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    candidates: int | None = None
    at_edge: bool | None = None


def jobs_of(recipe: Recipe, table: Path) -> list[Job]:
    """Return what of a recipe the table does not hold, in the recipe's order."""
    done = rows_of(table)
    jobs = []
    for cell in recipe.cells:
        seeds = tuple(seed for seed in recipe.seeds if cell.run_id(seed) not in done.index)
        if not seeds:
            continue
        job = Job(cell=cell, seeds=seeds, rates=recipe.rates[cell.method.label])
        first = cell.run_id(recipe.seeds[0])
        if first in done.index and done.at[first, "status"] == "done" and cell.examples:
            job = replace(
                job,
                rates=(float(str(done.at[first, "learning_rate"])),),
                candidates=int(float(str(done.at[first, "rate_candidates"]))),
                at_edge=str(done.at[first, "rate_at_edge"]) == "True",
            )
        jobs.append(job)
    return jobs


def rows_of(table: Path) -> pd.DataFrame:
    """Return the rows of a table by run, none if there is no table yet."""
    if not table.exists() or table.stat().st_size == 0:
        return pd.DataFrame(columns=["status", "train_flops", "gpu_seconds"])
    return read_runs(table).set_index("run_id")


def planned(recipe: Recipe, plan: Path) -> Recipe:
    """Return a recipe with the cells that a plan names.

    Parameters
    ----------
    recipe : Recipe
        It says what the plan's tasks, base models and methods are; its other cells are left out.
    plan : Path
        CSV with the columns ``method`` and ``finetune_examples``, and ``task``, ``base_model`` or
        ``model_size``, ``method_setting`` where the recipe has several.

    Raises
    ------
    TrainingError
        If the plan cannot be read or a row fits no cell, or several, of the recipe.
    """
    try:
        table = pd.read_csv(plan)
    except (OSError, ValueError) as error:
        raise TrainingError(f"the plan '{plan}' cannot be read: {error}.") from error
    if missing := [name for name in ("method", "finetune_examples") if name not in table]:
        raise TrainingError(f"the plan '{plan}' has no column '{missing[0]}'.")
    cells: dict[Cell, None] = {}
    for number, row in enumerate(table.to_dict("records"), start=1):
        asked = {str(name): value for name, value in row.items() if not pd.isna(value)}
        kinds = {
            (cell.task, cell.base, cell.method) for cell in recipe.cells if _matches(cell, asked)
        }
        if len(kinds) != 1:
            found = "no cell" if not kinds else f"{len(kinds)} kinds of cells"
            raise TrainingError(
                f"row {number} of the plan '{plan}' fits {found} of recipe '{recipe.name}'; task, "
                "base_model, method and method_setting must name one."
            )
        task, base, method = kinds.pop()
        count = int(asked["finetune_examples"])
        cells[Cell(task=task, base=base, method=method, examples=count)] = None
    return replace(recipe, cells=tuple(cells))


def _matches(cell: Cell, asked: Mapping[str, object]) -> bool:
    facts: dict[str, object] = {
        "task": cell.task.name,
        "base_model": cell.base.name,
        "method": cell.method.label,
        "method_setting": cell.method.setting,
    }
    if isinstance(cell.base, Rung):
        facts["model_size"] = cell.base.size
    return all(asked[name] == value for name, value in facts.items() if name in asked)


# --------------------------------------------------------------------------- what it will cost


def expected_flops(job: Job, budget: Budget) -> float:
    """Return the FLOP to expect of a job's runs, none stopping early and no example short.

    Six for each parameter and token with full tuning and four with a frozen base (Kaplan 2020,
    arXiv:2001.08361, and the gradient of the weights left out); the vocabulary head of our own
    models, which their size leaves out, at the target tokens. Adapters and attention are left out.
    """
    cell, task = job.cell, job.cell.task
    if isinstance(cell.base, Rung):
        head = cell.base.width * cell.base.pretraining.vocabulary
        example = cell.base.size * (task.max_source + task.max_target) + head * task.max_target
    else:
        example = hub_size(cell.base) * (task.max_source + task.max_target)
    each = 6 if isinstance(cell.method, FMT) else 4
    shown = budget.passes(cell.examples) * cell.examples
    runs = len(job.rates) + len(job.seeds) - 1
    return float(each * example * shown * runs)


@lru_cache
def hub_size(base: Hub) -> int:
    """Return the parameters of a model of the hub from its configuration alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.path))
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or ["unknown"])[0].rstrip(".")
        raise TrainingError(
            f"base model '{base.name}' cannot be loaded from '{base.path}': {reason}."
        ) from error
    return int(model.num_parameters())


def speed(done: pd.DataFrame) -> float:
    """Return the FLOP a second of one worker: of the table's runs, or else of a short trial."""
    if {"train_flops", "gpu_seconds"} <= set(done) and (done["gpu_seconds"] > 0).any():
        rates = done["train_flops"] / done["gpu_seconds"].where(done["gpu_seconds"] > 0)
        return float(rates.median())
    import torch

    device = best_device()
    side = 8192 if device == "cuda" else 512
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a = torch.ones(side, side, device=device, dtype=dtype)
    a @ a
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 0.3:
        (a @ a).sum().item()
        count += 1
    return UTILISATION * 2 * side**3 * count / (time.perf_counter() - started)


def forecast_cost(recipe: Recipe, table: Path, workers: int) -> pd.DataFrame:
    """Return the cells still to be run with the FLOP and seconds to expect.

    Returns
    -------
    DataFrame
        One row for each cell: task, base_model, method, finetune_examples, runs, flops, seconds.
    """
    jobs = jobs_of(recipe, table)
    per_second = speed(rows_of(table)) * workers
    rows = []
    for job in jobs:
        flops = expected_flops(job, recipe.budget)
        cell = job.cell
        rows.append(
            {
                "task": cell.task.name,
                "base_model": cell.base.name,
                "method": cell.method.label,
                "method_setting": cell.method.setting,
                "finetune_examples": cell.examples,
                "runs": len(job.seeds),
                "flops": flops,
                "seconds": flops / per_second,
            }
        )
    names = "task base_model method method_setting finetune_examples runs flops seconds"
    return pd.DataFrame(rows, columns=names.split())


# --------------------------------------------------------------------------- in a worker


@lru_cache(maxsize=8)
def _encoded(task: TaskSource, base: BaseModel, budget: Budget, cache: Path) -> Encoded:
    return in_tokens(task, base, budget, cache)


def prepare(base: BaseModel, cells: Sequence[Cell], budget: Budget, cache: Path) -> None:
    """Get a base model and the text of its cells ready, and refuse what cannot be run."""
    threads(1)
    loaded = load_base(base, cache)
    for cell in cells:
        check(loaded, _encoded(cell.task, base, budget, cache), cell.method, cell.examples)


def prepare_all(recipe: Recipe, cache: Path, say: Callable[[str], None]) -> None:
    """Get every base model and text of a recipe ready, one after the other, and say how fast."""
    by_base: dict[BaseModel, list[Cell]] = {}
    for cell in recipe.cells:
        by_base.setdefault(cell.base, []).append(cell)
    for base, cells in by_base.items():
        started, told = time.perf_counter(), False

        def progress(share: float, base: BaseModel = base, started: float = started) -> None:
            nonlocal told
            if not told and share >= CALIBRATED:
                told = True
                whole = (time.perf_counter() - started) / share
                say(f"{base.name}: pre-training will take about {whole:.0f} s.")

        load_base(base, cache, progress)
        prepare(base, cells, recipe.budget, cache)
        say(f"{base.name}: ready after {time.perf_counter() - started:.0f} s.")


# What a mark says while several runs are under way.
IN_A_STACK = ""


def groups_of(jobs: Iterable[Job], device: str) -> list[tuple[Job, ...]]:
    """Return what each worker makes at a time: jobs in a row whose runs may train side by side.

    On a CPU, where that brings little, the jobs are shared out one by one.
    """
    if device == "cpu":
        return [(job,) for job in jobs]
    return [
        tuple(group)
        for _, group in groupby(jobs, lambda j: (j.cell.task, j.cell.base, j.cell.method.label))
    ]


def in_worker(
    jobs: Sequence[Job], budget: Budget, table: Path, cache: Path, marks: Path, stacked: bool
) -> list[str]:
    """Do `work`, leaving a mark of the run under way that only a violent end leaves behind."""
    try:
        return work(jobs, budget, table, cache, marks / str(os.getpid()), stacked=stacked)
    except SystemExit:  # the pool would take it for an answer and begin the next job
        os._exit(1)


def work(
    jobs: Sequence[Job],
    budget: Budget,
    table: Path,
    cache: Path,
    mark: Path | None = None,
    *,
    stacked: bool = True,
) -> list[str]:
    """Make the runs of jobs and append their rows; return the reasons of those that failed.

    The jobs have task, base model and method label in common. Where it is faster, and ``stacked``
    allows it, their runs train side by side, else one after the other.
    """
    threads(1)
    failures: list[str] = []
    if stacked:
        with marked(mark, IN_A_STACK):
            jobs = side_by_side(jobs, budget, table, cache, failures)
    for job in jobs:
        while job.seeds:
            with marked(mark, job.cell.run_id(job.seeds[0])):
                made = attempt(job.cell, job.seeds[0], job.rates, budget, table, cache)
            job = landed(job, *made, table, cache, failures)
    return failures


def landed(
    job: Job,
    result: Result | None,
    status: str,
    reason: str,
    table: Path,
    cache: Path,
    failures: list[str],
) -> Job:
    """Append the row of a job's first missing run; return what of the job is left."""
    seed = job.seeds[0]
    extra: dict[str, object] = {"reason": reason}
    left = replace(job, seeds=job.seeds[1:])
    if result is None:
        failures.append(f"{job.cell.run_id(seed)}: {reason}")
    else:
        extra |= result.columns
        if job.candidates is not None:
            extra |= {"rate_candidates": job.candidates, "rate_at_edge": job.at_edge}
        elif result.columns["learning_rate"] is not None:
            left = replace(
                left,
                rates=(float(str(result.columns["learning_rate"])),),
                candidates=int(str(result.columns["rate_candidates"])),
                at_edge=bool(result.columns["rate_at_edge"]),
            )
    append_row(table, job.cell, seed, status, result, extra, cache)
    return left


def side_by_side(
    jobs: Sequence[Job], budget: Budget, table: Path, cache: Path, failures: list[str]
) -> list[Job]:
    """Make runs in a stack, if that is faster, and return what is left to be made one by one."""
    cells = [job.cell for job in jobs if job.cell.examples]
    runs = sum(len(job.rates) + len(job.seeds) - 1 for job in jobs if job.cell.examples)
    if runs < 2:
        return list(jobs)
    left = {job.cell: job for job in jobs}
    asked: dict[Ask, Job] = {}
    waiting: deque[Ask] = deque()

    def ask(job: Job) -> None:
        # A search comes first and alone; once a rate is known, all seeds may train.
        seeds = job.seeds[:1] if job.candidates is None else job.seeds
        for seed in seeds:
            wanted = Ask(
                method=job.cell.method,
                examples=job.cell.examples,
                rates=job.rates,
                seed=seed,
                checkpoint=state_of(job.cell, seed, budget, table, cache),
            )
            asked[wanted] = replace(job, seeds=(seed,))
            waiting.append(wanted)

    try:
        base = load_base(cells[0].base, cache)
        task = _encoded(cells[0].task, cells[0].base, budget, cache)
        widest = max((cell.method for cell in cells), key=lambda method: method.setting)
        places = places_for(base, task, widest, budget)
        if places == 1:
            return list(jobs)
        for job in jobs:
            if job.cell.examples:
                ask(job)
        for wanted, made in run_stack(
            base, task, waiting, budget, widest=widest, places=min(places, runs)
        ):
            one = asked.pop(wanted)
            result = None if isinstance(made, Diverged) else scored(made, task, base, budget)
            status, reason = ("diverged", str(made)) if result is None else ("done", "")
            after = landed(one, result, status, reason, table, cache, failures)
            rest = tuple(seed for seed in left[one.cell].seeds if seed != wanted.seed)
            left[one.cell] = replace(after, seeds=rest)
            if one.candidates is None:
                ask(left[one.cell])
    except Exception as error:  # one by one it may go well, or a row will say why not
        warnings.warn(f"runs go on one by one: {reason_of_failure(error)}.", stacklevel=2)
    return list(left.values())


@contextmanager
def marked(mark: Path | None, name: str) -> Iterator[None]:
    """Keep a file with the name of the run under way."""
    if mark is None:
        yield
        return
    mark.write_text(name)
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


def state_of(cell: Cell, seed: int, budget: Budget, table: Path, cache: Path) -> Path:
    """Return where the state of a run is kept while it trains."""
    # Whatever would make it another run, or the run of another sweep, is in the name of its state.
    identity = repr((cell, seed, budget, str(table.resolve())))
    return cache / "running" / hashlib.sha256(identity.encode()).hexdigest()[:16]


def scored(result: Result, task: Encoded, base: Loaded, budget: Budget) -> Result:
    """Add the scores of generated text to what a run measured, if they are asked for."""
    if not budget.generate:
        return result
    found = scores(result.tuned, task, base.tokenizer, budget.generate, best_device())
    return replace(result, columns={**result.columns, **found})


def attempt(
    cell: Cell, seed: int, rates: tuple[float, ...], budget: Budget, table: Path, cache: Path
) -> tuple[Result | None, str, str]:
    """Make one run; return what it measured, its status and, if it failed, why."""
    try:
        base = load_base(cell.base, cache)
        task = _encoded(cell.task, cell.base, budget, cache)
        result = run(
            base,
            task,
            cell.method,
            examples=cell.examples,
            rates=rates,
            seed=seed,
            budget=budget,
            checkpoint=state_of(cell, seed, budget, table, cache),
        )
        result = scored(result, task, base, budget)
    except Diverged as error:
        return None, "diverged", str(error)
    except Exception as error:  # whatever it is, the row says so and the sweep goes on
        return None, "failed", reason_of_failure(error)
    return result, "done", ""


def append_row(
    table: Path,
    cell: Cell,
    seed: int,
    status: str,
    result: Result | None,
    extra: Mapping[str, object],
    cache: Path,
) -> None:
    """Append the row of one run."""
    columns = dict(extra)
    base = cell.base
    size = base.size if isinstance(base, Rung) else load_base(base, cache).size
    trained = columns.get("trainable_params")
    row = Run(
        run_id=cell.run_id(seed),
        task=cell.task.name,
        method=cell.method.label,
        base_model=base.name,
        family=base.family,
        model_size=float(size),
        pretrain_tokens=base.pretrain_tokens,
        pet_params=0.0 if isinstance(cell.method, FMT) else _number(trained),
        finetune_examples=float(cell.examples),
        loss=None if result is None else result.loss,
        loss_se=None if result is None else result.loss_se,
        seed=seed,
        status=status,
        train_flops=_number(columns.pop("train_flops", None)),
        gpu_seconds=_number(columns.pop("gpu_seconds", None)),
        tokens_per_second=_number(columns.pop("tokens_per_second", None)),
        mfu=_number(columns.pop("mfu", None)),
    )
    append_run(table, row, extra=columns)


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))


# --------------------------------------------------------------------------- the sweep


@dataclass(frozen=True, slots=True)
class Summary:
    """What a sweep did.

    Parameters
    ----------
    made, skipped : int
        Rows appended, and runs that the table held before.
    failures : tuple of str
        Each failed or diverged run with its reason.
    seconds : float
        Wall time.
    """

    made: int
    skipped: int
    failures: tuple[str, ...]
    seconds: float


@contextmanager
def claimed(table: Path) -> Iterator[None]:
    """Keep other sweeps from a table; the claim ends with the process, however it ends.

    Raises
    ------
    TrainingError
        If another sweep has it, or the table cannot be written.
    """
    folder = table.resolve().parent
    if not folder.is_dir():
        raise TrainingError(f"'{table}' cannot be written: there is no folder '{folder}'.")
    if table.is_dir() or table.suffix.lower() not in (".csv", ".parquet"):
        raise TrainingError(f"'{table}' must be a .csv or .parquet file to hold a run table.")
    if table.exists() and not os.access(table, os.W_OK):
        raise TrainingError(f"'{table}' cannot be written: it is read-only.")
    try:
        lock = os.open(folder / f".{table.name}.sweep.lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise TrainingError(f"'{table}' cannot be written: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"another sweep is writing '{table}'.") from None
        yield
    finally:
        os.close(lock)


def sweep(
    recipe: Recipe,
    table: str | Path,
    *,
    workers: int = 1,
    cache: Path | None = None,
    progress: bool = False,
) -> Summary:
    """Make the runs of a recipe that a table does not hold, and append them to it.

    Parameters
    ----------
    recipe : Recipe
        What to run.
    table : str or Path
        CSV or Parquet file; it need not exist.
    workers : int
        Processes, each with one thread.
    cache : Path, optional
        Folder of text, base models and interrupted runs; by default `default_cache`.
    progress : bool
        Show a bar with the time left.

    Raises
    ------
    TrainingError
        If something cannot be run at all, before any run is made.
    """
    table, cache = Path(table), cache or default_cache()
    if workers < 1:
        raise TrainingError(f"a sweep needs at least one worker, not {workers}.")
    started = time.perf_counter()
    with claimed(table):
        jobs = jobs_of(recipe, table)
        runs = sum(len(job.seeds) for job in jobs)
        skipped = len(recipe.cells) * len(recipe.seeds) - runs
        failures: list[str] = []
        stacked = True
        while jobs:
            (cache / "running").mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=cache / "running") as marks:
                try:
                    failures += _make(
                        jobs, recipe, table, workers, cache, Path(marks), progress, stacked
                    )
                    break
                except BrokenProcessPool:
                    failures += _killed(jobs, recipe, table, cache, Path(marks))
                    stacked = False  # which of a stack's runs was too large shows one by one
            jobs = jobs_of(recipe, table)
    return Summary(runs, skipped, tuple(failures), time.perf_counter() - started)


def _make(
    jobs: Sequence[Job],
    recipe: Recipe,
    table: Path,
    workers: int,
    cache: Path,
    marks: Path,
    progress: bool,
    stacked: bool,
) -> list[str]:
    """Make the runs of jobs and return what is to be said of those without a loss."""
    by_base: dict[BaseModel, list[Cell]] = {}
    for job in jobs:
        by_base.setdefault(job.cell.base, []).append(job.cell)
    with pool_of(workers) as pool, bar(progress) as show:
        ready = [
            (pool.submit(prepare, base, cells, recipe.budget, cache), 1.0, 1)
            for base, cells in by_base.items()
        ]
        collect(ready, show, "base models")
        made = [
            (
                pool.submit(in_worker, group, recipe.budget, table, cache, marks, stacked),
                sum(expected_flops(job, recipe.budget) for job in group),
                sum(len(job.seeds) for job in group),
            )
            for group in groups_of(jobs, best_device())
        ]
        return [reason for reasons in collect(made, show, "runs") for reason in reasons]


def _killed(
    jobs: Sequence[Job], recipe: Recipe, table: Path, cache: Path, marks: Path
) -> list[str]:
    """Append a row for each run whose worker was killed, as the system does when memory is out.

    Raises
    ------
    TrainingError
        If no run was under way: another try would end alike.
    """
    names = {path.read_text() for path in marks.iterdir()}
    reason = "killed by the system, as it does when out of memory"
    found = []
    for cell, seed in ((job.cell, seed) for job in jobs for seed in job.seeds):
        if (name := cell.run_id(seed)) in names and name not in rows_of(table).index:
            append_row(table, cell, seed, "failed", None, {"reason": reason}, cache)
            found.append(f"{name}: {reason}")
    if not found and IN_A_STACK not in names:
        raise TrainingError(
            f"a worker of recipe '{recipe.name}' was killed while getting base models and text "
            "ready, perhaps for want of memory."
        )
    return found


@contextmanager
def pool_of(workers: int) -> Iterator[Executor]:
    """Open worker processes, and end them at once if anything goes wrong."""
    # Forking a process that has used torch's threads can hang it.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_obey_the_parent, initargs=(os.getpid(),)
    )
    try:
        yield pool
    except BaseException:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        raise
    pool.shutdown()


def _obey_the_parent(parent: int) -> None:
    # Ctrl-C reaches every process of a terminal; the parent alone decides what it means. An exit
    # rather than sudden death lets a worker clear away a file that it has half written.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    # A worker that outlived a killed sweep would write into the table of the next one.
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


@contextmanager
def bar(shown: bool) -> Iterator[Progress]:
    """Open a progress bar on the error stream."""
    from rich.console import Console

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]} of {task.fields[all]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        yield progress


def collect[T](
    tasks: Iterable[tuple[Future[T], float, int]], progress: Progress, what: str
) -> list[T]:
    """Wait for tasks and return what they did, in their order; the bar moves by their weights."""
    tasks = list(tasks)
    line = progress.add_task(
        what, total=sum(t[1] for t in tasks), done=0, all=sum(t[2] for t in tasks)
    )
    facts = {future: (weight, count) for future, weight, count in tasks}
    pending, done = set(facts), 0
    while pending:
        finished, pending = wait(pending, return_when="FIRST_COMPLETED")
        for future in finished:
            try:
                future.result()
            except ValueError as error:
                if not isinstance(error, TrainingError | RunTableError):
                    raise
                # Raised anew, so that it is seen to come from here and not from the pool.
                raise TrainingError(str(error)) from error
            done += facts[future][1]
            progress.update(line, advance=facts[future][0], done=done)
    return [future.result() for future, _, _ in tasks]
