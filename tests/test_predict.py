"""Predictive draws: known curves, unseen names, drift beyond the data. No posterior is sampled."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tunecast.models.errors import TunecastError
from tunecast.models.fits import Fit, Member
from tunecast.models.hierarchy import Belief, at_factors
from tunecast.models.laws import LAWS
from tunecast.models.predict import KNOT, Predictor, check_targets
from tunecast.models.priors import DEVIATION_DF, WEAK, PriorTable

type MakeFit = Callable[..., Fit]


def without_drift(priors: PriorTable = WEAK) -> dict[str, Any]:
    off = {k: replace(priors[k], location=-60.0, scale=0.0) for k in ("drift_task", "drift_curve")}
    return {**priors, **off}


def predictor(
    fit: Fit, belief: Belief | None = None, priors: PriorTable | None = None
) -> Predictor:
    member = fit.members[0]
    return Predictor(member.layout, priors or member.priors, belief or member.belief, seed=5)


def log_expected(asked: Predictor, targets: pd.DataFrame) -> np.ndarray:
    return np.log(asked.draws(check_targets(targets, asked.layout)).expected)


def of_the_law(asked: Predictor, c: int) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Cell and log factors of a fitted curve, and the level that the law gives it in each draw."""
    layout = asked.layout
    cell, x = layout.cells[layout.curve_cell[c]], layout.curve_x[c]
    own = {name: values[:, None] for name, values in asked._cell(cell).items()}
    level, *_ = at_factors(asked.law, layout.question.factors, own, x[None, :], np)
    return cell, x, level[:, 0]


def target(**values: Any) -> pd.DataFrame:
    row = {"task": "debian-en-de", "method": "fmt", "finetune_examples": 600.0}
    return pd.DataFrame([row | values])


# ------------------------------------------------------------------ known curves


@pytest.mark.parametrize("law", LAWS)
def test_a_run_of_the_table_is_expected_where_its_curve_is(
    ladder: pd.DataFrame, believed: MakeFit, law: str
) -> None:
    fit = believed(ladder, law=law)
    draws = fit.draws(ladder)
    np.testing.assert_allclose(np.log(draws.expected), fit.members[0].belief.mean, atol=1e-10)
    assert (draws.extrapolation == 1).all()


def test_a_new_run_scatters_as_its_curve_does(ladder: pd.DataFrame, believed: MakeFit) -> None:
    """Noise over its scale is Student-t: the share inside one scale, pooled over equal tails."""
    from scipy.stats import binom
    from scipy.stats import t as student

    priors = {**WEAK, "noise_df": replace(WEAK["noise_df"], location=np.log(3.0), scale=1e-12)}
    n = 4000
    fit = believed(ladder, size=n, priors=priors)
    row = ladder.iloc[[0]]
    draws = fit.draws(row)
    scale = fit.members[0].belief.noise[:, fit.members[0].layout.row_curve[0]]
    z = np.log(draws.loss[:, 0] / draws.expected[:, 0]) / scale
    inside = student.cdf(1, 5) - student.cdf(-1, 5)
    low, high = binom.interval(1 - 1e-4, n, inside)
    assert low <= (np.abs(z) < 1).sum() <= high
    assert not low <= (np.abs(z) < 1.3).sum() <= high  # the control


def test_a_new_curve_deviates_from_its_cell_as_fitted_ones_do(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    """Both are Student-t: the share inside one scale; a normal's, and a wider one's, fail."""
    from scipy.stats import binom, norm
    from scipy.stats import t as student

    n = 4000
    fit = believed(ladder, size=n)
    asked, belief, layout = predictor(fit), fit.members[0].belief, fit.members[0].layout
    c = 0
    cell, x, law = of_the_law(asked, c)
    of_base = belief.base[:, layout.curve_base[c]]
    fitted = belief.level[:, c] - law - of_base
    new = asked._new(cell, "new", layout.tasks[0], x)[3] - law - asked._base("new")
    low, high = binom.interval(1 - 1e-4, n, student.cdf(1, DEVIATION_DF) * 2 - 1)
    assert not low <= n * (norm.cdf(1) * 2 - 1) <= high
    for deviation in (fitted, new):
        z = np.abs(deviation / belief.scatter["level"])
        assert low <= (z < 1).sum() <= high
        assert not low <= (z < 1.3).sum() <= high


def test_an_odd_base_model_has_odd_curves(ladder: pd.DataFrame, believed: MakeFit) -> None:
    """Its effect and a curve's deviation are a bivariate Student-t; paired anew they are not."""
    from scipy.stats import binom, f

    fit = believed(ladder, size=4000)
    asked, belief, layout = predictor(fit), fit.members[0].belief, fit.members[0].layout
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"fitted": [], "new": []}
    for b, base in enumerate(layout.base_models):
        c = int(np.flatnonzero(layout.curve_base == b)[0])
        cell, x, law = of_the_law(asked, c)
        new = asked._new(cell, f"like {base}", layout.tasks[0], x)[3]
        for kind, effect, level in (
            ("fitted", belief.base[:, b], belief.level[:, c]),
            ("new", asked._base(f"like {base}"), new),
        ):
            deviation = (level - law - effect) / belief.scatter["level"]
            pairs[kind].append((effect / belief.base_sd, deviation))
    n = 4000 * len(layout.base_models)
    low, high = binom.interval(1 - 1e-4, n, f.cdf(1 / 2, 2, DEVIATION_DF))
    for found in pairs.values():
        assert low <= sum((b**2 + c**2 < 1).sum() for b, c in found) <= high
        apart = sum((b**2 + np.roll(c, 1) ** 2 < 1).sum() for b, c in found)
        assert not low <= apart <= high


def test_a_base_model_brings_its_factors(ladder: pd.DataFrame, believed: MakeFit) -> None:
    fit = believed(ladder)
    given = fit.draws(ladder).expected
    np.testing.assert_array_equal(fit.draws(ladder.drop(columns="model_size")).expected, given)


# ------------------------------------------------------------------ unseen names


def test_an_unseen_base_model_has_one_effect_on_all_tasks_and_methods(
    zhang: pd.DataFrame, believed: MakeFit
) -> None:
    """Switching its effect off moves every target of it by the same amount, draw for draw."""
    fit = believed(zhang)
    cells = zhang[["task", "method", "family"]].drop_duplicates()
    targets = cells.assign(base_model="new", model_size=3e9, finetune_examples=1e5)
    belief = fit.members[0].belief
    # Curves' own deviations, whose scale goes with the effect, are off in both.
    on = replace(belief, scatter=belief.scatter | {"level": 0 * belief.scatter["level"]})
    off = replace(on, base_sd=1e-12 * belief.base_sd)
    effect = log_expected(predictor(fit, on), targets) - log_expected(predictor(fit, off), targets)
    assert len(cells) > 4
    np.testing.assert_allclose(effect, np.repeat(effect[:, :1], len(cells), axis=1), atol=1e-12)
    other = targets.assign(base_model="other")
    another = log_expected(predictor(fit, on), other) - log_expected(predictor(fit, off), other)
    assert abs(np.corrcoef(effect[:, 0], another[:, 0])[0, 1]) < 5 / np.sqrt(len(effect))
    assert effect.std() > 0.01


def test_a_missing_base_model_is_an_unseen_one(ladder: pd.DataFrame, believed: MakeFit) -> None:
    fit = believed(ladder)
    empty = fit.draws(target(model_size=1e6, base_model="")).expected
    for same in (target(model_size=1e6), target(model_size=1e6, base_model=np.nan)):
        np.testing.assert_array_equal(fit.draws(same).expected, empty)


def test_a_forecast_does_not_depend_on_the_other_targets(
    zhang: pd.DataFrame, believed: MakeFit
) -> None:
    """Expected draws in any company and order; run noise belongs to the place in the table."""
    fit = believed(zhang)
    targets = zhang.iloc[:40:4].assign(base_model=["", "a", "b", "", "a"] * 2)
    targets["finetune_examples"] *= np.geomspace(0.01, 100, len(targets))
    whole = fit.draws(targets)
    alone = [fit.draws(targets.iloc[[i]]) for i in range(len(targets))]
    np.testing.assert_array_equal(np.hstack([d.expected for d in alone]), whole.expected)
    np.testing.assert_array_equal(fit.draws(targets.iloc[::-1]).expected, whole.expected[:, ::-1])
    np.testing.assert_array_equal(alone[0].loss[:, 0], whole.loss[:, 0])
    # Two runs at one place do not share their luck.
    twice = fit.draws(pd.concat([targets.iloc[[0]]] * 2))
    assert not np.array_equal(twice.loss[:, 0], twice.loss[:, 1])
    np.testing.assert_array_equal(twice.expected[:, 0], twice.expected[:, 1])


def test_the_seed_decides_what_is_drawn_anew(ladder: pd.DataFrame, believed: MakeFit) -> None:
    fit = believed(ladder)
    new = target(method="new", model_size=1e6)
    assert not np.array_equal(fit.draws(new).expected, fit.draws(new, seed=9).expected)
    np.testing.assert_array_equal(fit.draws(new, seed=9).loss, fit.draws(new, seed=9).loss)
    known = ladder.iloc[[0]]
    np.testing.assert_array_equal(fit.draws(known).expected, fit.draws(known, seed=9).expected)


def test_new_tasks_and_methods_are_wider_than_known_ones(
    zhang: pd.DataFrame, believed: MakeFit
) -> None:
    fit = believed(zhang, size=1000)
    known = zhang.iloc[[0]].assign(base_model="new")
    new = [known.assign(task="t"), known.assign(method="m"), known.assign(task="t", method="m")]
    draws = [log_expected(predictor(fit), t) for t in (known, *new)]
    # What the cell adds to the level, apart from what they share.
    own = [np.std(d - draws[0]) for d in draws[1:]]
    assert all(np.isfinite(d).all() for d in draws)
    assert min(own) > 0.1
    loss = fit.draws(pd.concat([known, *new])).loss
    assert (loss > 0).all()


def test_an_unseen_cell_of_seen_levels_is_their_sum_and_its_own_interaction(
    zhang: pd.DataFrame, believed: MakeFit
) -> None:
    first = zhang.iloc[0]
    gone = (zhang["task"] == first["task"]) & (zhang["method"] == first["method"])
    fit = believed(zhang[~gone].reset_index(drop=True))
    asked, layout = predictor(fit), fit.members[0].layout
    belief = fit.members[0].belief
    cell = (first["task"], first["method"], first["family"])
    assert cell not in layout.cells
    got = asked._cell(cell)
    for name in asked.names:
        known = belief.roots[name].reshape(-1)
        for column, level in zip(layout.columns[:3], cell, strict=True):
            known = known + belief.effects[column.name, name][:, column.levels.index(level)]
        own = (got[name] - known) / belief.effect_sd["cell", name]
        # A standard normal of 200 draws.
        assert abs(own.mean()) < 5 / np.sqrt(200)
        assert abs(own.std() - 1) < 5 / np.sqrt(400)


def test_the_one_level_seen_is_part_of_the_global_mean(
    ladder: pd.DataFrame, believed: MakeFit
) -> None:
    asked = predictor(believed(ladder))
    assert not asked._effect("task", "debian-en-de", "level").any()
    assert asked._effect("task", "other", "level").std() > 0.1


# ------------------------------------------------------------------ drift


def steep(n_bases: int = 2) -> pd.DataFrame:
    """Runs at data sizes of 2^8 to 2^12, so that edges lie on the knots."""
    rows = [
        {"task": "t", "method": m, "base_model": f"b{b}", "finetune_examples": 2.0**k}
        for m in ("fmt", "lora")
        for b in range(n_bases)
        for k in range(8, 13)
    ]
    frame = pd.DataFrame(rows)
    loss = 1 + frame["finetune_examples"] ** -0.2
    return frame.assign(loss=loss, status="done", run_id=[str(i) for i in frame.index])


S_TASK, S_CURVE, SIZE = 0.01, 0.006, 20_000


def drift(believed: MakeFit, targets: pd.DataFrame, runs: pd.DataFrame | None = None) -> np.ndarray:
    """What the drift adds to log loss: expected draws with it less those without it."""
    fixed = {
        k: replace(WEAK[k], location=np.log(s), scale=0.0)
        for k, s in (("drift_task", S_TASK), ("drift_curve", S_CURVE))
    }
    table = steep() if runs is None else runs
    fit = believed(table, law="power", size=SIZE, priors={**WEAK, **fixed})
    calm = predictor(fit, priors=without_drift())
    return log_expected(predictor(fit), targets) - log_expected(calm, targets)


def test_there_is_no_drift_inside_the_data(believed: MakeFit) -> None:
    inside = steep().assign(finetune_examples=np.geomspace(2.0**8, 2.0**12, 20))
    assert not drift(believed, inside).any()


@pytest.mark.parametrize("side", [1, -1])
def test_the_variance_of_drift_is_that_of_an_integrated_walk(believed: MakeFit, side: int) -> None:
    """s^2 k^3 / 3 at k doublings, task's and curve's added; curves of a task share the task's.

    Tolerance: 5 standard errors of a normal's variance, plus the midpoint rule's KNOT^2 / 4k^2.
    Control: the walk not integrated twice, s^2 k^2, and a curve's own part alone are refused.
    """
    doublings = np.array([1.0, 2.0, 4.0])
    edge = 12 if side == 1 else 8
    far = 2.0 ** (edge + side * doublings)
    targets = pd.concat(
        [
            pd.DataFrame({"task": "t", "method": "fmt", "base_model": b, "finetune_examples": far})
            for b in ("b0", "b1")
        ]
    )
    moved = drift(believed, targets)
    error = 5 * np.sqrt(2 / SIZE)
    total = S_TASK**2 + S_CURVE**2
    for i, k in enumerate(doublings):
        tolerance = error + KNOT**2 / (4 * k**2)
        ratio = moved[:, i].var() / (total * k**3 / 3)
        assert ratio == pytest.approx(1, abs=tolerance)
        shared = np.cov(moved[:, i], moved[:, i + 3])[0, 1] / (S_TASK**2 * k**3 / 3)
        assert shared == pytest.approx(1, abs=tolerance * total / S_TASK**2)
        assert abs(moved[:, i].var() / (S_CURVE**2 * k**3 / 3) - 1) > tolerance
    assert abs(moved[:, 2].var() / (total * 4.0**2) - 1) > error + KNOT**2 / 64
    # One path: at 4 doublings it has passed the point at 2.
    assert np.corrcoef(moved[:, 1], moved[:, 2])[0, 1] > 0.8


def test_the_task_drifts_beyond_its_cell_and_a_curve_beyond_its_own_runs(
    believed: MakeFit,
) -> None:
    """A curve of small data alone: up to its cell's largest only its own part is unknown.

    Tolerance as above. Control: at the far target the task's part is there as well.
    """
    runs = steep()
    short = (runs["base_model"] == "b1") & (runs["finetune_examples"] > 2.0**9)
    known = runs[~short].reset_index(drop=True)
    target = {"task": "t", "method": "fmt", "base_model": "b1"}
    far = pd.DataFrame([target | {"finetune_examples": 2.0**k} for k in (12, 15)])
    inside, beyond = drift(believed, far, known).var(axis=0)
    error = 5 * np.sqrt(2 / SIZE)
    own, shared = S_CURVE**2 / 3, S_TASK**2 / 3
    assert inside == pytest.approx(own * 3**3, rel=error + KNOT**2 / 36)
    assert beyond == pytest.approx(own * 6**3 + shared * 3**3, rel=error + KNOT**2 / 36)
    assert beyond != pytest.approx(own * 6**3, rel=error + KNOT**2 / 36)


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


# ------------------------------------------------------------------ targets


@pytest.mark.parametrize(
    ("targets", "match"),
    [
        (target().iloc[:0], "there are no targets: expected at least one row"),
        (target(model_size=1e6).drop(columns="method"), "the targets lack the column 'method'"),
        (target(model_size=1e6, finetune_examples=0.0), "'finetune_examples' is 0 in row 1"),
        (target(model_size=1e6, finetune_examples=-5.0), "is -5 in row 1: .* above 0"),
        (target(model_size=1e6, finetune_examples=np.inf), "'finetune_examples' is inf in row 1"),
        (target(model_size=1e6).drop(columns="finetune_examples"), "examples' is missing in row 1"),
        (target(model_size="big"), "'model_size' holds text, expected numbers"),
        (target(), "'model_size' is missing in row 1"),
        (target(base_model="unknown"), "'model_size' is missing in row 1"),
        (target(model_size=1e6, method=""), r"need a 'method' \(one of fmt, lora, prompt, or"),
    ],
)
def test_targets_at_fault_get_one_sentence(
    ladder: pd.DataFrame, believed: MakeFit, targets: pd.DataFrame, match: str
) -> None:
    layout = believed(ladder, size=2).members[0].layout
    with pytest.raises(TunecastError, match=match) as caught:
        check_targets(targets, layout)
    assert "\n" not in str(caught.value)


def test_what_the_table_determines_is_filled_in(zhang: pd.DataFrame, believed: MakeFit) -> None:
    layout = believed(zhang, size=2).members[0].layout
    row = zhang.iloc[[7]]
    bare = row[["task", "method", "base_model", "finetune_examples"]]
    filled = check_targets(bare, layout)
    assert filled["family"].tolist() == row["family"].tolist()
    assert filled["model_size"].tolist() == pytest.approx(row["model_size"].tolist(), rel=1e-12)
    assert "family" not in bare  # the caller's table stays as it was


def test_a_member_keeps_its_weight_in_a_mixture(ladder: pd.DataFrame, believed: MakeFit) -> None:
    """Draws of a fit with two laws come from each in proportion; figures agree with the wider."""
    power, rectified = (believed(ladder, law=law).members[0] for law in ("power", "rectified"))
    members = tuple(
        Member(m.layout, m.priors, m.posterior, w) for m, w in ((power, 0.25), (rectified, 0.75))
    )
    mixed = replace(believed(ladder), members=members)
    draws = mixed.draws(ladder)
    assert draws.loss.shape == (200, len(ladder))
    own = set(np.round(believed(ladder, law="power").draws(ladder).expected[:, 0], 12))
    assert sum(v in own for v in np.round(draws.expected[:, 0], 12)) == 50
    assert mixed.question.factors == ("model_size",)
