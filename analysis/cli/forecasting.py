"""The commands that ask a saved fit: ``forecast``, ``compare`` and ``crossover``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tunecast.analysis.cli.inputs import (
    TARGETS,
    asked_rows,
    note_misfits,
    note_unseen,
    saved_fit,
    target_options,
)
from tunecast.analysis.cli.options import (
    AnswerSeed,
    At,
    BaseModel,
    Examples,
    FitFile,
    Method,
    ModelSize,
    Output,
    Plot,
    Task,
    Values,
)
from tunecast.analysis.cli.outputs import (
    QUANTILES,
    marks_of,
    put_figure,
    put_table,
    say,
    target_columns,
    writing,
)
from tunecast.analysis.tables import check_output
from tunecast.models.errors import TunecastError


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
    check_output(ledger)
    result = saved_fit(fit_file, output, plot)
    options = target_options(task, method, model_size, examples, base_model)
    targets = asked_rows(result, TARGETS, at, options, values, methods=True)
    answer = result.forecast(targets, seed=seed)
    note_misfits(result, answer)
    columns = {
        **target_columns(result),
        **{f"loss_q{q}": f"new run\n{quantile}" for q, quantile in QUANTILES.items()},
        **{f"expected_q{q}": f"expected\n{quantile}" for q, quantile in QUANTILES.items()},
        "extrapolation": "times\nbeyond data",
        "misfit": "misfit",
    }
    put_table(answer, output, "Loss in nats per target token", columns, marks_of(result))
    if ledger is not None:
        from tunecast.analysis.ledger import file_forecast

        with writing(ledger):
            count = file_forecast(ledger, answer, result)
        say(f"filed {len(answer)} forecasts in {ledger}, which holds {count}.")
    if plot is not None:
        from tunecast.analysis.plots.forecast import forecast_figure

        put_figure(forecast_figure(result, targets), plot)


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

    result = saved_fit(fit_file, output, plot)
    options = target_options(task, None, model_size, examples, base_model)
    targets = asked_rows(result, TARGETS, at, options, values, methods=False)
    names = split(methods) or None
    answer = result.compare(targets, methods=names)
    note_misfits(result, answer)
    columns = {
        **target_columns(result),
        "method": "method",
        "p_best": "P(best)",
        "expected_regret": "expected regret",
        **{c: f"P(beats {c[8:]})" for c in map(str, answer) if c.startswith("p_beats_")},
        "misfit": "misfit",
    }
    put_table(answer, output, "Which method has the lowest loss", columns, marks_of(result))
    if plot is not None:
        from tunecast.analysis.plots.best import best_figure

        put_figure(best_figure(result, targets, methods=names), plot)


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
    import pandas as pd

    from tunecast.analysis.targets import grid

    result = saved_fit(fit_file, output, plot)
    options = target_options(task, None, model_size, None, base_model)
    target = grid(result, options, values or (), methods=False)
    if len(target) != 1:
        raise TunecastError("crossover takes one target; give each option a single value.")
    note_unseen(result, target)
    curve = result.info["curve"]
    place: dict[str, Any] = {str(c): target[c].iloc[0] for c in target if c != curve}
    place["base_model"] = base_model or ""
    answer = result.crossover(a, b, low=low, high=high, **place)
    note_misfits(result, pd.concat([answer.assign(method=m) for m in (a, b)]))
    columns = {
        **target_columns(result),
        "a": "a",
        "b": "b",
        "p_none": "P(none)",
        "p_one": "P(one)",
        "p_two": "P(two)",
        "p_more": "P(more)",
        **{f"first_q{q}": f"first\n{quantile}" for q, quantile in QUANTILES.items()},
        "misfit": "misfit",
    }
    unit = result.info["data"].replace("_", " ")
    put_table(answer, output, f"Where {a} and {b} cross, in {unit}", columns, marks_of(result))
    if plot is not None:
        from tunecast.analysis.plots.crossover import crossover_figure

        put_figure(crossover_figure(result, target, answer), plot)
