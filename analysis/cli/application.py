"""The application: its commands, and the exit code with which it leaves.

Exit codes: 0 done; 1 a fault of tunecast itself, with a traceback; 2 input that cannot be used, in
one sentence for each fault; 3 the fit did not converge; 130 interrupted.

What takes long to import stands inside the functions of this package, so that ``tunecast --help``
answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from tunecast.analysis.cli.fitting import backtest, fit
from tunecast.analysis.cli.forecasting import compare, crossover, forecast
from tunecast.analysis.cli.outputs import NotConverged, say
from tunecast.analysis.cli.planning import plan
from tunecast.analysis.cli.reporting import report
from tunecast.analysis.cli.scoring import score
from tunecast.analysis.cli.sweeping import sweep
from tunecast.models.errors import TunecastError

app = typer.Typer(
    name="tunecast",
    help="Forecast the loss of fine-tuning runs, compare methods, and say how sure it is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # a usage error is then a sentence, not a box
)


@app.callback(invoke_without_command=True)
def about(
    show: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Answer what is asked of the application itself."""
    if show:
        typer.echo(f"tunecast {version('tunecast')}")
        raise typer.Exit


for command in (fit, forecast, compare, crossover, backtest, score, plan, sweep, report):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    try:
        app(args=arguments, prog_name="tunecast")
    except NotConverged as error:
        say(str(error))
        sys.exit(3)
    except (TunecastError, OSError) as error:
        for sentence in _sentences(error):
            say(sentence)
        sys.exit(2)
    sys.exit(0)


def _sentences(error: BaseException) -> list[str]:
    if isinstance(error, OSError) and error.strerror:
        whose = f"'{error.filename}': " if error.filename else ""
        lines = [whose + error.strerror]
    else:
        lines = str(error).splitlines() or [type(error).__name__]
    return [line if line.endswith((".", "?")) else f"{line}." for line in lines]
