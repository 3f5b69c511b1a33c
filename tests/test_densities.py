"""The model is what it was but for drift and least noise: earlier log densities (densities.md)."""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL

from tunecast.models.compile.density import compiled_density, inputs, value_and_gradient
from tunecast.models.hierarchy.geometry import Geometry
from tunecast.models.hierarchy.model import hierarchy
from tunecast.models.hierarchy.numpy_backends import LogDensity, geometry_of, log_density_of
from tunecast.models.hierarchy.priors import PRIORS, Priors
from tunecast.models.hierarchy.table import Table, index_runs, spec_of, usable
from tunecast.models.laws.positive import NumPy
from tunecast.models.runs import read_runs

SAME = 1e-10  # relative
KEPT = json.loads((Path(__file__).parent / "data" / "densities.json").read_text())
# Those of one table follow one another.
NAMES = list(dict.fromkeys(entry["name"] for entry in KEPT))

type Point = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _no_least_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier code let the noise of a run go to 0; recordings with and without it do not mix."""
    monkeypatch.setattr("tunecast.models.compile.density._RECORDED", {})
    monkeypatch.setattr("tunecast.models.hierarchy.model.LEAST_NOISE", 0.0)


@dataclass(frozen=True)
class Asked:
    """What entries of one name have in common."""

    table: Table
    priors: Priors
    geometry: Geometry


@cache
def asked(name: str) -> Asked:
    entry = next(entry for entry in KEPT if entry["name"] == name)
    source = SMALL if entry["table"] == "small ladder" else entry["table"]
    runs = read_runs(source, columns=["model_size", "finetune_examples"])
    if entry["where"] is not None:
        runs = runs.query(entry["where"])
    used = usable(runs, "finetune_examples")
    table = index_runs(used, spec_of(used, **entry["spec"]))
    priors = PRIORS[entry["priors"]]
    return Asked(table, priors, geometry_of(table, priors))


def entries_of(name: str) -> list[tuple[Point, dict[str, Any]]]:
    """Each point of a name, and its entry."""
    return [
        ({variable: np.array(value) for variable, value in entry["point"].items()}, entry)
        for entry in KEPT
        if entry["name"] == name
    ]


class WithoutDrift(LogDensity):
    """The density where nothing drifts, without that of the drift itself.

    Attributes
    ----------
    still : dict of str to ndarray
        Variables of the drift where there is none.
    left_out : float
        Their log density.
    """

    def __init__(self, table: Table, geometry: Geometry | None, point: Point) -> None:
        super().__init__(table, geometry, point)
        self.still: Point = {}
        self.left_out = 0.0

    def draw(
        self, name: str, df: float | None, location: Any, scale: Any, dims: tuple[str, ...]
    ) -> Any:
        if not name.startswith("drift_"):
            return super().draw(name, df, location, scale, dims)
        self.still[name] = value = np.broadcast_to(location, self.shape(dims))
        self.left_out += float(np.sum(log_density_of(value, df, location, scale, NumPy)))
        return value

    @property
    def total(self) -> float:
        """The sum of all terms."""
        return float(sum(np.sum(term) for term in self.terms))


def without_drift(a: Asked, point: Point, priors: Priors | None = None) -> WithoutDrift:
    """The density at a point, with the coordinates of other priors where such are given."""
    geometry = a.geometry if priors is None else geometry_of(a.table, priors)
    found = WithoutDrift(a.table, geometry, point)
    hierarchy(found, a.table, priors or a.priors)
    return found


def test_the_laws_whose_quantities_vary_as_they_did_are_among_them() -> None:
    laws = {entry["spec"]["law"] for entry in KEPT}
    assert laws == {"power", "multiplicative", "additive"}
    assert len(KEPT) == 22 and len(NAMES) == 11
    # Their curves show all that they had of their own.
    assert all(asked(name).table.curvatures.every for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_density_and_the_mean_are_what_they_were(name: str) -> None:
    a = asked(name)
    for point, entry in entries_of(name):
        found = without_drift(a, point)
        assert found.total == pytest.approx(entry["log_density"], rel=SAME)
        np.testing.assert_allclose(found.values["drift"], 0, atol=1e-15)
        mean = found.values["expected_log_loss"].mean()
        assert mean == pytest.approx(entry["mean_log_loss"], rel=SAME)
        assert set(found.still) == {
            "drift_task_raw", "drift_curve_raw", "drift_task_sd_raw", "drift_curve_sd_raw"
        }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_compiled_density_is_what_it_was(name: str) -> None:
    a = asked(name)
    model, taken = compiled_density(a.table, a.priors), inputs(a.table, a.priors)
    for point, entry in entries_of(name):
        found = without_drift(a, point)
        value, gradient = value_and_gradient(model, taken.flat({**point, **found.still}))
        assert value - found.left_out == pytest.approx(entry["log_density"], rel=SAME)
        assert np.isfinite(gradient).all()
        # The control: where something drifts, it is another.
        moved = {name: x + 0.1 for name, x in found.still.items()}
        value, _ = value_and_gradient(model, taken.flat({**point, **moved}))
        assert value - found.left_out != pytest.approx(entry["log_density"], rel=SAME)


@pytest.mark.parametrize("name", NAMES)
def test_another_point_or_prior_has_another_density(name: str) -> None:
    """The control: each variable moved by a thousandth, and each prior that the model has."""
    a = asked(name)
    point, entry = entries_of(name)[0]
    was = entry["log_density"]
    for variable in point:
        other = {**point, variable: point[variable] + 1e-3}
        assert without_drift(a, other).total != pytest.approx(was, rel=SAME)
    rows = [q.name for q in a.table.quantities] + ["base_model", "noise", "noise_df"]
    for row in rows:
        prior = a.priors[row]
        priors = {**a.priors, row: replace(prior, location=prior.location + 0.01)}
        assert without_drift(a, point, priors).total != pytest.approx(was, rel=SAME)
