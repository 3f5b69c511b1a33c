"""What the axes of several pictures have in common: tidy ticks, and a mark where the data end."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from tunecast.analysis.labels import short
from tunecast.analysis.plots.frame import GREY


def tidy(ax: Axes) -> None:
    """Leave out what carries no information, and write large counts in short."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
    if ax.get_xscale() == "log":
        low, high = ax.get_xlim()
        if math.log10(high / low) < 2.5:
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        ax.xaxis.set_minor_formatter(NullFormatter())


def shade_beyond(ax: Axes, seen: pd.DataFrame, data: str, *, on_top: bool = False) -> None:
    """Mark what lies beyond the data that were seen: by a shade, or ``on_top`` by a line."""
    if not len(seen):
        return
    left, right = ax.get_xlim()
    seen_low, seen_high = float(seen[data].min()), float(seen[data].max())
    for low, high in ((left, seen_low), (seen_high, right)):
        # The room beside the outermost run is no extrapolation worth the name.
        if high / low < (right / left) ** 0.05:
            continue
        if on_top:
            inner = seen_low if low == left else seen_high
            ax.axvline(inner, color="white", linewidth=1.5, linestyle="--")
        else:
            ax.axvspan(low, high, color="black", alpha=0.06, linewidth=0, zorder=0)
        ax.text(
            math.sqrt(low * high),
            0.985,
            "beyond\nthe data",
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=8,
            color="white" if on_top else GREY,
        )
