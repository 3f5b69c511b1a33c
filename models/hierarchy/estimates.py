"""Least-squares estimates of a table's curves and levels, by which coordinates are chosen.

They steer the sampler alone and are no part of the model: a poor estimate costs time, not accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tunecast.models.hierarchy.priors import Priors
from tunecast.models.hierarchy.table import Table

BASE_WEIGHT = 0.75  # of base-model effects with many curves each, as `geometry.Coordinate` has it


@dataclass(frozen=True)
class LevelEstimates:
    """What the curves of each level of a grouping say of it, and how base models enter that.

    Parameters
    ----------
    mean_of_base : ndarray, shape (base_models, levels)
        Weight of each base model in the mean of the level's curves.
    slope_of_base : ndarray, shape (factors, base_models, levels)
        Its weight in their least-squares slope in a factor.
    centre : ndarray, shape (factors, levels)
        Mean of the log factors over the curves.
    factor_slope : ndarray, shape (factors, levels)
        Minus the least-squares slope of the curves' log loss at the reference data size.
    factor_slope_width : ndarray, shape (factors, levels)
        One over its variance where a curve's log loss has variance 1 around its cell.
    noise_variance : ndarray, shape (levels,)
        The part of that variance which comes from run noise.
    curvature : ndarray, shape (levels,)
        Minus the least-squares second derivative of log loss in log data size at the reference,
        over the squared slope: of a rectified law without a floor ``exp(-logit_data_share)``.
    slope_weight : ndarray, shape (levels,)
        How far the runs determine the level's slope in the data size, 0 to 1.
    """

    mean_of_base: np.ndarray
    slope_of_base: np.ndarray
    centre: np.ndarray
    factor_slope: np.ndarray
    factor_slope_width: np.ndarray
    noise_variance: np.ndarray
    curvature: np.ndarray
    slope_weight: np.ndarray


@dataclass(frozen=True)
class Estimates:
    """What least squares says of a table.

    Parameters
    ----------
    curve_runs, curve_log_loss : ndarray, shape (curves,)
        Number of each curve's runs, and their mean log loss.
    curve_log_slope, curve_slope_precision : ndarray, shape (curves,)
        Log of its slope in log data size, and one over the squared error of that where run noise is
        1; 0 for a curve that rises.
    runs_of_curve : ndarray of int, shape (curves, most runs)
        Its runs, repeated where a curve has fewer.
    run_weight : ndarray, shape (curves, most runs)
        One over their number, 0 where repeated.
    noise_weight : ndarray, shape (curves,)
        Weight of partial centring of each curve's noise.
    base_weight, loss_scatter : ndarray, shape ()
        Weight of partial centring of base-model effects; usual scatter of curves in log loss.
    levels : mapping of str to LevelEstimates
        By name of the grouping; "" for a table of one cell.
    drift_task, drift_curve : DriftEstimates
        What residuals say of the drifts of tasks, and of curves that show a curvature.
    """

    curve_runs: np.ndarray
    curve_log_loss: np.ndarray
    curve_log_slope: np.ndarray
    curve_slope_precision: np.ndarray
    runs_of_curve: np.ndarray
    run_weight: np.ndarray
    noise_weight: np.ndarray
    base_weight: np.ndarray
    loss_scatter: np.ndarray
    levels: Mapping[str, LevelEstimates]
    drift_task: DriftEstimates
    drift_curve: DriftEstimates


@dataclass(frozen=True)
class DriftEstimates:
    """How coefficients of drifts follow from what a law leaves of log losses, by least squares.

    Parameters
    ----------
    runs : ndarray of int, shape (drifts, most runs)
        The runs of each, repeated where one has fewer.
    weight : ndarray, shape (TERMS, drifts, most runs)
        Weight of each run in each coefficient.
    noise_variance : ndarray, shape (TERMS, drifts)
        Squared error of that where run noise is 1.
    curve_variance : ndarray, shape (TERMS, drifts)
        The same where coefficients of curves' own drifts have variance 1.
    known : ndarray, shape (TERMS, drifts)
        1, or 0 where the runs say nothing of it.
    alone : ndarray, shape (drifts,)
        Share of the runs that are alone on their curve.
    """

    runs: np.ndarray
    weight: np.ndarray
    noise_variance: np.ndarray
    curve_variance: np.ndarray
    known: np.ndarray
    alone: np.ndarray


@dataclass(frozen=True)
class Curves:
    """Least squares of log loss in log data size, curve by curve, all of shape (curves,).

    Parameters
    ----------
    runs : ndarray
        Number of runs.
    mean_log_u, mean_log_loss : ndarray
        Means over them.
    width : ndarray
        Sum of squared deviations of log data sizes.
    slope, error : ndarray
        Slope and its standard error (infinite where there is none).
    """

    runs: np.ndarray
    mean_log_u: np.ndarray
    mean_log_loss: np.ndarray
    width: np.ndarray
    slope: np.ndarray
    error: np.ndarray


def least_squares(table: Table) -> Curves:
    """Return the line through each curve's runs."""
    at, n = table.run_curve, len(table.curve_cell)
    runs = np.bincount(at, minlength=n)
    mean_u = np.bincount(at, table.log_u, n) / runs
    mean_y = np.bincount(at, table.log_loss, n) / runs
    x, y = table.log_u - mean_u[at], table.log_loss - mean_y[at]
    width = np.bincount(at, x * x, n)
    some = np.where(width > 0, width, 1.0)
    slope = np.bincount(at, x * y, n) / some
    residual = np.bincount(at, (y - slope[at] * x) ** 2, n) / np.maximum(runs - 2, 1)
    # Two points lie on their line: then, and where a fit is lucky, assume the table's usual noise.
    usual = np.median(residual[runs > 2]) if (runs > 2).any() else 1e-4
    error = np.sqrt(np.maximum(residual, usual / 4) / some)
    error = np.where((runs > 1) & (width > 0), error, np.inf)
    return Curves(runs.astype(float), mean_u, mean_y, width, slope, error)


def curvature_of_cells(table: Table) -> np.ndarray:
    """Return each cell's curvature, from one parabola with a mean for each curve, in 0.2 to 50."""
    found = np.ones(len(table.cells))  # logit_data_share 0: what runs that show none are given
    cell = table.curve_cell[table.run_curve]
    for k in range(len(found)):
        runs = cell == k
        t = table.log_u[runs]
        curves, own = np.unique(table.run_curve[runs], return_inverse=True)
        design = np.column_stack([np.eye(len(curves))[own], t, t * t / 2])
        slope, second = np.linalg.lstsq(design, table.log_loss[runs], rcond=None)[0][-2:]
        if len(np.unique(t)) > 2 and slope != 0:
            found[k] = np.clip(-second / slope**2, 0.2, 50.0)
    return found


def slope_weight(table: Table, curves: Curves, usual: float) -> np.ndarray:
    """Return, for each curve, how far its own runs determine its slope, 0 to 1.

    Where the standard error of the log slope equals the scatter of curves around their cell, the
    weight is one half. The scatter is what the slopes show beyond their errors, within limits
    around the prior's, ``usual``.
    """
    known = np.isfinite(curves.error)  # a curve of one data size says nothing of its slope
    finite = np.where(known, curves.error, 1.0)
    relative = finite / np.maximum(-curves.slope, finite / 10 + 1e-12)
    measured = known & (relative < usual)
    scatter = _excess_scatter(table, curves.slope, relative, measured, usual)
    scatter = np.clip(scatter, usual / 8, usual)
    return np.where(known, 1 / (1 + (relative / scatter) ** 4), 0.0)


def _excess_scatter(
    table: Table, slope: np.ndarray, relative: np.ndarray, measured: np.ndarray, otherwise: float
) -> float:
    """Return the standard deviation of log slopes around their cells beyond their errors."""
    cells, at = np.unique(table.curve_cell[measured], return_inverse=True)
    freedom = len(at) - len(cells)
    if freedom < 3:
        return otherwise
    log_slope = np.log(-slope[measured])
    mean = np.bincount(at, log_slope) / np.bincount(at)
    between = float(((log_slope - mean[at]) ** 2).sum()) / freedom
    return math.sqrt(max(between - float((relative[measured] ** 2).mean()), 0.0))


def _padded(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the members of each group, repeated where it has fewer than another, and how many."""
    order, count = np.argsort(group, kind="stable"), np.bincount(group)
    place = np.arange(count.max()) + (np.cumsum(count) - count)[:, None]
    return order[np.minimum(place, len(order) - 1)], count


def _drifts(table: Table, group: np.ndarray, basis: np.ndarray) -> DriftEstimates:
    """Return what runs say of each group's drift, curves of several runs at levels of their own."""
    runs, count = _padded(group)
    terms, (groups, most) = len(basis), runs.shape
    weight = np.zeros((terms, groups, most))
    by_curves = np.zeros((terms, groups))
    for g, n in enumerate(count):
        own = runs[g, :n]
        _, curve = np.unique(table.run_curve[own], return_inverse=True)
        per_curve = np.bincount(curve)
        b = basis[:, own]
        means = np.stack([np.bincount(curve, row) for row in b]) / per_curve * (per_curve > 1)
        weight[:, g, :n] = found = np.linalg.pinv((b - means[:, curve]).T, rcond=1e-6)
        for row in table.curve_drift_basis[:, own]:
            moved = np.stack([np.bincount(curve, w * row) for w in found])
            by_curves[:, g] += (moved**2).sum(axis=1)
    variance = (weight**2).sum(axis=2)
    known = variance > 1e-9  # of a basis that does not vary, pinv leaves rounding errors
    alone = np.bincount(group, table.run_alone) / count
    return DriftEstimates(
        runs, weight, np.where(known, variance, 1.0), by_curves, known * 1.0, alone
    )


def estimate(table: Table, priors: Priors) -> Estimates:
    """Return what least squares says of a table, in the light of the priors' usual scatter."""
    curves = least_squares(table)
    fall = np.maximum(-curves.slope, 0.0)  # of a curve that rises, runs say little: none of it
    # The Fisher information of a run on the log scale of noise is about 1, 2 if noise were normal;
    # and some runs went into the curve.
    spare = np.maximum(curves.runs - 3, 0)
    runs_of_curve, count = _padded(table.run_curve)
    weight = slope_weight(table, curves, priors["log_beta"].scatter)
    groups = {g.name: g.index for g in (*table.groupings[:1], *table.groupings[-1:])}
    groups = groups or {"": np.zeros(len(table.cells), dtype=int)}
    usual = curvature_of_cells(table)
    return Estimates(
        curve_runs=curves.runs,
        curve_log_loss=curves.mean_log_loss,
        curve_log_slope=np.log(np.where(fall > 0, fall, 1.0)),
        curve_slope_precision=curves.width * fall**2,
        runs_of_curve=runs_of_curve,
        run_weight=(np.arange(count.max()) < count[:, None]) / count[:, None],
        noise_weight=spare / (spare + priors["noise"].scatter ** -2),
        base_weight=np.array(
            BASE_WEIGHT * max(0.0, 1 - 2 * len(table.base_models) / len(table.curve_cell))
        ),
        loss_scatter=np.array(priors["log_loss_ref"].scatter),
        levels={
            name: _of_levels(table, curves, index[table.curve_cell], weight, usual)
            for name, index in groups.items()
        },
        drift_task=_drifts(table, table.run_task, table.task_drift_basis),
        drift_curve=_drifts_of_curves(table),
    )


def _drifts_of_curves(table: Table) -> DriftEstimates:
    found = _drifts(table, table.run_curve, table.curve_drift_basis)
    some = table.curvatures.curves
    return DriftEstimates(
        found.runs[some], found.weight[:, some], found.noise_variance[:, some],
        np.zeros_like(found.noise_variance[:, some]), found.known[:, some], found.alone[some],
    )  # fmt: skip


def _of_levels(
    table: Table, curves: Curves, at: np.ndarray, weight: np.ndarray, curvature: np.ndarray
) -> LevelEstimates:
    """Return what curves say of levels; ``at`` is the level of each curve."""
    levels, factors = at.max() + 1, table.curve_x.shape[1]
    count = np.bincount(at)
    y = curves.mean_log_loss - curves.slope * curves.mean_log_u
    error = np.where(np.isfinite(curves.error), curves.error, 0.0)
    noise = error**2 * curves.width / curves.runs
    mean = np.zeros((len(table.base_models), levels))
    slopes = np.zeros((factors, *mean.shape))
    centre, fall, width = (np.zeros((factors, levels)) for _ in range(3))
    for level in range(levels):
        own = np.flatnonzero(at == level)
        x = table.curve_x[own]
        centre[:, level] = x.mean(axis=0)
        np.add.at(mean[:, level], table.curve_base[own], 1 / len(own))
        weights = np.linalg.pinv(x - x.mean(axis=0))  # (factors, curves)
        for k in range(factors):
            np.add.at(slopes[k, :, level], table.curve_base[own], weights[k])
        fall[:, level] = -weights @ y[own]
        # A factor that does not vary among the curves has no weights, and tells nothing.
        spread = (weights**2).sum(axis=1)
        width[:, level] = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1.0), 0.0)
    return LevelEstimates(
        mean_of_base=mean,
        slope_of_base=slopes,
        centre=centre,
        factor_slope=fall,
        factor_slope_width=width,
        noise_variance=np.bincount(at, noise) / count,
        curvature=np.exp(np.bincount(at, np.log(curvature[table.curve_cell])) / count),
        slope_weight=np.bincount(at, weight) / count,
    )
