"""Prior tables: the rows that users override, and those that they cannot."""

import math
from pathlib import Path

import pytest

from tunecast.models.errors import TunecastError
from tunecast.models.hierarchy.priors import PRIORS, WEAK, get_priors
from tunecast.models.laws import LAWS
from tunecast.models.laws.published import PRINTED

HEAD = "quantity,location,scale,effect,scatter\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "priors.csv"


def test_every_quantity_of_every_law_has_a_row() -> None:
    for law in LAWS.values():
        for quantity in law.quantities:
            assert WEAK[quantity.name] is quantity.prior


def test_published_cells_centre_their_rows_and_no_others() -> None:
    informed = PRIORS["zhang2024"]
    assert {k for k in WEAK if informed[k] != WEAK[k]} == {"alpha", "log_beta"}
    alpha = [row.alpha_m for row in PRINTED.values()]
    assert informed["alpha"].location == pytest.approx(sum(alpha) / len(alpha))
    low, high = math.log(min(r.beta for r in PRINTED.values())), math.log(0.2)
    assert low < informed["log_beta"].location < high
    assert informed["alpha"].scale < WEAK["alpha"].scale


def test_a_file_overrides_what_it_says_and_keeps_the_rest(table: Path) -> None:
    table.write_text(HEAD + "log_beta,-1.5,,0.25,\nnoise,,0.3,,\n")
    found = get_priors(table)
    row, old = found["log_beta"], WEAK["log_beta"]
    assert (row.location, row.scale, row.effect, row.scatter) == (
        -1.5,
        old.scale,
        0.25,
        old.scatter,
    )
    assert found["noise"].scale == 0.3 and found["noise"].location == WEAK["noise"].location
    assert {k for k in WEAK if found[k] != WEAK[k]} == {"log_beta", "noise"}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("log_betas,1,,,", "unknown quantity 'log_betas', expected one of logit_floor"),
        ("log_beta,much,,,", "location of 'log_beta' is 'much', expected a number"),
        ("log_beta,,0,,", "scale of 'log_beta' is '0', expected a positive number"),
        ("log_beta,,,inf,", "effect of 'log_beta' is 'inf', expected a positive number"),
        ("alpha,,,,0.1", "'alpha' has no scatter in the model, got 0.1, expected an empty cell"),
        ("base_model,,,0.2,", "'base_model' has no effect in the model, got 0.2"),
    ],
)
def test_a_row_that_cannot_take_effect_is_refused(table: Path, row: str, sentence: str) -> None:
    table.write_text(HEAD + row + "\n")
    with pytest.raises(TunecastError, match=sentence):
        get_priors(table)


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TunecastError, match="unknown priors 'week': expected one of weak, zhang20"):
        get_priors("week")
    (tmp_path / "priors.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TunecastError, match="cannot be read as CSV"):
        get_priors(tmp_path / "priors.csv")
