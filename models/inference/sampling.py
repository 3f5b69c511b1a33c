"""Sampling: from the model of a table to draws of every variable, with diagnostics."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunecast.models.errors import TunecastError
from tunecast.models.hierarchy.numpy_backends import geometry_of, starting_point
from tunecast.models.hierarchy.priors import Priors
from tunecast.models.hierarchy.table import Table
from tunecast.models.inference.diagnostics import Diagnostics, diagnose

DRAWS, TUNE, CHAINS = 2400, 500, 4
# Steps small enough for no divergence. At one length of them, trajectories of some posteriors turn
# back half-way time after time; lengths that vary by this share do not.
TARGET_ACCEPT, STEP_JITTER = 0.95, 0.25
INTERIM_CHECKS = (
    1 / 2,
    2 / 3,
    5 / 6,
)  # shares of the draws after which diagnostics may end the sampling
POLL_EVERY_MS = 100  # at how far the chains are
KEPT = 4000  # draws that a fit keeps; diagnostics are computed on all

# What is kept of each transition, by ArviZ's names and by nutpie's.
STATISTICS = {
    "lp": "logp",
    "acceptance_rate": "mean_tree_accept",
    "diverging": "diverging",
    "energy": "energy",
    "n_steps": "n_steps",
    "tree_depth": "depth",
    "step_size": "step_size",
}


@dataclass(frozen=True)
class Chains:
    """What a sampler drew.

    Parameters
    ----------
    draws : mapping of str to ndarray, shape (chains, draws, ...)
        Every variable of the model by name.
    statistics : mapping of str to ndarray, shape (chains, draws)
        Of each transition, under ArviZ's names.
    diagnostics : Diagnostics
        Of all that was drawn, before any thinning.
    """

    draws: Mapping[str, np.ndarray]
    statistics: Mapping[str, np.ndarray]
    diagnostics: Diagnostics

    def thinned(self, kept: int) -> Chains:
        """Return every n-th draw of each chain, at most ``kept`` in all."""
        chains, length = next(iter(self.statistics.values())).shape
        step = max(1, -(-chains * length // kept))
        return Chains(
            {k: np.ascontiguousarray(v[:, ::step]) for k, v in self.draws.items()},
            {k: np.ascontiguousarray(v[:, ::step]) for k, v in self.statistics.items()},
            self.diagnostics,
        )


def check_sampler(**numbers: int) -> None:
    """Refuse numbers of draws, warm-up steps and chains that are too small.

    Raises
    ------
    TunecastError
        One sentence.
    """
    least = {"draws": 10, "tune": 10, "chains": 2}
    for name, value in numbers.items():
        if value < least[name]:
            raise TunecastError(f"{name} is {value}, expected {least[name]} or more")


def sample(
    table: Table,
    priors: Priors,
    *,
    draws: int = DRAWS,
    tune: int = TUNE,
    chains: int = CHAINS,
    seed: int = 0,
    progress: bool = False,
    retry: bool = True,
    target_accept: float = TARGET_ACCEPT,
    model: Any = None,
) -> Chains:
    """Return draws of every variable (at most `KEPT`) from the posterior of a table.

    With ``retry`` the length follows the diagnostics: the first of `INTERIM_CHECKS` at which the
    draws have converged; all of them; then twice as many with smaller steps.

    Parameters
    ----------
    table : Table
        The runs.
    priors : mapping of str to Prior
        Prior table.
    draws, tune, chains, seed : int
        Of the sampler, for each chain.
    progress : bool
        Whether to show a progress bar.
    retry : bool
        Whether sampling may end early, and is tried again where it did not converge.
    target_accept : float
        Mean acceptance rate that step sizes are adapted to.
    model : pymc.Model, optional
        The model of the same table and priors with terms and variables of a user's own; compiled
        by PyTensor to numba, in the place of our own code.

    Raises
    ------
    TunecastError
        When the model lacks a variable of the table's.
    """
    from tunecast.models.compile.density import compiled_density  # LLVM takes a while to import

    compiled = compiled_density(table, priors) if model is None else _by_numba(model, table, priors)
    settings = {"tune": tune, "chains": chains, "seed": seed, "target_accept": target_accept}
    found = sample_compiled(compiled, draws, settings, progress, may_stop=retry)
    if retry and not found.diagnostics.converged:
        settings |= {"tune": 2 * tune, "seed": seed + 1, "target_accept": 0.99}
        again = sample_compiled(compiled, 2 * draws, settings, progress, may_stop=True)
        better = again.diagnostics.rhat_max < found.diagnostics.rhat_max
        if again.diagnostics.converged or better:
            found = again
    return found.thinned(KEPT)


def _by_numba(model: Any, table: Table, priors: Priors) -> Any:
    """Compile a PyMC model that has every variable of the table's, in its coordinates."""
    import nutpie

    names, shapes = [variable.name for variable in model.free_RVs], model.eval_rv_shapes()
    point = starting_point(table, priors, 0, geometry_of(table, priors))
    for name, value in point.items():
        got = tuple(map(int, shapes[name])) if name in names else "missing"
        if got != value.shape:
            raise TunecastError(
                f"the model's variable '{name}' is {got}, expected the shape {value.shape}: give "
                "what pymc_model returns for the same runs and options, with its geometry"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nutpie.compile_pymc_model(model, backend="numba", var_names=names)


def sample_compiled(
    compiled: Any, draws: int, settings: Mapping[str, Any], progress: bool, may_stop: bool
) -> Chains:
    """Sample once by nutpie; where it may stop, after a share of the draws if these converged."""
    import nutpie

    finished = 0

    def watch(chains: Sequence[Any]) -> None:
        nonlocal finished
        finished = min(chain.finished_draws for chain in chains)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = nutpie.sample(
            compiled, draws=draws, **settings, cores=settings["chains"], progress_bar=progress,
            step_size_jitter=STEP_JITTER, progress_callback=watch, progress_rate=POLL_EVERY_MS,
            save_warmup=False, blocking=False,
        )  # fmt: skip
        # Always so many of them, however far the chains are by then: a fit must not depend on the
        # speed of the machine.
        looks = [round(draws * share) for share in INTERIM_CHECKS] if may_stop else []
        trace = None
        try:
            for look in (*looks, draws):
                while trace is None and (look == draws or finished < settings["tune"] + look):
                    try:
                        trace = sampler.wait(timeout=POLL_EVERY_MS / 1000)
                    except TimeoutError:
                        pass
                found = read_trace(sampler.inspect() if trace is None else trace, look)
                if found.diagnostics.converged:
                    break
        finally:  # after Ctrl-C too: nutpie itself would answer that with the draws it has
            if trace is None:
                sampler.cancel()
    return found


def read_trace(trace: Any, draws: int | None = None) -> Chains:
    """Return what nutpie drew, its first ``draws`` of each chain where given."""
    first = slice(draws)
    posterior = trace["posterior"].to_dataset()
    names = [str(v) for v in posterior.data_vars if not str(v).endswith("__")]
    values = {name: np.asarray(posterior[name])[:, first] for name in names}
    sample_stats = trace["sample_stats"].to_dataset()
    statistics = {
        name: np.asarray(sample_stats[theirs])[:, first]
        for name, theirs in STATISTICS.items()
        if theirs in sample_stats
    }
    return Chains(
        values, statistics, diagnose(values, statistics["diverging"], statistics["energy"])
    )
