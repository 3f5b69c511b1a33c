"""The model, written once: how cells, curves, base models and noise hang together.

`hierarchy` declares every unknown with its prior and the likelihood of the runs, in the centred
form of a textbook. What a declaration does is up to the backend that it is made with
(`tunecast.models.hierarchy.backend`): a PyMC model, draws from the prior, the replay of saved
draws, the log density in NumPy, or a compiled one. How an unknown is sampled (centred, non-centred,
in units of what its runs say) is not decided here but in `tunecast.models.hierarchy.geometry`.

Arrays end in the axis that the names of their dims say; draws, where there are any, come first.
"""

from __future__ import annotations

from typing import Any

from tunecast.models.hierarchy.backend import Backend
from tunecast.models.hierarchy.priors import (
    BASE_MODEL_DF,
    LEAST_NOISE,
    LOSS_SCATTER_SPREAD,
    SCALE_SPREAD,
    Priors,
)
from tunecast.models.hierarchy.table import Table
from tunecast.models.laws.law import by_factor, expected_at, log_relative_loss


def hierarchy(rv: Backend, t: Table, p: Priors) -> None:
    """Declare the hierarchical model of a table of runs.

    Parameters
    ----------
    rv : Backend
        What makes a random variable of each declaration.
    t : Table
        Index arrays and losses.
    p : mapping of str to Prior
        Prior table.
    """
    law, xp = t.law, rv.xp

    def own(name: str, mean: Any, sd: Any, shown: Any, df: float | None = None) -> Any:
        # A curve's own value of something. A deviation from the mean that its runs cannot show is
        # not sampled; a forecast draws it.
        def drawn(mean: Any, sd: Any) -> Any:
            if df is None:
                return rv.normal(name, mean, sd, shown.dim)
            return rv.student_t(name, df, mean, sd, shown.dim)

        if shown.every:
            return drawn(mean, sd)
        if shown.some:
            usual = mean[..., shown.curves]
            of_shown = sd[..., shown.curves] if df is not None else sd
            mean = xp.add_at(mean, shown.curves, drawn(usual, of_shown) - usual)
        return rv.deterministic(f"{name}_or_mean", mean, "curve")

    # A base model shifts the log loss of all curves that start from it: some checkpoints are odd.
    base_sd = rv.lognormal("base_model_sd", p["base_model"].location, p["base_model"].scale)

    def base_model_effect(dim: str) -> Any:
        # Forecasts draw that of a base model which no run has from here too.
        return rv.student_t("base_model_effect", BASE_MODEL_DF, 0.0, base_sd[..., None], dim)

    base = None if t.one_curve_per_base_model else base_model_effect("base_model")

    # Noise of a run on log loss: a scale for each task, around it one for each curve.
    log_noise = rv.normal("log_noise", p["noise"].location, p["noise"].scale)
    of_task = rv.normal("log_noise_task", log_noise[..., None], p["noise"].effect, "task")
    of_curve = own("log_noise_curve", of_task[..., t.curve_task], p["noise"].scatter, t.curvatures)
    noise = rv.deterministic("noise", xp.exp(of_curve) + LEAST_NOISE, "curve")
    df_above_2 = rv.lognormal("noise_df_above_2", p["noise_df"].location, p["noise_df"].scale)
    noise_df = rv.deterministic("noise_df", 2.0 + df_above_2)

    # How far curves scatter around their cell.
    curve_sd: dict[str, Any] = {}
    for q in t.quantities:
        is_loss = q.name == "log_loss_ref"
        if q.varies and not (is_loss and t.one_curve_per_base_model):
            spread = LOSS_SCATTER_SPREAD if is_loss else SCALE_SPREAD
            curve_sd[q.name] = rv.lognormal(f"{q.name}_curve_sd", p[q.name].log_scatter, spread)

    # A cell has a global mean and effects of its task, its method, ..., and of all at once.
    cell: dict[str, Any] = {}
    for q in t.quantities:
        dims = ("factor",) if q.per_factor else ()
        mean = rv.normal(f"{q.name}_mean", p[q.name].location, p[q.name].scale, *dims)[..., None]
        for g in t.groupings:
            sd = rv.lognormal(f"{q.name}_{g.name}_sd", p[q.name].log_effect, SCALE_SPREAD, *dims)
            effect = rv.normal(f"{q.name}_{g.name}", 0.0, sd[..., None], *dims, g.name)
            mean = mean + effect[..., g.index]
        cell[q.name] = rv.deterministic(q.name, mean, *dims, "cell")
    rv.published(cell)

    # A curve's quantities scatter around what its cell expects at its factors.
    of_curves = {name: value[..., t.curve_cell] for name, value in cell.items()}
    x = {k: t.curve_x[:, i] for i, k in enumerate(t.factors)}
    curve = expected_at(law, by_factor(law, of_curves, t.factors), x, xp)
    for q in t.quantities:
        if q.varies and q.name != "log_loss_ref":
            sd = curve_sd[q.name][..., None]
            curve[q.name] = own(f"{q.name}_curve", curve[q.name], sd, t.showing[q.shown_by])
        elif q.name in curve:
            rv.deterministic(f"{q.name}_expected", curve[q.name], "curve")
    relative = log_relative_loss(law, t.log_u, curve, xp, t.run_curve)
    rv.deterministic("log_relative_loss", relative, "run")

    # Beyond any law the slope of log loss in log data size drifts, that of all curves of a task and
    # that of each (`drift.py`); the coefficients are of its expansion over the data sizes seen.
    task_sd = rv.lognormal("drift_task_sd", p["drift_task"].location, p["drift_task"].scale)
    own_sd = rv.lognormal("drift_curve_sd", p["drift_curve"].location, p["drift_curve"].scale)
    drifts = rv.normal("drift_task", 0.0, task_sd[..., None, None], "drift_term", "task")
    drift = (drifts[..., t.run_task] * t.task_drift_basis).sum(axis=-2)
    if t.curvatures.some:
        drifts = rv.normal(
            "drift_curve", 0.0, own_sd[..., None, None], "drift_term", t.curvatures.dim
        )
        drift = drift + (drifts[..., t.run_curved] * t.curve_drift_basis).sum(axis=-2)
    rv.deterministic("drift", drift, "run")

    # A loss of its own shows apart from noise where a curve has two runs or more. That of a run
    # alone is a part of its noise here, and so is that of its slope, away from the reference.
    expected = curve["log_loss_ref"]
    if base is None:
        # Where each base model has one curve, its effect and the curve's own deviation cannot be
        # told apart, and one term serves for both.
        loss, alone = expected, base_sd[..., None]
        if t.repeated_base.every:
            loss = expected + base_model_effect("base_model")[..., t.curve_base]
        elif t.repeated_base.some:
            base = base_model_effect(t.repeated_base.dim)
            loss = xp.add_at(expected, t.curve_of_repeated_base, base)
        rv.deterministic("log_loss_ref_curve", loss, "curve")
    else:
        sd, df = curve_scale(curve_sd["log_loss_ref"], base, base_sd, xp)
        sd, mean = sd[..., t.curve_base], expected + base[..., t.curve_base]
        loss, alone = own("log_loss_ref_curve", mean, sd, t.repeated, df), sd[..., t.run_curve]

    # The sampling error of a test set is left out: runs of a task share their test set, so it moves
    # them together and is no part of what one differs from another by.
    mu = rv.deterministic("expected_log_loss", loss[..., t.run_curve] + relative + drift, "run")
    scale = noise[..., t.run_curve]
    if not t.repeated.every:
        alone = rv.deterministic("alone_sd", t.run_alone * alone, "run")
        slope = t.run_alone * curve_sd["log_beta"][..., None] * relative
        scale = xp.sqrt(scale * scale + alone * alone + slope * slope)
    rv.observe("log_loss", t.log_loss, noise_df, mu, rv.deterministic("scale", scale, "run"), "run")


def curve_scale(curve_sd: Any, base: Any, base_sd: Any, xp: Any) -> tuple[Any, float]:
    """Return scale and degrees of freedom of curves' deviations in log loss, given base models'.

    The effect of a base model and the deviation of its curve are a bivariate Student-t with
    `BASE_MODEL_DF`, which gives the latter one degree of freedom more: a checkpoint that is odd as
    a whole is likely odd in each of its curves. Were the two independent, an odd curve would be the
    doing of either rather than of both, and the posterior would have two modes.

    Parameters
    ----------
    curve_sd : array, shape (...)
        Scale of curves' deviations over all base models.
    base : array, shape (..., base_models)
        Effects of base models.
    base_sd : array, shape (...)
        Scale of such effects.
    xp : namespace
        `tunecast.models.laws.positive.NumPy`, ``pytensor.tensor``, ...
    """
    odd = base / base_sd[..., None]
    df = BASE_MODEL_DF + 1
    return curve_sd[..., None] * xp.sqrt((BASE_MODEL_DF + odd * odd) / df), df
