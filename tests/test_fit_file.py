"""The file of a fit: loads exactly, or says in one sentence why not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5netcdf
import h5py  # type: ignore[import-untyped]
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import disk_full_after

from tunecast.models import load_fit
from tunecast.models.errors import TunecastError
from tunecast.models.fits import file
from tunecast.models.fits.fit import Fit
from tunecast.models.hierarchy.priors import WEAK, get_priors
from tunecast.models.inference.posterior import Posterior


def asked(runs: pd.DataFrame) -> pd.DataFrame:
    """Known runs, and a new method on an unseen base model far beyond the data."""
    known = runs.iloc[::7][["task", "method", "base_model", "finetune_examples"]]
    new = known.assign(method="new", base_model="", model_size=5e6, finetune_examples=1e6)
    return pd.concat([known, new], ignore_index=True)


def assert_same(ours: Posterior, theirs: Posterior) -> None:
    """Value for value, dtype for dtype, in the same order."""
    assert (ours.table.spec, ours.weight) == (theirs.table.spec, theirs.weight)
    for one, other in ((ours.draws, theirs.draws), (ours.statistics, theirs.statistics)):
        assert list(one) == list(other)
        for name in one:
            assert one[name].dtype == other[name].dtype, name
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    for name, row in ours.priors.items():
        np.testing.assert_array_equal(
            [getattr(row, k) for k in ("location", "scale", "effect", "scatter")],
            [getattr(theirs.priors[name], k) for k in ("location", "scale", "effect", "scatter")],
        )


# ------------------------------------------------------------------ exact


def test_forecasts_of_a_loaded_fit_are_equal_byte_for_byte(
    sampled: Fit, sampled_file: Path, ladder: pd.DataFrame
) -> None:
    again = load_fit(sampled_file)
    targets = asked(ladder)
    pd.testing.assert_frame_equal(
        again.forecast(targets), sampled.forecast(targets), check_exact=True
    )
    ours, theirs = sampled.draws(targets), again.draws(targets)
    for name in ("loss", "expected", "scale", "df", "extrapolation"):
        assert getattr(ours, name).tobytes() == getattr(theirs, name).tobytes(), name
    pd.testing.assert_frame_equal(again.summary(), sampled.summary(), check_exact=True)


def test_the_file_carries_all_that_was_asked(sampled: Fit, sampled_file: Path) -> None:
    with h5netcdf.File(sampled_file, "r") as opened:
        head = json.loads(opened.attrs["tunecast"])
        assert opened.attrs["tunecast_format"] == head["format"] == file.FORMAT == 7
    assert head["info"] == json.loads(json.dumps(sampled.info))
    assert head["laws"][0]["spec"]["law"] == "rectified"
    assert {"digest", "seed", "versions", "counts"} <= set(head["info"])
    assert head["laws"][0]["priors"]["log_beta"]["location"] == WEAK["log_beta"].location
    again = load_fit(sampled_file)
    assert again.diagnostics == sampled.diagnostics
    assert again.info == head["info"]
    assert again.spec == sampled.spec and again.posteriors[0].weight == 1
    # alpha has no scatter: NaN in the table, and NaN after the file.
    assert np.isnan(again.posteriors[0].priors["alpha"].scatter)
    assert_same(again.posteriors[0], sampled.posteriors[0])
    pd.testing.assert_frame_equal(again.runs, sampled.runs, check_dtype=False)


def test_a_loaded_fit_saved_again_is_the_same_file(
    sampled: Fit, sampled_file: Path, tmp_path: Path
) -> None:
    """Group for group: what is drawn for the file comes from the fit's own seed."""
    load_fit(sampled_file).save(tmp_path / "again.nc")
    with xr.open_datatree(sampled_file) as one, xr.open_datatree(tmp_path / "again.nc") as other:
        assert one.identical(other)
        assert {k: v.dtype for k, v in one["sample_stats"].items()} == {
            k: v.dtype for k, v in other["sample_stats"].items()
        }
    # The control: another seed draws otherwise.
    third: Any = replace(sampled, info={"seed": 3}).to_datatree()
    fourth: Any = replace(sampled, info={"seed": 4}).to_datatree()
    assert third["posterior"].identical(fourth["posterior"])
    for group in ("posterior_predictive", "prior"):
        assert not third[group].identical(fourth[group])


def test_several_laws_are_loaded_with_their_weights(
    sampled: Fit, believed: Any, ladder: pd.DataFrame, tmp_path: Path
) -> None:
    power = believed(ladder, law="power", size=400).posteriors[0]
    both = (replace(sampled.posteriors[0], weight=0.7), replace(power, weight=0.3))
    several = replace(sampled, posteriors=both)
    several.save(tmp_path / "fit.nc")
    with h5netcdf.File(tmp_path / "fit.nc", "r") as opened:
        assert set(opened.groups) == {"rectified", "power", "runs"}
        assert set(opened["power"].groups) == set(several.to_datatree()["power"].children)
    again = load_fit(tmp_path / "fit.nc")
    assert again.laws == ("rectified", "power")
    for ours, theirs in zip(again.posteriors, several.posteriors, strict=True):
        assert_same(ours, theirs)
    targets = asked(ladder)
    assert again.draws(targets).loss.tobytes() == several.draws(targets).loss.tobytes()


def test_other_priors_and_numeric_labels_survive_the_file(
    ladder: pd.DataFrame, believed: Any, tmp_path: Path
) -> None:
    """A cell by a column of whole numbers: 7 must not come back as 7.0."""
    ladder["group"] = np.where(ladder["method"] == "prompt", 7, 8)
    table = get_priors("zhang2024")
    made = believed(ladder, law="power", priors=table, size=20, cell=("task", "group"))
    made.save(tmp_path / "fit.nc")
    again = load_fit(tmp_path / "fit.nc")
    assert again.posteriors[0].table.cells == made.posteriors[0].table.cells
    assert again.posteriors[0].priors["log_beta"] == table["log_beta"]
    np.testing.assert_array_equal(again.draws(ladder).loss, made.draws(ladder).loss)


def test_awkward_names_and_text_survive_the_file(
    ladder: pd.DataFrame, believed: Any, tmp_path: Path
) -> None:
    """Labels beyond ASCII and a blank; a column named like a group, and one with a slash."""
    ladder["method"] = ladder["method"].map(
        {"fmt": "voll \u2192 \u6a21", "lora": " ", "prompt": "p/q"}
    )
    ladder["posterior"] = ladder["method"]
    ladder["a note"] = np.where(ladder["seed"] == 0, "", 'said "so",\nagain')
    made = believed(ladder, size=20, cell=("task", "posterior"))
    made.save(tmp_path / "fit.nc")
    again = load_fit(tmp_path / "fit.nc")
    assert again.posteriors[0].table.cells == made.posteriors[0].table.cells
    assert list(again.runs.columns) == list(ladder.columns)
    for name in ("method", "a note"):
        assert list(again.runs[name]) == list(ladder[name])
    np.testing.assert_array_equal(again.draws(ladder).loss, made.draws(ladder).loss)


# ------------------------------------------------------------------ or not at all


def test_what_is_no_whole_fit_file_is_one_sentence(sampled_file: Path, tmp_path: Path) -> None:
    whole = sampled_file.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 500):
        broken = tmp_path / "broken.nc"
        broken.write_bytes(whole[:size])
        with pytest.raises(
            TunecastError, match=r"broken\.nc' is not a whole fit file: ."
        ) as caught:
            load_fit(broken)
        assert "\n" not in str(caught.value)
    text = tmp_path / "runs.csv"
    text.write_text("run_id,loss\na,1\n")
    with pytest.raises(TunecastError, match=r"runs\.csv' is not a whole fit file"):
        load_fit(text)
    with pytest.raises(TunecastError, match=r"there is no fit file .*missing"):
        load_fit(tmp_path / "missing.nc")
    with pytest.raises(TunecastError, match="there is no fit file"):
        load_fit(tmp_path)


def test_a_file_without_a_part_that_it_is_loaded_from_is_not_whole(
    sampled: Fit, sampled_file: Path, tmp_path: Path, ladder: pd.DataFrame
) -> None:
    """What is there for ArviZ may be dropped; what a fit is made of may not."""
    less = tmp_path / "less.nc"
    less.write_bytes(sampled_file.read_bytes())
    with h5py.File(less, "r+") as opened:
        for group in ("posterior", "log_likelihood", "posterior_predictive", "prior"):
            del opened[group]
    again = load_fit(less).draws(ladder)
    np.testing.assert_array_equal(again.loss, sampled.draws(ladder).loss)
    for group in ("unconstrained_posterior", "sample_stats", "runs"):
        with h5py.File(less, "r+") as opened:
            opened.move(group, "aside")
        with pytest.raises(TunecastError, match=f"is not a whole fit file: .*{group}"):
            load_fit(less)
        with h5py.File(less, "r+") as opened:
            opened.move("aside", group)


def test_another_netcdf_file_is_not_a_fit(tmp_path: Path) -> None:
    xr.Dataset({"x": ("d", np.arange(3.0))}).to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    with pytest.raises(TunecastError, match=r"x\.nc' is not a tunecast fit file"):
        load_fit(tmp_path / "x.nc")


@pytest.mark.parametrize("other", [6, 99])
def test_a_file_of_another_format_asks_for_a_new_fit(
    sampled_file: Path, tmp_path: Path, other: int
) -> None:
    place = tmp_path / "fit.nc"
    place.write_bytes(sampled_file.read_bytes())
    with h5py.File(place, "r+") as opened:
        head = json.loads(opened.attrs["tunecast"])
        opened.attrs["tunecast"] = json.dumps({"format": other, "info": head["info"]})
    said = f"has fit format {other}, this version reads 7: fit again"
    with pytest.raises(TunecastError, match=said):
        load_fit(place)


def test_a_full_disk_keeps_the_old_file(sampled: Fit, sampled_file: Path, tmp_path: Path) -> None:
    place = tmp_path / "fit.nc"
    place.write_bytes(sampled_file.read_bytes())
    before = place.read_bytes()
    with disk_full_after(4096), pytest.raises(OSError):
        replace(sampled, info={**sampled.info, "seed": 4}).save(place)
    assert place.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["fit.nc"]


def test_a_fit_is_saved_where_a_folder_is(sampled: Fit, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; make it first"):
        sampled.save(tmp_path / "none" / "fit.nc")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        sampled.save(tmp_path)
