"""The hierarchy: how cells, curves and base models hang together, written once.

`believe` is the whole model apart from the likelihood. It asks for each unknown through a callable
``draw``, takes numbers of table and priors through a callable ``given``, and computes with ``xp``
(together a `Way`), so the same lines serve

* the machine code that is sampled: ``draw``, ``given`` and ``xp`` record on a tape
  (`tunecast.models.density`);
* PyMC: ``draw`` creates a random variable, ``xp`` is ``pytensor.tensor`` (`build`);
* saved draws: ``draw`` looks the values up, ``xp`` is NumPy (`replay`);
* prior simulation: ``draw`` samples them, ``xp`` is NumPy (`simulate_prior`);
* the log density in plain NumPy, by which compiled code is checked (`log_density`).

Geometry decides how fast this samples. Three devices, each exact:

* A cell is described by its loss at a reference point inside the data, the irreducible share of
  it, and exponents; (log A, log E) -> (level, share) has Jacobian determinant 1, so priors keep
  their meaning.
* What the data determine sharply is sampled by what its own runs see of it: a curve's mean log loss
  over its own data sizes and its local slope ``log((1 - share) * onset * beta)``; a cell's loss
  over its own base models, its slope in each factor and its bend, with the effects of those base
  models upon them. Each is its hierarchical coordinate, shifted or scaled by unknowns drawn before
  it; where runs give an estimate with an error, in units of what estimate and prior leave open
  (`_seen`). What runs leave open (share, gamma, delta) is sampled between itself and its
  standardised deviation.
* Every learned scale is log-normal, so none of them has a funnel at zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tunecast.models.laws import Law, get_law
from tunecast.models.layout import Column, Layout
from tunecast.models.priors import DEVIATION_DF, EFFECT_SPREAD, LEVEL_SPREAD, PriorTable

# draw(name, location, scale, dims, df) returns a (batch of) variable(s); df None means normal.
type Draw = Callable[[str, Any, Any, tuple[str, ...], float | None], Any]
# given(name, value) returns the value, or what stands for it.
type Given = Callable[[str, np.ndarray], Any]
type Array = Any


def _as_it_is(name: str, value: np.ndarray) -> np.ndarray:
    return value


@dataclass(frozen=True)
class Way:
    """One way of computing the model: with numbers, or with symbols.

    Parameters
    ----------
    draw : callable
        ``draw(name, location, scale, dims, df)``; dims are names of `dim_sizes`.
    xp : module
        NumPy, pytensor.tensor or a tape.
    given : callable
        Takes every number that depends on the table or on the priors, and on nothing drawn. It may
        make an input of it, so that one compiled model serves tables of any size.
    """

    draw: Draw
    xp: Any
    given: Given = _as_it_is


@dataclass(frozen=True)
class Belief:
    """Everything that a forecast needs, for each posterior draw (leading axis, absent in PyMC).

    Parameters
    ----------
    roots : dict of str to array
        Global mean of each coordinate.
    effects : dict of (str, str) to array
        Effect of each level of a cell column on a coordinate, by (column, coordinate).
    effect_sd : dict of (str, str) to array
        Standard deviation between levels, by (column, coordinate).
    cell : dict of str to array, shape (..., cells)
        Coordinates of each cell.
    scatter : dict of str to array
        Scale of a curve's deviation from its cell: normal, but in level `own_deviation`.
    base_sd : array
        Scale of base-model effects on log loss.
    base : array, shape (..., base_models)
        Effect of each base model on log loss.
    level, share, rate, onset : array, shape (..., curves)
        Coordinates of each curve (``onset`` is None for laws without ``D_l``).
    noise_task, noise : array, shape (..., tasks) and (..., curves)
        Log scale of run noise of a task, and scale of a curve, on log loss.
    noise_df : array
        Degrees of freedom of run noise.
    mean : array, shape (..., rows)
        Expected log loss of each row of the table.
    """

    roots: dict[str, Array]
    effects: dict[tuple[str, str], Array]
    effect_sd: dict[tuple[str, str], Array]
    cell: dict[str, Array]
    scatter: dict[str, Array]
    base_sd: Array
    base: Array
    level: Array
    share: Array
    rate: Array
    onset: Array | None
    noise_task: Array
    noise: Array
    noise_df: Array
    mean: Array


def coordinates(law: Law, factors: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a cell's coordinates: those that lean on others come after them."""
    return (
        *open_coordinates(law, factors),
        *(("onset",) if law.has("D_l") else ()),
        *(f"alpha:{k}" for k in factors if law.has("alpha")),
        "level",
        "rate",
    )


def open_coordinates(law: Law, factors: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the coordinates that runs rarely settle."""
    own = [f"{name}:{k}" for name in ("gamma", "delta") for k in factors if law.has("alpha")]
    return ("share", *own, *(f"split:{k}" for k in factors if law.has("B")))


def prior_of(priors: PriorTable, coordinate: str) -> Any:
    """Return the row of the table for a coordinate such as ``alpha:model_size``."""
    return priors[coordinate.partition(":")[0]]


def log_sigmoid(x: Array, xp: Any) -> Array:
    """Return ``log(1 / (1 + exp(-x)))`` without overflow."""
    return -np.logaddexp(0.0, -x) if xp is np else -xp.softplus(-x)  # one fused operation


def slope_shift(share: Array, onset: Array | None, xp: Any) -> Array:
    """Return ``log(slope / beta)``, the log-log slope at the reference point over beta."""
    shift = log_sigmoid(-share, xp)
    return shift if onset is None else shift + log_sigmoid(onset, xp)


def at_factors(
    law: Law, factors: Sequence[str], cell: Mapping[str, Array], x: Array, xp: Any
) -> tuple[Array, Array, Array]:
    """Return what a cell expects of curves: log loss at D_ref, logit of its share of E, and rate.

    The laws hold E and beta fixed while a factor grows. Real base models of other sizes tend to
    other losses with unlimited data, so the loss as a whole falls with an exponent of its own,
    gamma; and their curves are flatter or steeper, so beta falls with one too, delta.

    Parameters
    ----------
    law : Law
        The law.
    factors : sequence of str
        Names of the factors.
    cell : mapping of str to array
        Coordinates of the cell of each curve, shape (..., curves).
    x : ndarray, shape (curves, factors)
        Log of factor over reference.
    xp : module
        NumPy, pytensor.tensor or a tape.
    """
    log_reducible = cell["level"] + log_sigmoid(-cell["share"], xp)
    log_floor = cell["level"] + log_sigmoid(cell["share"], xp)
    X = {k: xp.exp(x[:, i]) for i, k in enumerate(factors)} if law.has("alpha") else {}
    parameters: dict[str, Any] = {"alpha": {k: cell[f"alpha:{k}"] for k in X}}
    if law.has("B"):
        total = 1.0
        for k in X:
            total = total + xp.exp(cell[f"split:{k}"])
        unit = xp.exp(log_floor) / total
        parameters |= {"B": xp.exp(log_reducible), "E": unit}
        parameters["A"] = {k: unit * xp.exp(cell[f"split:{k}"]) for k in X}
    else:
        parameters |= {"A": xp.exp(log_reducible), "E": xp.exp(log_floor)}
    amplitude = xp.log(law.part("amplitude", X, parameters))
    floor = xp.log(law.part("floor", X, parameters))
    whole, rate = amplitude - log_sigmoid(amplitude - floor, xp), cell["rate"]
    for i, k in enumerate(X):
        whole = whole - cell[f"gamma:{k}"] * x[:, i]
        rate = rate - cell[f"delta:{k}"] * x[:, i]
    return whole, floor - amplitude, rate


def own_deviation(scatter: Array, base: Array, base_sd: Array, xp: Any) -> tuple[Array, float]:
    """Return scale and degrees of freedom of a curve's own deviation in level, given its base's.

    The effect of its base model and the deviation are a bivariate Student-t with `DEVIATION_DF`,
    which gives the latter one degree of freedom more: a checkpoint that is odd as a whole is likely
    odd in each of its curves. Were the two independent, an odd curve would be the doing of either
    rather than of both, and a sampler would have to jump from one to the other.

    Parameters
    ----------
    scatter : array
        Scale of curves' deviations over all base models.
    base, base_sd : array
        Effect of the base model, and scale of such effects.
    xp : module
        NumPy, pytensor.tensor or a tape.
    """
    odd = base / base_sd
    df = DEVIATION_DF + 1
    return scatter * xp.sqrt((DEVIATION_DF + odd * odd) / df), df


def decline(
    law: Law,
    log_u: Array,
    share: Array,
    rate: Array,
    onset: Array | None,
    xp: Any,
    at: np.ndarray | None = None,
) -> Array:
    """Return ``log L(D) - log L(D_ref)`` for data sizes ``D = D_ref * exp(log_u)``.

    With ``at``, share, rate and onset are those of curves, and ``at`` the curve of each data size.

    Every decay depends on D and D_l through D^beta and D_l^beta alone, so it is called in those,
    with exponent 1: ``D_l`` itself overflows when beta is small.
    """
    own = {} if onset is None else {"D_l": xp.exp(-onset)}
    start = law.part("decay", 1.0, {"beta": 1.0, **own})
    floor_share = 1 / (1 + xp.exp(-share))
    # What is one number a curve is computed before it is repeated for each of the data sizes.
    floor, reducible, beta = floor_share, (1 - floor_share) / start, xp.exp(rate)
    if at is not None:
        floor, reducible, beta = floor[..., at], reducible[..., at], beta[..., at]
        own = {name: value[..., at] for name, value in own.items()}
    # Beyond exp(500) a loss means nothing, but a rare prior draw of beta must not overflow.
    power = xp.exp(xp.clip(beta * log_u, -500, 500))
    return xp.log(floor + reducible * law.part("decay", power, {"beta": 1.0, **own}))


def believe(layout: Layout, priors: PriorTable, way: Way) -> Belief:
    """Return the model's unknowns and what follows from them, for one way of drawing.

    Parameters
    ----------
    layout : Layout
        Rows, curves, cells.
    priors : mapping
        Prior table.
    way : Way
        How unknowns are drawn, and with what is computed.
    """
    law, factors = get_law(layout.question.law), layout.question.factors
    names = coordinates(law, factors)
    draw, xp, given = way.draw, way.xp, way.given
    of_curve, of_row = given("curve_cell", layout.curve_cell), given("row_curve", layout.row_curve)
    base_row = given("base_effect", _numbers(priors, "base_effect", "location", "scale"))
    base_sd = xp.exp(base_row[0] + base_row[1] * draw("base_sd", 0.0, 1.0, (), None))
    base = None
    if not layout.one_curve_per_base_model:
        curves = len(layout.curve_cell) / len(layout.base_models)
        weight = given("base_weight", np.array([_BASE * max(0.0, 1 - 2 / curves)]))[0]
        part = base_sd[..., None] ** weight
        base = (
            base_sd[..., None]
            / part
            * draw("base_effect", 0.0, part, ("base_model",), DEVIATION_DF)
        )
    scatter = _scatters(layout, priors, way)
    cell, roots, effects, effect_sd = _cells(layout, priors, names, base, scatter, way)

    own = {name: value[..., of_curve] for name, value in cell.items()}
    x = given("curve_x", layout.curve_x)
    expected_level, expected_share, expected_rate = at_factors(law, factors, own, x, xp)
    bend = draw("curve_bend", 0.0, 1.0, ("bent coordinate", "curve"), None)
    share = expected_share + scatter["share"][..., None] * bend[..., 0, :]
    onset = None
    if "onset" in names:
        onset = own["onset"] + scatter["onset"][..., None] * bend[..., 1, :]
    shift = slope_shift(share, onset, xp)
    noise_task, noise, noise_df = _noise(layout, priors, way)
    runs, mean_loss, log_slope, leverage = (
        given(name, number) for name, number in _sight_of_curves(layout).items()
    )
    told = _Estimate(log_slope, leverage / noise**2)
    sd = scatter["rate"][..., None]
    slope = _seen("curve_slope", expected_rate + shift, sd, told, None, ("curve",), way)
    rate = slope - shift
    shape = decline(law, given("log_u", layout.log_u), share, rate, onset, xp, of_row)
    # A curve's mean over its own rows is what its data determine; the level at D_ref follows.
    mean_shape = _mean_by_curve(shape, layout, given)
    location, told = expected_level + mean_shape, _Estimate(mean_loss, runs / noise**2)
    if base is None:
        # Where each base model has one curve, its effect and the curve's own deviation cannot be
        # told apart, and one term serves for both.
        sd, df = base_sd[..., None], DEVIATION_DF
    else:
        curve_base = given("curve_base", layout.curve_base)
        location = location + base[..., curve_base]
        sd, df = own_deviation(scatter["level"][..., None], base, base_sd[..., None], xp)
        sd = sd[..., curve_base]
    mean = _seen("curve_mean", location, sd, told, df, ("curve",), way)
    if base is None:
        base = (mean - location)[..., given("base_curve", np.argsort(layout.curve_base))]
    level = mean - mean_shape
    return Belief(
        roots=roots,
        effects=effects,
        effect_sd=effect_sd,
        cell=cell,
        scatter=scatter,
        base_sd=base_sd,
        base=base,
        level=level,
        share=share,
        rate=rate,
        onset=onset,
        noise_task=noise_task,
        noise=noise,
        noise_df=noise_df,
        mean=level[..., of_row] + shape,
    )


def _numbers(priors: PriorTable, name: str, *fields: str) -> np.ndarray:
    return np.array([getattr(priors[name], field) for field in fields])


def scattered(layout: Layout) -> tuple[str, ...]:
    """Return the coordinates whose scatter of curves around their cell is learned."""
    onset = ("onset",) if get_law(layout.question.law).has("D_l") else ()
    level = () if layout.one_curve_per_base_model else ("level",)
    return ("share", *onset, "rate", *level)


def _scatters(layout: Layout, priors: PriorTable, way: Way) -> dict[str, Any]:
    names = scattered(layout)
    spread = np.array([LEVEL_SPREAD if name == "level" else EFFECT_SPREAD for name in names])
    median = way.given("scatter", np.log([priors[name].scatter for name in names]))
    sd = way.xp.exp(median + spread * way.draw("scatter", 0.0, 1.0, ("scattered",), None))
    known = {"level": way.given("scatter_level", _numbers(priors, "level", "scatter"))[0]}
    return known | {name: sd[..., i] for i, name in enumerate(names)}


def _cells(
    layout: Layout,
    priors: PriorTable,
    names: Sequence[str],
    base: Any,
    scatter: Mapping[str, Any],
    way: Way,
) -> tuple[dict[str, Any], dict[str, Any], dict[tuple[str, str], Any], dict[tuple[str, str], Any]]:
    """Parameter = global + effects of the cell columns, each scale learned.

    The levels of the first column are sampled as means (global included), as are the cells where
    several columns make them; levels of the others as standardised deviations: a global mean and
    a column of well-measured levels are otherwise nearly collinear.
    """
    draw, xp, given = way.draw, way.xp, way.given
    location, scale, usual = (
        given(f"coordinate_{k}", np.array([getattr(prior_of(priors, n), k) for n in names]))
        for k in ("location", "scale", "effect")
    )
    effects: dict[tuple[str, str], Any] = {}
    effect_sd: dict[tuple[str, str], Any] = {}
    if not layout.columns:
        one = Column("", ("all",), np.zeros(len(layout.cells), dtype=int))
        means = _means(
            "mean", "one", one, location[:, None], scale[:, None], _SEEN, layout, priors, base,
            scatter, way,
        )  # fmt: skip
        roots = {name: means[..., k, :] for k, name in enumerate(names)}
        every = given("every_cell", one.index)
        return {n: v[..., every] for n, v in roots.items()}, roots, {}, {}

    root = draw("overall", location, scale, ("coordinate",), None)
    cell = root[..., None]
    for i, column in enumerate(layout.columns):
        z = draw(f"spread_{column.name}", 0.0, 1.0, ("coordinate",), None)
        sd = usual * xp.exp(EFFECT_SPREAD * z)
        dim = _levels_of(column.name)
        last = i == len(layout.columns) - 1
        if i == 0 or last:
            # Curves pin down a cell, not the sum of effects that makes it: sample the cell.
            own = _means(
                f"mean_{column.name}", dim, column, cell, sd[..., None],
                _SEEN if last else _UNSEEN, layout, priors, base, scatter, way,
            )  # fmt: skip
            effect = own - cell
        else:
            effect = sd[..., None] * draw(
                f"effect_{column.name}", 0.0, 1.0, ("coordinate", dim), None
            )
        cell = cell + effect[..., given(f"{column.name}_index", column.index)]
        for k, name in enumerate(names):
            effects[column.name, name] = effect[..., k, :]
            effect_sd[column.name, name] = sd[..., k]
    return (
        {name: cell[..., k, :] for k, name in enumerate(names)},
        {name: root[..., k] for k, name in enumerate(names)},
        effects,
        effect_sd,
    )


@dataclass(frozen=True)
class _Weights:
    """How far the means of a column are sampled as themselves (1), or standardised (0)."""

    open: float
    onset: float
    alpha: float | None
    slope: float | None  # None: as far as the runs of its curves determine it


# The same of the effects of base models with many curves each: runs settle their differences
# alone, and two curves tell nothing of them.
_BASE = 0.75

# Means that runs see, and means of such means. The numbers steer the sampler alone.
_SEEN = _Weights(open=0.3, onset=0.6, alpha=None, slope=None)
_UNSEEN = _Weights(open=0.2, onset=0.3, alpha=0.5, slope=0.3)


def _means(
    prefix: str,
    dim: str,
    column: Column,
    location: Any,
    scale: Any,
    weights: _Weights,
    layout: Layout,
    priors: PriorTable,
    base: Any,
    scatter: Mapping[str, Any],
    way: Way,
) -> Any:
    """Sample the means of the levels of a column, shape (..., coordinates, levels).

    What the runs of a level see is its loss, its slopes in the data size and in the factors and
    its bend, with the effects of its own base models upon them.
    """
    law, factors = get_law(layout.question.law), layout.question.factors
    draw, xp = way.draw, way.xp
    at = column.index[layout.curve_cell]  # level of each curve
    curves = np.bincount(at)
    names, opened = coordinates(law, factors), open_coordinates(law, factors)
    n = len(opened)
    free = _partly_centred(
        prefix, location[..., :n, :], scale[..., :n, :], weights.open, ("open coordinate", dim),
        draw,
    )  # fmt: skip
    value = {name: free[..., k, :] for k, name in enumerate(opened)}

    def given(name: str, number: np.ndarray) -> Any:
        return way.given(f"{prefix}_{name}", number)

    def seen(name: str, prior: str, shift: Any, weight: Any, lever: Any = 1.0) -> Any:
        """Sample ``shift + lever * coordinate``; return the coordinate."""
        k = names.index(prior)
        title, centre = f"{prefix}_{name}", lever * location[..., k, :] + shift
        if isinstance(weight, _Estimate):
            drawn = _seen(title, centre, lever * scale[..., k, :], weight, None, (dim,), way)
        else:
            drawn = _partly_centred(title, centre, lever * scale[..., k, :], weight, (dim,), draw)
        value[prior] = (drawn - shift) / lever
        return value[prior]

    if law.has("D_l"):
        bend = given(
            "bend", np.exp(np.bincount(at, np.log(layout.bend[layout.curve_cell])) / curves)
        )
        floor_share = xp.exp(log_sigmoid(value["share"], xp))
        seen("bend", "onset", xp.log(bend * (1 - floor_share) + floor_share), weights.onset)
    # How log loss falls with each factor, and how precisely the runs say so. Where a base model has
    # one curve, its effect is what scatters the levels, and the table's scatter stands for it.
    mean, slopes, centre, fall, width, blur = (
        given(name, number) for name, number in _sight(layout, at).items()
    )
    shown = 0.0 if base is None else base @ mean
    steeper = 0.0
    for k, factor in enumerate(factors if law.has("alpha") else ()):
        gamma = value[f"gamma:{factor}"]
        lever = _lever(law, factors, factor, value, xp)
        shift = gamma if base is None else gamma - base @ slopes[k]
        weight: Any = weights.alpha
        if weight is None:
            weight = _Estimate(fall[k], width[k] / (scatter["level"][..., None] ** 2 + blur))
        alpha = seen(f"slope:{factor}", f"alpha:{factor}", shift, weight, lever)
        shown = shown - (gamma + lever * alpha) * centre[k]
        steeper = steeper - value[f"delta:{factor}"] * centre[k]
    seen("level", "level", shown, 1.0)
    weight = weights.slope
    if weight is None:
        weight = given("slope_weight", np.bincount(at, slope_weight(layout, priors)) / curves)
    shift = slope_shift(value["share"], value.get("onset"), xp) + steeper
    seen("slope", "rate", shift, weight)
    return xp.concatenate([free, *(value[name][..., None, :] for name in names[n:])], axis=-2)


def _lever(law: Law, factors: Sequence[str], factor: str, value: Mapping[str, Any], xp: Any) -> Any:
    """Return how far a factor's exponent moves the slope of log loss in the factor.

    It is kept off zero: where alpha moves nothing it must not be stretched without bound.
    """
    if not law.has("B"):
        moved = xp.exp(log_sigmoid(-value["share"], xp))
    else:
        total = 1.0
        for k in factors:
            total = total + xp.exp(value[f"split:{k}"])
        moved = xp.exp(log_sigmoid(value["share"], xp) + value[f"split:{factor}"]) / total
    return xp.sqrt(moved**2 + 0.03**2)


def _data_sizes(layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return number, mean and sum of squared deviations of each curve's log data sizes."""
    n, at = len(layout.curve_cell), layout.row_curve
    runs = np.bincount(at, minlength=n).astype(float)
    mean = np.bincount(at, layout.log_u, n) / runs
    return runs, mean, np.bincount(at, (layout.log_u - mean[at]) ** 2, n)


def _sight(layout: Layout, at: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the curves of each level say of it, and how base-model effects enter that.

    Returns
    -------
    mean : ndarray, shape (base_models, levels)
        Weight of each base model in the mean of the level's curves.
    slopes : ndarray, shape (factors, base_models, levels)
        Its weight in their least-squares slope.
    centre : ndarray, shape (factors, levels)
        Mean of the log factors over the curves.
    fall : ndarray, shape (factors, levels)
        Minus the least-squares slope of the curves' log loss at the reference data size.
    width : ndarray, shape (factors, levels)
        How precisely: over the variance of a curve's level around its cell.
    blur : ndarray, shape (levels,)
        The part of that variance that comes from run noise.
    """
    levels, factors = at.max() + 1, layout.curve_x.shape[1]
    runs, u, spread_of_u = _data_sizes(layout)
    y = layout.mean_log_loss - layout.slope * u
    known = np.isfinite(layout.slope_error)
    noise = np.where(known, layout.slope_error, 0.0) ** 2 * spread_of_u / runs
    mean = np.zeros((len(layout.base_models), levels))
    slopes = np.zeros((factors, *mean.shape))
    centre, fall, width = (np.zeros((factors, levels)) for _ in range(3))
    blur = np.zeros(levels)
    for level in range(levels):
        own = np.flatnonzero(at == level)
        x = layout.curve_x[own]
        centre[:, level] = x.mean(axis=0)
        np.add.at(mean[:, level], layout.curve_base[own], 1 / len(own))
        weights = np.linalg.pinv(x - x.mean(axis=0))  # (factors, curves)
        for k in range(factors):
            np.add.at(slopes[k, :, level], layout.curve_base[own], weights[k])
        fall[:, level] = -weights @ y[own]
        # A factor that does not vary among the curves has no weights, and tells nothing.
        spread = (weights**2).sum(axis=1)
        width[:, level] = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1.0), 0.0)
        blur[level] = noise[own].mean()
    return {
        "mean": mean, "slopes": slopes, "centre": centre,
        "fall": fall, "width": width, "blur": blur,
    }  # fmt: skip


def _partly_centred(
    name: str, location: Any, scale: Any, weight: Any, dims: tuple[str, ...], draw: Draw
) -> Any:
    """Return a normal variable sampled as itself (weight 1), standardised (0), or in between.

    The family of arXiv:1906.03028, section 3: whatever the fixed weight, the result has the
    distribution Normal(location, scale).
    """
    raw = draw(name, weight * location, scale**weight, dims, None)
    return location + scale ** (1 - weight) * (raw - weight * location)


class _Estimate(NamedTuple):
    """What runs say of an unknown, and one over the squared error of that."""

    value: Any
    precision: Any


_SEEN_BY_RUNS = ("curve_slope", "curve_mean")


def _seen(
    name: str,
    location: Any,
    scale: Any,
    estimate: _Estimate,
    df: float | None,
    dims: tuple[str, ...],
    way: Way,
) -> Any:
    """Return an unknown of each curve or cell of which its own runs give an estimate.

    It is sampled as its distance from where prior and estimate together would have it, in units
    of the error that they leave: nearly a standard normal, whatever scatter and noise are.
    """
    told = estimate.precision * scale * scale
    narrowed = way.xp.sqrt(1 + told)
    off = (estimate.value - location) * told / narrowed
    raw = way.draw(name, -off / scale, narrowed, dims, df)
    return location + (off + scale * raw) / narrowed


def _sight_of_curves(layout: Layout) -> dict[str, np.ndarray]:
    """Return what a curve's runs say of it, shape (curves,) each.

    The number of its runs and their mean log loss; the log of its least-squares slope, and by how
    much a run noise of 1 would blur that: the precision of both is over the squared noise.
    """
    runs, _, width = _data_sizes(layout)
    fall = np.maximum(-layout.slope, 0.0)  # of a curve that rises, runs say little: none of it
    return {
        "runs_of_curve": runs,
        "mean_loss": layout.mean_log_loss,
        "log_slope": np.log(np.where(fall > 0, fall, 1.0)),
        "slope_leverage": width * fall**2,
    }


def slope_weight(layout: Layout, priors: PriorTable) -> np.ndarray:
    """Return, for each curve, how far its own runs determine its slope, 0 to 1.

    Least squares gives the standard error of the log slope; where it equals the scatter of curves
    around their cell the weight is one half. The scatter is what the slopes show beyond their
    errors, within limits around the prior's. It steers the sampler's coordinates alone, not the
    model.
    """
    slope, error = layout.slope, layout.slope_error
    known = np.isfinite(error)  # a curve of one data size says nothing of its slope: weight 0
    finite = np.where(known, error, 1.0)
    relative = finite / np.maximum(-slope, finite / 10 + 1e-12)
    usual = priors["rate"].scatter
    measured = known & (relative < usual)
    scatter = np.clip(_excess_scatter(layout, relative, measured, usual), usual / 8, usual)
    return np.where(known, 1 / (1 + (relative / scatter) ** 4), 0.0)


def _excess_scatter(
    layout: Layout, relative: np.ndarray, measured: np.ndarray, otherwise: float
) -> float:
    """Return the standard deviation of log slopes around their cells beyond their errors."""
    cells, at = np.unique(layout.curve_cell[measured], return_inverse=True)
    freedom = len(at) - len(cells)
    if freedom < 3:
        return otherwise
    log_slope = np.log(-layout.slope[measured])
    mean = np.bincount(at, log_slope) / np.bincount(at)
    between = float(((log_slope - mean[at]) ** 2).sum()) / freedom
    return math.sqrt(max(between - float((relative[measured] ** 2).mean()), 0.0))


def _noise(layout: Layout, priors: PriorTable, way: Way) -> tuple[Any, Any, Any]:
    """Run noise: a scale for each task, around it one for each curve, shared tail weight."""
    draw, xp, given = way.draw, way.xp, way.given
    row = given("noise", _numbers(priors, "noise", "location", "scale", "effect", "scatter"))
    location, scale, effect, scatter = (row[k] for k in range(4))
    overall = location + scale * draw("noise_global", 0.0, 1.0, (), None)
    task = draw("noise_task", overall[..., None], effect, ("task",), None)
    # A run tells about as much of the log scale as one of the 2 that a normal one would, after
    # those that went into the curve; a scale known better than its prior is sampled as itself.
    told = np.maximum(np.bincount(layout.row_curve, minlength=len(layout.curve_cell)) - 3, 0)
    weight = given("noise_weight", told / (told + priors["noise"].scatter ** -2))
    own = task[..., given("curve_task", layout.curve_task)]
    curve = _partly_centred("noise_curve", own, scatter, weight, ("curve",), draw)
    tail = given("noise_df", _numbers(priors, "noise_df", "location", "scale"))
    df = 2 + xp.exp(tail[0] + tail[1] * draw("noise_df", 0.0, 1.0, (), None))
    return task, xp.exp(curve), df


def _mean_by_curve(values: Any, layout: Layout, given: Given) -> Any:
    # A gather, not a matrix product: chains that run side by side must not share BLAS threads.
    order = np.argsort(layout.row_curve, kind="stable")
    count = np.bincount(layout.row_curve)
    place = np.arange(count.max()) + (np.cumsum(count) - count)[:, None]
    weight = (np.arange(count.max()) < count[:, None]) / count[:, None]
    rows = given("rows_of_curve", order[np.minimum(place, len(order) - 1)])
    return (values[..., rows] * given("row_weight", weight)).sum(axis=-1)


def _levels_of(column: str) -> str:
    return f"levels of {column}"


# Dimensions of `dim_sizes` whose sizes follow from law and factors alone.
STRUCTURAL = ("one", "coordinate", "open coordinate", "bent coordinate", "scattered")


def dim_sizes(layout: Layout) -> dict[str, list[str]]:
    """Return the coordinate labels of each dimension that `believe` may ask for."""
    law, factors = get_law(layout.question.law), layout.question.factors
    curves = [
        " / ".join((*layout.cells[k], layout.base_models[m]))
        for k, m in zip(layout.curve_cell, layout.curve_base, strict=True)
    ]
    return {
        "one": ["all"],
        "coordinate": list(coordinates(law, factors)),
        "open coordinate": list(open_coordinates(law, factors)),
        "bent coordinate": [k for k in scattered(layout) if k in ("share", "onset")],
        "scattered": list(scattered(layout)),
        "curve": [f"{i}: {name}" for i, name in enumerate(curves)],
        "base_model": list(layout.base_models),
        "task": list(layout.tasks),
        **{_levels_of(column.name): list(column.levels) for column in layout.columns},
    }


def build(layout: Layout, priors: PriorTable) -> Any:
    """Return the PyMC model: `believe` plus Student-t run noise on log loss.

    Returns
    -------
    pymc.Model
        Observed node ``log_loss`` over dim ``row``.
    """
    import pymc as pm
    import pytensor.tensor as pt

    coords = dim_sizes(layout) | {"row": np.arange(len(layout.row_curve)).tolist()}
    # Scales are exponentials: checking that they are positive would double the compiled model.
    with pm.Model(coords=coords, check_bounds=False) as model:

        def draw(name: str, location: Any, scale: Any, dims: tuple[str, ...], df: Any) -> Any:
            start = np.zeros(tuple(len(coords[d]) for d in dims)) if name in _SEEN_BY_RUNS else None
            if df is None:
                return pm.Normal(name, location, scale, dims=dims, initval=start)
            return pm.StudentT(name, nu=df, mu=location, sigma=scale, dims=dims, initval=start)

        belief = believe(layout, priors, Way(draw, pt))
        # The sampling error of a test set is left out: runs of a task share their test set, so it
        # moves them together and is no part of what one differs from another by.
        pm.StudentT(
            "log_loss", nu=belief.noise_df, mu=belief.mean, sigma=belief.noise[layout.row_curve],
            observed=layout.log_loss, dims="row",
        )  # fmt: skip
    return model


def starting_point(
    layout: Layout, priors: PriorTable, seed: int, given: Given = _as_it_is
) -> dict[str, np.ndarray]:
    """Return a value of every unknown to start a chain from, in the order in which they are drawn.

    Where a curve's runs and prior expect it, else at the prior's location; around it evenly within
    one prior scale and at most 1, so that chains which agree did not start together.
    """
    rng = np.random.default_rng(seed)
    sizes = {name: len(labels) for name, labels in dim_sizes(layout).items()}
    point: dict[str, np.ndarray] = {}

    def draw(name: str, location: Any, scale: Any, dims: tuple[str, ...], df: Any) -> Any:
        centre = 0.0 if name in _SEEN_BY_RUNS else location
        jitter = np.minimum(scale, 1.0) * rng.uniform(-1, 1, tuple(sizes[d] for d in dims))
        point[name] = np.asarray(jitter + centre)
        return point[name]

    believe(layout, priors, Way(draw, np, given))
    return point


def log_density(layout: Layout, priors: PriorTable, point: Mapping[str, np.ndarray]) -> float:
    """Return the log of the unnormalised posterior density of one value of every unknown."""
    from scipy.stats import norm, t

    total: list[float] = []

    def draw(name: str, location: Any, scale: Any, dims: tuple[str, ...], df: Any) -> Any:
        law = norm(location, scale) if df is None else t(df, location, scale)
        total.append(float(law.logpdf(point[name]).sum()))
        return point[name]

    belief = believe(layout, priors, Way(draw, np))
    runs = t(belief.noise_df, belief.mean, belief.noise[layout.row_curve])
    return sum(total) + float(runs.logpdf(layout.log_loss).sum())


def replay(layout: Layout, priors: PriorTable, draws: Mapping[str, np.ndarray]) -> Belief:
    """Return the belief behind saved draws.

    Parameters
    ----------
    draws : mapping of str to ndarray, shape (draws, ...)
        The sampled unknowns by name.
    """

    def draw(name: str, location: Any, scale: Any, dims: tuple[str, ...], df: Any) -> Any:
        return draws[name]

    return believe(layout, priors, Way(draw, np))


def simulate_prior(
    layout: Layout, priors: PriorTable, size: int, seed: int
) -> tuple[dict[str, np.ndarray], Belief]:
    """Return ``size`` draws of every unknown from the prior, and the belief that they make.

    Serves prior predictive checks and simulation-based calibration.
    """
    rng = np.random.default_rng(seed)
    sizes = {name: len(labels) for name, labels in dim_sizes(layout).items()}
    draws: dict[str, np.ndarray] = {}

    def draw(name: str, location: Any, scale: Any, dims: tuple[str, ...], df: Any) -> Any:
        shape = (size, *(sizes[d] for d in dims))
        z = rng.standard_normal(shape) if df is None else rng.standard_t(df, shape)
        draws[name] = location + scale * z
        return draws[name]

    return draws, believe(layout, priors, Way(draw, np))
