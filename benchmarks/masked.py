"""A fit of any part of a table by one compiled model: rows that were not bought weigh nothing.

Compiling a model takes longer than a short chain. So the model is compiled once for the layout of a
whole pool, and a weight of 0 or 1 for each row is data. Against `tunecast.models.fit` of the bought
rows alone two things differ: the coordinates' reference points lie in the middle of the pool, and
so do the priors that are stated there. Ranges, which say where slope drift begins, are those of the
bought rows. masked_check.py compares the two.

What makes the chains short is a change of coordinates, which leaves the posterior as it is:
unknowns without runs of their own are sampled as standardised deviations, the others directly; and
all of them are turned and stretched by the curvature at the posterior's mode given the learned
scales. The mode with the scales free would be no guide: it lies where a curve has no noise at all.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from tunecast.models.fits import Diagnostics, Fit, Member
from tunecast.models.hierarchy import believe, simulate_prior
from tunecast.models.inference import diagnose, question_of
from tunecast.models.layout import Layout, lay_out
from tunecast.models.priors import WEAK, PriorTable

SCALES = ("noise", "scatter", "spread", "base_sd")  # how names of learned scales begin
STEP = 1e-4  # of a coordinate, for the curvature
FLAT = 0.3  # the least curvature: a prior's is 1
POOR, LONGER = 1.5, 4  # an R-hat above which a fit is made again, with so many times the draws


@dataclass(frozen=True)
class Masked:
    """A pool's model, ready to sample, and the place of each unknown among all of them."""

    compiled: Any
    model: Any
    gradient: Any
    places: dict[str, slice]
    layout: Layout
    priors: PriorTable
    pool: pd.DataFrame

    def fit(
        self,
        losses: np.ndarray,
        bought: np.ndarray,
        *,
        draws: int,
        tune: int,
        chains: int,
        seed: int,
        accept: float = 0.9,
    ) -> Fit:
        """Return a fit of the bought rows; ``losses`` of others are not looked at."""
        import nutpie

        assert bought.dtype == bool
        # Whatever stands in the rows not bought, it must not matter.
        loss = np.where(bought, losses, np.exp(self.layout.log_loss))
        data = {"observed_log_loss": np.log(loss), "bought": bought.astype(float)}
        data |= {"centred": self._centred(bought)}
        centre, root = self._coordinates(data, bought)
        model = self.compiled.with_data(**data, centre=centre, root=root)
        for times in (1, LONGER):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trace = nutpie.sample(
                    model, draws=times * draws, tune=times * tune, chains=chains, seed=seed,
                    target_accept=accept, maxdepth=8, cores=1, progress_bar=False,
                    save_warmup=False,
                )  # fmt: skip
            values, diagnostics = self._read(trace)
            if diagnostics.rhat_max <= POOR:
                break
        posterior = {k: v.reshape(-1, *v.shape[2:]) for k, v in values.items()}
        layout = _ranges_of(self.layout.with_losses(loss), bought)
        runs = self.pool[bought].assign(loss=losses[bought]).reset_index(drop=True)
        question = layout.question
        info = {
            "seed": seed, "simulated": False, "law": question.law, "data": question.data,
            "cell": list(question.cell), "curve": question.curve,
            "factors": list(question.factors),
        }  # fmt: skip
        return Fit((Member(layout, self.priors, posterior, 1.0),), runs, info, diagnostics)

    def _read(self, trace: Any) -> tuple[dict[str, np.ndarray], Diagnostics]:
        """Return the unknowns, shape (chains, draws, ...), and diagnostics."""
        sampled, stats = (trace[k].to_dataset() for k in ("posterior", "sample_stats"))
        values = {name: np.asarray(sampled[name]) for name in self.places}
        # One chain is judged by its halves.
        parts = max(2, sampled.sizes["chain"])
        judged = {k: v.reshape(parts, -1, *v.shape[2:]) for k, v in values.items()}
        diverging, energy = (
            np.asarray(stats[k]).reshape(parts, -1) for k in ("diverging", "energy")
        )
        return values, diagnose(judged, diverging, energy)

    def _centred(self, bought: np.ndarray) -> np.ndarray:
        """Return 1 for each unknown that has runs of its own and is sampled directly, else 0."""
        layout, out = self.layout, np.zeros(self._size)
        runs = np.bincount(layout.row_curve, bought, len(layout.curve_cell))
        own = {"curve_mean": runs > 0, "curve_slope": runs > 1}
        # The columns whose levels `hierarchy` may sample as means.
        columns = [c for i, c in enumerate(layout.columns) if i in (0, len(layout.columns) - 1)]
        for name, place in self.places.items():
            for column in columns:
                if name.startswith(f"mean_{column.name}"):
                    level = column.index[layout.curve_cell]
                    own[name] = np.bincount(level, runs, len(column.levels)) > 0
            if name in own:  # the levels come last: what stands before them is repeated
                out[place] = np.resize(own[name], place.stop - place.start)
        return out

    def _coordinates(
        self, data: dict[str, np.ndarray], bought: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return centre and root: unknowns are centre + root @ z, with z nearly standard normal."""
        import pymc as pm

        n, layout = self._size, self.layout
        scale = np.zeros(n, dtype=bool)
        for name, place in self.places.items():
            scale[place] = name.startswith(SCALES)
        free = np.flatnonzero(~scale)
        with self.model:
            pm.set_data({**data, "centre": np.zeros(n), "root": np.eye(n)})

        def upward(at: np.ndarray) -> tuple[float, np.ndarray]:
            x = np.zeros(n)
            x[free] = at
            value, slope = self.gradient(x)
            return -float(value), -np.asarray(slope)[free]

        start = np.zeros(n)
        runs = np.bincount(layout.row_curve, bought, len(layout.curve_cell))
        total = np.bincount(
            layout.row_curve, bought * data["observed_log_loss"], len(layout.curve_cell)
        )
        start[self.places["curve_mean"]] = total / np.maximum(runs, 1)
        options = {"maxiter": 1000, "maxfun": 1500, "maxcor": 30, "ftol": 1e-9}
        mode = minimize(upward, start[free], jac=True, method="L-BFGS-B", options=options).x
        steps = STEP * np.eye(len(free))
        bend = np.array([upward(mode + e)[1] - upward(mode - e)[1] for e in steps]) / (2 * STEP)
        curvature, axes = np.linalg.eigh((bend + bend.T) / 2)
        centre, root = np.zeros(n), np.eye(n)
        centre[free] = mode
        root[np.ix_(free, free)] = axes / np.sqrt(np.maximum(np.abs(curvature), FLAT))
        return centre, root

    @property
    def _size(self) -> int:
        return max(place.stop for place in self.places.values())


def _ranges_of(layout: Layout, bought: np.ndarray) -> Layout:
    """Return the layout with the data ranges of the bought rows, where a curve or cell has any."""
    at = layout.row_curve[bought]
    d = (layout.log_u / np.log(2) + layout.log2_d_ref[layout.curve_cell[layout.row_curve]])[bought]
    found = {}
    for kind, index in (("curve", at), ("cell", layout.curve_cell[at])):
        low, high = getattr(layout, f"{kind}_low").copy(), getattr(layout, f"{kind}_high").copy()
        # A curve without a run has no range to be inside of: drift starts at its cell's, or at
        # that of all that was bought.
        low[:], high[:] = d.min(), d.max()
        if kind == "curve":
            for c, k in enumerate(layout.curve_cell):
                of_cell = d[layout.curve_cell[at] == k]
                if len(of_cell):
                    low[c], high[c] = of_cell.min(), of_cell.max()
        for i in np.unique(index):
            low[i], high[i] = d[index == i].min(), d[index == i].max()
        found |= {f"{kind}_low": low, f"{kind}_high": high}
    return replace(layout, **found)


def masked(pool: pd.DataFrame, *, law: str, cell: tuple[str, ...], **ask: Any) -> Masked:
    """Return the model of a pool; its losses only place the sampler's starting point."""
    import nutpie
    import pymc as pm
    import pytensor.tensor as pt

    layout = lay_out(pool, question_of(pool, law=law, cell=cell, **ask))
    # The coordinates of `tunecast.models.hierarchy` follow slopes and bends of all runs of the
    # pool. Here they must not know them: half-way for every curve.
    steep = np.maximum(-layout.slope, 1e-3)
    layout = replace(layout, slope=-steep, slope_error=WEAK["rate"].scatter * steep)
    layout = replace(layout, bend=np.ones_like(layout.bend))
    shapes = {k: v.shape[1:] for k, v in simulate_prior(layout, WEAK, 1, 0)[0].items()}
    ends = np.cumsum([int(np.prod(s)) for s in shapes.values()])
    places = {
        name: slice(int(end) - int(np.prod(shape)), int(end))
        for (name, shape), end in zip(shapes.items(), ends, strict=True)
    }
    n, curves = int(ends[-1]), len(layout.curve_cell)
    with pm.Model() as model:
        centred = pm.Data("centred", np.zeros(n))
        weight = pm.Data("bought", np.ones(len(layout.row_curve)))
        z = pm.Flat("z", shape=n)
        flat = pm.Data("centre", np.zeros(n)) + pm.Data("root", np.eye(n)) @ z
        density: list[Any] = []
        drawn: dict[str, Any] = {}
        shift: Any = 0.0

        def draw(name: str, location: Any, scale: Any, dims: tuple[str, ...], df: Any) -> Any:
            if name in drawn:
                return drawn[name]
            value = flat[places[name]].reshape(shapes[name])
            if name == "curve_mean":
                location = location - shift
            if df is None:
                # Sampled as itself (w = 1) or standardised (0), see `hierarchy._partly_centred`.
                w = centred[places[name]].reshape(shapes[name])
                density.append(pm.logp(pm.Normal.dist(w * location, scale**w), value))
                value = location + scale ** (1 - w) * (value - w * location)
            else:
                density.append(pm.logp(pm.StudentT.dist(nu=df, mu=location, sigma=scale), value))
            drawn[name] = pm.Deterministic(name, value + shift if name == "curve_mean" else value)
            return drawn[name]

        def without_means(name: str, *asked: Any) -> Any:
            return pt.zeros(curves) if name == "curve_mean" else draw(name, *asked)

        # What the bought runs determine is a curve's mean over them, and not over the pool: the
        # two differ by the curve's shape alone, which the first of two passes gives.
        member = np.eye(curves)[layout.row_curve]
        shape = believe(layout, WEAK, without_means, pt).mean
        shift = -((weight * shape) @ member) / pt.maximum(weight @ member, 1)
        belief = believe(layout, WEAK, draw, pt)
        y = pm.Data("observed_log_loss", layout.log_loss)
        noise = pm.StudentT.dist(
            nu=belief.noise_df, mu=belief.mean, sigma=belief.noise[layout.row_curve]
        )
        density.append(weight * pm.logp(noise, y))
        pm.Potential("log_density", sum(d.sum() for d in density))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gradient = model.logp_dlogp_function(ravel_inputs=True)
        gradient.set_extra_values({})
        compiled = nutpie.compile_pymc_model(model)
    return Masked(compiled, model, gradient, places, layout, WEAK, pool)
