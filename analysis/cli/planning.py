"""The command ``plan``: which runs are worth making next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunecast.analysis.cli.inputs import CANDIDATES, asked_rows, saved_fit, target_options
from tunecast.analysis.cli.options import (
    AnswerSeed,
    BaseModel,
    Examples,
    FitFile,
    Method,
    ModelSize,
    Output,
    Plot,
    Task,
    Unconverged,
    Values,
)
from tunecast.analysis.cli.outputs import marks_of, note, put_figure, put_table, target_columns
from tunecast.analysis.tables import read_table, show

if TYPE_CHECKING:
    from tunecast.models import Plan


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
    from tunecast.models import plan as plan_runs

    result = saved_fit(fit_file, output, plot)
    options = target_options(task, method, model_size, examples, base_model)
    pool = asked_rows(result, CANDIDATES, candidates, options, values, methods=True)
    targets = None if at is None else read_table(at)
    answer = plan_runs(
        result, pool, goal=goal, targets=targets, budget=budget, runs=count, cost=cost,
        tokens_per_example=tokens_per_example, seed=seed, allow_unconverged=allow_unconverged,
    )  # fmt: skip
    note(f"costs: {answer.cost_source}.")
    note(_how_chosen(answer))
    columns = {
        "rank": "rank",
        **target_columns(result),
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
    title = f"Runs to make, for the goal {goal}"
    put_table(answer.runs, output, title, columns, marks_of(result))
    if len(answer.outlook) and output is None:
        outlook = target_columns(result) | {
            "width_before": "width\nbefore",
            "width_after": "width\nafter",
            "p_right_before": "P(right)\nbefore",
            "p_right_after": "P(right)\nafter",
            "regret_drop": "regret drop",
        }
        show(
            answer.outlook, title="What they are expected to bring at the targets", columns=outlook
        )
    if plot is not None:
        from tunecast.analysis.plots.plan import plan_figure

        put_figure(plan_figure(result, answer), plot)


def _how_chosen(answer: Plan) -> str:
    """Return the rule of a greedy choice, and how much better another choice could be."""
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
