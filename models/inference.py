"""Sampling: from a run table and a question to a fit with its diagnostics."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunecast.models.errors import TunecastError
from tunecast.models.fits import Diagnostics, Fit, Member, UnconvergedError
from tunecast.models.hierarchy import build
from tunecast.models.laws import get_law
from tunecast.models.layout import Layout, Question, lay_out
from tunecast.models.priors import get_priors
from tunecast.models.runs import describe, digest, read_runs

# Limits that a fit must keep to be called converged: Vehtari et al. 2021, arXiv:1903.08008, for
# R-hat and effective sample size; Betancourt, arXiv:1701.02434, for energy.
RHAT_LIMIT = 1.01
ESS_LIMIT = 400
BFMI_LIMIT = 0.3
# A share of divergent draws: an isolated one is a numerical accident, a cluster marks a region
# that the sampler cannot enter.
DIVERGENCE_LIMIT = 0.001

DRAWS, TUNE, CHAINS = 2400, 500, 4
# Steps small enough for no divergence. At one length of them, trajectories of some posteriors turn
# back half-way time after time; lengths that vary by this share do not.
TARGET_ACCEPT, STEP_JITTER = 0.97, 0.25
LOOKS = (1 / 2, 2 / 3, 5 / 6)  # shares of the draws after which diagnostics may end the sampling
LOOK_EVERY_MS = 100  # at how far the chains are
KEPT = 4000  # draws that a fit keeps; diagnostics are computed on all
AUTO = "auto"


def question_of(
    runs: pd.DataFrame,
    *,
    law: str,
    factors: Sequence[str] | None = None,
    data: str = "finetune_examples",
    cell: Sequence[str] | None = None,
    curve: str = "base_model",
) -> Question:
    """Return the question with its defaults filled in from the table.

    Factors default to the model size (none for the law power), cells to task x method, and by
    family too where the table has several: their losses do not compare.
    """
    if not get_law(law).has("alpha"):
        factors = ()
    elif factors is None:
        factors = ("model_size",)
    if cell is None:
        several = "family" in runs and runs["family"].nunique() > 1
        cell = ("task", "method", "family") if several else ("task", "method")
    return Question(law, tuple(factors), data, tuple(cell), curve)


def fit(
    runs: pd.DataFrame | str | Path | Sequence[str | Path],
    *,
    law: str = "rectified",
    factors: Sequence[str] | None = None,
    data: str = "finetune_examples",
    cell: Sequence[str] | None = None,
    curve: str = "base_model",
    priors: str | Path = "weak",
    draws: int = DRAWS,
    tune: int = TUNE,
    chains: int = CHAINS,
    seed: int = 0,
    progress: bool = True,
    allow_unconverged: bool = False,
    retry: bool = True,
) -> Fit:
    """Fit the hierarchical model to a run table.

    Parameters
    ----------
    runs : DataFrame, path, or name of an embedded table
        What `read_runs` takes.
    law : str
        A name in `LAWS`, or ``auto``: all of them, weighted by their leave-future-out score.
    factors, data, cell, curve
        See `question_of`.
    priors : str or path
        ``weak``, ``zhang2024`` or a CSV file.
    draws, tune, chains, seed : int
        Of the sampler, for each chain.
    progress : bool
        Whether to show a progress bar.
    allow_unconverged : bool
        Return a fit that failed its diagnostics, marked, instead of raising.
    retry : bool
        Whether a fit that fails is sampled once more, for twice as long with smaller steps.

    Raises
    ------
    TunecastError
        When table or options are at fault; one sentence for each fault.
    UnconvergedError
        When the fit fails its diagnostics and that is not allowed; it carries the fit.
    """
    if law != AUTO:
        get_law(law)
    _check_sampler(draws=draws, tune=tune, chains=chains)
    table = get_priors(priors)
    names = tuple(factors) if factors is not None else ()
    if factors is None and law != "power":
        names = ("model_size",)
    labels = [curve, *(cell or ())]
    frame = read_runs(runs, columns=(*names, data), labels=labels)
    used, counts = usable(frame, data, names)
    options = {"draws": draws, "tune": tune, "chains": chains, "seed": seed}
    ask = {"factors": factors, "data": data, "cell": cell, "curve": curve}
    if law == AUTO:
        from tunecast.models.stacking import stacked

        members, diagnostics, scores = stacked(used, ask, table, options, progress, retry)
    else:
        layout = lay_out(used, question_of(used, law=law, **ask))  # type: ignore[arg-type]
        posterior, diagnostics = sample(
            layout, table, **options, progress=progress, retry=retry
        )  # fmt: skip
        members, scores = (Member(layout, table, posterior, 1.0),), {}
    question = members[0].layout.question
    info = {
        "law": law,
        "weights": {m.layout.question.law: m.weight for m in members},
        "leave_future_out": scores,
        "factors": list(names if law != "power" else ()),
        "data": data,
        "cell": list(question.cell),
        "curve": curve,
        "priors_name": str(priors),
        **options,
        "digest": digest(frame),
        "counts": counts,
        "simulated": bool((used["origin"] == "simulated").any()) if "origin" in used else False,
        "versions": _versions(),
    }
    result = Fit(members=members, runs=used, info=info, diagnostics=diagnostics)
    if not diagnostics.converged and not allow_unconverged:
        raise UnconvergedError(result)
    return result


def _versions() -> dict[str, str]:
    found = {}
    for name in ("tunecast", "pymc", "nutpie", "numpy", "arviz"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # nutpie: a fit does without it
            found[name] = "missing"
    return found


def usable(
    frame: pd.DataFrame, data: str, factors: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the rows that a law describes, and how many rows there are of every kind.

    A law in D says nothing of D = 0, so zero-shot rows stay out; so do runs that are not done.
    """
    done = frame[frame["status"] == "done"]
    used = done[done[data] > 0].reset_index(drop=True)
    return used, {"used": len(used), "zero_shot": len(done) - len(used), **describe(frame)}


def _check_sampler(**numbers: int) -> None:
    low = {"draws": 10, "tune": 10, "chains": 2}
    for name, value in numbers.items():
        if value < low[name]:
            raise TunecastError(f"{name} is {value}, expected {low[name]} or more")


def sample(
    layout: Layout,
    priors: Any,
    *,
    draws: int = DRAWS,
    tune: int = TUNE,
    chains: int = CHAINS,
    seed: int = 0,
    progress: bool = False,
    retry: bool = True,
    target_accept: float = TARGET_ACCEPT,
) -> tuple[dict[str, np.ndarray], Diagnostics]:
    """Return posterior draws of every unknown (at most `KEPT`, chains mixed) and diagnostics.

    With ``retry`` the length follows the diagnostics: the first of `LOOKS` at which the draws have
    converged; all of them; then twice as many with smaller steps.
    """
    model = _model(layout, priors)
    settings = {"tune": tune, "chains": chains, "seed": seed, "target_accept": target_accept}
    posterior, diagnostics = _sample_once(model, draws, settings, progress, may_stop=retry)
    if retry and not diagnostics.converged:
        settings |= {"tune": 2 * tune, "seed": seed + 1, "target_accept": 0.99}
        again = _sample_once(model, 2 * draws, settings, progress, may_stop=True)
        if again[1].converged or again[1].rhat_max < diagnostics.rhat_max:
            posterior, diagnostics = again
    return _thinned(posterior), diagnostics


def _model(layout: Layout, priors: Any) -> Any:
    """Return what samples: nutpie's model, or PyMC's own where nutpie is missing."""
    try:
        import nutpie  # noqa: F401
    except ImportError:
        return build(layout, priors)
    from tunecast.models.density import compiled_density  # LLVM takes a while to import

    return compiled_density(layout, priors)


def _sample_once(
    model: Any, draws: int, settings: dict[str, Any], progress: bool, may_stop: bool
) -> tuple[dict[str, np.ndarray], Diagnostics]:
    """Sample once; where it may stop, after a share of the draws if these have converged."""
    if type(model).__module__.startswith("pymc"):
        return read_trace(_sampled_by_pymc(model, draws, settings, progress))
    import nutpie

    finished = 0

    def watch(chains: Sequence[Any]) -> None:
        nonlocal finished
        finished = min(chain.finished_draws for chain in chains)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = nutpie.sample(
            model, draws=draws, **settings, cores=settings["chains"], progress_bar=progress,
            step_size_jitter=STEP_JITTER, progress_callback=watch, progress_rate=LOOK_EVERY_MS,
            save_warmup=False, blocking=False,
        )  # fmt: skip
        # Always so many of them, however far the chains are by then: a fit must not depend on the
        # speed of the machine.
        looks = [round(draws * share) for share in LOOKS] if may_stop else []
        trace = None
        try:
            for look in (*looks, draws):
                while trace is None and (look == draws or finished < settings["tune"] + look):
                    try:
                        trace = sampler.wait(timeout=LOOK_EVERY_MS / 1000)
                    except TimeoutError:
                        pass
                found = read_trace(sampler.inspect() if trace is None else trace, look)
                if found[1].converged:
                    break
        finally:  # after Ctrl-C too: nutpie itself would answer that with the draws it has
            if trace is None:
                sampler.cancel()
    return found


def _sampled_by_pymc(model: Any, draws: int, settings: dict[str, Any], progress: bool) -> Any:
    import pymc as pm

    options = {k: v for k, v in settings.items() if k != "seed"}
    with model, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pm.sample(
            draws=draws, **options, random_seed=settings["seed"], nuts_sampler="pymc",
            progressbar=progress, compute_convergence_checks=False,
        )  # fmt: skip


def read_trace(trace: Any, draws: int | None = None) -> tuple[dict[str, np.ndarray], Diagnostics]:
    """Return what a sampler drew, shape (chains, draws, ...) each, and the diagnostics."""
    first = slice(draws)
    posterior = trace["posterior"].to_dataset()
    names = [str(v) for v in posterior.data_vars if not str(v).endswith("__")]
    values = {name: np.asarray(posterior[name])[:, first] for name in names}
    stats = trace["sample_stats"].to_dataset()
    diverging, energy = (np.asarray(stats[k])[:, first] for k in ("diverging", "energy"))
    return values, diagnose(values, diverging, energy)


def diagnose(
    posterior: dict[str, np.ndarray], diverging: np.ndarray, energy: np.ndarray
) -> Diagnostics:
    """Return the diagnostics of sampled values, shape (chains, draws, ...) each."""
    from arviz_stats.base import array_stats

    chains, draws = diverging.shape
    flat = np.concatenate([v.reshape(chains, draws, -1) for v in posterior.values()], axis=2)
    columns = np.moveaxis(flat, 2, 0)
    rhat = np.array([array_stats.rhat(c, chain_axis=0, draw_axis=1) for c in columns])
    bulk = np.array([array_stats.ess(c, chain_axis=0, draw_axis=1) for c in columns])
    tail = np.array(
        [
            array_stats.ess(c, chain_axis=0, draw_axis=1, method="tail", prob=(0.05, 0.95))
            for c in columns
        ]
    )
    change = np.diff(energy, axis=1)
    bfmi = (change**2).mean(axis=1) / energy.var(axis=1)
    return Diagnostics(
        rhat_max=float(rhat.max()),
        ess_bulk_min=float(bulk.min()),
        ess_tail_min=float(tail.min()),
        divergences=int(diverging.sum()),
        bfmi_min=float(bfmi.min()),
        draws=chains * draws,
    )


def _thinned(posterior: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    chains, draws = next(iter(posterior.values())).shape[:2]
    step = max(1, -(-chains * draws // KEPT))
    return {
        name: np.ascontiguousarray(v[:, ::step].reshape(-1, *v.shape[2:]))
        for name, v in posterior.items()
    }


def worst(all_diagnostics: Sequence[Diagnostics]) -> Diagnostics:
    """Return the worst of each figure over several fits."""
    first = all_diagnostics[0]
    return replace(
        first,
        rhat_max=max(d.rhat_max for d in all_diagnostics),
        ess_bulk_min=min(d.ess_bulk_min for d in all_diagnostics),
        ess_tail_min=min(d.ess_tail_min for d in all_diagnostics),
        divergences=sum(d.divergences for d in all_diagnostics),
        bfmi_min=min(d.bfmi_min for d in all_diagnostics),
        draws=sum(d.draws for d in all_diagnostics),
    )
