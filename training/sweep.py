"""A sweep: every run of a recipe that the table does not hold yet, one row as each ends.

Each worker is a process with one thread. It takes a cell, makes its runs one after the other and
appends their rows itself, so that whatever stops the sweep costs no more than the runs under way;
those keep their state too, if they are long, and go on from it. On Ray
(`tunecast.training.cluster`) workers hand their rows to the one process that writes.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tunecast.models.errors import TunecastError
from tunecast.models.files import default_cache, locked
from tunecast.models.runs import (
    Run,
    append_run,
    has_runs,
    is_url,
    read_runs,
    shown,
)
from tunecast.training.examples import Budget, Encoded
from tunecast.training.ladder import (
    BaseModel,
    Hub,
    Loaded,
    Rung,
    best_device,
    body_size,
    load_base,
    outline,
)
from tunecast.training.loop import Diverged
from tunecast.training.methods import FMT
from tunecast.training.offline import in_tokens
from tunecast.training.processes import obey_the_parent
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
from tunecast.training.sharded import run_sharded
from tunecast.training.tasks import TaskSource

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


def jobs_of(recipe: Recipe, table: str | Path) -> list[Job]:
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


def rows_of(table: str | Path) -> pd.DataFrame:
    """Return the rows of a table by run, none if there is no table yet."""
    if not has_runs(table):
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
    TunecastError
        If the plan cannot be read or a row fits no cell, or several, of the recipe.
    """
    try:
        table = pd.read_csv(plan)
    except (OSError, ValueError) as error:
        raise TunecastError(f"the plan '{plan}' cannot be read: {error}.") from error
    if missing := [name for name in ("method", "finetune_examples") if name not in table]:
        raise TunecastError(f"the plan '{plan}' has no column '{missing[0]}'.")
    cells: dict[Cell, None] = {}
    for number, row in enumerate(table.to_dict("records"), start=1):
        asked = {str(name): value for name, value in row.items() if not pd.isna(value)}
        kinds = {
            (cell.task, cell.base, cell.method) for cell in recipe.cells if _matches(cell, asked)
        }
        if len(kinds) != 1:
            found = "no cell" if not kinds else f"{len(kinds)} kinds of cells"
            raise TunecastError(
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


def hub_size(base: Hub) -> int:
    """Return the parameters of a model of the hub from its configuration alone."""
    return int(outline(base.path, base.name).num_parameters())


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


def forecast_cost(recipe: Recipe, table: str | Path, workers: int) -> pd.DataFrame:
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


@dataclass(frozen=True, slots=True)
class Setting:
    """What all jobs of a sweep share.

    Parameters
    ----------
    budget : Budget
        Of every run.
    table : str or Path
        Where the rows go.
    cache : Path
        Folder of text, base models and interrupted runs.
    shards : int
        Processes, each with a GPU, that make a run together.
    stacked : bool
        Whether runs may train side by side.
    """

    budget: Budget
    table: str | Path
    cache: Path
    shards: int = 1
    stacked: bool = True


@lru_cache(maxsize=8)
def _encoded(task: TaskSource, base: BaseModel, budget: Budget, cache: Path) -> Encoded:
    return in_tokens(task, base, budget, cache)


def prepare(base: BaseModel, cells: Sequence[Cell], budget: Budget, cache: Path) -> None:
    """Get a base model and the text of its cells ready, and refuse what cannot be run."""
    threads(1)
    loaded = load_base(base, cache)
    for cell in cells:
        check(loaded, _encoded(cell.task, base, budget, cache), cell.method, cell.examples)


def by_base(cells: Iterable[Cell]) -> dict[BaseModel, list[Cell]]:
    """Return the cells of each base model, in their order."""
    found: dict[BaseModel, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.base, []).append(cell)
    return found


def prepare_all(recipe: Recipe, cache: Path, say: Callable[[str], None]) -> None:
    """Get every base model and text of a recipe ready, one after the other, and say how fast."""
    for base, cells in by_base(recipe.cells).items():
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


def in_worker(jobs: Sequence[Job], setting: Setting, marks: Path) -> list[str]:
    """Do `work`, leaving a mark of the run under way that only a violent end leaves behind."""
    try:
        return work(jobs, setting, marks / str(os.getpid()))
    except SystemExit:  # the pool would take it for an answer and begin the next job
        os._exit(1)


def work(jobs: Sequence[Job], setting: Setting, mark: Path | None = None) -> list[str]:
    """Make the runs of jobs and append their rows; return what is to be said of the failed."""
    failures = []
    for row, extra in rows_made(jobs, setting, mark):
        append_run(setting.table, row, extra=extra)
        failures += failure(row, extra)
    return failures


def identity(table: str | Path) -> str:
    """Return what tells the interrupted runs of one table from those of others, no password."""
    return shown(table) if is_url(table) else str(Path(table).resolve())


def failure(row: Run, extra: Mapping[str, object]) -> list[str]:
    """Return the sentence on a row that has no loss, none for one that has."""
    return [] if row.status == "done" else [f"{row.run_id}: {extra['reason']}"]


# A row and its further columns.
type Row = tuple[Run, dict[str, object]]


def rows_made(jobs: Sequence[Job], setting: Setting, mark: Path | None = None) -> Iterator[Row]:
    """Make the runs of jobs and give the row of each as it ends.

    The jobs have task, base model and method label in common. Where it is faster, and the setting
    allows it, their runs train side by side, else one after the other.

    Parameters
    ----------
    jobs : sequence of Job
        What to run.
    setting : Setting
        How; the table is not written.
    mark : Path, optional
        File in which to keep the name of the run under way.
    """
    threads(1)
    if setting.stacked and setting.shards == 1:
        with marked(mark, IN_A_STACK):
            jobs = yield from side_by_side(jobs, setting)
    for job in jobs:
        while job.seeds:
            with marked(mark, job.cell.run_id(job.seeds[0])):
                made = attempt(job.cell, job.seeds[0], job.rates, setting)
            job, row = landed(job, *made)
            yield row


def landed(job: Job, result: Result | None, status: str, reason: str) -> tuple[Job, Row]:
    """Return what is left of a job after its first missing run, and the row of that."""
    seed = job.seeds[0]
    extra: dict[str, object] = {"reason": reason}
    left = replace(job, seeds=job.seeds[1:])
    if result is not None:
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
    return left, row_of(job.cell, seed, status, result, extra)


def side_by_side(jobs: Sequence[Job], setting: Setting) -> Generator[Row, None, Sequence[Job]]:
    """Make runs in a stack, if that is faster, and return what is left to be made one by one."""
    budget, cache = setting.budget, setting.cache
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
                checkpoint=state_of(job.cell, seed, setting),
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
            after, row = landed(one, result, status, reason)
            rest = tuple(seed for seed in left[one.cell].seeds if seed != wanted.seed)
            left[one.cell] = replace(after, seeds=rest)
            if one.candidates is None:
                ask(left[one.cell])
            yield row
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


def state_of(cell: Cell, seed: int, setting: Setting) -> Path:
    """Return where the state of a run is kept while it trains."""
    # Whatever would make it another run, or the run of another sweep, is in the name of its state.
    name = repr((cell, seed, setting.budget, identity(setting.table)))
    return setting.cache / "running" / hashlib.sha256(name.encode()).hexdigest()[:16]


def scored(result: Result, task: Encoded, base: Loaded, budget: Budget) -> Result:
    """Add the scores of generated text to what a run measured, if they are asked for."""
    if not budget.generate or result.tuned is None:
        return result
    found = scores(result.tuned, task, base.tokenizer, budget.generate, best_device())
    return replace(result, columns={**result.columns, **found})


def attempt(
    cell: Cell, seed: int, rates: tuple[float, ...], setting: Setting
) -> tuple[Result | None, str, str]:
    """Make one run; return what it measured, its status and, if it failed, why."""
    budget, cache = setting.budget, setting.cache
    make = run if setting.shards == 1 else partial(run_sharded, shards=setting.shards)
    try:
        base = load_base(cell.base, cache)
        task = _encoded(cell.task, cell.base, budget, cache)
        result = make(
            base,
            task,
            cell.method,
            examples=cell.examples,
            rates=rates,
            seed=seed,
            budget=budget,
            checkpoint=state_of(cell, seed, setting),
        )
        result = scored(result, task, base, budget)
    except Diverged as error:
        return None, "diverged", str(error)
    except Exception as error:  # whatever it is, the row says so and the sweep goes on
        return None, "failed", reason_of_failure(error)
    return result, "done", ""


def row_of(
    cell: Cell,
    seed: int,
    status: str,
    result: Result | None,
    extra: Mapping[str, object],
) -> Row:
    """Return the row of one run and its further columns."""
    columns = dict(extra)
    base = cell.base
    size = base.size if isinstance(base, Rung) else body_size(outline(base.path, base.name))
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
    return row, columns


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))


# --------------------------------------------------------------------------- the sweep


@dataclass(frozen=True, slots=True)
class Summary:
    """What a sweep did.

    Parameters
    ----------
    made, skipped, elsewhere : int
        Rows appended, runs that the table held before, and runs left to another sweep that makes
        them at the time.
    failures : tuple of str
        Each failed or diverged run with its reason.
    seconds : float
        Wall time.
    """

    made: int
    skipped: int
    elsewhere: int
    failures: tuple[str, ...]
    seconds: float


@contextmanager
def claimed(table: str | Path, cells: Sequence[str] = ()) -> Iterator[frozenset[str]]:
    """Keep other sweeps from a table; the claim ends with the process, however it ends.

    A file, SQLite's too, belongs to one sweep. Several sweeps may write to a server, each its own
    cells: those that another sweep makes at the time are not in what is given.

    Parameters
    ----------
    table : str or Path
        The run table.
    cells : sequence of str
        Names of the cells to make.

    Raises
    ------
    TunecastError
        If another sweep has a file, or it cannot be written.
    """
    if is_url(table):
        # Here, so that files need no SQLAlchemy.
        from tunecast.models.runs.database import claimed_of, sqlite_file

        file = sqlite_file(str(table))
        if file is None:
            with claimed_of(str(table), cells) as granted:
                yield granted
            return
    else:
        file = Path(table)
        if file.is_dir() or file.suffix.lower() not in (".csv", ".parquet"):
            raise TunecastError(
                f"'{table}' must be a .csv or .parquet file, or the URL of a database, to hold a "
                "run table."
            )
    with _claimed_file(file):
        yield frozenset(cells)


@contextmanager
def _claimed_file(table: Path) -> Iterator[None]:
    folder = table.resolve().parent
    if not folder.is_dir():
        raise TunecastError(f"'{table}' cannot be written: there is no folder '{folder}'.")
    if table.exists() and not os.access(table, os.W_OK):
        raise TunecastError(f"'{table}' cannot be written: it is read-only.")
    with ExitStack() as held:
        try:
            held.enter_context(locked(table, what="sweep", wait=False))
        except BlockingIOError:
            raise TunecastError(f"another sweep is writing '{table}'.") from None
        except OSError as error:
            raise TunecastError(f"'{table}' cannot be written: {error.strerror}.") from error
        yield


def sweep(
    recipe: Recipe,
    table: str | Path,
    *,
    workers: int = 1,
    ray: str | None = None,
    gpus: float | None = None,
    cache: Path | None = None,
    progress: bool = False,
) -> Summary:
    """Make the runs of a recipe that a table does not hold, and append them to it.

    Parameters
    ----------
    recipe : Recipe
        What to run.
    table : str or Path
        CSV or Parquet file, or the URL of a database; it need not exist.
    workers : int
        Processes, each with one thread.
    ray : str, optional
        Run on Ray: ``"local"`` for this machine, ``"auto"`` for the cluster that it belongs to, or
        the cluster's address. All machines need this package, and the cache under the same path;
        with a shared one a run goes on wherever it is tried again.
    gpus : float, optional
        GPUs of a run; by default one where there is one. Several share a run, its model and
        optimizer cut into as many pieces; parts of one need Ray.
    cache : Path, optional
        Folder of text, base models and interrupted runs; by default `default_cache`.
    progress : bool
        Show a bar with the time left.

    Raises
    ------
    TunecastError
        If something cannot be run at all, before any run is made.
    """
    cache = cache or default_cache()
    shards = _shards(workers, ray, gpus)
    if shards > 1 and recipe.budget.generate:
        raise TunecastError(f"recipe '{recipe.name}' generates text, which one GPU alone can do.")
    started = time.perf_counter()
    with claimed(table, [cell.run_id(0) for cell in recipe.cells]) as mine:
        ours = [cell for cell in recipe.cells if cell.run_id(0) in mine]
        elsewhere = len(recipe.cells) - len(ours)
        jobs = jobs_of(replace(recipe, cells=tuple(ours)), table) if ours else []
        runs = sum(len(job.seeds) for job in jobs)
        skipped = len(ours) * len(recipe.seeds) - runs
        setting = Setting(recipe.budget, table, cache, shards)
        with bar(progress) as show:
            if not jobs:
                failures = []
            elif ray is None:
                failures = _make_here(jobs, recipe, setting, workers, show)
            else:
                failures = _make_on_ray(jobs, recipe, setting, workers, ray, gpus, show)
    seconds = time.perf_counter() - started
    return Summary(runs, skipped, elsewhere * len(recipe.seeds), tuple(failures), seconds)


def _shards(workers: int, ray: str | None, gpus: float | None) -> int:
    """Return into how many pieces a run's model is cut; refuse what cannot be had."""
    if workers < 1:
        raise TunecastError(f"a sweep needs at least one worker, not {workers}.")
    if ray not in (None, "local") and workers > 1:
        raise TunecastError("a Ray cluster decides itself how many workers there are.")
    if gpus is None:
        return 1
    if not 0 <= gpus < math.inf or (gpus > 1 and gpus != int(gpus)):
        raise TunecastError(f"a run takes a part of a GPU or a whole number of them, not {gpus:g}.")
    if ray is None:
        if gpus not in (0, 1) and (gpus < 1 or workers > 1):
            raise TunecastError(
                f"{workers} workers with {gpus:g} GPUs each have to be scheduled by Ray: add --ray."
            )
        if gpus > (here := gpus_here()):
            raise TunecastError(f"a run asks for {gpus:g} GPUs, but this machine has {here}.")
    return max(1, int(gpus))


def gpus_here() -> int:
    """Return how many GPUs this machine lets us see."""
    import torch

    return torch.cuda.device_count()


def _make_here(
    jobs: Sequence[Job], recipe: Recipe, setting: Setting, workers: int, show: Progress
) -> list[str]:
    """Make the runs of jobs on this machine; return what is to be said of those without a loss."""
    failures: list[str] = []
    (setting.cache / "running").mkdir(parents=True, exist_ok=True)
    while jobs:
        with TemporaryDirectory(dir=setting.cache / "running") as folder:
            marks = Path(folder)
            try:
                with pool_of(workers) as pool:
                    ready = [
                        (pool.submit(prepare, *call), 1.0, 1)
                        for call in preparations(jobs, setting)
                    ]
                    collect(ready, show, "base models")
                    made = [
                        (
                            pool.submit(in_worker, group, setting, marks),
                            sum(expected_flops(job, setting.budget) for job in group),
                            sum(len(job.seeds) for job in group),
                        )
                        for group in groups_of(jobs, best_device())
                    ]
                    said = collect(made, show, "runs")
                    return failures + [reason for reasons in said for reason in reasons]
            except BrokenProcessPool:
                failures += _killed(jobs, recipe, setting.table, marks)
                # Which of a stack's runs was too large shows one by one.
                setting = replace(setting, stacked=False)
        jobs = _rest(jobs, recipe, setting.table)
    return failures


def preparations(
    jobs: Sequence[Job], setting: Setting
) -> list[tuple[BaseModel, list[Cell], Budget, Path]]:
    """Return the arguments of `prepare` for each base model of some jobs."""
    grouped = by_base(job.cell for job in jobs)
    return [(base, cells, setting.budget, setting.cache) for base, cells in grouped.items()]


def _rest(jobs: Sequence[Job], recipe: Recipe, table: str | Path) -> list[Job]:
    """Return what is left of jobs by now."""
    return jobs_of(replace(recipe, cells=tuple(job.cell for job in jobs)), table)


def _make_on_ray(
    jobs: Sequence[Job],
    recipe: Recipe,
    setting: Setting,
    workers: int,
    address: str,
    gpus: float | None,
    show: Progress,
) -> list[str]:
    """Make the runs of jobs on Ray and write the rows that come back."""
    from tunecast.training import cluster

    failures: list[str] = []
    table = setting.table
    remote = replace(setting, table=identity(table))
    lost: Counter[str] = Counter()
    with cluster.connected(address, workers):
        each = cluster.gpus_for(gpus)
        calls = preparations(jobs, remote)
        line = show.add_task("base models", total=len(calls), done=0, all=len(calls))
        for done, _ in enumerate(cluster.each_done(prepare, calls, each), start=1):
            show.update(line, completed=done, done=done)
        weights = {
            job.cell.run_id(seed): expected_flops(job, setting.budget) / len(job.seeds)
            for job in jobs
            for seed in job.seeds
        }
        runs, total = len(weights), sum(weights.values())
        line = show.add_task("runs", total=total, done=0, all=runs)
        streams = cluster.Streams(rows_made, each)
        # A run on several GPUs trains by itself, and on a CPU stacks bring little.
        for group in groups_of(jobs, "cuda" if 0 < each <= 1 else "cpu"):
            streams.add(group, group, remote)
        alone = replace(remote, stacked=False)
        made = 0
        for group, item in streams:
            rows = [] if isinstance(item, cluster.Lost) else [item]
            if isinstance(item, cluster.Lost):
                # One by one, it shows which run of a stack takes its worker down.
                left = deque(_rest(group, recipe, table))
                while left:
                    job = left.popleft()
                    name = job.cell.run_id(job.seeds[0])
                    lost[name] += 1
                    if lost[name] < cluster.LOSSES or len(group) > 1:
                        streams.add((job,), (job,), alone)
                        continue
                    reason = f"lost its worker {lost[name]} times ({item.reason})"
                    rows.append(row_of(job.cell, job.seeds[0], "failed", None, {"reason": reason}))
                    if len(job.seeds) > 1:
                        left.append(replace(job, seeds=job.seeds[1:]))
            for row, extra in rows:
                append_run(table, row, extra=extra)
                failures += failure(row, extra)
                made += 1
                show.update(line, advance=weights[row.run_id], done=made)
    return failures


def _killed(jobs: Sequence[Job], recipe: Recipe, table: str | Path, marks: Path) -> list[str]:
    """Append a row for each run whose worker was killed, as the system does when memory is out.

    Raises
    ------
    TunecastError
        If no run was under way: another try would end alike.
    """
    names = {path.read_text() for path in marks.iterdir()}
    reason = "killed by the system, as it does when out of memory"
    found = []
    for cell, seed in ((job.cell, seed) for job in jobs for seed in job.seeds):
        if (name := cell.run_id(seed)) in names and name not in rows_of(table).index:
            row, extra = row_of(cell, seed, "failed", None, {"reason": reason})
            append_run(table, row, extra=extra)
            found += failure(row, extra)
    if not found and IN_A_STACK not in names:
        raise TunecastError(
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
        workers, mp_context=context, initializer=obey_the_parent, initargs=(os.getpid(),)
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
                if not isinstance(error, TunecastError):
                    raise
                # Raised anew, so that it is seen to come from here and not from the pool.
                raise TunecastError(str(error)) from error
            done += facts[future][1]
            progress.update(line, advance=facts[future][0], done=done)
    return [future.result() for future, _, _ in tasks]
