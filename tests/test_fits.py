"""One real fit, sampled once: what it keeps, what it says when chains disagree, and its file."""

import errno
import json
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL

from tunecast.models import inference, load_fit
from tunecast.models.errors import TunecastError
from tunecast.models.fits import Diagnostics, Fit, UnconvergedError
from tunecast.models.inference import diagnose, fit, question_of, worst
from tunecast.models.layout import lay_out
from tunecast.models.priors import WEAK, get_priors
from tunecast.models.runs import digest, read_runs

QUICK: dict[str, Any] = {"chains": 2, "retry": False, "progress": False}


@pytest.fixture(scope="session")
def runs() -> pd.DataFrame:
    return read_runs(SMALL, columns=["model_size", "finetune_examples"])


@pytest.fixture(scope="session")
def sampled() -> Fit:
    return fit(SMALL, draws=300, tune=400, seed=3, allow_unconverged=True, **QUICK)


@pytest.fixture
def saved(sampled: Fit, tmp_path: Path) -> Path:
    sampled.save(tmp_path / "fit.nc")
    return tmp_path / "fit.nc"


def asked(runs: pd.DataFrame) -> pd.DataFrame:
    """Known runs, and a new method on an unseen base model far beyond the data."""
    known = runs.iloc[::7][["task", "method", "base_model", "finetune_examples"]]
    new = known.assign(method="new", base_model="", model_size=5e6, finetune_examples=1e6)
    return pd.concat([known, new], ignore_index=True)


# ------------------------------------------------------------------ sampling


def test_the_posterior_describes_the_runs(sampled: Fit, runs: pd.DataFrame) -> None:
    """Residuals of log loss are of the size of the noise; the control, shuffled losses, are not."""
    belief = sampled.members[0].belief
    middle = np.median(belief.mean, axis=0)
    residual = np.sqrt(np.mean((np.log(runs["loss"]) - middle) ** 2))
    usual = np.median(belief.noise)
    assert 0.2 * usual < residual < 5 * usual
    shuffled = np.log(runs["loss"].to_numpy())[::-1]
    assert np.sqrt(np.mean((shuffled - middle) ** 2)) > 20 * residual
    # The data moved the global level away from its prior N(0.7, 1).
    assert belief.cell["level"].std() < 0.5


def test_every_unknown_is_kept_once_for_each_draw(sampled: Fit) -> None:
    posterior = sampled.members[0].posterior
    assert {len(v) for v in posterior.values()} == {600}
    assert posterior["curve_mean"].shape == (600, 9)
    assert all(np.isfinite(v).all() for v in posterior.values())
    assert sampled.diagnostics.draws == 600


def test_the_fit_says_where_it_comes_from(sampled: Fit, runs: pd.DataFrame) -> None:
    info = sampled.info
    assert (info["law"], info["seed"], info["draws"], info["chains"]) == ("rectified", 3, 300, 2)
    assert info["digest"] == digest(runs)
    assert info["counts"]["used"] == len(runs) and info["counts"]["zero_shot"] == 0
    assert info["weights"] == {"rectified": 1.0} and not info["simulated"]
    assert info["versions"]["tunecast"] == metadata.version("tunecast")


def test_summary_is_in_the_papers_spelling(sampled: Fit) -> None:
    table = sampled.summary()
    assert set(table["parameter"]) == {
        "A", "alpha:model_size", "gamma:model_size", "delta:model_size", "D_l", "beta", "E",
    }  # fmt: skip
    assert len(table) == 3 * 7
    assert (table["q05"] <= table["q50"]).all() and (table["q50"] <= table["q95"]).all()


def test_a_fit_that_did_not_converge_is_an_error_unless_allowed() -> None:
    with pytest.raises(UnconvergedError, match=r"not converge: .*ESS .* is below 400") as caught:
        fit(SMALL, draws=10, tune=20, **QUICK)
    result = caught.value.fit
    assert not result.diagnostics.converged
    allowed = fit(SMALL, draws=10, tune=20, allow_unconverged=True, **QUICK)
    assert allowed.diagnostics == result.diagnostics  # the seed decides everything
    assert not allowed.forecast(allowed.runs.head(1))["converged"].any()


def test_zero_shot_and_failed_runs_stay_out(runs: pd.DataFrame) -> None:
    extra = runs.head(2).assign(run_id=["zero", "failed"], status=["done", "failed"])
    extra["finetune_examples"] = [0.0, 600.0]
    table = pd.concat([runs, extra], ignore_index=True)
    got = fit(table, draws=10, tune=20, allow_unconverged=True, **QUICK)
    assert got.info["counts"]["used"] == len(runs) and got.info["counts"]["zero_shot"] == 1
    assert got.info["counts"]["failed"] == 1
    assert list(got.runs["run_id"]) == list(runs["run_id"])


def test_sampling_ends_at_the_first_look_that_finds_it_converged(
    runs: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same draws as without looking, so many of them; and all where no look finds it so."""
    table = runs[runs["method"] == "fmt"]
    model = inference._model(lay_out(table, question_of(table, law="power")), WEAK)
    settings: dict[str, Any] = {"tune": 100, "chains": 2, "seed": 1, "target_accept": 0.8}
    draws = 240
    every, _ = inference._sample_once(model, draws, settings, False, may_stop=False)
    calm, still = np.zeros((2, draws), bool), np.random.default_rng(1).standard_normal((2, draws))
    looks = [round(draws * share) for share in inference.LOOKS]
    assert looks == sorted({*looks} - {0, draws})
    ess = []
    for look in (*looks, draws):
        first = {name: value[:, :look] for name, value in every.items()}
        found = diagnose(first, calm[:, :look], still[:, :look])
        ess.append(min(found.ess_bulk_min, found.ess_tail_min))
    for name, limit in (("RHAT", 9.0), ("DIVERGENCE", 1.0), ("BFMI", 0.0)):
        monkeypatch.setattr(inference, f"{name}_LIMIT", limit)
    for limit in (0.0, (ess[0] + max(ess)) / 2, 2 * max(ess)):
        monkeypatch.setattr(inference, "ESS_LIMIT", limit)
        passed = (look for look, value in zip(looks, ess, strict=False) if value >= limit)
        expected = next(passed, draws)
        got, found = inference._sample_once(model, draws, settings, False, may_stop=True)
        assert found.draws == 2 * expected
        assert all(np.array_equal(got[name], every[name][:, :expected]) for name in every)


def test_without_nutpie_pymc_samples(runs: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where nutpie was never installed: neither a module nor a version of it."""
    import pymc as pm
    import pytensor

    known = metadata.version

    def version(name: str) -> str:
        if name == "nutpie":
            raise metadata.PackageNotFoundError(name)
        return known(name)

    sample = pm.sample
    monkeypatch.setitem(sys.modules, "nutpie", None)
    monkeypatch.setattr(inference, "version", version)
    # Short trajectories: what is asked here is the way through, not the draws.
    quick = {"cores": 1, "nuts": {"max_treedepth": 3}}
    monkeypatch.setattr(pm, "sample", lambda **options: sample(**options, **quick))
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        got = fit(
            runs[runs["method"] == "fmt"], law="power", draws=10, tune=10, allow_unconverged=True,
            **QUICK,
        )  # fmt: skip
    assert got.info["versions"]["nutpie"] == "missing"
    assert got.members[0].posterior["curve_mean"].shape == (20, 3)
    assert np.isfinite(got.draws(asked(runs)).loss).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"draws": 9}, "draws is 9, expected 10 or more"),
        ({"tune": 0}, "tune is 0, expected 10 or more"),
        ({"chains": 1}, "chains is 1, expected 2 or more"),
        ({"law": "magic"}, "unknown law 'magic': expected one of power, "),
        ({"priors": "magic"}, "unknown priors 'magic'"),
        ({"factors": ["mood"]}, "mood"),
    ],
)
def test_options_at_fault_are_refused_before_sampling(options: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        fit(SMALL, **options)


# ------------------------------------------------------------------ diagnostics


def chains(n: int = 4, draws: int = 1000) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    values = {"a": rng.standard_normal((n, draws)), "b": rng.standard_normal((n, draws, 3))}
    return values, np.zeros((n, draws), bool), rng.standard_normal((n, draws))


def test_independent_draws_pass() -> None:
    found = diagnose(*chains())
    assert found.converged and found.reasons == ()
    assert found.draws == 4000


@pytest.mark.parametrize("fault", ["shifted", "slow", "stuck", "diverging", "energy", "nan"])
def test_planted_faults_are_named(fault: str) -> None:
    values, diverging, energy = chains()
    expected = {"shifted": "R-hat", "slow": "bulk ESS", "stuck": "R-hat", "diverging": "diverged"}
    if fault == "shifted":
        values["b"][2, :, 1] += 0.5
    elif fault == "slow":
        values["b"][..., 1] = np.cumsum(values["b"][..., 1], axis=1)
    elif fault == "stuck":
        values["a"][0] = values["a"][0, 0]
    elif fault == "diverging":
        diverging[1, :5] = True
    elif fault == "energy":
        energy = np.cumsum(energy, axis=1)
    else:
        values["a"][:] = np.nan
    found = diagnose(values, diverging, energy)
    assert not found.converged
    wanted = {"energy": "BFMI", "nan": "R-hat nan", **expected}[fault]
    assert any(wanted in reason for reason in found.reasons)
    if fault in ("diverging", "energy"):
        assert len(found.reasons) == 1


def test_a_few_divergences_in_many_draws_are_no_reason() -> None:
    values, diverging, energy = chains()
    diverging[0, :4] = True
    assert diagnose(values, diverging, energy).converged


def test_the_worst_of_several_fits_fails_if_one_does() -> None:
    good = Diagnostics(1.0, 1000, 900, 0, 0.9, 4000)
    bad = replace(good, rhat_max=1.2, bfmi_min=0.1)
    assert worst([good, bad]).reasons == worst([bad, good]).reasons == bad.reasons
    assert len(bad.reasons) == 2 and worst([good, good]).converged
    assert worst([good, bad]).draws == 8000


# ------------------------------------------------------------------ the file


def test_forecasts_of_a_loaded_fit_are_equal_byte_for_byte(
    sampled: Fit, saved: Path, runs: pd.DataFrame
) -> None:
    again = load_fit(saved)
    targets = asked(runs)
    pd.testing.assert_frame_equal(
        again.forecast(targets), sampled.forecast(targets), check_exact=True
    )
    ours, theirs = sampled.draws(targets), again.draws(targets)
    assert ours.loss.tobytes() == theirs.loss.tobytes()
    assert ours.expected.tobytes() == theirs.expected.tobytes()
    pd.testing.assert_frame_equal(again.summary(), sampled.summary(), check_exact=True)


def test_the_file_carries_all_that_was_asked(sampled: Fit, saved: Path) -> None:
    import h5netcdf

    with h5netcdf.File(saved, "r") as file:
        head = json.loads(file.attrs["tunecast"])
    assert head["info"] == json.loads(json.dumps(sampled.info))
    assert head["members"][0]["question"]["law"] == "rectified"
    assert {"digest", "seed", "versions", "counts"} <= set(head["info"])
    assert head["members"][0]["priors"]["rate"]["location"] == WEAK["rate"].location
    again = load_fit(saved)
    assert again.diagnostics == sampled.diagnostics
    assert again.question == sampled.question and again.members[0].weight == 1
    assert list(again.runs.columns) == list(sampled.runs.columns)
    # alpha has no scatter: NaN in the table, and NaN after the file.
    for name, row in again.members[0].priors.items():
        np.testing.assert_array_equal(
            [row.location, row.scale, row.effect, row.scatter],
            [getattr(WEAK[name], k) for k in ("location", "scale", "effect", "scatter")],
        )


def test_other_priors_and_numeric_labels_survive_the_file(
    ladder: pd.DataFrame, believed: Any, tmp_path: Path
) -> None:
    """A cell by a column of whole numbers: 7 must not come back as 7.0."""
    ladder["group"] = np.where(ladder["method"] == "prompt", 7, 8)
    table = get_priors("zhang2024")
    made = believed(ladder, law="power", priors=table, size=20, cell=("task", "group"))
    made.save(tmp_path / "fit.nc")
    again = load_fit(tmp_path / "fit.nc")
    assert again.members[0].layout.cells == made.members[0].layout.cells
    assert again.members[0].priors["rate"] == table["rate"]
    np.testing.assert_array_equal(again.draws(ladder).loss, made.draws(ladder).loss)


def test_what_is_no_whole_fit_file_is_one_sentence(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
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


def test_another_netcdf_file_is_not_a_fit(tmp_path: Path) -> None:
    import xarray as xr

    xr.Dataset({"x": ("d", np.arange(3.0))}).to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    with pytest.raises(TunecastError, match=r"x\.nc' is not a tunecast fit file"):
        load_fit(tmp_path / "x.nc")


def test_a_file_of_another_format_asks_for_a_new_fit(
    sampled: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunecast.models.fits.FORMAT", 99)
    sampled.save(tmp_path / "fit.nc")
    monkeypatch.undo()
    with pytest.raises(TunecastError, match="has fit format 99, this version reads 5: fit again"):
        load_fit(tmp_path / "fit.nc")


def test_a_full_disk_keeps_the_old_file(
    sampled: Fit, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full(self: Fit, path: Path) -> None:
        path.write_bytes(before[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Fit, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        sampled.save(saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["fit.nc"]
