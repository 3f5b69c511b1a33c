"""The scaling laws, each declared once for NumPy, PyTensor and xarray.

Letters: ``L`` loss in nats per target token; ``D`` data size (fine-tuning examples by default);
``X`` a factor such as the model size in parameters.

Every law here has the shape ``L(X, D) = amplitude(X) * decay(D) + floor(X)``: for a fixed model
the loss falls from ``amplitude + floor`` towards the floor. The hierarchy relies on this split,
so a law declares its two halves and the whole follows. The formulas use ``+ * / **`` alone;
that is what lets one definition serve arrays, symbolic variables and labelled arrays.

References
----------
.. [1] Hernandez et al. 2021, Scaling Laws for Transfer, arXiv:2102.01293.
.. [2] Hoffmann et al. 2022, arXiv:2203.15556, eq. 10.
.. [3] Zhang et al. 2024, When Scaling Meets LLM Finetuning, arXiv:2402.17193, eq. 1.
.. [4] Lin et al. 2024, Selecting LLMs to Fine-tune with Rectified Scaling Law, arXiv:2402.02314.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tunecast.models.errors import TunecastError

# A NumPy array, a PyTensor variable or an xarray DataArray: whatever supports + * / **.
type Values = Any
type ByFactor = Mapping[str, Values]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a law.

    Parameters
    ----------
    name : str
        Keyword under which the law's functions take it.
    latex : str
        Symbol for labels.
    support : {"positive", "real"}
        Where it lives.
    unit : str
        Unit of the published spelling.
    meaning : str
        One phrase.
    per_factor : bool
        Whether there is one value for each factor ``X``.
    """

    name: str
    latex: str
    support: str
    unit: str
    meaning: str
    per_factor: bool = False


A = Parameter("A", "A", "positive", "nats x unit of X^alpha D^beta", "amplitude")
A_OF_X = Parameter("A", "A", "positive", "nats x unit of X^alpha", "amplitude of a factor", True)
B = Parameter("B", "B", "positive", "nats x unit of D^beta", "amplitude of the data term")
ALPHA = Parameter("alpha", r"\alpha", "real", "", "exponent of a factor", True)
BETA = Parameter("beta", r"\beta", "positive", "", "exponent of the data size")
E = Parameter("E", "E", "positive", "nats per target token", "irreducible loss")
D_L = Parameter("D_l", "D_l", "positive", "unit of D", "pre-learned data size")


@dataclass(frozen=True, slots=True)
class Law:
    """A scaling law ``L(X, D) = amplitude(X) * decay(D) + floor(X)``.

    Parameters
    ----------
    name : str
        The name by which a user asks for it.
    parameters : tuple of Parameter
        All parameters, in the order of the published formula.
    amplitude, floor : callable
        Functions of the factors ``X`` (a mapping from factor name to values, may be empty).
    decay : callable
        Function of the data size ``D``.
    latex, reference : str
        The formula for people, and where it was published.

    Raises
    ------
    TypeError
        When a function names a parameter that is not declared, or a declared one is used nowhere.
    """

    name: str
    parameters: tuple[Parameter, ...]
    amplitude: Callable[..., Values]
    decay: Callable[..., Values]
    floor: Callable[..., Values]
    latex: str
    reference: str

    def __post_init__(self) -> None:
        declared = {parameter.name for parameter in self.parameters}
        used = {
            name for part in (self.amplitude, self.decay, self.floor) for name in _keywords(part)
        }
        if declared != used:
            raise TypeError(
                f"law '{self.name}': {sorted(declared ^ used)} appear in only one of the "
                "formula and the declaration"
            )

    def __call__(self, D: Values, X: ByFactor, **parameters: Any) -> Values:
        """Return the loss at data size ``D`` and factors ``X``, in nats per target token.

        Parameters
        ----------
        D : array_like
            Data size, any shape that broadcasts with the parameters.
        X : mapping of str to array_like
            Values of each factor that ``alpha`` names; others are ignored.
        **parameters
            One value for each declared parameter; a mapping by factor for those per factor.
        """
        amplitude = self.part("amplitude", X, parameters)
        decay = self.part("decay", D, parameters)
        return amplitude * decay + self.part("floor", X, parameters)

    def part(self, name: str, at: Values, parameters: Mapping[str, Any]) -> Values:
        """Return one part of the law, with the parameters that it takes out of all of them.

        Parameters
        ----------
        name : {"amplitude", "decay", "floor"}
            Which part.
        at : array_like or mapping
            Factors ``X`` for amplitude and floor, data size ``D`` for decay.
        parameters : mapping
            Parameters by name; those that the part does not take are left out.
        """
        function = getattr(self, name)
        return function(at, **{key: parameters[key] for key in _keywords(function)})

    def has(self, name: str) -> bool:
        """Whether the law has a parameter of this name."""
        return any(parameter.name == name for parameter in self.parameters)

    def to_published(
        self, D_ref: float, X_ref: Mapping[str, float], **parameters: Any
    ) -> dict[str, Any]:
        """Convert parameters of ``law(D / D_ref, X / X_ref)`` into those of ``law(D, X)``.

        A fit works in units of a reference point inside the data, which removes most of the
        correlation between amplitudes and exponents. The papers print amplitudes in raw units;
        this conversion is exact: only amplitudes and ``D_l`` change.

        Parameters
        ----------
        D_ref : float
            Reference data size.
        X_ref : mapping of str to float
            Reference value of each factor.
        **parameters
            The parameters in reference units.

        Returns
        -------
        dict
            The same parameters in the published spelling.
        """
        published = dict(parameters)
        raised = {k: X_ref[k] ** alpha for k, alpha in parameters.get("alpha", {}).items()}
        data = D_ref ** parameters["beta"]
        if self.has("B"):
            published["B"] = parameters["B"] * data
            published["A"] = {k: parameters["A"][k] * raised[k] for k in raised}
        else:
            published["A"] = _product([parameters["A"], data, *raised.values()])
        if self.has("D_l"):
            published["D_l"] = parameters["D_l"] * D_ref
        return published


@cache  # a search evaluates a law thousands of times, and reading a signature costs more than that
def _keywords(function: Callable[..., Values]) -> tuple[str, ...]:
    kinds = inspect.signature(function).parameters.values()
    return tuple(parameter.name for parameter in kinds if parameter.kind is parameter.KEYWORD_ONLY)


def _product(values: list[Values]) -> Values:
    result = values[0]
    for value in values[1:]:
        result = result * value
    return result


def _constant_amplitude(X: ByFactor, *, A: Values) -> Values:
    return A


def _scaled_amplitude(X: ByFactor, *, A: Values, alpha: ByFactor) -> Values:
    # By alpha, not by X: a factor that X lacks must not drop out of the product unnoticed.
    return _product([A, *(X[k] ** -alpha[k] for k in alpha)])


def _data_amplitude(X: ByFactor, *, B: Values) -> Values:
    return B


def _constant_floor(X: ByFactor, *, E: Values) -> Values:
    return E


def _scaled_floor(X: ByFactor, *, A: ByFactor, alpha: ByFactor, E: Values) -> Values:
    total = E
    for k in alpha:
        total = total + A[k] * X[k] ** -alpha[k]
    return total


def _power_decay(D: Values, *, beta: Values) -> Values:
    return D**-beta


def _rectified_decay(D: Values, *, beta: Values, D_l: Values) -> Values:
    return 1 / (D_l**beta + D**beta)


LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law(
            "power",
            (A, BETA, E),
            _constant_amplitude,
            _power_decay,
            _constant_floor,
            r"L = A D^{-\beta} + E",
            "arXiv:2102.01293; arXiv:2402.17193 section 3",
        ),
        Law(
            "multiplicative",
            (A, ALPHA, BETA, E),
            _scaled_amplitude,
            _power_decay,
            _constant_floor,
            r"L = A \prod_k X_k^{-\alpha_k} D^{-\beta} + E",
            "arXiv:2402.17193 eq. 1, here for any number of factors at once",
        ),
        Law(
            "additive",
            (A_OF_X, ALPHA, B, BETA, E),
            _data_amplitude,
            _power_decay,
            _scaled_floor,
            r"L = \sum_k A_k X_k^{-\alpha_k} + B D^{-\beta} + E",
            "arXiv:2203.15556 eq. 10",
        ),
        Law(
            "rectified",
            (A, ALPHA, D_L, BETA, E),
            _scaled_amplitude,
            _rectified_decay,
            _constant_floor,
            r"L = A \prod_k X_k^{-\alpha_k} / (D_l^{\beta} + D^{\beta}) + E",
            "arXiv:2402.02314, joint in model size and data size",
        ),
    )
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
