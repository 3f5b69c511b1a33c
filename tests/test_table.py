"""From table to index arrays: counts, parents, references, and refusals in one sentence."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from thinned import THINNED

from tunecast.models.checks.tables import one_curve
from tunecast.models.errors import TunecastError
from tunecast.models.hierarchy.groupings import groupings_of, variable_names
from tunecast.models.hierarchy.numpy_backends import Simulation, geometry_of, simulate_prior
from tunecast.models.hierarchy.priors import WEAK
from tunecast.models.hierarchy.table import (
    Table,
    index_runs,
    spec_of,
    usable,
)
from tunecast.models.hierarchy.targets import check_targets, index_targets
from tunecast.models.laws import LAWS, get_law


def indexed(
    runs: pd.DataFrame,
    law: str = "rectified",
    factors: tuple[str, ...] | None = ("model_size",),
    **ask: Any,
) -> Table:
    return index_runs(runs, spec_of(runs, law=law, factors=factors, **ask))


def test_counts_of_the_ladder(ladder: pd.DataFrame) -> None:
    """One task, three methods, three base models: 9 curves in 3 cells, one grouping."""
    table = indexed(ladder)
    assert len(table.run_curve) == len(ladder)
    assert table.cells == tuple(("debian-en-de", m) for m in ("fmt", "lora", "prompt"))
    assert [g.name for g in table.groupings] == ["method"]
    assert len(table.curve_cell) == 9 and len(table.base_models) == 3
    assert table.curve_x.shape == (9, 1)
    assert table.tasks == ("debian-en-de",)
    assert not table.one_curve_per_base_model


def test_several_groupings_bring_their_interaction(zhang: pd.DataFrame) -> None:
    table = indexed(zhang)
    cells = zhang[["task", "method", "family"]].drop_duplicates()
    curves = zhang[["task", "method", "family", "base_model"]].drop_duplicates()
    assert table.spec.cell == ("task", "method", "family")
    assert [g.name for g in table.groupings] == ["task", "method", "family", "cell"]
    assert len(table.cells) == len(cells) and len(table.curve_cell) == len(curves)
    for position, g in enumerate(table.groupings[:-1]):
        assert tuple(g.levels[i] for i in g.index) == tuple(cell[position] for cell in table.cells)
    assert table.groupings[-1].levels == tuple(" / ".join(cell) for cell in table.cells)
    tasks = [table.tasks[i] for i in table.curve_task]
    assert tasks == [table.cells[k][0] for k in table.curve_cell]


def test_every_row_finds_its_parents(zhang: pd.DataFrame) -> None:
    """Whatever the order of the rows, parents, factors and sizes are those of the row itself."""
    runs = zhang.sample(frac=1, random_state=4).reset_index(drop=True)
    table = indexed(runs)
    curve = table.run_curve
    cells = [table.cells[k] for k in table.curve_cell[curve]]
    assert cells == list(runs[list(table.spec.cell)].itertuples(index=False, name=None))
    assert [table.base_models[m] for m in table.curve_base[curve]] == list(runs["base_model"])
    assert [table.tasks[t] for t in table.curve_task[curve]] == list(runs["task"])
    size = table.x_ref[0] * np.exp(table.curve_x[curve, 0])
    np.testing.assert_allclose(size, runs["model_size"], rtol=1e-12)
    D = 2 ** table.log2_d_ref[table.curve_cell[curve]] * np.exp(table.log_u)
    np.testing.assert_allclose(D, runs["finetune_examples"], rtol=1e-12)
    np.testing.assert_array_equal(table.log_loss, np.log(runs["loss"]))


def test_reference_size_is_the_middle_of_a_cells_range(ladder: pd.DataFrame) -> None:
    table = indexed(ladder)
    for k, (_, method) in enumerate(table.cells):
        sizes = np.log2(ladder.loc[ladder["method"] == method, "finetune_examples"])
        assert table.log2_d_ref[k] == pytest.approx((sizes.min() + sizes.max()) / 2, abs=1e-12)
        assert (table.cell_low[k], table.cell_high[k]) == (sizes.min(), sizes.max())
    fmt = table.curve_cell == 0
    own = ladder[ladder["method"] == "fmt"].groupby("base_model")["finetune_examples"]
    np.testing.assert_array_equal(table.curve_high[fmt], np.log2(own.max()))


def test_another_value_of_a_factor_is_another_curve(ladder: pd.DataFrame) -> None:
    runs = ladder.assign(pet_params=ladder["pet_params"] + 1)  # full fine-tuning has none
    table = indexed(runs, factors=("model_size", "pet_params"), cell=("task",))
    assert table.cells == (("debian-en-de",),) and table.groupings == ()
    curves = ladder[["base_model", "pet_params"]].drop_duplicates()
    assert len(table.curve_cell) == len(curves)


def test_one_curve_for_each_base_model(ladder: pd.DataFrame) -> None:
    assert indexed(ladder[ladder["method"] == "lora"]).one_curve_per_base_model
    assert indexed(ladder.assign(base_model=ladder["run_id"])).one_curve_per_base_model


def test_the_curve_of_each_base_model(ladder: pd.DataFrame) -> None:
    """Base models are named in another order than their curves come in."""
    names = {"ladder-0.1m": "c", "ladder-0.4m": "a", "ladder-1.2m": "b"}
    runs = ladder[ladder["method"] == "lora"]
    runs = runs.assign(base_model=runs["base_model"].map(names), method=runs["base_model"])
    table = indexed(runs)
    assert table.one_curve_per_base_model
    assert list(table.curve_base) != sorted(table.curve_base)
    np.testing.assert_array_equal(table.curve_base[table.base_curve], range(len(table.base_models)))


# ------------------------------------------------------------------ what is asked


def test_what_is_not_asked_has_a_default(ladder: pd.DataFrame, zhang: pd.DataFrame) -> None:
    for law in LAWS:
        spec = spec_of(ladder, law=law)
        assert spec.factors == (("model_size",) if get_law(law).has("alpha") else ())
        assert (spec.data, spec.cell, spec.curve) == (
            "finetune_examples", ("task", "method"), "base_model",
        )  # fmt: skip
    assert spec_of(zhang, law="power").cell == ("task", "method", "family")
    one = zhang[zhang["family"] == "en-de"]
    assert spec_of(one, law="power").cell == ("task", "method")


def test_what_is_asked_is_kept(ladder: pd.DataFrame) -> None:
    ask: dict[str, Any] = {"data": "steps", "cell": [], "curve": "run_id"}
    spec = spec_of(ladder, law="additive", factors=["pet_params"], **ask)
    assert (spec.factors, spec.data, spec.cell, spec.curve) == (
        ("pet_params",), "steps", (), "run_id",
    )  # fmt: skip
    # A law without alpha has no factors, whatever is asked.
    assert spec_of(ladder, law="power", factors=["model_size"]).factors == ()


def test_an_unknown_law_is_refused(ladder: pd.DataFrame) -> None:
    with pytest.raises(TunecastError, match="unknown law 'cubic'"):
        spec_of(ladder, law="cubic")


def test_runs_that_no_law_describes_are_not_used(ladder: pd.DataFrame) -> None:
    ladder.loc[2, "finetune_examples"] = 0
    ladder.loc[5, "status"] = "failed"
    used = usable(ladder, "finetune_examples")
    assert list(used["run_id"]) == list(ladder["run_id"].drop([2, 5]))
    assert list(used.index) == list(range(len(ladder) - 2))


@pytest.mark.parametrize("law", LAWS)
def test_quantities_are_those_of_the_law(ladder: pd.DataFrame, law: str) -> None:
    """Without factors nothing that there is one of for each."""
    bare = [q.name for q in indexed(ladder, law, ()).quantities]
    assert bare == [q.name for q in get_law(law).quantities if not q.per_factor]
    if get_law(law).has("alpha"):
        assert indexed(ladder, law).quantities == get_law(law).quantities


# ------------------------------------------------------------------ groupings and names


def test_a_column_of_one_level_is_no_grouping() -> None:
    cells = [("a", "x", "1"), ("a", "y", "1"), ("a", "y", "2")]
    found = groupings_of(cells, ("task", "method", "kind"))
    assert [(g.name, g.levels, list(g.index)) for g in found] == [
        ("method", ("x", "y"), [0, 1, 1]),
        ("kind", ("1", "2"), [0, 0, 1]),
        ("cell", ("a / x / 1", "a / y / 1", "a / y / 2"), [0, 1, 2]),
    ]
    # One grouping needs no interaction: its levels are the cells.
    assert [g.name for g in groupings_of([c[:2] for c in cells[:2]], ("task", "method"))] == [
        "method"
    ]
    assert groupings_of(cells[:1], ("task", "method", "kind")) == ()


# What columns may be called, and what the model must not take them for.
AWKWARD = (
    "a/b", "a.b", "a b", "curve", "cell", "run", "factor", "base_model", "draw", "mean", "expected",
    "curve_sd", "mean_raw", "noise", "log_loss", "log_beta", "A", "E", "alpha",
    "scale", "repeated_curve",
)  # fmt: skip


@pytest.mark.parametrize("thin", THINNED)
def test_what_curves_show_goes_by_their_different_data_sizes(
    ladder: pd.DataFrame, thin: str
) -> None:
    """Replicates are one size; a variable of some curves has a dimension of its own."""
    runs = THINNED[thin](ladder)
    table = indexed(runs, "power", ())
    curves = runs.groupby(["task", "method", "base_model"])["finetune_examples"]
    sizes, count = curves.nunique(), curves.size()
    np.testing.assert_array_equal(table.curve_sizes, sizes)
    np.testing.assert_array_equal(table.curve_runs, count)
    for name, told, needed in (
        ("log_beta_curve", sizes, 2), ("logit_floor_curve", sizes, 3),
        ("log_noise_curve", sizes, 3), ("drift_curve", sizes, 3), ("a loss of its own", count, 2),
    ):  # fmt: skip
        shown = table.repeated if name == "a loss of its own" else table.shown(name)
        own = np.flatnonzero(told >= needed)
        assert shown is not None
        np.testing.assert_array_equal(shown.curves, own)
        assert shown.some == (len(own) > 0) and shown.every == (len(own) == len(sizes))
        np.testing.assert_array_equal(np.flatnonzero(shown.places >= 0), own)
        np.testing.assert_array_equal(shown.places[own], np.arange(len(own)))
        labels = [table.coords["curve"][c] for c in own]
        assert table.coords[shown.dim] == labels
        assert (shown.dim == "curve") == shown.every
    assert table.shown("log_loss_ref_curve") is None and table.shown("base_model_effect") is None
    of_run = sizes.to_numpy()[table.run_curve]
    np.testing.assert_array_equal(table.run_alone, count.to_numpy()[table.run_curve] == 1)
    # Of a curve that shows no curvature nothing drifts on its own; its task does.
    assert not table.curve_drift_basis[:, of_run < 3].any()
    assert table.curve_drift_basis[:, of_run > 2].any(axis=0).all()
    assert table.task_drift_basis.any(axis=0).all()


def test_names_of_columns_become_names_of_variables() -> None:
    names = variable_names(AWKWARD)
    assert names["a/b"] == "a_b" and names["a.b"] == "a_b_" and names["a b"] == "a_b__"
    assert names["curve"] == "curve_" and names["cell"] == "cell_"
    assert variable_names(["drift"]) == {"drift": "drift_"}
    assert all(name.isidentifier() for name in names.values())
    assert len(set(names.values())) == len(AWKWARD)
    assert variable_names(["task", "method", "quality_2"]) == {
        name: name for name in ("task", "method", "quality_2")
    }


@pytest.mark.parametrize("column", AWKWARD)
def test_a_column_of_any_name_makes_the_same_model(ladder: pd.DataFrame, column: str) -> None:
    """With curves by run and by half of them, so that no other dimension has the same levels."""

    def model(name: str) -> tuple[Table, Simulation]:
        runs = ladder.assign(checkpoint=ladder["base_model"])
        runs[name] = np.where(np.arange(len(ladder)) % 2, "odd", "even")
        table = indexed(runs, cell=(name, "method"), curve="checkpoint")
        return table, simulate_prior(table, WEAK, 2, 0, geometry_of(table, WEAK))

    (table, found), (plain, expected) = model(column), model("quality")
    name = table.groupings[0].name
    assert table.coords[name] == ["even", "odd"]
    assert [label.replace(name, "quality") for label in table.coords] == list(plain.coords)
    assert len(found.values) == len(expected.values)
    for one, other in zip(found.values.items(), expected.values.items(), strict=True):
        assert one[0] == other[0].replace("quality", name)
        np.testing.assert_array_equal(one[1], other[1])
        assert found.dims[one[0]] == tuple(
            d.replace("quality", name) for d in expected.dims[other[0]]
        )
    # Dimensions and variables share one space of names in ArviZ's files and in PyMC.
    assert not set(table.coords) & set(found.values)


def test_targets_have_the_groupings_of_the_fit_whatever_a_column_is_called(
    ladder: pd.DataFrame,
) -> None:
    for column in ("method", "cell"):
        table = indexed(ladder.assign(cell=ladder["method"]), cell=(column,))
        targets = check_targets(ladder.assign(cell=ladder["method"]), table)
        found = index_targets(targets, table)
        assert [g.name for g in found.groupings] == [g.name for g in table.groupings]


def test_labels_tell_everything_apart(ladder: pd.DataFrame, zhang: pd.DataFrame) -> None:
    runs = ladder.assign(pet_params=ladder["pet_params"] + 1)
    tables = [
        indexed(ladder),
        indexed(zhang),
        # One base model at several values of a factor.
        indexed(runs, factors=("model_size", "pet_params"), cell=("task",)),
    ]
    for table in tables:
        for dim, labels in table.coords.items():
            assert len(set(labels)) == len(labels), dim
        assert len(table.coords["curve"]) == len(table.curve_cell)
        assert len(table.coords["run"]) == len(table.run_curve)
    assert tables[0].coords["curve"][0] == "debian-en-de / fmt / ladder-0.1m"
    assert tables[2].coords["curve"][0] == "debian-en-de / ladder-0.1m / 100672, 1"


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("keep", "match"),
    [
        ("finetune_examples < 0", r"^the table has 0 usable runs \(status done, finetune_examples"),
        ("run_id == 'debian-en-de/fmt/ladder-0.1m/60/s0'", "^the table has 1 usable run .* three"),
        ("finetune_examples in (200, 600)", r"have 2 value\(s\) of finetune_examples \(200, 600\)"),
        ("finetune_examples == 600", r"have 1 value\(s\) of finetune_examples \(600\).* three"),
    ],
)
def test_a_thin_table_is_refused_in_one_sentence(
    ladder: pd.DataFrame, keep: str, match: str
) -> None:
    with pytest.raises(TunecastError, match=match) as caught:
        indexed(ladder.query(keep).reset_index(drop=True))
    assert "\n" not in str(caught.value)


def test_a_factor_that_does_not_vary_is_left_out_or_refused_where_it_was_asked_for(
    ladder: pd.DataFrame,
) -> None:
    one = ladder.query("method == 'fmt' and base_model == 'ladder-0.1m'").reset_index(drop=True)
    table = indexed(one, factors=None)
    assert table.factors == () and len(table.curve_cell) == 1
    assert indexed(ladder, factors=None).factors == ("model_size",)
    with pytest.raises(TunecastError, match=r"^every run has model_size = 100672: its exponent"):
        indexed(one, factors=("model_size",))


def test_one_curve_is_fitted_and_said(ladder: pd.DataFrame) -> None:
    one = ladder.query("method == 'fmt' and base_model == 'ladder-0.1m'").reset_index(drop=True)
    (found,) = one_curve(one, spec_of(one, law="rectified"))
    assert found.cell is None and "one curve" in found.sentence
    assert one_curve(ladder, spec_of(ladder, law="rectified")) == ()


def test_a_factor_of_zero_is_refused(ladder: pd.DataFrame) -> None:
    ladder.loc[3, "model_size"] = 0.0
    with pytest.raises(TunecastError, match=r"'model_size' must be above 0 .* is 0.0 on 1 of them"):
        indexed(ladder)


def test_without_the_check_a_thin_table_keeps_to_its_priors(ladder: pd.DataFrame) -> None:
    one = ladder.query("finetune_examples == 600 and method == 'fmt'").iloc[:1]
    spec = spec_of(one, law="rectified")
    with pytest.raises(TunecastError):
        index_runs(one, spec)
    assert len(index_runs(one, spec, check=False).curve_cell) == 1
