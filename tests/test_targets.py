"""Targets: checked, completed by what the table knows of them, and laid out as the fit is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tunecast.models.errors import TunecastError
from tunecast.models.fits.fit import Fit
from tunecast.models.hierarchy.table import Table, index_runs, spec_of
from tunecast.models.hierarchy.targets import (
    check_targets,
    curve_labels,
    index_targets,
    known_curves,
)

type MakeFit = Callable[..., Fit]


def indexed(runs: pd.DataFrame, **ask: Any) -> Table:
    return index_runs(runs, spec_of(runs, **({"law": "rectified"} | ask)))


def target(**values: Any) -> pd.DataFrame:
    row = {"task": "debian-en-de", "method": "fmt", "finetune_examples": 600.0}
    return pd.DataFrame([row | values])


# ------------------------------------------------------------------ checked and completed


@pytest.mark.parametrize("who", ["targets", "candidates"])
@pytest.mark.parametrize(
    ("targets", "match"),
    [
        (target().iloc[:0], "there are no {}: expected at least one row"),
        (target(model_size=1e6).drop(columns="method"), "the {} lack the column 'method'"),
        (target(model_size=1e6, finetune_examples=0.0), "the {}' 'finetune_examples' is 0 in row"),
        (target(model_size=1e6, finetune_examples=-5.0), "is -5 in row 1: .* above 0"),
        (target(model_size=1e6, finetune_examples=np.inf), "'finetune_examples' is inf in row 1"),
        (target(model_size=1e6).drop(columns="finetune_examples"), "examples' is missing in row 1"),
        (target(model_size="big"), "the {}' 'model_size' holds text, expected numbers"),
        (target(), "'model_size' is missing in row 1"),
        (target(base_model="unknown"), "'model_size' is missing in row 1"),
        (target(model_size=1e6, method=""), r"need a 'method' \(one of fmt, lora, prompt, or"),
    ],
)
def test_targets_at_fault_get_one_sentence(
    ladder: pd.DataFrame, targets: pd.DataFrame, match: str, who: str
) -> None:
    with pytest.raises(TunecastError, match=match.format(who)) as caught:
        check_targets(targets, indexed(ladder), who)
    assert "\n" not in str(caught.value)


def test_the_row_at_fault_is_counted_from_one(ladder: pd.DataFrame) -> None:
    rows = pd.concat([target(model_size=1e6)] * 3, ignore_index=True)
    rows.index = pd.Index([7, 5, 9])
    rows.loc[9, "finetune_examples"] = -1.0
    with pytest.raises(TunecastError, match="is -1 in row 3"):
        check_targets(rows, indexed(ladder))


def test_what_the_table_determines_is_filled_in(zhang: pd.DataFrame) -> None:
    table = indexed(zhang)
    row = zhang.iloc[[7]]
    bare = row[["task", "method", "base_model", "finetune_examples"]]
    filled = check_targets(bare, table)
    assert filled["family"].tolist() == row["family"].tolist()
    assert filled["model_size"].tolist() == pytest.approx(row["model_size"].tolist(), rel=1e-12)
    assert "family" not in bare  # the caller's table stays as it was
    # What is given stays; where base models of several families were seen, it must be.
    given = check_targets(bare.assign(model_size=5.0, family="other"), table)
    assert (given["model_size"].item(), given["family"].item()) == (5.0, "other")
    with pytest.raises(TunecastError, match=r"need a 'family' \(one of en-de, en-zh, or a new one"):
        check_targets(bare.assign(base_model="", model_size=1e9), table)


def test_the_one_task_may_be_left_out(ladder: pd.DataFrame) -> None:
    bare = target(model_size=1e6).drop(columns="task")
    for cell in (("task", "method"), ("method",)):
        filled = check_targets(bare, indexed(ladder, cell=cell))
        assert filled["task"].tolist() == ["debian-en-de"]


# ------------------------------------------------------------------ laid out


@pytest.mark.parametrize("law", ["power", "rectified"])
def test_fitted_runs_are_laid_out_as_they_were_for_the_fit(
    ladder: pd.DataFrame, zhang: pd.DataFrame, law: str
) -> None:
    """By label, for the order of cells and curves is that of appearance; and only some runs."""
    for runs in (ladder, zhang):
        table = indexed(runs, law=law)
        at = np.arange(len(runs))[::-3]
        found = index_targets(check_targets(runs.iloc[at], table), table)
        np.testing.assert_allclose(found.log_u, table.log_u[at], atol=1e-12)
        known, labels = known_curves(table), curve_labels(found)
        own = np.array([known[labels[c]] for c in found.run_curve])
        np.testing.assert_array_equal(own, table.run_curve[at])
        for name in ("curve_low", "curve_high", "curve_x"):
            got, fitted = getattr(found, name)[found.run_curve], getattr(table, name)[own]
            np.testing.assert_allclose(got, fitted, atol=1e-9, err_msg=name)
        for name in ("log2_d_ref", "cell_low", "cell_high"):
            got = getattr(found, name)[found.curve_cell[found.run_curve]]
            fitted = getattr(table, name)[table.curve_cell[own]]
            np.testing.assert_array_equal(got, fitted, err_msg=name)
        assert [g.name for g in found.groupings] == [g.name for g in table.groupings]
        for g, fitted_g in zip(found.groupings, table.groupings, strict=True):
            got_levels = [g.levels[i] for i in g.index[found.curve_cell[found.run_curve]]]
            assert got_levels == [fitted_g.levels[i] for i in fitted_g.index[table.curve_cell[own]]]
        bases = [found.base_models[i] for i in found.curve_base[found.run_curve]]
        assert bases == list(runs["base_model"].iloc[at])
        tasks = [found.tasks[i] for i in found.curve_task[found.run_curve]]
        assert tasks == list(runs["task"].iloc[at])
        # The control: the order is another one.
        assert not np.array_equal(found.run_curve, table.run_curve[at])


def test_a_new_cell_is_measured_from_those_that_share_most_of_its_levels(
    zhang: pd.DataFrame,
) -> None:
    """And a new curve reaches as far as its cell."""
    table = indexed(zhang)
    first = zhang.iloc[[0]]
    task, _, family = table.cells[0]
    near = [k for k, cell in enumerate(table.cells) if cell[0] == task and cell[2] == family]
    assert 1 < len(near) < len(table.cells)
    new = first.assign(task=task, method="new", family=family, base_model="new")
    found = index_targets(check_targets(new, table), table)
    assert found.log2_d_ref[0] == np.median(table.log2_d_ref[near])
    assert found.cell_low[0] == found.curve_low[0] == table.cell_low[near].min()
    assert found.cell_high[0] == found.curve_high[0] == table.cell_high[near].max()
    # Nothing shared: any cell is as near as another.
    alien = new.assign(task="t", family="f", base_model="")
    found = index_targets(check_targets(alien, table), table)
    assert found.log2_d_ref[0] == np.median(table.log2_d_ref)
    # A new curve of a known cell.
    known = index_targets(check_targets(first.assign(base_model="new"), table), table)
    k = table.cells.index((first["task"].item(), first["method"].item(), first["family"].item()))
    assert known.curve_high[0] == table.cell_high[k]
    assert known.log2_d_ref[0] == table.log2_d_ref[k]


def test_a_column_of_one_level_is_a_grouping_of_targets_that_bring_a_new_one(
    ladder: pd.DataFrame,
) -> None:
    table = indexed(ladder)
    assert [g.name for g in table.groupings] == ["method"]
    rows = pd.concat([target(), target(task="new")]).assign(model_size=1e6)
    found = index_targets(check_targets(rows, table), table)
    assert [(g.name, g.levels) for g in found.groupings] == [
        ("task", ("debian-en-de", "new")),
        ("method", ("fmt",)),
    ]
    alone = index_targets(check_targets(rows.iloc[:1], table), table)
    assert [g.name for g in alone.groupings] == ["method"]


# ------------------------------------------------------------------ extrapolation


def test_extrapolation_is_the_largest_ratio_beyond_the_data(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    fit = believed(ladder)
    own = ladder[(ladder["method"] == "fmt") & (ladder["base_model"] == "ladder-1.2m")]
    low, high = own["finetune_examples"].min(), own["finetune_examples"].max()
    biggest, smallest = ladder["model_size"].max(), ladder["model_size"].min()
    sizes = pd.concat([own.iloc[[0]]] * 3).assign(finetune_examples=[4 * high, low / 8, high])
    np.testing.assert_allclose(fit.draws(sizes).extrapolation, [4, 8, 1], rtol=1e-9)
    models = pd.concat([target()] * 3).assign(model_size=[10 * biggest, smallest / 3, biggest])
    np.testing.assert_allclose(fit.draws(models).extrapolation, [10, 3, 1], rtol=1e-9)
    both = target(model_size=2 * biggest, finetune_examples=1e3 * high)
    assert fit.draws(both).extrapolation[0] > 100


def test_extrapolation_is_measured_from_a_curves_own_runs(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    """A curve of small data alone is far from its cell's largest; a new curve is not."""
    short = (ladder["base_model"] == "ladder-1.2m") & (ladder["finetune_examples"] > 600)
    fit = believed(ladder[~short].reset_index(drop=True))
    there = target(model_size=1240480.0, finetune_examples=6000.0)
    known, new = (there.assign(base_model=name) for name in ("ladder-1.2m", "new"))
    assert fit.draws(known).extrapolation[0] == pytest.approx(10, rel=1e-9)
    assert fit.draws(new).extrapolation[0] == 1
