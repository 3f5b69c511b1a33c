"""Run tables with a known truth: each is made to be hard in one way.

Fine-tuning tables follow, with the checkpoint's effect b, the curve's c and the run's noise e,

    loss = (E + A (N / 1e8)^-alpha (D / D0)^-beta + R (D / D0)^0.3) exp(b + c + e),

where D0 is the middle of the fitted data sizes, all three are normal on log loss, and E, A, alpha
and beta differ between tasks and methods. R is 0 but for the U-shaped curve. Pre-training tables
follow the additive law of Hoffmann et al. as refitted by Besiroglu et al. (arXiv:2404.10102).
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from zoo_tables import Entry

from tunecast.models.laws import get_law

REFIT = {"E": 1.8169, "B": 2085.43, "beta": 0.3658}
REFIT_A, REFIT_ALPHA = 482.01, 0.3478
RISE_POWER = 0.3
MOST_TEST = 60  # rows to forecast of a table


@dataclass(frozen=True)
class World:
    """A design and the truth behind it.

    Parameters
    ----------
    sizes, data : tuple of float
        Model sizes and data sizes that are fitted.
    tasks : int
        How many.
    methods : tuple of str
        Their labels.
    seeds, test_seeds : int
        Runs of each place in the design, and of each place to forecast.
    noise, base_effect, curve_effect : float
        Standard deviations on log loss.
    spread : float
        By how much parameters differ between tasks and methods, on the log scale.
    floor, amplitude, alpha, beta, rise : float
        E, A, alpha, beta and R.
    beyond : tuple of float
        Data sizes to forecast, in multiples of the largest that is fitted.
    new_size : float
        A further model size to forecast, in multiples of the largest; 0 for none.
    data_a_curve : int
        How many of the data sizes a curve has, drawn for each; 0 for all.
    outliers : tuple of float
        Factors on the loss of as many fitted runs.
    disjoint : bool
        Whether each method was fitted on base models of its own.
    """

    sizes: tuple[float, ...] = (1e8, 3e8, 1e9, 3e9)
    data: tuple[float, ...] = (1e3, 2e3, 4e3, 8e3, 1.6e4, 3.2e4)
    tasks: int = 1
    methods: tuple[str, ...] = ("fmt", "lora")
    seeds: int = 1
    test_seeds: int = 1
    noise: float = 0.01
    base_effect: float = 0.01
    curve_effect: float = 0.005
    spread: float = 0.2
    floor: float = 1.0
    amplitude: float = 1.5
    alpha: float = 0.15
    beta: float = 0.15
    rise: float = 0.0
    beyond: tuple[float, ...] = (2, 4, 8, 16)
    new_size: float = 4.0
    data_a_curve: int = 0
    outliers: tuple[float, ...] = ()
    disjoint: bool = False


def fine_tuned(world: World, name: str) -> pd.DataFrame:
    """Return the runs of a world; the name seeds it."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    sizes = (*world.sizes, *([world.new_size * world.sizes[-1]] if world.new_size else []))
    middle = np.sqrt(world.data[0] * world.data[-1])
    base = world.base_effect * rng.standard_normal(len(sizes))
    curves = []
    for task, (m, method) in itertools.product(range(world.tasks), enumerate(world.methods)):
        E, A, alpha, beta = (
            value * np.exp(world.spread * rng.standard_normal())
            for value in (world.floor, world.amplitude, world.alpha, world.beta)
        )
        for i, size in enumerate(sizes):
            fitted = i < len(world.sizes) and not (world.disjoint and i % len(world.methods) != m)
            runs = design(world, fitted, rng)
            u = runs["finetune_examples"] / middle
            law = E + A * (size / 1e8) ** -alpha * u**-beta + world.rise * u**RISE_POWER
            shift = base[i] + world.curve_effect * rng.standard_normal()
            loss = law * np.exp(shift + world.noise * rng.standard_normal(len(runs)))
            runs = runs.assign(
                task=f"t{task}", method=method, base_model=f"m{i}", model_size=size, loss=loss
            )
            curves.append(runs)
    runs = pd.concat(curves, ignore_index=True)
    runs["run_id"] = [f"run{i}" for i in range(len(runs))]
    if world.outliers:
        at = rng.choice(np.flatnonzero(runs["split"] == "train"), len(world.outliers), False)
        runs.loc[at, "loss"] *= np.array(world.outliers)
    return few_asked(runs, rng)


def design(world: World, fitted: bool, rng: np.random.Generator) -> pd.DataFrame:
    """Return data sizes, seeds and split of one curve; one not fitted is forecast alone."""
    places = np.array(world.data if fitted else ())
    if world.data_a_curve and fitted:
        places = np.sort(rng.choice(places, world.data_a_curve, replace=False))
    beyond = np.array(world.beyond) * world.data[-1]
    return pd.DataFrame(
        {
            "finetune_examples": np.r_[
                np.repeat(places, world.seeds), np.repeat(beyond, world.test_seeds)
            ],
            "seed": np.r_[
                np.tile(np.arange(world.seeds), len(places)),
                np.tile(np.arange(world.test_seeds), len(beyond)),
            ],
            "split": np.repeat(
                ["train", "test"],
                [len(places) * world.seeds, len(beyond) * world.test_seeds],
            ),
        }
    )


def few_asked(runs: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Return the runs with at most `MOST_TEST` to forecast."""
    asked = np.flatnonzero(runs["split"] == "test")
    dropped = rng.permutation(asked)[MOST_TEST:]
    return runs.drop(index=runs.index[dropped])


def without_base_model(world: World, name: str) -> pd.DataFrame:
    return fine_tuned(world, name).drop(columns="base_model")


def pre_trained(
    rng: np.random.Generator, sizes: np.ndarray, tokens: np.ndarray, noise: float
) -> pd.DataFrame:
    """Return one run of each pair under the additive law."""
    law = get_law("additive")
    X, A, alpha = {"model_size": sizes}, {"model_size": REFIT_A}, {"model_size": REFIT_ALPHA}
    loss = np.asarray(law(tokens, X, A=A, alpha=alpha, **REFIT), float)
    return pd.DataFrame(
        {
            "run_id": [f"run{i}" for i in range(len(sizes))],
            "task": "lm",
            "method": "pretrain",
            "model_size": sizes,
            "train_tokens": tokens,
            "loss": loss * np.exp(noise * rng.standard_normal(len(sizes))),
        }
    )


def log_uniform(rng: np.random.Generator, low: float, high: float, n: int) -> np.ndarray:
    return np.exp(rng.uniform(np.log(low), np.log(high), n))


def chinchilla() -> pd.DataFrame:
    """Return 245 runs of 44M to 16B at 5 to 500 tokens a parameter, the dearest held out."""
    rng = np.random.default_rng(245)
    sizes = log_uniform(rng, 4.4e7, 1.6e10, 245)
    runs = pre_trained(rng, sizes, sizes * log_uniform(rng, 5, 500, 245), 0.01)
    cost = runs["model_size"] * runs["train_tokens"]
    return runs.assign(split=np.where(cost > cost.quantile(0.7), "test", "train"))


def one_run_a_curve() -> pd.DataFrame:
    """Return 150 runs to fit, 30 to forecast among them and 30 of 2 to 10 times the sizes."""
    rng = np.random.default_rng(150)
    inside = pre_trained(
        rng, log_uniform(rng, 3e7, 1e10, 180), log_uniform(rng, 3.6e8, 3e11, 180), 0.01
    )
    beyond = pre_trained(
        rng, log_uniform(rng, 2e10, 1e11, 30), log_uniform(rng, 3.3e11, 3e12, 30), 0.01
    )
    inside["split"] = np.where(np.arange(180) < 150, "train", "test")
    rows = pd.concat([inside, beyond.assign(split="test")], ignore_index=True)
    return rows.assign(run_id=[f"run{i}" for i in range(len(rows))])


def spaced(low: float, high: float, n: int) -> tuple[float, ...]:
    return tuple(float(f"{value:.3g}") for value in np.geomspace(low, high, n))


def _world(name: str, hard: str, world: World) -> Entry:
    return Entry(name, hard, partial(fine_tuned, world, name))


EIGHT = spaced(1e3, 1.28e5, 8)
TEN: Sequence[float] = spaced(1e8, 1e10, 10)

SIMULATED = (
    Entry(
        "chinchilla", "245 sizes x tokens, one run each; dearest 30 % held out",
        chinchilla, {"data": "train_tokens"},
    ),
    Entry(
        "one_run_a_curve", "another law, every run a size of its own, far beyond held out",
        one_run_a_curve, {"data": "train_tokens"},
    ),
    _world(
        "three_sizes", "3 sizes x 5 data sizes x 1 method",
        World(sizes=(1e8, 3e8, 1e9), data=spaced(1e3, 1.6e4, 5), methods=("fmt",), test_seeds=2),
    ),
    _world(
        "twenty_tasks", "20 tasks of 12 runs",
        World(sizes=(1e8, 3e8, 1e9), data=spaced(1e3, 2.7e4, 4), tasks=20, methods=("fmt",)),
    ),
    _world("no_noise", "the law exactly", World(noise=0, base_effect=0, curve_effect=0)),
    _world("noise_10", "runs scatter by 10 %", World(noise=0.1)),
    _world("outliers", "3 of 48 runs are at 1.5 to 3 times the loss", World(outliers=(1.5, 2, 3))),
    _world(
        "eight_decades", "data over eight decades",
        World(
            sizes=(1e8, 3e8, 1e9), data=spaced(1e2, 1e10, 9), methods=("fmt",), beta=0.1,
            beyond=(2, 8, 30, 100), test_seeds=2,
        ),
    ),
    _world(
        "steep", "beta near 1, so that the floor is in sight",
        World(data=spaced(1e2, 6.4e3, 7), amplitude=0.5, beta=1.0),
    ),
    _world(
        "u_shaped", "loss falls, then rises",
        World(data=spaced(1e3, 6.4e4, 7), beta=0.3, rise=0.8),
    ),
    _world(
        "disjoint_methods", "no base model has two methods; each method asked on all",
        World(sizes=spaced(1e8, 3e9, 6), new_size=0, disjoint=True, beyond=(1, 2, 4, 16)),
    ),
    _world(
        "replicates", "3 data sizes with 16 seeds each",
        World(
            sizes=(1e8, 1e9), data=spaced(1e3, 1.6e4, 3), methods=("fmt",), seeds=16, test_seeds=3
        ),
    ),
    _world(
        "one_curve", "one curve of 8 runs",
        World(sizes=(1e8,), data=EIGHT, methods=("fmt",), new_size=0, test_seeds=8),
    ),
    _world(
        "two_runs_a_curve", "40 base models of 2 data sizes each",
        World(sizes=spaced(1e7, 1e10, 40), data=EIGHT, methods=("fmt",), data_a_curve=2),
    ),
    _world(
        "many_models", "500 base models of 3 data sizes each",
        World(sizes=spaced(1e7, 1e10, 500), data=EIGHT, methods=("fmt",), data_a_curve=3),
    ),
    Entry(
        "no_base_model", "every run is a checkpoint of its own",
        partial(
            without_base_model,
            World(
                sizes=spaced(1e8, 1e10, 5), data=EIGHT, methods=("fmt",), base_effect=0,
                curve_effect=0, test_seeds=2,
            ),
            "no_base_model",
        ),
    ),
    _world(
        "60_curves", "60 curves of 8 runs",
        World(sizes=tuple(TEN), data=EIGHT, tasks=2, methods=("fmt", "lora", "prompt")),
    ),
    _world("100_curves", "100 curves of 8 runs", World(sizes=tuple(TEN), data=EIGHT, tasks=5)),
)  # fmt: skip
