"""The frame of every figure: empty panels, the finding above them, the marks of the fit, a file."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tunecast.models.files import write_atomically

if TYPE_CHECKING:
    from tunecast.models import Fit

MAX_PANELS = 6
GREY = "#666666"
ALARM = "#B00020"


def blank(num_panels: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many empty panels, three in a row."""
    columns = min(num_panels, 3)
    rows = math.ceil(num_panels / columns)
    figure = Figure(figsize=(1.2 + 4.6 * columns, 0.9 + 3.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(num_panels)]
    return figure, axes


def finished(figure: Figure, fit: Fit, finding: str) -> Figure:
    """Write the finding above a figure, and the marks of the fit behind it."""
    return headed(
        figure, finding, converged=fit.diagnostics.converged, simulated=fit.info["simulated"]
    )


def headed(figure: Figure, finding: str, *, converged: bool, simulated: bool) -> Figure:
    """Write the finding above the panels, and what must not be missed above it and across each."""
    words = [] if converged else ["NOT CONVERGED"]
    words += ["SIMULATED"] if simulated else []
    width = int(11 * figure.get_figwidth())  # characters of bold 11 point text
    lines = [f"{', '.join(words)}"] if words else []
    figure.suptitle(
        "\n".join([*lines, *textwrap.wrap(finding, width)]),
        fontweight="bold",
        fontsize=11,
        color="black" if converged else ALARM,
    )
    for ax in figure.axes if words else ():
        ax.text(
            0.5,
            0.5,
            "\n".join(words),
            transform=ax.transAxes,
            ha="center",
            va="center",
            rotation=20,
            fontsize=min(26, 120 * ax.get_position().width),
            fontweight="bold",
            color=ALARM,
            alpha=0.25,
            in_layout=False,  # or narrow panels would shrink to make room for it
            clip_on=True,
        )
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, PDF or SVG, by the suffix, completely or not at all."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))
