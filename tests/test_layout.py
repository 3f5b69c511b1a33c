"""From table to index arrays: counts, parents, references, and refusals in one sentence."""

import numpy as np
import pandas as pd
import pytest

from tunecast.models.errors import TunecastError
from tunecast.models.inference import question_of
from tunecast.models.layout import Layout, lay_out


def laid(
    runs: pd.DataFrame,
    law: str = "rectified",
    factors: tuple[str, ...] = ("model_size",),
    cell: tuple[str, ...] | None = None,
) -> Layout:
    return lay_out(runs, question_of(runs, law=law, factors=factors, cell=cell))


def test_counts_of_the_ladder(ladder: pd.DataFrame) -> None:
    """One task, three methods, three base models: 9 curves in 3 cells, one column of levels."""
    layout = laid(ladder)
    assert len(layout.row_curve) == len(ladder)
    assert layout.cells == tuple(("debian-en-de", m) for m in ("fmt", "lora", "prompt"))
    assert [c.name for c in layout.columns] == ["method"]
    assert len(layout.curve_cell) == 9 and len(layout.base_models) == 3
    assert layout.curve_x.shape == (9, 1)
    assert layout.tasks == ("debian-en-de",)
    assert not layout.one_curve_per_base_model


def test_several_columns_bring_their_interaction(zhang: pd.DataFrame) -> None:
    layout = laid(zhang)
    cells = zhang[["task", "method", "family"]].drop_duplicates()
    curves = zhang[["task", "method", "family", "base_model"]].drop_duplicates()
    assert layout.question.cell == ("task", "method", "family")
    assert [c.name for c in layout.columns] == ["task", "method", "family", "cell"]
    assert len(layout.cells) == len(cells) and len(layout.curve_cell) == len(curves)
    for position, column in enumerate(layout.columns[:-1]):
        assert tuple(column.levels[i] for i in column.index) == tuple(
            cell[position] for cell in layout.cells
        )
    assert layout.columns[-1].levels == tuple(" / ".join(cell) for cell in layout.cells)
    tasks = [layout.tasks[i] for i in layout.cell_task]
    assert tasks == [cell[0] for cell in layout.cells]


def test_every_row_finds_its_parents(zhang: pd.DataFrame) -> None:
    """Whatever the order of the rows, parents, factors and sizes are those of the row itself."""
    runs = zhang.sample(frac=1, random_state=4).reset_index(drop=True)
    layout = laid(runs)
    curve = layout.row_curve
    cells = [layout.cells[k] for k in layout.curve_cell[curve]]
    assert cells == list(runs[list(layout.question.cell)].itertuples(index=False, name=None))
    assert [layout.base_models[m] for m in layout.curve_base[curve]] == list(runs["base_model"])
    assert [layout.tasks[t] for t in layout.curve_task[curve]] == list(runs["task"])
    size = layout.x_ref[0] * np.exp(layout.curve_x[curve, 0])
    np.testing.assert_allclose(size, runs["model_size"], rtol=1e-12)
    D = 2 ** layout.log2_d_ref[layout.curve_cell[curve]] * np.exp(layout.log_u)
    np.testing.assert_allclose(D, runs["finetune_examples"], rtol=1e-12)
    np.testing.assert_array_equal(layout.log_loss, np.log(runs["loss"]))


def test_reference_size_is_the_middle_of_a_cells_range(ladder: pd.DataFrame) -> None:
    layout = laid(ladder)
    for k, (_, method) in enumerate(layout.cells):
        sizes = np.log2(ladder.loc[ladder["method"] == method, "finetune_examples"])
        assert layout.log2_d_ref[k] == pytest.approx((sizes.min() + sizes.max()) / 2, abs=1e-12)
        assert (layout.cell_low[k], layout.cell_high[k]) == (sizes.min(), sizes.max())
    fmt = layout.curve_cell == 0
    own = ladder[ladder["method"] == "fmt"].groupby("base_model")["finetune_examples"]
    np.testing.assert_array_equal(layout.curve_high[fmt], np.log2(own.max()))


def test_another_value_of_a_factor_is_another_curve(ladder: pd.DataFrame) -> None:
    runs = ladder.assign(pet_params=ladder["pet_params"] + 1)  # full fine-tuning has none
    layout = laid(runs, factors=("model_size", "pet_params"), cell=("task",))
    assert layout.cells == (("debian-en-de",),) and layout.columns == ()
    curves = ladder[["base_model", "pet_params"]].drop_duplicates()
    assert len(layout.curve_cell) == len(curves)


def test_one_curve_for_each_base_model(ladder: pd.DataFrame) -> None:
    assert laid(ladder[ladder["method"] == "lora"]).one_curve_per_base_model
    assert laid(ladder.assign(base_model=ladder["run_id"])).one_curve_per_base_model


@pytest.mark.parametrize(
    ("keep", "match"),
    [
        ("finetune_examples < 0", r"^the table has 0 usable runs \(status done, finetune_examples"),
        ("run_id == 'debian-en-de/fmt/ladder-0.1m/60/s0'", "^the table has 1 usable run .* two"),
        (
            "method == 'fmt' and base_model == 'ladder-0.1m'",
            "^every run has model_size = 100672: its exponent alpha cannot be learned",
        ),
        ("finetune_examples in (200, 600)", r"have 2 value\(s\) of finetune_examples \(200, 600\)"),
        ("finetune_examples == 600", r"have 1 value\(s\) of finetune_examples \(600\).* three"),
    ],
)
def test_a_thin_table_is_refused_in_one_sentence(
    ladder: pd.DataFrame, keep: str, match: str
) -> None:
    with pytest.raises(TunecastError, match=match) as caught:
        laid(ladder.query(keep).reset_index(drop=True))
    assert "\n" not in str(caught.value)


def test_one_curve_is_refused(ladder: pd.DataFrame) -> None:
    one = ladder.query("method == 'fmt' and base_model == 'ladder-0.1m'")
    with pytest.raises(TunecastError, match=r"one curve only.*fit_point"):
        laid(one, "power", ())


def test_a_factor_of_zero_is_refused(ladder: pd.DataFrame) -> None:
    ladder.loc[3, "model_size"] = 0.0
    with pytest.raises(TunecastError, match=r"'model_size' must be above 0 .* is 0.0 on 1 of them"):
        laid(ladder)
