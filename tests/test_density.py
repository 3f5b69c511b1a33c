"""Machine code for the log density: what it computes, for whom it serves, and how it is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tunecast.models import density
from tunecast.models.density import DensityError, compiled_density, inputs, value_and_gradient
from tunecast.models.hierarchy import build, log_density, simulate_prior, starting_point
from tunecast.models.inference import question_of
from tunecast.models.layout import Layout, lay_out
from tunecast.models.priors import WEAK, get_priors


def laid(runs: pd.DataFrame, law: str = "rectified") -> Layout:
    return lay_out(runs.reset_index(drop=True), question_of(runs, law=law))


@pytest.mark.parametrize("law", ["power", "additive", "rectified"])  # all coordinates among them
def test_the_density_in_numpy_is_the_one_of_pymc(ladder: pd.DataFrame, law: str) -> None:
    import pytensor

    layout = laid(ladder, law)
    draws, _ = simulate_prior(layout, WEAK, 2, 5)
    mode = pytensor.compile.mode.Mode("py", optimizer=None)  # type: ignore[arg-type]
    theirs = build(layout, WEAK).compile_logp(mode=mode)
    for i in range(2):
        point = {name: values[i] for name, values in draws.items()}
        assert log_density(layout, WEAK, point) == pytest.approx(float(theirs(point)), rel=1e-10)


def test_chains_start_apart_where_the_density_is_finite(ladder: pd.DataFrame) -> None:
    layout = laid(ladder)
    a, b = (starting_point(layout, WEAK, seed) for seed in (1, 2))
    assert np.isfinite(log_density(layout, WEAK, a))
    assert all(np.abs(a[name] - b[name]).min() > 0 for name in a)
    again = starting_point(layout, WEAK, 1)
    assert all(np.array_equal(a[name], again[name]) for name in a)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        def graph(*unused: Any) -> Any:
            raise AssertionError("compiled anew")

        monkeypatch.setattr(density, "_graph", graph)

    return forbid


def test_one_code_serves_tables_of_a_structure(
    ladder: pd.DataFrame, no_compiler: Callable[[], None]
) -> None:
    """Fewer curves, rows and base models, other losses and priors: value and slopes are right."""
    compiled_density(laid(ladder), WEAK)
    no_compiler()
    smaller = ladder[ladder["base_model"] != ladder["base_model"].iloc[0]]
    smaller = smaller.assign(loss=smaller["loss"] * 1.1).iloc[1:]
    rng = np.random.default_rng(4)
    for layout, priors in ((laid(smaller), WEAK), (laid(ladder), get_priors("zhang2024"))):
        model, taken = compiled_density(layout, priors), inputs(layout, priors)
        x = model.initial_point_func(9)
        value, gradient = value_and_gradient(model, x)
        assert value == pytest.approx(log_density(layout, priors, taken.named(x)), rel=1e-10)
        for _ in range(3):
            step = 1e-6 * rng.standard_normal(len(x))
            up, down = (log_density(layout, priors, taken.named(x + s)) for s in (step, -step))
            assert float(gradient @ step) == pytest.approx((up - down) / 2, rel=1e-3, abs=1e-6)
    with pytest.raises(AssertionError, match="compiled anew"):  # the control: another structure
        compiled_density(laid(ladder, "power"), WEAK)


def test_code_that_computes_something_else_is_noticed(ladder: pd.DataFrame) -> None:
    layout = laid(ladder)
    model, taken = compiled_density(layout, WEAK), inputs(layout, WEAK)
    assert density._fault(model, layout, WEAK, taken) is None
    other = layout.with_losses(np.exp(layout.log_loss) * 1.01)
    assert "log density is" in str(density._fault(model, other, WEAK, taken))
    right = density.value_and_gradient

    def bent(model: Any, x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = right(model, x)
        return value, 1.5 * gradient

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(density, "value_and_gradient", bent)
        assert "gradient" in str(density._fault(model, layout, WEAK, taken))


# ------------------------------------------------------------------ how code is kept


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[int]]:
    """A density that compiles at once; counts how often it did. Its check is switched off."""
    import numba

    times: list[int] = []

    def graph(*unused: Any) -> Any:
        times.append(1)

        @numba.njit
        def half_square(x, *numbers):  # type: ignore[no-untyped-def]
            return -0.5 * (x * x).sum(), -x

        return half_square

    monkeypatch.setenv("TUNECAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(density, "_LOADED", {})
    monkeypatch.setattr(density, "_graph", graph)
    monkeypatch.setattr(density, "_fault", lambda *unused: None)
    yield times


def half_square(layout: Layout) -> None:
    value, gradient = value_and_gradient(
        compiled_density(layout, WEAK), np.full(inputs(layout, WEAK).size, 2.0)
    )
    assert value == pytest.approx(-2.0 * len(gradient))
    assert (gradient == -2).all()


def test_code_is_kept_in_memory_and_on_disk(
    toy: list[int], ladder: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = laid(ladder)
    half_square(layout)
    half_square(layout)
    assert len(toy) == 1
    monkeypatch.setattr(density, "_LOADED", {})  # as another process finds it
    half_square(layout)
    assert len(toy) == 1


def test_code_cut_short_on_disk_is_made_anew(
    toy: list[int], ladder: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layout = laid(ladder)
    half_square(layout)
    files = list((tmp_path / "cache").rglob("*.nbc"))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    monkeypatch.setattr(density, "_LOADED", {})
    half_square(layout)
    assert len(toy) == 2


def test_without_a_place_on_disk_code_serves_the_process(
    toy: list[int], ladder: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TUNECAST_CACHE", str(tmp_path / "file"))
    half_square(laid(ladder))
    half_square(laid(ladder))
    assert len(toy) == 1


def test_wrong_code_is_made_anew_once_and_then_refused(
    toy: list[int], ladder: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = laid(ladder)
    faults = iter(["stale", None])
    monkeypatch.setattr(density, "_fault", lambda *unused: next(faults))
    half_square(layout)
    assert len(toy) == 2
    monkeypatch.setattr(density, "_fault", lambda *unused: "the compiled log density is 1")
    with pytest.raises(DensityError, match="is 1"):
        compiled_density(layout, WEAK)
