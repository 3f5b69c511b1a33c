"""What a run table says against every law before anything is sampled.

Two checks of the runs that a fit would use, each by cell: whether the loss rises with the data,
which no law here does; and whether rows are checkpoints of one run, which lie above finished runs
of the same length while the learning rate is still high.

References
----------
.. [1] Hirsch, Slack and Smith 1982, Techniques of trend analysis for monthly water quality data:
   Kendall's test, summed over strata.
.. [2] Hoffmann et al. 2022, arXiv:2203.15556 section 3.1: the loss inside a longer run
   overestimates what a run of that length reaches.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtr

from tunecast.models.checks.misfit import (
    CHECKPOINTS,
    FALSE_ALARMS,
    ONE_CURVE,
    RISES,
    Misfit,
    name_of,
    percent,
)
from tunecast.models.hierarchy.table import Spec

# Finished runs of one curve have up to 15 data sizes in the public tables of them that we know,
# checkpoints 20 and more. Even spacing alone is no sign: published designs have 11 such sizes.
MANY_SIZES = 20
EVEN_SIZES = 5  # where a column says the step besides

STEP_IN_NAME = re.compile(r"(?i)(?<![a-z])(?:step|ckpt|checkpoint|iter|iteration)s?[-_=/ ]*(\d+)")
STEP_COLUMNS = ("step", "_step", "global_step", "iteration", "checkpoint", "ckpt")

# Columns in which rows of one run do not differ, beside those that the fit uses.
OF_RUN = ("model_size", "pretrain_tokens", "pet_params", "seed", "learning_rate")


def table_checks(runs: pd.DataFrame, spec: Spec) -> tuple[Misfit, ...]:
    """Return what speaks against a fit of these runs, whatever the law.

    Parameters
    ----------
    runs : DataFrame
        Usable runs; see `tunecast.models.hierarchy.table.usable`.
    spec : Spec
        What is asked of them.

    Examples
    --------
    >>> from tunecast.models.checks.tables import table_checks
    >>> from tunecast.models.hierarchy.table import spec_of, usable
    >>> from tunecast.models.runs import read_runs
    >>> runs = usable(read_runs("ladder"), "finetune_examples")
    >>> table_checks(runs, spec_of(runs, law="rectified"))
    ()
    """
    return (*one_curve(runs, spec), *rises(runs, spec), *checkpoints(runs, spec))


def one_curve(runs: pd.DataFrame, spec: Spec) -> tuple[Misfit, ...]:
    """Return that there is nothing to pool, where the runs are all of one curve."""
    if len(runs[[*spec.cell, spec.curve, *spec.factors]].drop_duplicates()) > 1:
        return ()
    sentence = (
        "The table holds one curve, so how curves, base models and cells differ is known from "
        "priors alone: expected two curves or more."
    )
    return (Misfit(ONE_CURVE, None, sentence),)


# --------------------------------------------------------------------------- rises with data


@dataclass(frozen=True)
class Trend:
    """Kendall's test for a rise, summed over the curves of a cell, within a part of their range.

    Parameters
    ----------
    score, variance : float
        Pairs of runs in which the larger data have the higher loss, less the others; and its
        variance where a loss says nothing of the data.
    slopes : tuple of float
        Change of log loss over the range, one a curve.
    low, high : float
        The range of data sizes.
    """

    score: float
    variance: float
    slopes: tuple[float, ...]
    low: float
    high: float

    @property
    def p(self) -> float:
        """Probability of a score so high where losses do not rise."""
        # Scores go in steps of 2, so half a step is 1.
        return float(ndtr((1 - self.score) / np.sqrt(self.variance))) if self.variance else 1.0


def rises(runs: pd.DataFrame, spec: Spec) -> tuple[Misfit, ...]:
    """Return the cells whose loss rises with the data, and the table if its cells do together.

    By Kendall's rank test, summed over curves [1]_, over all data sizes, their lower and their
    upper half. Laws fall, at most slowly enough to look flat, and in a flat table all orders of
    a curve's losses are as probable. Bonferroni over cells and ranges: of tables that do not rise,
    at most `FALSE_ALARMS` are said to.
    """
    cells = dict(_groups(runs, spec.cell))
    found = {cell: _trends(rows, spec) for cell, rows in cells.items()}
    together = [_pooled(parts) for parts in zip(*found.values(), strict=True)]
    tests = sum(t.variance > 0 for trends in (*found.values(), together) for t in trends)
    if tests == 0:
        return ()
    level = FALSE_ALARMS / tests
    said = []
    for cell, trends in found.items():
        best = min(trends, key=lambda t: t.p)
        if best.p < level:
            words = _rise_in_words(name_of(cell), best, cells[cell], spec)
            said.append(Misfit(RISES, cell, words))
    best = min(together, key=lambda t: t.p)
    # Cells that rise are said; the table is, where none of them would have been noticed alone.
    if not said and best.p < level:
        said.append(Misfit(RISES, None, _rise_in_words("the table", best, runs, spec)))
    return tuple(said)


def _rise_in_words(name: str, trend: Trend, runs: pd.DataFrame, spec: Spec) -> str:
    slopes = np.array(trend.slopes)
    up, n = int((slopes > 0).sum()), len(slopes)
    said = (
        f"The loss of {name} rises with {spec.data} from {trend.low:g} to {trend.high:g}: in {up} "
        f"of {n} curve{'s' if n > 1 else ''}, by {percent(np.median(slopes))} in the middle one; "
        "every law falls, so forecasts of it cannot be right."
    )
    scores = [c for c in runs if re.search(r"(?i)(^|_)(acc|accuracy|score|reward)(_|$)", str(c))]
    other = any(not np.allclose(_numbers(runs[c]), runs["loss"]) for c in scores)
    if (runs["loss"] <= 1).all() and not other:
        said += (
            " All its losses lie between 0 and 1: if they are accuracies, give the error, "
            "1 - accuracy, as the loss."
        )
    return said


def _numbers(values: pd.Series) -> np.ndarray:
    return pd.to_numeric(values, errors="coerce").to_numpy(float)


def _trends(runs: pd.DataFrame, spec: Spec) -> list[Trend]:
    """Return a cell's trend over all data sizes, over their lower half, over their upper half."""
    parts: list[list[Trend]] = [[], [], []]
    for _, own in runs.groupby([spec.curve, *spec.factors], sort=False):
        x, y = (np.log(own[c].to_numpy(float)) for c in (spec.data, "loss"))
        for trends, (low, high) in zip(parts, _ranges(np.unique(x)), strict=False):
            inside = (low <= x) & (x <= high)
            trends.append(trend_of(x[inside], y[inside]))
    return [_pooled(trends) for trends in parts]


def _groups(
    runs: pd.DataFrame, columns: Sequence[str]
) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    for _, rows in runs.groupby([runs[c].astype(str) for c in columns], sort=True):
        yield tuple(rows[list(columns)].iloc[0].astype(str)), rows


def _ranges(sizes: np.ndarray) -> list[tuple[float, float]]:
    """Return the whole range and its halves, as far as they hold three sizes or more."""
    n, half = len(sizes), len(sizes) // 2
    if n < 3:
        return []
    halves = [(sizes[0], sizes[half]), (sizes[n - 1 - half], sizes[-1])] if n >= 5 else []
    return [(sizes[0], sizes[-1]), *halves]


def _pooled(trends: Sequence[Trend]) -> Trend:
    return Trend(
        sum((t.score for t in trends), 0.0),
        sum((t.variance for t in trends), 0.0),
        tuple(s for t in trends for s in t.slopes),
        min((t.low for t in trends), default=np.nan),
        max((t.high for t in trends), default=np.nan),
    )


def trend_of(x: np.ndarray, y: np.ndarray) -> Trend:
    """Return Kendall's test of one curve's log losses at its log data sizes.

    Ties are corrected for, as replicates share their data size.

    Parameters
    ----------
    x, y : ndarray, shape (n,)
        Log data size and log loss of three runs or more.
    """
    score = 0.0
    for size in np.unique(x)[:-1]:
        score += float(np.sign(y[x > size][:, None] - y[x == size]).sum())
    n = len(x)
    tied = [np.unique(v, return_counts=True)[1].astype(float) for v in (x, y)]
    pairs, threes = (
        [float(np.prod([k - i for i in range(size)], axis=0).sum()) for k in tied]
        for size in (2, 3)
    )
    alike = sum(float((k * (k - 1) * (2 * k + 5)).sum()) for k in tied)
    variance = (n * (n - 1) * (2 * n + 5) - alike) / 18
    variance += threes[0] * threes[1] / (9 * n * (n - 1) * (n - 2))
    variance += pairs[0] * pairs[1] / (2 * n * (n - 1))
    slope = np.polynomial.polynomial.polyfit(x - x.mean(), y, 1)[1] * np.ptp(x)
    return Trend(score, variance, (float(slope),), float(np.exp(x.min())), float(np.exp(x.max())))


# --------------------------------------------------------------------------- checkpoints


def checkpoints(runs: pd.DataFrame, spec: Spec) -> tuple[Misfit, ...]:
    """Return the cells whose rows are mostly checkpoints of one run, or the table if all are.

    Rows of one curve and seed are taken for checkpoints where their ``run_id`` says a step, where
    they have `MANY_SIZES` data sizes, or where a column says the step and they have `EVEN_SIZES`
    or more that are evenly spaced.
    """
    of_run = list(dict.fromkeys((spec.curve, *spec.factors, *(c for c in OF_RUN if c in runs))))
    cells = dict(_groups(runs, spec.cell))
    found: dict[tuple[str, ...], str] = {}
    total = 0
    for cell, rows in cells.items():
        count: Counter[str] = Counter()
        for _, own in rows.groupby(of_run, sort=False, dropna=False):
            if sign := _sign_of_checkpoints(own.sort_values(spec.data), spec):
                count[sign] += len(own)
        if count.total() > len(rows) / 2:
            why = count.most_common(1)[0][0]
            found[cell] = _in_words(count.total(), len(rows), name_of(cell), why)
            total += count.total()
    if len(found) > 1 and len(found) == len(cells):
        return (Misfit(CHECKPOINTS, None, _in_words(total, len(runs), "the table", why)),)
    return tuple(Misfit(CHECKPOINTS, cell, sentence) for cell, sentence in found.items())


def _in_words(n: int, of: int, name: str, why: str) -> str:
    return (
        f"{n} of {of} rows of {name} look like checkpoints of one run ({why}): the loss inside a "
        "run lies above that of a finished run of the same length, expected is one row for each "
        "finished run."
    )


def _sign_of_checkpoints(rows: pd.DataFrame, spec: Spec) -> str:
    """Return by what rows of one curve and seed, in order of data size, look like checkpoints."""
    x = rows[spec.data].to_numpy(float)
    if len(x) < 3 or len(np.unique(x)) < len(x):
        return ""
    ids = rows["run_id"].astype(str)
    steps = ids.str.extract(STEP_IN_NAME, expand=False).astype(float)
    # The name without its step is that of the run.
    stems = ids.str.replace(STEP_IN_NAME, "", n=1, regex=True)
    if stems.nunique() == 1 and _grows(steps.to_numpy()):
        return "each run_id says a step"
    if len(x) >= MANY_SIZES:
        return f"curves of {MANY_SIZES} values of {spec.data} and more"
    names = [c for c in rows if str(c).lower().rpartition("/")[2] in STEP_COLUMNS]
    gaps = np.diff(x)
    even = np.mean(np.abs(gaps / np.median(gaps) - 1) < 0.1) > 0.8
    if len(x) >= EVEN_SIZES and even and any(_grows(_numbers(rows[c])) for c in names):
        return f"evenly spaced values of {spec.data} beside a column '{names[0]}'"
    return ""


def _grows(values: np.ndarray) -> bool:
    return bool((np.diff(values) > 0).all())
