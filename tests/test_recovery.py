"""A simulated table is fitted for real and its truth recovered; by wrong models it is not.

The tolerance follows from the draws: where the effective sample size is at least `ESS_FLOOR` and
R-hat says that the chains agree, the posterior mean is known to a twentieth of the posterior's
standard deviation, and a right model's lies within four of them of the truth.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tunecast.models import fit
from tunecast.models.fits.fit import Fit
from tunecast.models.hierarchy.priors import WEAK
from tunecast.models.hierarchy.targets import check_targets
from tunecast.models.laws import get_law

ESS_FLOOR = 400
LIMIT = 4.0

# Every number is another one, so that methods, exponents or axes that are exchanged show.
LAW = get_law("multiplicative")
TRUTH: dict[str, dict[str, float]] = {
    "fmt": {"A": 1200.0, "alpha": 0.30, "beta": 0.16, "E": 0.6},
    "lora": {"A": 60.0, "alpha": 0.17, "beta": 0.07, "E": 0.9},
}
SIZES, EXAMPLES = np.geomspace(1e8, 3.2e9, 6), np.geomspace(1e3, 1e6, 6)
EFFECTS = {f"b{i}": e for i, e in enumerate((0.012, -0.02, 0.004, 0.03, -0.012, -0.008))}
NOISE = 0.004


def true_loss(method: str, size: Any, examples: Any) -> Any:
    """What the law says for a method, before the effect of a base model."""
    cell = TRUTH[method]
    return LAW(
        examples, {"model_size": size}, A=cell["A"], alpha={"model_size": cell["alpha"]},
        beta=cell["beta"], E=cell["E"],
    )  # fmt: skip


def design(examples: np.ndarray) -> pd.DataFrame:
    """Each method on each base model at some data sizes, with the expected loss."""
    rows = [
        {"task": "t", "method": method, "base_model": base, "model_size": size,
         "finetune_examples": d,
         "expected": true_loss(method, size, d) * np.exp(EFFECTS[base])}
        for method in TRUTH
        for base, size in zip(EFFECTS, SIZES, strict=True)
        for d in examples
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    """72 runs with Student-t noise of 5 degrees of freedom."""
    frame = design(EXAMPLES)
    noise = NOISE * np.random.default_rng(11).standard_t(5, len(frame))
    return frame.assign(
        loss=frame["expected"] * np.exp(noise), status="done", run_id=frame.index.astype(str)
    )


def fitted(runs: pd.DataFrame, **ask: Any) -> Fit:
    return fit(runs, seed=1, progress=False, **({"law": "multiplicative"} | ask))


def misses(found: Fit, exchanged: Callable[[str], str] = lambda name: name) -> dict[str, float]:
    """Posterior means less the truth, in standard deviations of the posterior.

    ``exchanged`` returns by which posterior quantity one is judged: itself, unless mistaken.
    """
    (posterior,) = found.posteriors
    table, values = posterior.table, posterior.values
    judged: dict[str, tuple[np.ndarray, float]] = {}
    for k, cell in enumerate(table.cells):
        own = posterior.parameters(k) | {"log_loss_ref": values["log_loss_ref"][:, k]}
        own = {name.partition(":")[0]: draws for name, draws in own.items()}
        for method in (m for m in TRUTH if m in cell or len(table.cells) == 1):
            truth = dict(TRUTH[method])
            middle = true_loss(method, table.x_ref[0], 2.0 ** table.log2_d_ref[k])
            truth["log_loss_ref"] = float(np.log(middle))
            for name in ("log_loss_ref", "E", "alpha", "beta"):
                judged[f"{name} of {method}"] = own[exchanged(name)], truth[name]
            reducible = [np.log(of["A"]) for of in (own, truth)]
            judged[f"log A of {method}"] = reducible[0], float(reducible[1])
    for i, base in enumerate(table.base_models):
        judged[f"effect of {base}"] = values["base_model_effect"][:, i], EFFECTS[base]
    judged["log noise"] = values["log_noise"], float(np.log(NOISE))
    # Curves where they have no runs: between, and ten times beyond.
    held_out = design(np.array([10.0**4.4, 1e7]))
    ready = check_targets(held_out, table)
    expected = posterior.predictor(1).hierarchy(ready).values["expected_log_loss"]
    for i, row in enumerate(held_out.to_dict("records")):
        name = f"{row['method']} {row['base_model']} at {row['finetune_examples']:.0f}"
        judged[name] = expected[:, i], float(np.log(row["expected"]))
    return {name: float((x.mean() - t) / x.std()) for name, (x, t) in judged.items()}


@pytest.fixture(scope="module")
def right(runs: pd.DataFrame) -> Fit:
    return fitted(runs)


def test_the_truth_is_recovered(right: Fit) -> None:
    d = right.diagnostics
    assert d.rhat_max < 1.01 and min(d.ess_bulk_min, d.ess_tail_min) >= ESS_FLOOR
    found = misses(right)
    assert len(found) == 41
    assert max(map(abs, found.values())) < LIMIT, found
    # And not by knowing nothing: of 41 a few are off by one standard deviation.
    assert 0.3 < np.sqrt(np.mean(np.square(list(found.values())))) < 2


def test_exchanged_axes_are_noticed(right: Fit) -> None:
    """Control: the exponent of the factor taken for that of the data, in either method."""
    found = misses(right, lambda name: {"alpha": "beta", "beta": "alpha"}.get(name, name))
    assert min(abs(found["alpha of fmt"]), abs(found["alpha of lora"])) > LIMIT


def test_exchanged_base_models_are_noticed(right: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: the truth of each base model in the place of the next one's."""
    effects = list(EFFECTS.values())
    turned = dict(zip(EFFECTS, effects[1:] + effects[:1], strict=True))
    monkeypatch.setitem(globals(), "EFFECTS", turned)
    found = misses(right)
    assert sum(abs(miss) > LIMIT for miss in found.values()) > 5


def test_methods_that_are_wrongly_taken_for_one_are_noticed(runs: pd.DataFrame) -> None:
    """Control: one A, E, alpha and beta for both. The chains agree, and on what is wrong."""
    found = misses(tied := fitted(runs, cell=("task",)))
    assert tied.diagnostics.converged
    assert abs(found["log_loss_ref of fmt"]) > LIMIT and abs(found["log_loss_ref of lora"]) > LIMIT
    assert abs(found["log noise"]) > LIMIT  # curves that bend in two ways look like noise


# ------------------------------------------------------------------ slope drift

TASK_DRIFT, CURVE_DRIFT = 0.015, 0.01


def drifting(task_sd: float, curve_sd: float) -> pd.DataFrame:
    """Six tasks, two curves each, of a power law and of integrated random walks."""
    rng = np.random.default_rng(3)
    at = np.linspace(10, 20, 8)

    def walk() -> np.ndarray:
        """Of scale 1, less its line over the range: level and slope are the law's."""
        x, h = np.linspace(10, 20, 1001, retstep=True)
        path = np.cumsum(np.cumsum(rng.standard_normal(len(x))) * np.sqrt(h)) * h
        return np.interp(at, x, path - np.polyval(np.polyfit(x, path, 1), x))

    rows = []
    for task in range(6):
        shared = walk()
        for base in range(2):
            law = 0.5 + 0.1 * rng.normal() - 0.07 * np.exp(0.1 * rng.normal()) * at
            noise = 0.002 * rng.standard_t(5, len(at))
            y = law + task_sd * shared + curve_sd * walk() + noise
            rows += [
                {"task": f"t{task}", "method": "fmt", "base_model": f"b{base}",
                 "finetune_examples": 2**d, "loss": np.exp(v)}
                for d, v in zip(at, y, strict=True)
            ]  # fmt: skip
    frame = pd.DataFrame(rows)
    return frame.assign(status="done", run_id=frame.index.astype(str))


def drift_scales(runs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Log of the scales of drift, drawn from the posterior."""
    found = fitted(runs, law="power")
    d = found.diagnostics
    assert d.rhat_max < 1.01 and min(d.ess_bulk_min, d.ess_tail_min) >= ESS_FLOOR
    values = found.posteriors[0].values
    return {kind: np.log(values[f"{kind}_sd"]) for kind in ("drift_task", "drift_curve")}


def test_scales_of_drift_are_recovered() -> None:
    """The controls are five times as much and a fifth; and by knowing more than the prior."""
    found = drift_scales(drifting(TASK_DRIFT, CURVE_DRIFT))
    for (kind, log_sd), true in zip(found.items(), (TASK_DRIFT, CURVE_DRIFT), strict=True):
        for factor in (1.0, 5.0, 0.2):
            miss = abs(log_sd.mean() - np.log(factor * true)) / log_sd.std()
            assert (miss < LIMIT) == (factor == 1.0), (kind, factor)
        assert log_sd.std() < 0.75 * WEAK[kind].scale


def test_that_nothing_drifts_is_learned() -> None:
    """Both scales end well below what the prior expects."""
    for kind, log_sd in drift_scales(drifting(0.0, 0.0)).items():
        assert np.median(log_sd) < WEAK[kind].location - np.log(2), kind
