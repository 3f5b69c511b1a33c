"""The scaling laws that users can name, each a declaration.

To add one: its formula, its parameters, the quantities by which the hierarchy samples it, and how
its parameters follow from them at the reference point. Everything else (point fits, the PyMC model,
the compiled density, forecasts, prior tables, ``--law auto``, reports) reads the declaration.

References
----------
.. [1] Hernandez et al. 2021, Scaling Laws for Transfer, arXiv:2102.01293.
.. [2] Hoffmann et al. 2022, arXiv:2203.15556, eq. 10.
.. [3] Zhang et al. 2024, When Scaling Meets LLM Finetuning, arXiv:2402.17193, eq. 1.
.. [4] Lin et al. 2024, Selecting LLMs to Fine-tune with Rectified Scaling Law, arXiv:2402.02314.
.. [5] Kaplan et al. 2020, Scaling Laws for Neural Language Models, arXiv:2001.08361, eq. 1.5.
.. [6] Caballero et al. 2023, Broken Neural Scaling Laws, arXiv:2210.14891, eq. 1 with one break.
"""

from __future__ import annotations

from typing import Any

from tunecast.models.errors import TunecastError
from tunecast.models.laws.law import ByFactor, Law, Parameter, Quantities, Values
from tunecast.models.laws.positive import Positive, log_sigmoid
from tunecast.models.laws.quantities import (
    ALPHA,
    BY_FACTOR,
    LOG_BETA,
    LOG_LOSS_REF,
    LOGIT_FLOOR,
    NO_SD,
    Prior,
    Quantity,
)

A = Parameter(
    "A", "A", "positive", "nats x unit of X^alpha D^beta", "amplitude", False, ("D^beta", "X^alpha")
)
ALPHAS = Parameter("alpha", r"\alpha", "real", "", "exponent of a factor", True)
BETA = Parameter("beta", r"\beta", "positive", "", "exponent of the data size")
E = Parameter("E", "E", "positive", "nats per target token", "irreducible loss")


def product(amplitude: Values, X: ByFactor, alpha: ByFactor) -> Values:
    """Return the amplitude times the power of each factor that ``alpha`` names."""
    # By alpha, not by X: a factor that X lacks must not drop out of the product unnoticed.
    for k in alpha:
        amplitude = amplitude * X[k] ** -alpha[k]
    return amplitude


def irreducible(X: ByFactor, *, E: Values) -> Values:
    """Return a floor that no factor moves."""
    return E


def split(q: Quantities, xp: Any) -> tuple[Positive, Positive]:
    """Return what data can reduce of the loss at the reference point, and the floor."""
    reducible = q["log_loss_ref"] + log_sigmoid(-q["logit_floor"], xp)
    floor = q["log_loss_ref"] + log_sigmoid(q["logit_floor"], xp)
    return Positive(reducible, xp), Positive(floor, xp)


# --------------------------------------------------------------------------- power law


def _power(D: Values, X: ByFactor, *, A: Values, beta: Values) -> Values:
    return A * D**-beta


def _power_at_reference(q: Quantities, xp: Any) -> dict[str, Any]:
    reducible, floor = split(q, xp)
    return {"A": reducible, "beta": xp.exp(q["log_beta"]), "E": floor}


POWER = Law(
    name="power",
    parameters=(A, BETA, E),
    reducible=_power,
    floor=irreducible,
    quantities=(LOGIT_FLOOR, LOG_LOSS_REF, LOG_BETA),
    at_reference=_power_at_reference,
    latex=r"L = A D^{-\beta} + E",
    reference="arXiv:2102.01293; arXiv:2402.17193 section 3",
)

# --------------------------------------------------------------------------- multiplicative


def _multiplicative(D: Values, X: ByFactor, *, A: Values, alpha: ByFactor, beta: Values) -> Values:
    return product(A, X, alpha) * D**-beta


MULTIPLICATIVE = Law(
    name="multiplicative",
    parameters=(A, ALPHAS, BETA, E),
    reducible=_multiplicative,
    floor=irreducible,
    quantities=(LOGIT_FLOOR, *BY_FACTOR, ALPHA, LOG_LOSS_REF, LOG_BETA),
    at_reference=lambda q, xp: _power_at_reference(q, xp) | {"alpha": q["alpha"]},
    latex=r"L = A \prod_k X_k^{-\alpha_k} D^{-\beta} + E",
    reference="arXiv:2402.17193 eq. 1, here for any number of factors at once",
)

# --------------------------------------------------------------------------- additive

A_OF_FACTOR = Parameter(
    "A", "A", "positive", "nats x unit of X^alpha", "amplitude of a factor", True, ("X^alpha",)
)
B = Parameter(
    "B", "B", "positive", "nats x unit of D^beta", "amplitude of the data term", False, ("D^beta",)
)
LOG_A_OVER_E = Quantity(
    "log_A_over_E", Prior(0.0, 1.0, 0.5, NO_SD, "log of a factor's part of the floor over E"), True
)


def _data_term(D: Values, X: ByFactor, *, B: Values, beta: Values) -> Values:
    return B * D**-beta


def _sum_of_factors(X: ByFactor, *, A: ByFactor, alpha: ByFactor, E: Values) -> Values:
    total = E
    for k in alpha:
        total = A[k] * X[k] ** -alpha[k] + total
    return total


def _parts_of_floor(q: Quantities, xp: Any) -> Values:
    total = 1.0
    for value in q["log_A_over_E"].values():
        total = total + xp.exp(value)
    return total


def _additive_at_reference(q: Quantities, xp: Any) -> dict[str, Any]:
    reducible, floor = split(q, xp)
    E = Positive(floor.log - xp.log(_parts_of_floor(q, xp)), xp)
    parts = {k: Positive(E.log + v, xp) for k, v in q["log_A_over_E"].items()}
    beta = xp.exp(q["log_beta"])
    return {"A": parts, "alpha": q["alpha"], "B": reducible, "beta": beta, "E": E}


def _additive_factor_slope(q: Quantities, xp: Any) -> Values:
    parts = xp.exp(q["log_A_over_E"])
    floor = xp.exp(log_sigmoid(q["logit_floor"], xp))
    return parts * (floor / (1.0 + parts.sum(axis=-2)))[..., None, :]


ADDITIVE = Law(
    name="additive",
    parameters=(A_OF_FACTOR, ALPHAS, B, BETA, E),
    reducible=_data_term,
    floor=_sum_of_factors,
    quantities=(LOGIT_FLOOR, *BY_FACTOR, LOG_A_OVER_E, ALPHA, LOG_LOSS_REF, LOG_BETA),
    at_reference=_additive_at_reference,
    latex=r"L = \sum_k A_k X_k^{-\alpha_k} + B D^{-\beta} + E",
    reference="arXiv:2203.15556 eq. 10",
    factor_slope=_additive_factor_slope,
)

# --------------------------------------------------------------------------- rectified

D_L = Parameter("D_l", "D_l", "positive", "unit of D", "pre-learned data size", False, ("D",))
LOGIT_DATA_SHARE = Quantity(
    "logit_data_share",
    Prior(1.0, 1.0, 0.4, NO_SD, "logit of D^beta / (D_l^beta + D^beta) at the reference"),
)


def _rectified(
    D: Values, X: ByFactor, *, A: Values, alpha: ByFactor, D_l: Values, beta: Values
) -> Values:
    return product(A, X, alpha) / (D**beta + D_l**beta)


def _rectified_at_reference(q: Quantities, xp: Any) -> dict[str, Any]:
    beta = xp.exp(q["log_beta"])
    reducible, floor = split(q, xp)
    A = Positive(reducible.log - log_sigmoid(q["logit_data_share"], xp), xp)
    D_l = Positive(-q["logit_data_share"] / beta, xp)
    return {"A": A, "alpha": q["alpha"], "D_l": D_l, "beta": beta, "E": floor}


RECTIFIED = Law(
    name="rectified",
    parameters=(A, ALPHAS, D_L, BETA, E),
    reducible=_rectified,
    floor=irreducible,
    quantities=(LOGIT_FLOOR, *BY_FACTOR, LOGIT_DATA_SHARE, ALPHA, LOG_LOSS_REF, LOG_BETA),
    at_reference=_rectified_at_reference,
    latex=r"L = A \prod_k X_k^{-\alpha_k} / (D_l^{\beta} + D^{\beta}) + E",
    reference="arXiv:2402.02314, joint in model size and data size; its D_l is ours to the beta",
    log_slope=lambda q, xp: (
        log_sigmoid(-q["logit_floor"], xp) + log_sigmoid(q["logit_data_share"], xp)
    ),
)

# --------------------------------------------------------------------------- Kaplan's joint law

A_OF_SIZE = Parameter(
    "A", "A", "positive", "nats x unit of X^alpha", "loss with unlimited data", False, ("X^alpha",)
)
D_C = Parameter("D_c", "D_c", "positive", "unit of D", "critical data size", False, ("D",))
ALPHA_OVER_BETA = Quantity(
    "alpha_over_beta", Prior(1.0, 1.0, 0.5, NO_SD, "exponent of a factor over beta"), True
)
LOG_RATIO = Quantity(
    "log_ratio", Prior(1.0, 2.0, 1.0, NO_SD, "log of D_c / (A^(1/beta) D) at the reference")
)


def _kaplan(
    D: Values, X: ByFactor, *, A: Values, alpha: ByFactor, D_c: Values, beta: Values
) -> Values:
    return (D_c / D + product(A, X, alpha) ** (1 / beta)) ** beta


def _kaplan_at_reference(q: Quantities, xp: Any) -> dict[str, Any]:
    beta = xp.exp(q["log_beta"])
    log_A = q["log_loss_ref"] - beta * xp.softplus(q["log_ratio"])
    D_c = Positive(q["log_ratio"] + log_A / beta, xp)
    alpha = {k: ratio * beta for k, ratio in q["alpha_over_beta"].items()}
    return {"A": Positive(log_A, xp), "alpha": alpha, "D_c": D_c, "beta": beta}


KAPLAN = Law(
    name="kaplan",
    parameters=(A_OF_SIZE, ALPHAS, D_C, BETA),
    reducible=_kaplan,
    floor=None,
    quantities=(*BY_FACTOR, LOG_RATIO, LOG_BETA, ALPHA_OVER_BETA, LOG_LOSS_REF),
    at_reference=_kaplan_at_reference,
    latex=r"L = ((A \prod_k X_k^{-\alpha_k})^{1/\beta} + D_c / D)^{\beta}",
    reference="arXiv:2001.08361 eq. 1.5, with A = N_c^alpha and any number of factors at once",
    log_slope=lambda q, xp: log_sigmoid(q["log_ratio"], xp),
    factor_slope=lambda q, xp: xp.exp(q["log_beta"] - xp.softplus(q["log_ratio"]))[..., None, :],
    moved=lambda q, log_x, xp: {
        "log_ratio": sum((q["alpha_over_beta"][k] * x for k, x in log_x.items()), q["log_ratio"])
    },
    exponent="alpha_over_beta",
)

# --------------------------------------------------------------------------- broken power law

BETA_2 = Parameter(
    "beta_2", r"\beta_2", "positive", "", "exponent of the data size after the break"
)
D_B = Parameter("D_b", "D_b", "positive", "unit of D", "data size of the break", False, ("D",))
F = Parameter("f", "f", "positive", "", "width of the break in log data size")
LOG_BREAK = Quantity("log_break", Prior(0.0, 2.0, 1.0, NO_SD, "log of D_b over the reference"))
LOG_STEEPER = Quantity("log_steeper", Prior(0.0, 0.5, 0.3, NO_SD, "log of beta_2 / beta"))
LOG_WIDTH = Quantity("log_width", Prior(-0.7, 0.5, 0.3, NO_SD, "log of the width of the break"))


def _broken(
    D: Values, X: ByFactor, *, A: Values, alpha: ByFactor, beta: Values, beta_2: Values,
    D_b: Values, f: Values,
) -> Values:  # fmt: skip
    bent = ((D / D_b) ** (1 / f) + 1) ** ((beta - beta_2) * f)
    return product(A, X, alpha) * D**-beta * bent


def _broken_at_reference(q: Quantities, xp: Any) -> dict[str, Any]:
    reducible, floor = split(q, xp)
    beta, f = xp.exp(q["log_beta"]), xp.exp(q["log_width"])
    beta_2, D_b = beta * xp.exp(q["log_steeper"]), Positive(q["log_break"], xp)
    bent = (D_b ** (-1 / f) + 1) ** ((beta - beta_2) * f)
    found = {"A": reducible / bent, "alpha": q["alpha"], "beta": beta, "beta_2": beta_2}
    return found | {"D_b": D_b, "f": f, "E": floor}


def _broken_log_slope(q: Quantities, xp: Any) -> Values:
    past = xp.exp(log_sigmoid(-q["log_break"] / xp.exp(q["log_width"]), xp))
    return log_sigmoid(-q["logit_floor"], xp) + xp.log(
        1.0 + (xp.exp(q["log_steeper"]) - 1.0) * past
    )


BROKEN = Law(
    name="broken",
    parameters=(A, ALPHAS, BETA, BETA_2, D_B, F, E),
    reducible=_broken,
    floor=irreducible,
    quantities=(
        LOGIT_FLOOR, *BY_FACTOR, LOG_BREAK, LOG_STEEPER, LOG_WIDTH, ALPHA, LOG_LOSS_REF, LOG_BETA,
    ),
    at_reference=_broken_at_reference,
    latex=r"L = A \prod_k X_k^{-\alpha_k} D^{-\beta} (1 + (D / D_b)^{1/f})^{(\beta-\beta_2) f} + E",
    reference="arXiv:2210.14891 eq. 1 with one break, times a power of each factor",
    log_slope=_broken_log_slope,
)  # fmt: skip

LAWS: dict[str, Law] = {
    law.name: law for law in (POWER, MULTIPLICATIVE, ADDITIVE, RECTIFIED, KAPLAN, BROKEN)
}


def get_law(name: str) -> Law:
    """Return the law of this name.

    Raises
    ------
    TunecastError
        When there is no such law; the sentence lists those there are.
    """
    if name not in LAWS:
        raise TunecastError(f"unknown law '{name}': expected one of {', '.join(LAWS)}")
    return LAWS[name]
