"""What chains say of themselves: figures equal to ArviZ's, and planted faults that are named."""

from dataclasses import replace

import arviz as az
import numpy as np
import pytest

from tunecast.models.inference.diagnostics import Diagnostics, diagnose, worst


def chains(n: int = 4, draws: int = 1000) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    values = {"a": rng.standard_normal((n, draws)), "b": rng.standard_normal((n, draws, 3))}
    return values, np.zeros((n, draws), bool), rng.standard_normal((n, draws))


def test_the_figures_are_those_of_arviz() -> None:
    """On chains that differ in every way; the worst over all variables and elements."""
    values, diverging, energy = chains()
    values["b"][..., 1] += 0.1 * np.arange(4)[:, None]
    values["b"][..., 2] = np.cumsum(values["b"][..., 2], axis=1) * 0.01 + values["b"][..., 0]
    values["a"] = np.exp(2 * values["a"])
    energy[2] = np.cumsum(energy[2])
    diverging[1, 3:5] = True
    found = diagnose(values, diverging, energy)
    tree = az.from_dict({"posterior": values, "sample_stats": {"energy": energy}})

    def every(figures: object) -> np.ndarray:
        return np.concatenate([np.ravel(figures[name]) for name in ("a", "b")])  # type: ignore[index]

    posterior = tree.posterior
    assert found.rhat_max == pytest.approx(every(az.rhat(posterior)).max(), rel=1e-12)
    bulk = every(az.ess(posterior, method="bulk"))
    tail = every(az.ess(posterior, method="tail", prob=(0.05, 0.95)))  # arXiv:1903.08008
    assert found.ess_bulk_min == pytest.approx(bulk.min(), rel=1e-12)
    assert found.ess_tail_min == pytest.approx(tail.min(), rel=1e-12)
    assert found.bfmi_min == pytest.approx(np.min(az.bfmi(tree)["energy"].to_numpy()), rel=1e-12)
    assert (found.divergences, found.draws) == (2, 4000)
    # The control: the worst is not the usual.
    assert found.rhat_max > 1.001 * np.median(every(az.rhat(posterior)))
    assert found.ess_bulk_min < 0.7 * np.median(bulk) and found.ess_tail_min != bulk.min()


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


def test_one_slow_chain_is_enough_for_a_low_bfmi() -> None:
    values, diverging, energy = chains()
    energy[2] = np.cumsum(energy[2])
    assert [r.split()[1] for r in diagnose(values, diverging, energy).reasons] == ["BFMI"]


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
