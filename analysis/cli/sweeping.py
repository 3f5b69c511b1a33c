"""The command ``sweep``: make the runs of a recipe."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from tunecast.analysis.cli.options import Quiet
from tunecast.analysis.cli.outputs import say, shows_progress
from tunecast.analysis.tables import show
from tunecast.models.errors import TunecastError
from tunecast.models.files import default_cache


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
        say(
            f"{total['runs']:.0f} runs, about {total['flops']:.2g} FLOP and "
            f"{_duration(total['seconds'])}; base models that are not there yet come on top."
        )
        return
    if pack is not None:
        size = pack_tokens(made, pack, default_cache())
        say(f"{pack}: {size / 1e6:.3g} MB of tokens; elsewhere set TUNECAST_CACHE to this folder.")
        return
    if prepare:
        prepare_all(made, default_cache(), say)
        return
    found = make_runs(
        made, output, workers=workers, ray=ray, gpus=gpus_per_run, progress=shows_progress(quiet)
    )
    for failure in found.failures:
        say(failure)
    elsewhere = f", {found.elsewhere} are another sweep's" if found.elsewhere else ""
    say(
        f"{shown(output)}: {found.made} runs made in {_duration(found.seconds)}, "
        f"{len(found.failures)} of them without a loss; {found.skipped} were there{elsewhere}."
    )


def _require_training(ray: str | None) -> None:
    """Refuse, in one sentence, what needs packages that are not installed."""
    wanted = ("torch", "transformers", "peft", "tokenizers")
    if missing := [name for name in wanted if importlib.util.find_spec(name) is None]:
        raise TunecastError(f"sweep needs {missing[0]}: pip install 'tunecast[train]'.")
    if ray is not None and importlib.util.find_spec("ray") is None:
        raise TunecastError("sweep --ray needs ray: pip install 'tunecast[cluster]'.")


def _duration(seconds: float) -> str:
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} seconds"
