"""The command line: one command for each question, a thin shell on `tunecast.models`.

Exit codes: 0 done; 1 a fault of tunecast itself, with a traceback; 2 input that cannot be used, in
one sentence for each fault; 3 the fit did not converge; 130 interrupted.

The heavy imports stand inside the functions, so that ``tunecast --help`` answers at once.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tunecast.models.errors import TunecastError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from tunecast.models import Fit, Plan

# The option that names a table of rows, what they are, and what to say where it is missing.
TARGETS = ("--at", "targets", "say what to forecast: --at TARGETS.csv")
CANDIDATES = ("--candidates", "runs", "say what could be run: --candidates TABLE")
FIT_SUFFIXES = (".nc",)
REPORT_SUFFIXES = {"html": (".html", ".htm"), "md": (".md",)}
PICTURE_SUFFIXES = (".png", ".pdf", ".svg")

app = typer.Typer(
    name="tunecast",
    help="Forecast the loss of fine-tuning runs, compare methods, and say how sure it is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # a usage error is then a sentence, not a box
)


class ReportFormat(StrEnum):
    """What a report is written as."""

    html = "html"
    md = "md"


class NotConverged(RuntimeError):
    """A fit that did not converge: exit code 3."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    try:
        app(args=arguments, prog_name="tunecast")
    except NotConverged as error:
        _say(str(error))
        sys.exit(3)
    except (TunecastError, OSError) as error:
        for sentence in _sentences(error):
            _say(sentence)
        sys.exit(2)
    sys.exit(0)


def _sentences(error: BaseException) -> list[str]:
    if isinstance(error, OSError) and error.strerror:
        whose = f"'{error.filename}': " if error.filename else ""
        lines = [whose + error.strerror]
    else:
        lines = str(error).splitlines() or [type(error).__name__]
    return [line if line.endswith((".", "?")) else f"{line}." for line in lines]


def _say(line: str) -> None:
    typer.echo(f"tunecast: {line}", err=True)


# --------------------------------------------------------------------------- options

Runs = Annotated[
    list[str],
    typer.Argument(
        help="Run tables: CSV, Parquet, the URL of a database, or an embedded one such as ladder."
    ),
]
FitFile = Annotated[Path, typer.Argument(metavar="FIT.nc", help="A fit, saved by 'tunecast fit'.")]
Law = Annotated[str, typer.Option(help="rectified, multiplicative, additive, power, or auto.")]
Factors = Annotated[
    str | None,
    typer.Option(
        help="Columns X of the law, commas between.", show_default="model_size, none for power"
    ),
]
Data = Annotated[str, typer.Option(help="Column of the data axis D.")]
Cell = Annotated[
    str | None,
    typer.Option(
        help="Columns whose combinations have parameters of their own, commas between.",
        show_default="task,method, and family if there are several",
    ),
]
Curve = Annotated[str, typer.Option(help="Column that names the base model.")]
Where = Annotated[str | None, typer.Option(help="Use these runs alone: a condition on columns.")]
Priors = Annotated[str, typer.Option(help="weak, zhang2024, or a file of priors.")]
Draws = Annotated[int | None, typer.Option(help="Draws of each chain.", show_default="2400")]
Tune = Annotated[
    int | None, typer.Option(help="Steps of each chain before them.", show_default="500")
]
Chains = Annotated[int | None, typer.Option(help="Number of chains.", show_default="4")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same draws.")]
Unconverged = Annotated[
    bool, typer.Option("--allow-unconverged", help="Keep a fit that did not converge, marked.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="CSV or Parquet to write; without it, print the table."),
]
Plot = Annotated[Path | None, typer.Option(help="Draw the answer too: PNG, PDF or SVG.")]
By = Annotated[str | None, typer.Option(help="Also score by these columns, commas between.")]
At = Annotated[
    Path | None, typer.Option(metavar="TARGETS", help="CSV or Parquet, one row for each target.")
]
Task = Annotated[str | None, typer.Option(help="Task; not needed if the fit has one.")]
Method = Annotated[str | None, typer.Option(help="Methods, commas between; by default all.")]
ModelSize = Annotated[str | None, typer.Option(help="Model sizes such as 8e9,16e9.")]
Examples = Annotated[str | None, typer.Option(help="Data sizes such as 1e4,1e5.")]
BaseModel = Annotated[str | None, typer.Option(help="Checkpoint; without it, one not yet seen.")]
Values = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="COLUMN=VALUE", help="Any other column of the target."),
]
AnswerSeed = Annotated[
    int | None, typer.Option(help="Seed of what is drawn anew.", show_default="the fit's own")
]


# --------------------------------------------------------------------------- commands


@app.callback(invoke_without_command=True)
def _version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if show:
        typer.echo(f"tunecast {version('tunecast')}")
        raise typer.Exit


@app.command()
def fit(
    runs: Runs,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FIT.nc", help="The file to write.")
    ],
    law: Law = "rectified",
    factors: Factors = None,
    data: Data = "finetune_examples",
    cell: Cell = None,
    curve: Curve = "base_model",
    where: Where = None,
    priors: Priors = "weak",
    draws: Draws = None,
    tune: Tune = None,
    chains: Chains = None,
    seed: Seed = 0,
    allow_unconverged: Unconverged = False,
    quiet: Quiet = False,
) -> None:
    """Fit a law to run tables and save the posterior draws."""
    from tunecast.analysis.tables import check_output, show
    from tunecast.models import fit as fit_runs

    check_output(output, FIT_SUFFIXES)
    frame = _runs(runs, where)
    options = _fit_options(law, factors, data, cell, curve, priors, draws, tune, chains, seed)
    with _convergence("nothing was written; --allow-unconverged would save it, marked"):
        result = fit_runs(
            frame, **options, progress=_shows(quiet), allow_unconverged=allow_unconverged
        )
    with _writing(output):
        result.save(output)
    if not quiet:
        title = f"Law {result.info['law']}, {len(result.runs)} runs; published units"
        show(result.summary(), title=title, warnings=_marks(result))
    _say(f"wrote {output}.")
    if not result.diagnostics.converged:
        raise NotConverged(f"{_why(result)}; it was saved as asked, and is marked.")


@app.command()
def forecast(
    fit_file: FitFile,
    at: At = None,
    output: Output = None,
    task: Task = None,
    method: Method = None,
    model_size: ModelSize = None,
    examples: Examples = None,
    base_model: BaseModel = None,
    values: Values = None,
    plot: Plot = None,
    seed: AnswerSeed = None,
    ledger: Annotated[
        Path | None, typer.Option(metavar="LEDGER", help="File the forecast, dated, to score it.")
    ] = None,
) -> None:
    """Forecast the loss of runs that have not been made."""
    from tunecast.analysis.tables import check_output

    check_output(ledger)
    result = _load(fit_file, output, plot)
    options = _target_options(task, method, model_size, examples, base_model)
    targets = _rows(result, TARGETS, at, options, values, methods=True)
    answer = result.forecast(targets, seed=seed)
    columns = {
        **_target_columns(result),
        **{f"loss_q{q}": f"new run\n{quantile}" for q, quantile in _QUANTILES.items()},
        **{f"expected_q{q}": f"expected\n{quantile}" for q, quantile in _QUANTILES.items()},
        "extrapolation": "times\nbeyond data",
    }
    _answer(answer, result, output, "Loss in nats per target token", columns)
    if ledger is not None:
        from tunecast.analysis.ledger import file_forecast

        with _writing(ledger):
            count = file_forecast(ledger, answer, result)
        _say(f"filed {len(answer)} forecasts in {ledger}, which holds {count}.")
    if plot is not None:
        from tunecast.analysis.plots import forecast_figure

        _draw(forecast_figure(result, targets), plot)


@app.command()
def compare(
    fit_file: FitFile,
    at: At = None,
    output: Output = None,
    task: Task = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods to compare, commas between; by default all.")
    ] = None,
    model_size: ModelSize = None,
    examples: Examples = None,
    base_model: BaseModel = None,
    values: Values = None,
    plot: Plot = None,
) -> None:
    """Say how probable it is that each method has the lowest loss."""
    from tunecast.analysis.targets import split

    result = _load(fit_file, output, plot)
    options = _target_options(task, None, model_size, examples, base_model)
    targets = _rows(result, TARGETS, at, options, values, methods=False)
    names = split(methods) or None
    answer = result.compare(targets, methods=names)
    columns = {
        **_target_columns(result),
        "method": "method",
        "p_best": "P(best)",
        "expected_regret": "expected regret",
        **{c: f"P(beats {c[8:]})" for c in map(str, answer) if c.startswith("p_beats_")},
    }
    _answer(answer, result, output, "Which method has the lowest loss", columns)
    if plot is not None:
        from tunecast.analysis.plots import best_figure

        _draw(best_figure(result, targets, methods=names), plot)


@app.command()
def crossover(
    fit_file: FitFile,
    a: Annotated[str, typer.Option("--a", help="A method.")],
    b: Annotated[str, typer.Option("--b", help="The method that it is compared with.")],
    output: Output = None,
    task: Task = None,
    model_size: ModelSize = None,
    base_model: BaseModel = None,
    values: Values = None,
    low: Annotated[float | None, typer.Option(help="Smallest data size searched.")] = None,
    high: Annotated[float | None, typer.Option(help="Largest data size searched.")] = None,
    plot: Plot = None,
) -> None:
    """Say at which data size the better one of two methods changes, if it does."""
    from tunecast.analysis.targets import grid

    result = _load(fit_file, output, plot)
    options = _target_options(task, None, model_size, None, base_model)
    target = grid(result, options, values or (), methods=False)
    if len(target) != 1:
        raise TunecastError("crossover takes one target; give each option a single value.")
    _note_unseen(result, target)
    curve = result.info["curve"]
    place: dict[str, Any] = {str(c): target[c].iloc[0] for c in target if c != curve}
    place["base_model"] = base_model or ""
    answer = result.crossover(a, b, low=low, high=high, **place)
    columns = {
        **_target_columns(result),
        "a": "a",
        "b": "b",
        "p_none": "P(none)",
        "p_one": "P(one)",
        "p_two": "P(two)",
        "p_more": "P(more)",
        **{f"first_q{q}": f"first\n{quantile}" for q, quantile in _QUANTILES.items()},
    }
    unit = result.info["data"].replace("_", " ")
    _answer(answer, result, output, f"Where {a} and {b} cross, in {unit}", columns)
    if plot is not None:
        from tunecast.analysis.plots import crossover_figure

        _draw(crossover_figure(result, target, answer), plot)


@app.command()
def backtest(
    runs: Runs,
    train: Annotated[str, typer.Option(help="Condition on the runs that are fitted.")],
    test: Annotated[str, typer.Option(help="Condition on the runs that are forecast.")],
    output: Output = None,
    by: By = None,
    law: Law = "rectified",
    factors: Factors = None,
    data: Data = "finetune_examples",
    cell: Cell = None,
    curve: Curve = "base_model",
    where: Where = None,
    priors: Priors = "weak",
    draws: Draws = None,
    tune: Tune = None,
    chains: Chains = None,
    seed: Seed = 0,
    allow_unconverged: Unconverged = False,
    quiet: Quiet = False,
    plot: Plot = None,
) -> None:
    """Fit some runs, forecast the others, and score the forecasts by what those reached."""
    from tunecast.analysis.tables import check_output
    from tunecast.analysis.targets import split
    from tunecast.models.questions import backtest as backtest_runs

    check_output(output)
    check_output(plot, PICTURE_SUFFIXES)
    frame = _runs(runs, where)
    options = _fit_options(law, factors, data, cell, curve, priors, draws, tune, chains, seed)
    with _convergence("nothing was scored; --allow-unconverged would score it, marked"):
        scores = backtest_runs(
            frame,
            train=train,
            test=test,
            by=split(by),
            **options,
            progress=_shows(quiet),
            allow_unconverged=allow_unconverged,
        )
    _scores(scores, output, plot)
    if not scores["converged"].all():
        raise NotConverged("the fit did not converge; its scores are marked.")


@app.command()
def score(
    forecasts: Annotated[
        Path,
        typer.Argument(metavar="FORECASTS", help="A table or a ledger of 'tunecast forecast'."),
    ],
    runs: Runs,
    output: Output = None,
    by: By = None,
    plot: Plot = None,
) -> None:
    """Score forecasts by the runs that were made since."""
    from tunecast.analysis.ledger import is_ledger, open_forecasts
    from tunecast.analysis.tables import check_output, read_table
    from tunecast.analysis.targets import split
    from tunecast.models.scoring import score_table

    check_output(output)
    check_output(plot, PICTURE_SUFFIXES)
    table = read_table(forecasts)
    frame = _runs(runs, None)
    groups = split(by)
    if is_ledger(table):
        table = open_forecasts(table)
        groups = groups or ("day",)
        if table.empty:
            raise TunecastError(f"every forecast in '{forecasts}' was of runs already fitted.")
    if absent := [name for name in groups if name not in table]:
        raise TunecastError(f"'{forecasts}' has no column '{absent[0]}' to score by.")
    scores = score_table(table, frame, groups)
    # A table without the column was not made here, so nothing is known of its convergence.
    if "converged" in table:
        scores["converged"] = bool(table["converged"].all())
    if "simulated" in table or (frame["origin"] == "simulated").any():
        scores["simulated"] = True
    _scores(scores, output, plot)


@app.command()
def plan(
    fit_file: FitFile,
    candidates: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE", help="Runs that could be made: CSV or Parquet, a row for each."
        ),
    ] = None,
    goal: Annotated[str, typer.Option(help="What to learn: winner, forecast or parameters.")] = (
        "winner"
    ),
    at: Annotated[
        Path | None,
        typer.Option(metavar="TARGETS", help="CSV or Parquet: where the answer is wanted."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="What the runs may cost, in the unit of the costs.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            "--runs",
            min=1,
            help="How many runs at most.",
            show_default="20, or what the budget pays for",
        ),
    ] = None,
    cost: Annotated[
        str | None,
        typer.Option(
            help="A column of the candidates; gpu_seconds or train_flops of the fitted runs; 6ND.",
            show_default="the first of cost, those two, 6ND that there is",
        ),
    ] = None,
    tokens_per_example: Annotated[
        float, typer.Option(help="For 6ND: how many tokens an example has.")
    ] = 1.0,
    output: Output = None,
    task: Task = None,
    method: Method = None,
    model_size: ModelSize = None,
    examples: Examples = None,
    base_model: BaseModel = None,
    values: Values = None,
    plot: Plot = None,
    seed: AnswerSeed = None,
    allow_unconverged: Unconverged = False,
) -> None:
    """Say which runs to make next, for what they cost and what they would tell.

    The candidates are a table, or every combination of what --task, --method, --model-size,
    --examples and --base-model list.
    """
    from tunecast.analysis.tables import read_table, show
    from tunecast.models import plan as plan_runs

    result = _load(fit_file, output, plot)
    options = _target_options(task, method, model_size, examples, base_model)
    pool = _rows(result, CANDIDATES, candidates, options, values, methods=True)
    targets = None if at is None else read_table(at)
    answer = plan_runs(
        result, pool, goal=goal, targets=targets, budget=budget, runs=count, cost=cost,
        tokens_per_example=tokens_per_example, seed=seed, allow_unconverged=allow_unconverged,
    )  # fmt: skip
    typer.echo(f"note: costs: {answer.cost_source}.", err=True)
    typer.echo(f"note: {_greedy_note(answer)}", err=True)
    columns = {
        "rank": "rank",
        **_target_columns(result),
        "replicates": "replicates",
        "gain": "gain\n(nats)",
        "gain_se": "± s.e.",
        "cost": "cost",
        "gain_per_cost": "gain\nper cost",
        "cumulative_gain": "gain\nso far",
        "cumulative_cost": "cost\nso far",
        "width_after": "90 % width\n(nats)",
        "p_right_after": "P(right\nwinner)",
        "regret_drop": "regret drop\n(nats)",
    }
    _answer(answer.runs, result, output, f"Runs to make, for the goal {goal}", columns)
    if len(answer.outlook) and output is None:
        told = _target_columns(result) | {
            "width_before": "width\nbefore",
            "width_after": "width\nafter",
            "p_right_before": "P(right)\nbefore",
            "p_right_after": "P(right)\nafter",
            "regret_drop": "regret drop",
        }
        show(answer.outlook, title="What they are expected to bring at the targets", columns=told)
    if plot is not None:
        from tunecast.analysis.plan import plan_figure

        _draw(plan_figure(result, answer), plot)


def _greedy_note(answer: Plan) -> str:
    batch = answer.batch
    rises = batch.submodularity_violations
    grew = (
        f"; gains rose {rises} times as runs were added, so that is a guide, not a bound"
        if rises
        else ""
    )
    of = " about the differences between the methods" if answer.goal == "winner" else ""
    return (
        f"chosen by {batch.rule}; no other choice within the budget tells{of} more than "
        f"{1 / batch.share_of_best:.2f} times as much{grew}."
    )


@app.command()
def sweep(
    recipe: Annotated[
        str, typer.Argument(help="A recipe: tiny, ladder, h200, zhang2024, or FILE.py:function.")
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="RUNS", help="The run table to extend: a file or a URL."
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be run and what it costs.")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that run side by side, one thread each.")
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Run on Ray: local, auto for this machine's cluster, HOST:PORT."
        ),
    ] = None,
    gpus_per_run: Annotated[
        float | None,
        typer.Option(
            help="Several GPUs share a run; with --ray, runs share one GPU where it is below 1.",
            show_default="1 where there is one",
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="PLAN.csv", help="Run these cells of the recipe alone."),
    ] = None,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Get base models and text ready, and run nothing.")
    ] = False,
    pack: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write the recipe's text as tokens into a folder that serves as TUNECAST_CACHE on "
            "a machine without a network, and run nothing.",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Fine-tune what a recipe asks for and append a row for each run."""
    _require_training(ray)
    from tunecast.analysis.tables import show
    from tunecast.models.files import default_cache
    from tunecast.models.runs import shown
    from tunecast.training.offline import pack as pack_tokens
    from tunecast.training.recipes import find_recipe
    from tunecast.training.sweep import forecast_cost, planned, prepare_all
    from tunecast.training.sweep import sweep as make_runs

    made = find_recipe(recipe)
    if plan is not None:
        made = planned(made, plan)
    if dry_run:
        cost = forecast_cost(made, output, workers)
        total = cost[["runs", "flops", "seconds"]].sum()
        for name in ("flops", "seconds"):
            cost[name] = cost[name].map("{:.2g}".format)
        show(cost, title=f"Recipe {made.name}: cells to run")
        _say(
            f"{total['runs']:.0f} runs, about {total['flops']:.2g} FLOP and "
            f"{_duration(total['seconds'])}; base models that are not there yet come on top."
        )
        return
    if pack is not None:
        size = pack_tokens(made, pack, default_cache())
        _say(f"{pack}: {size / 1e6:.3g} MB of tokens; elsewhere set TUNECAST_CACHE to this folder.")
        return
    if prepare:
        prepare_all(made, default_cache(), _say)
        return
    found = make_runs(
        made, output, workers=workers, ray=ray, gpus=gpus_per_run, progress=_shows(quiet)
    )
    for failure in found.failures:
        _say(failure)
    elsewhere = f", {found.elsewhere} are another sweep's" if found.elsewhere else ""
    _say(
        f"{shown(output)}: {found.made} runs made in {_duration(found.seconds)}, "
        f"{len(found.failures)} of them without a loss; {found.skipped} were there{elsewhere}."
    )


def _require_training(ray: str | None) -> None:
    """Refuse, in one sentence, what needs packages that are not installed."""
    from importlib.util import find_spec

    wanted = ("torch", "transformers", "peft", "tokenizers")
    if missing := [name for name in wanted if find_spec(name) is None]:
        raise TunecastError(f"sweep needs {missing[0]}: pip install 'tunecast[train]'.")
    if ray is not None and find_spec("ray") is None:
        raise TunecastError("sweep --ray needs ray: pip install 'tunecast[cluster]'.")


def _duration(seconds: float) -> str:
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} seconds"


@app.command()
def report(
    context: typer.Context,
    fit_file: FitFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page or text to write.")
    ],
    format_: Annotated[
        ReportFormat,
        typer.Option("--format", help="A page, or Markdown with pictures and LaTeX tables beside."),
    ] = ReportFormat.html,
    at: At = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="PLAN", help="A table written by 'tunecast plan'.")
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(metavar="LEDGER", help="Earlier forecasts, to be scored by the fitted runs."),
    ] = None,
    backtest: Annotated[
        bool,
        typer.Option(
            "--backtest", help="Fit twice more, without the largest size and without the most data."
        ),
    ] = False,
) -> None:
    """Write all that a fit says as one page to decide from."""
    from tunecast.analysis.ledger import read_ledger, track_record
    from tunecast.analysis.report import contents, write_html
    from tunecast.analysis.tables import check_output, read_table

    check_output(output, REPORT_SUFFIXES[format_.value])
    result = _load(fit_file, None, None)
    targets = None if at is None else read_table(at)
    if targets is not None:
        _note_unseen(result, targets)
    told = contents(
        result,
        targets=targets,
        plan=None if plan is None else read_table(plan),
        track=None if ledger is None else track_record(read_ledger(ledger), result.runs),
        commands=_commands(result, context),
        backtest=backtest,
    )
    with _writing(output):
        if format_ is ReportFormat.html:
            write_html(told, output)
        else:
            from tunecast.analysis.report_markdown import write_markdown

            write_markdown(told, output)
    for line in _marks(result):
        _say(line)
    _say(f"wrote {output}.")


# --------------------------------------------------------------------------- input


def _runs(sources: Sequence[str], condition: str | None) -> pd.DataFrame:
    """Return the checked runs, having said what a reader of a fit to them should know."""
    from tunecast.models import read_runs, warn_about, where

    frame = read_runs(sources)
    if condition is not None:
        frame = where(frame, condition).reset_index(drop=True)
        if frame.empty:
            raise TunecastError(f"no run fulfils the condition '{condition}'.")
    for sentence in warn_about(frame):
        typer.echo(f"note: {sentence}", err=True)
    return frame


def _commands(result: Fit, context: typer.Context) -> list[str]:
    """Return the commands that lead from the runs to this answer, with the names of files alone."""
    info = result.info
    words = ["tunecast", "fit", "RUNS", "-o", "FIT.nc"]
    for name in ("law", "data", "curve", "draws", "tune", "chains", "seed"):
        if name in info:
            words += [f"--{name}", str(info[name])]
    for name in ("factors", "cell"):
        if info.get(name):
            words += [f"--{name}", ",".join(info[name])]
    words += ["--priors", Path(str(info.get("priors_name", "weak"))).name]
    own = ["tunecast", "report", context.params["fit_file"].name]
    for name, value in context.params.items():
        if isinstance(value, Path) and name != "fit_file":
            own += ["-o" if name == "output" else f"--{name}", value.name]
        elif name == "format_" and value is not ReportFormat.html:
            own += ["--format", value.value]
        elif value is True:
            own.append(f"--{name}")
    return [shlex.join(words), shlex.join(own)]


def _fit_options(
    law: str,
    factors: str | None,
    data: str,
    cell: str | None,
    curve: str,
    priors: str,
    draws: int | None,
    tune: int | None,
    chains: int | None,
    seed: int,
) -> dict[str, Any]:
    """Return the keywords of `tunecast.models.fit`; what was not given keeps its default there."""
    from tunecast.analysis.targets import split

    given: dict[str, Any] = {
        "law": law,
        "factors": None if factors is None else split(factors),
        "data": data,
        "cell": None if cell is None else split(cell),
        "curve": curve,
        "priors": priors,
        "draws": draws,
        "tune": tune,
        "chains": chains,
        "seed": seed,
    }
    return {name: value for name, value in given.items() if value is not None}


def _shows(quiet: bool) -> bool:
    return not quiet and sys.stderr.isatty()


def _load(path: Path, output: Path | None, plot: Path | None) -> Fit:
    """Return a saved fit, once it is clear that its answer can be written."""
    from tunecast.analysis.tables import check_output
    from tunecast.models import load_fit

    check_output(output)
    check_output(plot, PICTURE_SUFFIXES)
    return load_fit(path)


def _target_options(
    task: str | None,
    method: str | None,
    model_size: str | None,
    examples: str | None,
    base_model: str | None,
) -> dict[str, str | None]:
    return {
        "--task": task,
        "--method": method,
        "--model-size": model_size,
        "--examples": examples,
        "--base-model": base_model,
    }


def _rows(
    result: Fit,
    words: tuple[str, str, str],
    table: Path | None,
    options: Mapping[str, str | None],
    values: Sequence[str] | None,
    *,
    methods: bool,
) -> pd.DataFrame:
    """Return the rows of a table, or every combination of what the options list.

    ``words`` are the option that names the table, what its rows are, and what to say without it.
    """
    from tunecast.analysis.tables import read_table
    from tunecast.analysis.targets import grid

    given = [name for name, value in options.items() if value is not None]
    given += ["--set"] if values else []
    option, what, ask = words
    if table is not None and given:
        raise TunecastError(f"{option} names the {what} already; leave {', '.join(given)} out.")
    if table is not None:
        rows = read_table(table)
    elif options["--examples"] is None:
        raise TunecastError(f"{ask}, or --examples and the rest.")
    else:
        rows = grid(result, options, values or (), methods=methods)
    _note_unseen(result, rows)
    return rows


def _note_unseen(result: Fit, targets: pd.DataFrame) -> None:
    from tunecast.analysis.targets import unseen

    for sentence in unseen(result, targets):
        typer.echo(f"note: {sentence}", err=True)


def _target_columns(result: Fit) -> dict[str, str]:
    """Return the columns that tell targets apart, with their headings."""
    info = result.info
    names = dict.fromkeys((*info["cell"], info["curve"], *info["factors"], info["data"]))
    return {name: name.replace("_", "\n") for name in names}


# --------------------------------------------------------------------------- output

_QUANTILES = {"05": "5 %", "25": "25 %", "50": "median", "75": "75 %", "95": "95 %"}


@contextmanager
def _convergence(consequence: str) -> Iterator[None]:
    """Turn the refusal of a fit into exit code 3, with the reasons and the way out."""
    from tunecast.models import UnconvergedError

    try:
        yield
    except UnconvergedError as error:
        raise NotConverged(f"{_why(error.fit)}; {consequence}.") from error


def _why(result: Fit) -> str:
    return f"the fit did not converge ({'; '.join(result.diagnostics.reasons)})"


def _marks(result: Fit) -> list[str]:
    from tunecast.analysis.tables import banners

    diagnostics = result.diagnostics
    return banners(
        converged=diagnostics.converged,
        simulated=result.info["simulated"],
        reasons=diagnostics.reasons,
    )


def _answer(
    answer: pd.DataFrame,
    result: Fit,
    output: Path | None,
    title: str,
    columns: Mapping[str, str],
) -> None:
    _put(answer, output, title, columns, _marks(result))


def _scores(scores: pd.DataFrame, output: Path | None, plot: Path | None) -> None:
    from tunecast.analysis.tables import banners

    marks = banners(
        converged="converged" not in scores or bool(scores["converged"].all()),
        simulated="simulated" in scores,
    )
    shown = [str(c) for c in scores if not str(c).endswith(("_low", "_high"))]
    columns = {c: c.replace("_", " ") for c in shown if c not in ("converged", "simulated")}
    _put(scores, output, "Scores of log loss", columns, marks)
    if plot is not None:
        from tunecast.analysis.plots import coverage_figure

        _draw(coverage_figure(scores), plot)


def _put(
    frame: pd.DataFrame,
    output: Path | None,
    title: str,
    columns: Mapping[str, str],
    marks: Sequence[str],
) -> None:
    """Print a table under its marks, or write it and say so."""
    from tunecast.analysis.tables import show, write_table

    if output is None:
        show(frame, title=title, columns=columns, warnings=marks)
        return
    with _writing(output):
        write_table(frame, output)
    for line in marks:
        _say(line)
    _say(f"wrote {output} ({len(frame)} rows).")


def _draw(figure: Figure, path: Path) -> None:
    from tunecast.analysis.plots import save_figure

    with _writing(path):
        save_figure(figure, path)
    _say(f"wrote {path}.")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say in one sentence that ``path`` could not be written and what that leaves."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).rstrip(".")
        raise TunecastError(
            f"'{path}' cannot be written: {reason}; a file that was there is unchanged."
        ) from error


if __name__ == "__main__":
    main()
