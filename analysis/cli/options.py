"""Arguments and options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# What is read.
Runs = Annotated[
    list[str],
    typer.Argument(
        help="Run tables: CSV, Parquet, the URL of a database, or an embedded one such as ladder."
    ),
]
FitFile = Annotated[Path, typer.Argument(metavar="FIT.nc", help="A fit, saved by 'tunecast fit'.")]

# What is fitted, and how.
Law = Annotated[
    str, typer.Option(help="rectified, multiplicative, additive, power, kaplan, broken, or auto.")
]
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
# The sampler's own defaults are written out: to import them would load numpy and pandas.
Draws = Annotated[int | None, typer.Option(help="Draws of each chain.", show_default="2400")]
Tune = Annotated[
    int | None, typer.Option(help="Steps of each chain before them.", show_default="500")
]
Chains = Annotated[int | None, typer.Option(help="Number of chains.", show_default="4")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same draws.")]
Unconverged = Annotated[
    bool, typer.Option("--allow-unconverged", help="Keep a fit that did not converge, marked.")
]

# What is asked about.
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
By = Annotated[str | None, typer.Option(help="Also score by these columns, commas between.")]

# What is written.
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="CSV or Parquet to write; without it, print the table."),
]
Plot = Annotated[Path | None, typer.Option(help="Draw the answer too: PNG, PDF or SVG.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]
