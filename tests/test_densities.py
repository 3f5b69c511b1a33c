"""The model is what it was: log densities that earlier code computed (data/densities.md)."""

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
from tunecast.models.hierarchy.numpy_backends import geometry_of, log_density, replay
from tunecast.models.hierarchy.priors import PRIORS, Priors
from tunecast.models.hierarchy.table import Table, index_runs, spec_of, usable
from tunecast.models.runs import read_runs

SAME = 1e-10  # relative
KEPT = json.loads((Path(__file__).parent / "data" / "densities.json").read_text())
# Those of one table follow one another.
NAMES = list(dict.fromkeys(entry["name"] for entry in KEPT))


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
    if entry["base_model"] is not None:
        runs = runs.assign(base_model=runs[entry["base_model"]])
    used = usable(runs, "finetune_examples")
    table = index_runs(used, spec_of(used, **entry["spec"]), check=entry["checked"])
    priors = PRIORS[entry["priors"]]
    return Asked(table, priors, geometry_of(table, priors))


def entries_of(name: str) -> list[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """Each point of a name, and its entry."""
    return [
        ({variable: np.array(value) for variable, value in entry["point"].items()}, entry)
        for entry in KEPT
        if entry["name"] == name
    ]


def test_every_law_that_there_was_is_among_them() -> None:
    laws = {entry["spec"]["law"] for entry in KEPT}
    assert laws == {"power", "multiplicative", "additive", "rectified"}
    assert len(KEPT) == 44 and len(NAMES) == 22


@pytest.mark.parametrize("name", NAMES)
def test_the_density_and_the_mean_are_what_they_were(name: str) -> None:
    a = asked(name)
    for point, entry in entries_of(name):
        density = log_density(a.table, a.priors, point, a.geometry)
        assert density == pytest.approx(entry["log_density"], rel=SAME)
        draws = {variable: value[None] for variable, value in point.items()}
        found = replay(a.table, a.priors, draws, a.geometry).values["expected_log_loss"]
        assert found.mean() == pytest.approx(entry["mean_log_loss"], rel=SAME)


@pytest.mark.parametrize("name", NAMES)
def test_the_compiled_density_is_what_it_was(name: str) -> None:
    a = asked(name)
    model, taken = compiled_density(a.table, a.priors), inputs(a.table, a.priors)
    for point, entry in entries_of(name):
        value, gradient = value_and_gradient(model, taken.flat(point))
        assert value == pytest.approx(entry["log_density"], rel=SAME)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
def test_another_point_or_prior_has_another_density(name: str) -> None:
    """The control: each variable moved by a thousandth, and each prior that the model has."""
    a = asked(name)
    point, entry = entries_of(name)[0]
    was = entry["log_density"]
    for variable in point:
        other = {**point, variable: point[variable] + 1e-3}
        assert log_density(a.table, a.priors, other, a.geometry) != pytest.approx(was, rel=SAME)
    rows = [q.name for q in a.table.quantities] + ["base_model", "noise", "noise_df"]
    for row in rows:
        prior = a.priors[row]
        priors = {**a.priors, row: replace(prior, location=prior.location + 0.01)}
        moved = log_density(a.table, priors, point, geometry_of(a.table, priors))
        assert moved != pytest.approx(was, rel=SAME)
