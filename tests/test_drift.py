"""Slope drift beyond the data: the integrated random walk, alone and in forecasts."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tunecast.models.fits.fit import Fit
from tunecast.models.hierarchy.drift import KNOT, Drift
from tunecast.models.hierarchy.keyed import Keyed
from tunecast.models.hierarchy.predict import Predictor
from tunecast.models.hierarchy.priors import WEAK, Priors
from tunecast.models.hierarchy.targets import check_targets

type MakeFit = Callable[..., Fit]

S_TASK, S_CURVE, SIZE = 0.01, 0.006, 20_000
KINDS = ("drift_task", "drift_curve")


def with_scales(task: float, curve: float) -> Priors:
    """The default priors with scales of drift that are known."""
    known = {
        kind: replace(WEAK[kind], location=np.log(scale), scale=0.0)
        for kind, scale in zip(KINDS, (task, curve), strict=True)
    }
    return {**WEAK, **known}


KNOWN, CALM = with_scales(S_TASK, S_CURVE), with_scales(1e-30, 1e-30)


# ------------------------------------------------------------------ the walk


def walk(at: float, *, size: int = SIZE, whose: object = "t", seed: int = 0) -> np.ndarray:
    """What a task's walk adds at log2 of a data size; 8 to 12 were seen."""
    drift = Drift(KNOWN, Keyed(seed, size))
    return np.broadcast_to(drift.beyond("drift_task", whose, at, 8.0, 12.0), size)


def test_the_walk_is_zero_inside_and_starts_gently_at_the_edges() -> None:
    """It adds a slope that starts at the edge's: of order k^1.5, nothing at the edge itself."""
    for at in (8.0, 9.3, 12.0):
        assert not walk(at).any()
    for side, edge in ((1, 12.0), (-1, 8.0)):
        near = walk(edge + side * KNOT * 0.6).std()
        assert 0 < near < S_TASK * KNOT**1.5
        assert near < 0.02 * walk(edge + side * 4).std()


@pytest.mark.parametrize("side", [1, -1])
def test_innovations_of_the_slope_add_up_as_written(side: int) -> None:
    """With every innovation 1 the slope grows by a knot's scale at the middle of each knot."""
    asked: list[tuple[str, object, float]] = []

    def one(kind: str, whose: object, knot: float) -> np.ndarray:
        asked.append((kind, whose, knot))
        return np.ones(5)

    edge = 12.0 if side == 1 else 8.0
    drift = Drift(KNOWN, Keyed(0, 5), one)
    found = drift.beyond("drift_curve", "mine", edge + side * 1.0, 8.0, 12.0)
    knots = edge + side * KNOT * (np.arange(4) + 0.5)
    np.testing.assert_allclose(
        found, S_CURVE * np.sqrt(KNOT) * np.abs(edge + side - knots).sum(), rtol=1e-12
    )
    assert {(kind, whose) for kind, whose, _ in asked} == {("drift_curve", "mine")}
    np.testing.assert_allclose(sorted(knot for *_, knot in asked), sorted(knots))


def test_a_walk_belongs_to_whom_it_is_of() -> None:
    """One path: drawn again it is the same, at another size correlated; another's is another."""
    again = np.corrcoef(walk(14.0), walk(14.0))[0, 1]
    further = np.corrcoef(walk(14.0), walk(15.0))[0, 1]
    assert again == pytest.approx(1) and 0.8 < further < 0.999
    for other in (walk(14.0, whose="u"), walk(14.0, seed=1), walk(6.0)):
        assert abs(np.corrcoef(walk(14.0), other)[0, 1]) < 5 / np.sqrt(SIZE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_scale_of_drift_is_drawn_from_its_prior(kind: str) -> None:
    """Log-normal, per doubling; a knot of so many doublings has the root of that."""
    log_scale = np.log(Drift(WEAK, Keyed(0, SIZE)).scale(kind)) - 0.5 * np.log(KNOT)
    z = (log_scale - WEAK[kind].location) / WEAK[kind].scale
    assert abs(z.mean()) < 5 / np.sqrt(SIZE)
    assert abs(z.std() - 1) < 5 / np.sqrt(2 * SIZE)
    other = KINDS[1 - KINDS.index(kind)]  # the control: the other walk has another scale
    assert abs((log_scale - WEAK[other].location).mean()) > 0.5
    # Drawn apart from the other's: that tasks drift says nothing of curves.
    scales = [Drift(WEAK, Keyed(0, SIZE)).scale(k) for k in (kind, other)]
    assert abs(np.corrcoef(np.log(scales))[0, 1]) < 5 / np.sqrt(SIZE)


# ------------------------------------------------------------------ in forecasts


def steep(n_bases: int = 2) -> pd.DataFrame:
    """Runs at data sizes of 2^8 to 2^12, so that edges lie on the knots."""
    rows = [
        {"task": "t", "method": m, "base_model": f"b{b}", "finetune_examples": 2.0**k}
        for m in ("fmt", "lora")
        for b in range(n_bases)
        for k in range(8, 13)
    ]
    frame = pd.DataFrame(rows)
    loss = 1 + frame["finetune_examples"] ** -0.2
    return frame.assign(loss=loss, status="done", run_id=[str(i) for i in frame.index])


def drift(
    believed: MakeFit,
    targets: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    by_size: bool = True,
    **ask: str,
) -> np.ndarray:
    """What the drift adds to log loss: expected draws with it less those without it."""
    ask = {"law": "power"} | ask
    fit = believed(steep() if runs is None else runs, size=SIZE, priors=KNOWN, **ask)
    (posterior,) = fit.posteriors
    ready = check_targets(targets, posterior.table)
    drifting, calm = (
        np.log(
            Predictor(posterior.table, priors, posterior.values, 5, by_size=by_size)
            .draws(ready)
            .expected
        )
        for priors in (KNOWN, CALM)
    )
    return drifting - calm


def test_there_is_no_drift_inside_the_data(believed: MakeFit) -> None:
    inside = steep().assign(finetune_examples=np.geomspace(2.0**8, 2.0**12, 20))
    assert not drift(believed, inside).any()


@pytest.mark.parametrize("side", [1, -1])
def test_the_variance_of_drift_is_that_of_an_integrated_walk(believed: MakeFit, side: int) -> None:
    """s^2 k^3 / 3 at k doublings, task's and curve's added; curves of a task share the task's.

    Tolerance: 5 standard errors of a normal's variance, plus the midpoint rule's KNOT^2 / 4k^2.
    Control: the walk not integrated twice, s^2 k^2, and a curve's own part alone are refused.
    """
    doublings = np.array([1.0, 2.0, 4.0])
    edge = 12 if side == 1 else 8
    far = 2.0 ** (edge + side * doublings)
    targets = pd.concat(
        [
            pd.DataFrame({"task": "t", "method": "fmt", "base_model": b, "finetune_examples": far})
            for b in ("b0", "b1")
        ]
    )
    moved = drift(believed, targets)
    error = 5 * np.sqrt(2 / SIZE)
    total = S_TASK**2 + S_CURVE**2
    for i, k in enumerate(doublings):
        tolerance = error + KNOT**2 / (4 * k**2)
        ratio = moved[:, i].var() / (total * k**3 / 3)
        assert ratio == pytest.approx(1, abs=tolerance)
        shared = np.cov(moved[:, i], moved[:, i + 3])[0, 1] / (S_TASK**2 * k**3 / 3)
        assert shared == pytest.approx(1, abs=tolerance * total / S_TASK**2)
        assert abs(moved[:, i].var() / (S_CURVE**2 * k**3 / 3) - 1) > tolerance
    assert abs(moved[:, 2].var() / (total * 4.0**2) - 1) > error + KNOT**2 / 64
    # One path: at 4 doublings it has passed the point at 2.
    assert np.corrcoef(moved[:, 1], moved[:, 2])[0, 1] > 0.8


def test_the_task_drifts_beyond_its_cell_and_a_curve_beyond_its_own_runs(
    believed: MakeFit,
) -> None:
    """A curve of small data alone: up to its cell's largest only its own part is unknown.

    Tolerance as above. Control: at the far target the task's part is there as well.
    """
    runs = steep()
    short = (runs["base_model"] == "b1") & (runs["finetune_examples"] > 2.0**9)
    known = runs[~short].reset_index(drop=True)
    target = {"task": "t", "method": "fmt", "base_model": "b1"}
    far = pd.DataFrame([target | {"finetune_examples": 2.0**k} for k in (12, 15)])
    inside, beyond = drift(believed, far, known).var(axis=0)
    error = 5 * np.sqrt(2 / SIZE)
    own, shared = S_CURVE**2 / 3, S_TASK**2 / 3
    assert inside == pytest.approx(own * 3**3, rel=error + KNOT**2 / 36)
    assert beyond == pytest.approx(own * 6**3 + shared * 3**3, rel=error + KNOT**2 / 36)
    assert beyond != pytest.approx(own * 6**3, rel=error + KNOT**2 / 36)


def test_sizes_of_a_new_base_model_drift_apart_unless_told_otherwise(believed: MakeFit) -> None:
    """As its other deviations: of a curve's own walk, or one walk for all sizes."""
    runs = steep().assign(model_size=lambda f: f["base_model"].map({"b0": 1e6, "b1": 4e6}))
    row = {"task": "t", "method": "fmt", "base_model": "new", "finetune_examples": 2.0**15}
    targets = pd.DataFrame([row | {"model_size": size} for size in (1e6, 3e6)])
    apart = drift(believed, targets, runs, law="multiplicative")
    alike = drift(believed, targets, runs, by_size=False, law="multiplicative")
    np.testing.assert_allclose(alike[:, 0], alike[:, 1], atol=1e-10)
    shared = np.corrcoef(apart.T)[0, 1]
    assert shared == pytest.approx(S_TASK**2 / (S_TASK**2 + S_CURVE**2), abs=5 / np.sqrt(SIZE))
