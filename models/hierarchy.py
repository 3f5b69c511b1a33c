"""The hierarchy: how cells, curves and base models hang together, written once.

`believe` is the whole model apart from the likelihood. It asks for each unknown through a callable
``draw`` and computes with ``xp``, so the same lines serve

* PyMC: ``draw`` creates a random variable, ``xp`` is ``pytensor.tensor`` (`build`);
* saved draws: ``draw`` looks the values up, ``xp`` is NumPy (`replay`);
* prior simulation: ``draw`` samples them, ``xp`` is NumPy (`simulate_prior`).

Geometry decides how fast this samples. Three devices, each exact:

* A cell is described by its loss at a reference point inside the data, the irreducible share of
  it, and exponents; (log A, log E) -> (level, share) has Jacobian determinant 1, so priors keep
  their meaning.
* What the data determine sharply is sampled directly: a curve's mean log loss over its own data
  sizes, and its local slope ``log((1 - share) * onset * beta)``. Each is its hierarchical
  coordinate plus a shift by other unknowns, again with determinant 1. What they leave open
  (share, onset) is sampled as standardised deviations.
* Every learned scale is log-normal, so none of them has a funnel at zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunecast.models.laws import Law, get_law
from tunecast.models.layout import Layout
from tunecast.models.priors import BASE_EFFECT_DF, EFFECT_SPREAD, LEVEL_SPREAD, PriorTable

# draw(name, location, scale, dims, df) returns a (batch of) variable(s); df None means normal.
type Draw = Callable[[str, Any, Any, tuple[str, ...], float | None], Any]
type Array = Any


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
        Standard deviation of a curve around its cell, by coordinate.
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
    """Return the names of a cell's coordinates, ``rate`` last because it leans on the others."""
    names = ["level", "share"]
    names += [f"{name}:{k}" for name in ("alpha", "gamma") for k in factors if law.has("alpha")]
    names += ["onset"] if law.has("D_l") else []
    names += [f"split:{k}" for k in factors if law.has("B")]
    return (*names, "rate")


def prior_of(priors: PriorTable, coordinate: str) -> Any:
    """Return the row of the table for a coordinate such as ``alpha:model_size``."""
    return priors[coordinate.partition(":")[0]]


def log_sigmoid(x: Array, xp: Any) -> Array:
    """Return ``log(1 / (1 + exp(-x)))`` without overflow."""
    return -xp.logaddexp(0.0, -x)


def slope_shift(share: Array, onset: Array | None, xp: Any) -> Array:
    """Return ``log(slope / beta)``, the log-log slope at the reference point over beta."""
    shift = log_sigmoid(-share, xp)
    return shift if onset is None else shift + log_sigmoid(onset, xp)


def at_factors(
    law: Law, factors: Sequence[str], cell: Mapping[str, Array], x: Array, xp: Any
) -> tuple[Array, Array]:
    """Return log loss and logit of its irreducible share that a cell expects at its D_ref.

    The laws hold E fixed while a factor grows. Real base models of other sizes tend to other
    losses with unlimited data, so the loss as a whole falls with an exponent of its own, gamma.

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
        NumPy or pytensor.tensor.
    """
    log_reducible = cell["level"] + log_sigmoid(-cell["share"], xp)
    log_floor = cell["level"] + log_sigmoid(cell["share"], xp)
    X = {k: np.exp(x[:, i]) for i, k in enumerate(factors)} if law.has("alpha") else {}
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
    whole = xp.logaddexp(amplitude, floor)
    for i, k in enumerate(X):
        whole = whole - cell[f"gamma:{k}"] * x[:, i]
    return whole, floor - amplitude


def decline(
    law: Law, log_u: Array, share: Array, rate: Array, onset: Array | None, xp: Any
) -> Array:
    """Return ``log L(D) - log L(D_ref)`` for data sizes ``D = D_ref * exp(log_u)``.

    Every decay depends on D and D_l through D^beta and D_l^beta alone, so it is called in those,
    with exponent 1: ``D_l`` itself overflows when beta is small.
    """
    parameters = {"beta": 1.0}
    if onset is not None:
        parameters["D_l"] = xp.exp(-onset)
    # Beyond exp(500) a loss means nothing, but a rare prior draw of beta must not overflow.
    power = xp.exp(xp.clip(xp.exp(rate) * log_u, -500, 500))
    decay = law.part("decay", power, parameters)
    start = law.part("decay", 1.0, parameters)
    floor_share = 1 / (1 + xp.exp(-share))
    return xp.log(floor_share + (1 - floor_share) * decay / start)


def believe(layout: Layout, priors: PriorTable, draw: Draw, xp: Any) -> Belief:
    """Return the model's unknowns and what follows from them, for one way of drawing.

    Parameters
    ----------
    layout : Layout
        Rows, curves, cells.
    priors : mapping
        Prior table.
    draw : callable
        ``draw(name, location, scale, dims, df)``; dims are names of `dim_sizes`.
    xp : module
        NumPy or pytensor.tensor.
    """
    law, factors = get_law(layout.question.law), layout.question.factors
    names = coordinates(law, factors)
    cell, roots, effects, effect_sd = _cells(layout, priors, names, draw, xp)

    own = {name: value[..., layout.curve_cell] for name, value in cell.items()}
    expected_level, expected_share = at_factors(law, factors, own, layout.curve_x, xp)
    scatter: dict[str, Array] = {
        name: _positive(f"scatter_{name}", priors[name].scatter, EFFECT_SPREAD, draw, xp)
        for name in ("share", "rate", "onset")
        if name in names
    }
    share = expected_share + scatter["share"][..., None] * draw(
        "curve_share", 0.0, 1.0, ("curve",), None
    )
    onset = None
    if "onset" in names:
        onset = own["onset"] + scatter["onset"][..., None] * draw(
            "curve_onset", 0.0, 1.0, ("curve",), None
        )
    shift = slope_shift(share, onset, xp)
    slope = _partly_centred(
        "curve_slope",
        own["rate"] + shift,
        scatter["rate"][..., None],
        slope_weight(layout, priors),
        ("curve",),
        draw,
    )
    rate = slope - shift
    at = layout.row_curve
    row_onset = None if onset is None else onset[..., at]
    shape = decline(law, layout.log_u, share[..., at], rate[..., at], row_onset, xp)
    # A curve's mean over its own rows is what its data determine; the level at D_ref follows.
    mean_shape = _mean_by_curve(shape, layout)
    level, base, base_sd = _levels(layout, priors, expected_level, mean_shape, scatter, draw, xp)
    noise_task, noise, noise_df = _noise(layout, priors, draw, xp)
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
        mean=level[..., at] + shape,
    )


def _positive(name: str, median: float, spread: float, draw: Draw, xp: Any) -> Any:
    return xp.exp(np.log(median) + spread * draw(name, 0.0, 1.0, (), None))


def _cells(
    layout: Layout, priors: PriorTable, names: Sequence[str], draw: Draw, xp: Any
) -> tuple[dict[str, Any], dict[str, Any], dict[tuple[str, str], Any], dict[tuple[str, str], Any]]:
    """Parameter = global + effects of the cell columns, each scale learned.

    The levels of the first column are sampled as means (global included), those of the others as
    standardised deviations: a global mean and a column of well-measured levels are otherwise
    nearly collinear.
    """
    every = np.zeros(len(layout.cells), dtype=int)
    rows = {name: prior_of(priors, name) for name in names}
    roots: dict[str, Any] = {}
    effects: dict[tuple[str, str], Any] = {}
    effect_sd: dict[tuple[str, str], Any] = {}
    if not layout.columns:
        roots = _means(
            "global",
            "global",
            {n: (r.location, r.scale) for n, r in rows.items()},
            np.array([slope_weight(layout, priors).mean()]),
            draw,
            xp,
        )
        return {n: v[..., every] for n, v in roots.items()}, roots, {}, {}

    first, *others = layout.columns
    for name in names:
        roots[name] = draw(f"global_{name}", rows[name].location, rows[name].scale, (), None)
    for column in layout.columns:
        z = draw(f"spread_{column.name}", 0.0, 1.0, ("coordinate",), None)
        for i, name in enumerate(names):
            effect_sd[column.name, name] = rows[name].effect * xp.exp(EFFECT_SPREAD * z[..., i])
    slopes = slope_weight(layout, priors)
    level = first.index[layout.curve_cell]
    means = _means(
        first.name,
        _levels_of(first.name),
        {n: (roots[n][..., None], effect_sd[first.name, n][..., None]) for n in names},
        np.bincount(level, slopes) / np.bincount(level),
        draw,
        xp,
    )
    cell = {}
    for name in names:
        effects[first.name, name] = means[name] - roots[name][..., None]
        cell[name] = means[name][..., first.index]
    for column in others:
        sd = {name: effect_sd[column.name, name][..., None] for name in names}
        if column.name == "cell":
            # Curves pin down a cell, not the sum of effects that makes it: sample the cell.
            normal = {name: (cell[name], sd[name]) for name in names}
            weight = np.bincount(layout.curve_cell, slopes) / np.bincount(layout.curve_cell)
            own = _means("cell", _levels_of("cell"), normal, weight, draw, xp)
            effects |= {("cell", name): own[name] - cell[name] for name in names}
            cell = own
            continue
        z = draw(f"effect_{column.name}", 0.0, 1.0, ("coordinate", _levels_of(column.name)), None)
        for i, name in enumerate(names):
            effect = sd[name] * z[..., i, :]
            effects[column.name, name] = effect
            cell[name] = cell[name] + effect[..., column.index]
    return cell, roots, effects, effect_sd


def _means(
    prefix: str,
    dim: str,
    normal: Mapping[str, tuple[Any, Any]],
    weight: np.ndarray,
    draw: Draw,
    xp: Any,
) -> dict[str, Any]:
    """Sample one mean of each coordinate; the rate by way of the local slope."""
    means = {
        name: _partly_centred(
            f"{prefix}_{name}", location, scale, 1.0 if name == "level" else 0.5, (dim,), draw
        )
        for name, (location, scale) in normal.items()
        if name != "rate"
    }
    shift = slope_shift(means["share"], means.get("onset"), xp)
    location, scale = normal["rate"]
    slope = _partly_centred(f"{prefix}_slope", location + shift, scale, weight, (dim,), draw)
    means["rate"] = slope - shift
    return means


def _partly_centred(
    name: str, location: Any, scale: Any, weight: Any, dims: tuple[str, ...], draw: Draw
) -> Any:
    """Return a normal variable sampled as itself (weight 1), standardised (0), or in between.

    The family of arXiv:1906.03028, section 3: whatever the fixed weight, the result has the
    distribution Normal(location, scale).
    """
    raw = draw(name, weight * location, scale**weight, dims, None)
    return location + scale ** (1 - weight) * (raw - weight * location)


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


def _levels(
    layout: Layout,
    priors: PriorTable,
    expected: Any,
    mean_shape: Any,
    scatter: dict[str, Any],
    draw: Draw,
    xp: Any,
) -> tuple[Any, Any, Any]:
    """Return level of each curve, effect of each base model and the scale of those effects.

    Where each base model has one curve, its effect and the curve's own deviation cannot be told
    apart, and one term serves for both.
    """
    row = priors["base_effect"]
    base_sd = xp.exp(row.location + row.scale * draw("base_sd", 0.0, 1.0, (), None))
    if layout.one_curve_per_base_model:
        scatter["level"] = np.asarray(priors["level"].scatter)
        mean = draw(
            "curve_mean", expected + mean_shape, base_sd[..., None], ("curve",), BASE_EFFECT_DF
        )
        level = mean - mean_shape
        return level, (level - expected)[..., np.argsort(layout.curve_base)], base_sd
    median = priors["level"].scatter
    scatter["level"] = _positive("scatter_level", median, LEVEL_SPREAD, draw, xp)
    base = base_sd[..., None] * draw("base_effect", 0.0, 1.0, ("base_model",), BASE_EFFECT_DF)
    location = expected + base[..., layout.curve_base] + mean_shape
    mean = draw("curve_mean", location, scatter["level"][..., None], ("curve",), None)
    return mean - mean_shape, base, base_sd


def _noise(layout: Layout, priors: PriorTable, draw: Draw, xp: Any) -> tuple[Any, Any, Any]:
    """Run noise: a scale for each task, around it one for each curve, shared tail weight."""
    row = priors["noise"]
    overall = row.location + row.scale * draw("noise_global", 0.0, 1.0, (), None)
    task = overall[..., None] + row.effect * draw("noise_task", 0.0, 1.0, ("task",), None)
    curve = task[..., layout.curve_task] + row.scatter * draw(
        "noise_curve", 0.0, 1.0, ("curve",), None
    )
    tail = priors["noise_df"]
    df = 2 + xp.exp(tail.location + tail.scale * draw("noise_df", 0.0, 1.0, (), None))
    return task, xp.exp(curve), df


def _mean_by_curve(values: Any, layout: Layout) -> Any:
    weights = np.zeros((len(layout.row_curve), len(layout.curve_cell)))
    weights[np.arange(len(layout.row_curve)), layout.row_curve] = 1
    return values @ (weights / weights.sum(axis=0))


def _levels_of(column: str) -> str:
    return f"levels of {column}"


def dim_sizes(layout: Layout) -> dict[str, list[str]]:
    """Return the coordinate labels of each dimension that `believe` may ask for."""
    law, factors = get_law(layout.question.law), layout.question.factors
    curves = [
        " / ".join((*layout.cells[k], layout.base_models[m]))
        for k, m in zip(layout.curve_cell, layout.curve_base, strict=True)
    ]
    return {
        "global": ["all"],
        "coordinate": list(coordinates(law, factors)),
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
        Observed node ``log_loss`` over dim ``row``; its data is a shared variable, so one
        compiled model serves many tables of the same layout.
    """
    import pymc as pm
    import pytensor.tensor as pt

    coords = dim_sizes(layout) | {"row": np.arange(len(layout.row_curve)).tolist()}
    with pm.Model(coords=coords) as model:

        def draw(name: str, location: Any, scale: Any, dims: tuple[str, ...], df: Any) -> Any:
            start = _start(name, layout, priors)
            if df is None:
                return pm.Normal(name, location, scale, dims=dims, initval=start)
            return pm.StudentT(name, nu=df, mu=location, sigma=scale, dims=dims, initval=start)

        belief = believe(layout, priors, draw, pt)
        # The sampling error of a test set is left out: runs of a task share their test set, so it
        # moves them together and is no part of what one differs from another by.
        scale = belief.noise[layout.row_curve]
        observed = pm.Data("observed_log_loss", layout.log_loss, dims="row")
        pm.StudentT(
            "log_loss", nu=belief.noise_df, mu=belief.mean, sigma=scale, observed=observed,
            dims="row",
        )  # fmt: skip
    return model


def _start(name: str, layout: Layout, priors: PriorTable) -> np.ndarray | None:
    """Start the sharply determined unknowns at least squares, for a short warm-up."""
    if name == "curve_mean":
        n = len(layout.curve_cell)
        total = np.bincount(layout.row_curve, layout.log_loss, n)
        return total / np.bincount(layout.row_curve, minlength=n)
    if name == "curve_slope":
        slope = layout.slope
        falling = slope < 0
        usual = np.median(-slope[falling]) if falling.any() else 0.01
        log_slope = np.log(np.where(falling, np.maximum(-slope, usual / 10), usual / 3))
        return slope_weight(layout, priors) * log_slope
    return None


def replay(layout: Layout, priors: PriorTable, draws: Mapping[str, np.ndarray]) -> Belief:
    """Return the belief behind saved draws.

    Parameters
    ----------
    draws : mapping of str to ndarray, shape (draws, ...)
        The sampled unknowns by name.
    """

    def draw(name: str, location: Any, scale: Any, dims: tuple[str, ...], df: Any) -> Any:
        return draws[name]

    return believe(layout, priors, draw, np)


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

    return draws, believe(layout, priors, draw, np)
