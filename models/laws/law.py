"""What a scaling law is: a formula, its parameters, and how the hierarchy samples it.

Letters: ``L`` loss in nats per target token; ``D`` data size (fine-tuning examples by default);
``X`` a factor such as the model size in parameters.

A law is ``L(X, D) = reducible(D, X) + floor(X)``: what more data can reduce, and what is left of it
with unlimited data. Both are written once, with ``+ * / **`` on positive quantities, so that one
definition serves plain arrays, symbolic and labelled ones, the numbers with slopes of a point fit,
and the logarithms of the hierarchy (`tunecast.models.laws.positive`). The laws themselves are in
`tunecast.models.laws.catalogue`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tunecast.models.laws.positive import Positive, log_sigmoid
from tunecast.models.laws.quantities import Quantity

# A NumPy array, a PyTensor variable, an xarray DataArray, ...: whatever supports + * / **.
type Values = Any
type ByFactor = Mapping[str, Values]
# Values by name of the quantities of a cell or curve; a mapping by factor where there is one each.
type Quantities = Mapping[str, Any]


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
    scales_with : tuple of str
        By which powers of a reference point the parameter is multiplied when data sizes and factors
        are no longer measured in units of it: some of ``D``, ``D^beta`` and ``X^alpha``.
    """

    name: str
    latex: str
    support: str
    unit: str
    meaning: str
    per_factor: bool = False
    scales_with: tuple[str, ...] = ()

    @property
    def is_data_size(self) -> bool:
        """Whether it is measured in the unit of D."""
        return self.scales_with == ("D",)

    @property
    def is_exponent(self) -> bool:
        """Whether it has no unit."""
        return not self.unit


@dataclass(frozen=True, slots=True)
class Law:
    """A scaling law ``L(X, D) = reducible(D, X) + floor(X)``.

    Parameters
    ----------
    name : str
        The name by which a user asks for it.
    parameters : tuple of Parameter
        All parameters, in the order of the published formula.
    reducible : callable
        Function of the data size ``D``, the factors ``X`` (a mapping from factor name to values,
        may be empty) and some parameters, keyword-only.
    floor : callable or None
        Function of ``X`` and the other parameters; None for a law without irreducible loss.
    quantities : tuple of Quantity
        What the hierarchy samples of it. Those that runs determine least come first, and those
        from which the coordinates of others follow: with factors gamma, the exponent, log_loss_ref;
        and delta, log_beta.
    at_reference : callable
        ``at_reference(q, xp)`` returns the parameters in units of the reference point, from the
        quantities there: exponents plain, all others as `Positive`.
    latex, reference : str
        The formula for people, and where it was published.
    log_slope : callable
        ``log_slope(q, xp)``: log of the local slope ``-d log L / d log D`` at the reference point
        over beta. By default that of a power law above its floor.
    factor_slope : callable
        ``factor_slope(q, xp)``: the local slope ``-d log L / d log X_k`` there over the exponent of
        ``X_k``, with an axis for factors before the last (of size 1 where all have the same).
    exponent : str
        The quantity by which that slope grows: alpha, or another from which alpha follows.
    moved : callable or None
        ``moved(q, log_x, xp)``: quantities of a curve, beside loss, floor and beta, that depend on
        the factors; ``log_x`` maps factors to their log over the reference.

    Raises
    ------
    TypeError
        When a function names a parameter that is not declared, a declared one is used nowhere, or
        the quantities are not those that every law has, in the order in which they are sampled.
    """

    name: str
    parameters: tuple[Parameter, ...]
    reducible: Callable[..., Values]
    floor: Callable[..., Values] | None
    quantities: tuple[Quantity, ...]
    at_reference: Callable[[Quantities, Any], dict[str, Any]]
    latex: str
    reference: str
    log_slope: Callable[[Quantities, Any], Values] = lambda q, xp: log_sigmoid(
        -q["logit_floor"], xp
    )
    factor_slope: Callable[[Quantities, Any], Values] = lambda q, xp: xp.exp(
        log_sigmoid(-q["logit_floor"], xp)
    )[..., None, :]
    moved: Callable[[Quantities, ByFactor, Any], dict[str, Values]] | None = None
    exponent: str = "alpha"

    def __post_init__(self) -> None:
        declared = {parameter.name for parameter in self.parameters}
        used = {name for part in self._parts() for name in _keywords(part)}
        if declared != used:
            raise TypeError(
                f"law '{self.name}': {sorted(declared ^ used)} appear in only one of the "
                "formula and the declaration"
            )
        names = [quantity.name for quantity in self.quantities]
        pairs: list[tuple[str, ...]] = [("log_loss_ref",), ("log_beta",)]
        if self.has("alpha"):
            pairs += [("gamma", self.exponent, "log_loss_ref"), ("delta", "log_beta")]
        for order in pairs:
            if [name for name in names if name in order] != list(order):
                raise TypeError(
                    f"law '{self.name}': quantities {', '.join(names)}, expected among them "
                    f"{', '.join(order)} in this order"
                )

    def _parts(self) -> tuple[Callable[..., Values], ...]:
        return (self.reducible,) if self.floor is None else (self.reducible, self.floor)

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

        Examples
        --------
        >>> from tunecast.models import get_law
        >>> loss = get_law("multiplicative")(
        ...     1e5, {"model_size": 16e9}, A=2119.0, alpha={"model_size": 0.36}, beta=0.081, E=0.62
        ... )
        >>> round(loss, 3)
        0.797
        """
        reducible = self.reducible_part(D, X, parameters)
        floor = self.floor_part(X, parameters)
        return reducible if floor is None else reducible + floor

    def reducible_part(self, D: Values, X: ByFactor, parameters: Mapping[str, Any]) -> Values:
        """Return what more data can reduce, with the parameters that it takes out of all."""
        taken = {name: parameters[name] for name in _keywords(self.reducible)}
        return self.reducible(D, X, **taken)

    def floor_part(self, X: ByFactor, parameters: Mapping[str, Any]) -> Values | None:
        """Return what is left with unlimited data, likewise; None for a law without a floor."""
        if self.floor is None:
            return None
        return self.floor(X, **{name: parameters[name] for name in _keywords(self.floor)})

    def has(self, name: str) -> bool:
        """Whether the law has a parameter of this name."""
        return any(parameter.name == name for parameter in self.parameters)

    def to_published(self, D_ref: Values, X_ref: ByFactor, **parameters: Any) -> dict[str, Any]:
        """Convert parameters of ``law(D / D_ref, X / X_ref)`` into those of ``law(D, X)``.

        A fit works in units of a reference point inside the data, which removes most of the
        correlation between amplitudes and exponents. The papers print amplitudes in raw units;
        this conversion is exact: only what `Parameter.scales_with` names changes.

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
        raised = {k: X_ref[k] ** alpha for k, alpha in parameters.get("alpha", {}).items()}
        powers = {"D": (D_ref,), "D^beta": (D_ref ** parameters["beta"],)}

        def scaled(parameter: Parameter, value: Any, factors: tuple[Any, ...]) -> Any:
            for scale in parameter.scales_with:
                for power in factors if scale == "X^alpha" else powers[scale]:
                    value = power * value
            return value

        published = {}
        for parameter in self.parameters:
            value = parameters[parameter.name]
            published[parameter.name] = (
                {k: scaled(parameter, v, (raised[k],)) for k, v in value.items()}
                if parameter.per_factor
                else scaled(parameter, value, tuple(raised.values()))
            )
        return published


@cache  # a search evaluates a law thousands of times, and reading a signature costs more than that
def _keywords(function: Callable[..., Values]) -> tuple[str, ...]:
    kinds = inspect.signature(function).parameters.values()
    return tuple(parameter.name for parameter in kinds if parameter.kind is parameter.KEYWORD_ONLY)


# --------------------------------------------------------------------------- in the hierarchy


def by_factor(law: Law, q: Quantities, factors: Sequence[str]) -> dict[str, Any]:
    """Return quantities with those per factor as mappings by factor.

    Parameters
    ----------
    law : Law
        Whose quantities they are.
    q : mapping of str to array
        Those per factor have shape (..., factors, n), and may be absent where there is no factor.
    factors : sequence of str
        Names of the factors.
    """
    found = dict(q)
    for name in (k.name for k in law.quantities if k.per_factor):
        found[name] = {factor: q[name][..., i, :] for i, factor in enumerate(factors)}
    return found


def expected_at(law: Law, q: Quantities, log_x: ByFactor, xp: Any) -> dict[str, Values]:
    """Return the quantities that a cell expects of a curve at some factors.

    Parameters
    ----------
    law : Law
        The law.
    q : mapping of str to array
        Quantities of the curve's cell, shape (..., curves); a mapping by factor where per factor.
    log_x : mapping of str to array, shape (curves,)
        Log of each factor over its reference.
    xp : namespace
        `tunecast.models.laws.positive.NumPy`, ``pytensor.tensor``, ...
    """
    expected = {k.name: q[k.name] for k in law.quantities if not k.per_factor}
    X = {k: Positive(x, xp) for k, x in log_x.items()}
    parameters = law.at_reference(q, xp)
    reducible = law.reducible_part(Positive(0.0, xp), X, parameters).log
    floor = law.floor_part(X, parameters)
    if floor is None:
        expected["log_loss_ref"] = reducible
    else:
        expected["logit_floor"] = floor.log - reducible
        expected["log_loss_ref"] = floor.log + xp.softplus(reducible - floor.log)
    if law.moved is not None:
        expected |= law.moved(q, log_x, xp)
    for k, x in log_x.items():
        expected["log_loss_ref"] = expected["log_loss_ref"] - q["gamma"][k] * x
        expected["log_beta"] = expected["log_beta"] - q["delta"][k] * x
    return expected


def log_relative_loss(law: Law, log_u: Values, q: Quantities, xp: Any, curve: Any = ...) -> Values:
    """Return ``log L(D) - log L(D_ref)`` of curves at data sizes ``D = D_ref * exp(log_u)``.

    Parameters
    ----------
    law : Law
        The law.
    log_u : array, shape (runs,)
        Log of data sizes over the reference.
    q : mapping of str to array
        Quantities of each curve, shape (..., curves); ``log_loss_ref`` plays no part.
    xp : namespace
        As in `expected_at`.
    curve : array of int, shape (runs,), optional
        Curve of each data size, where ``q`` has one value for each curve.
    """
    own = {**q, "log_loss_ref": 0.0}
    for name in [k.name for k in law.quantities if k.per_factor]:
        own[name] = {}
    # What is one number a curve is computed before it is repeated for each of its data sizes.
    found = law.at_reference(own, xp)
    parameters = {
        name: value if isinstance(value, dict) else value[..., curve] if curve is not ... else value
        for name, value in found.items()
    }
    return law(Positive(log_u, xp), {}, **parameters).log


def published(
    law: Law, q: Quantities, log_D_ref: Values, log_X_ref: ByFactor, xp: Any
) -> dict[str, Any]:
    """Return a law's parameters in the published spelling, from its quantities at the reference.

    Parameters
    ----------
    law : Law
        The law.
    q : mapping of str to array
        Quantities of each cell, shape (..., cells); a mapping by factor where per factor.
    log_D_ref : array, shape (cells,)
        Log of each cell's reference data size.
    log_X_ref : mapping of str to float
        Log of the reference value of each factor.
    xp : namespace
        As in `expected_at`.

    Returns
    -------
    dict
        Parameters by name, shape (..., cells); a mapping by factor where per factor. A pre-learned
        data size is infinite where beta is so near 0 that no number holds it.
    """
    found = law.to_published(
        Positive(log_D_ref, xp),
        {k: Positive(v, xp) for k, v in log_X_ref.items()},
        **law.at_reference(q, xp),
    )

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return xp.exp(value.log) if isinstance(value, Positive) else value

    return {name: plain(value) for name, value in found.items()}
