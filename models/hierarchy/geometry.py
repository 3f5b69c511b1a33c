"""How each unknown is sampled: coordinates in which the posterior is nearly a standard normal.

Geometry decides how fast a hierarchy samples, and changes nothing of what is sampled: whatever the
coordinate, the unknown keeps the prior that `tunecast.models.hierarchy.model` gives it.

* A cell's log loss is sampled as what its own base models show of it, its exponent of a factor as
  the slope of log loss in that factor, its beta as the local slope ``log(-d log L / d log D)``,
  with the effects of those base models upon them; a curve's log loss as its mean over its own data
  sizes, its beta as its local slope. Each is ``offset + multiplier * unknown``, where the two
  depend on unknowns declared before.
* Where runs give an estimate of that with an error, it is sampled as its distance from where prior
  and estimate together would have it, in units of the error that they leave.
* What runs leave weakly identified is partially centred: sampled between itself (weight 1) and its
  standardised deviation (weight 0), the family of arXiv:1906.03028, section 3.
* Learned scales are log-normal, so none has a funnel at zero, and are non-centred.

Least-squares slopes and means of the runs choose the coordinates, so draws are read with those that
they were sampled with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tunecast.models.hierarchy.estimates import DriftEstimates, Estimates, LevelEstimates
from tunecast.models.hierarchy.groupings import Grouping
from tunecast.models.hierarchy.table import Table
from tunecast.models.laws.positive import log_sigmoid
from tunecast.models.laws.quantities import Quantity

# Weights of partial centring, of cells and of what is above them. They steer the sampler alone.
WEAKLY_IDENTIFIED, WEAKLY_IDENTIFIED_ABOVE = 0.3, 0.2
DATA_SHARE, DATA_SHARE_ABOVE = 0.6, 0.3
FACTOR_SLOPE_ABOVE, SLOPE_ABOVE = 0.5, 0.3
# Where an exponent hardly moves the slope in its factor, it must not be stretched without bound.
LEAST_MULTIPLIER = 0.03


@dataclass(frozen=True)
class Coordinate:
    """A way to sample an unknown: ``offset + multiplier * unknown``, centred by weight or estimate.

    Parameters
    ----------
    offset, multiplier : array or float
        What is added to the unknown, and by what it is multiplied before.
    weight : array or float
        How far the result is sampled as itself (1), or standardised (0).
    estimate : array, optional
        What runs say of the result, in the place of the weight.
    precision : array, optional
        One over the squared error of that.
    """

    offset: Any = 0.0
    multiplier: Any = 1.0
    weight: Any = 0.0
    estimate: Any = None
    precision: Any = None

    def unknown(self, draw: Callable[[Any, Any], Any], location: Any, scale: Any, xp: Any) -> Any:
        """Return the unknown, from a raw variable that is drawn with a location and a scale.

        Parameters
        ----------
        draw : callable
            ``draw(location, scale)`` returns the raw variable, of the unknown's own family.
        location, scale : array or float
            Of the unknown's prior.
        xp : namespace
            What to compute with.
        """
        moved = not (isinstance(self.multiplier, float) and self.multiplier == 1.0)
        centre = self.offset + (self.multiplier * location if moved else location)
        width = self.multiplier * scale if moved else scale
        if self.estimate is not None:
            information = self.precision * width * width
            narrowed = xp.sqrt(1.0 + information)
            off = (self.estimate - centre) * information / narrowed
            result = centre + (off + width * draw(-off / width, narrowed)) / narrowed
        elif isinstance(self.weight, float) and self.weight == 0.0:
            result = centre + width * draw(0.0, 1.0)
        elif isinstance(self.weight, float) and self.weight == 1.0:
            result = draw(centre, width)
        else:
            part = width**self.weight
            raw = draw(self.weight * centre, part)
            result = centre + width / part * (raw - self.weight * centre)
        result = result - self.offset
        return result / self.multiplier if moved else result


NON_CENTRED, CENTRED = Coordinate(weight=0.0), Coordinate(weight=1.0)


class Geometry:
    """The coordinate of each unknown of one table.

    Parameters
    ----------
    table : Table
        The runs.
    estimates : Estimates
        What least squares says of curves and levels.
    """

    def __init__(self, table: Table, estimates: Estimates) -> None:
        self.table, self.law, self.estimates = table, table.law, estimates
        self._rules: dict[str, Callable[[Mapping[str, Any], Any], Coordinate]] = {
            "base_model_effect": self._base_model,
            "log_noise_task": lambda v, xp: CENTRED,
            "log_noise_curve": self._noise_of_curve,
            "drift_task": self._drift_of_task,
            "drift_curve": self._drift_of_curve,
            "log_beta_curve": self._slope_of_curve,
            "log_loss_ref_curve": lambda v, xp: self._mean_of_curve(v, xp, self.table.repeated),
        }
        for q in table.quantities:
            self._rules[f"{q.name}_mean"] = lambda v, xp: CENTRED
            if not table.groupings:
                self._rules[f"{q.name}_mean"] = partial(self._level, q, None)
            # Levels of the first grouping are sampled as means (the global one included), as are
            # cells, which curves pin down; others as standardised deviations: a global mean and
            # several groupings of well-measured levels are otherwise nearly collinear.
            for i, g in enumerate(table.groupings):
                if i in (0, len(table.groupings) - 1):
                    self._rules[f"{q.name}_{g.name}"] = partial(self._level, q, g)

    def coordinate(self, name: str, values: Mapping[str, Any], xp: Any) -> Coordinate:
        """Return how an unknown is sampled.

        Parameters
        ----------
        name : str
            Of the unknown.
        values : mapping of str to array
            Unknowns and what follows from them, as far as they were declared before.
        xp : namespace
            What to compute with.
        """
        rule = self._rules.get(name)
        return NON_CENTRED if rule is None else rule(values, xp)

    # ----------------------------------------------------------------- curves

    def _of_shown(self, value: Any, shown: Any) -> Any:
        """Return what there is of the curves that show something, of what there is of all."""
        return value if shown is None or shown.every else value[..., shown.curves]

    def _noise_of_curve(self, values: Mapping[str, Any], xp: Any) -> Coordinate:
        return Coordinate(weight=self._of_shown(self.estimates.noise_weight, self.table.curvatures))

    def _slope_of_curve(self, values: Mapping[str, Any], xp: Any) -> Coordinate:
        known, shown = self.estimates, self.table.slopes
        own = {}
        for q in self.table.quantities:
            for ending in ("curve_or_mean", "curve", "expected"):
                if f"{q.name}_{ending}" in values:
                    own[q.name] = self._of_shown(values[f"{q.name}_{ending}"], shown)
                    break
        return Coordinate(
            offset=self.law.log_slope(own, xp),
            estimate=self._of_shown(known.curve_log_slope, shown),
            precision=self._of_shown(known.curve_slope_precision, shown)
            / self._of_shown(values["noise"], shown) ** 2,
        )

    def _drift_of_task(self, values: Mapping[str, Any], xp: Any) -> Coordinate:
        known, table = self.estimates.drift_task, self.table
        level = values["log_loss_ref_expected"][..., table.run_curve]
        left = table.log_loss - values["log_relative_loss"] - level
        curve_sd = values["drift_curve_sd"][..., None, None]
        noise = xp.exp(values["log_noise_task"]) ** 2
        if not table.repeated.every:
            own = "base_model_sd" if table.one_curve_per_base_model else "log_loss_ref_curve_sd"
            noise = noise + known.alone * values[own][..., None] ** 2
        variance = known.noise_variance * noise[..., None, :] + known.curve_variance * curve_sd**2
        return Coordinate(
            estimate=_least_squares(known, left),
            precision=known.known / variance,
        )

    def _drift_of_curve(self, values: Mapping[str, Any], xp: Any) -> Coordinate:
        known, table = self.estimates.drift_curve, self.table
        of_task = (values["drift_task"][..., table.run_task] * table.task_drift_basis).sum(axis=-2)
        left = table.log_loss - values["log_relative_loss"] - of_task
        noise = self._of_shown(values["noise"], table.curvatures)
        return Coordinate(
            estimate=_least_squares(known, left),
            precision=known.known / (known.noise_variance * noise[..., None, :] ** 2),
        )

    def _mean_of_curve(self, values: Mapping[str, Any], xp: Any, shown: Any) -> Coordinate:
        # A gather, not a matrix product: chains that run side by side must not share BLAS threads.
        known = self.estimates
        relative = values["log_relative_loss"] + values["drift"]
        relative = relative[..., known.runs_of_curve] * known.run_weight
        parts = (
            relative.sum(axis=-1), known.curve_log_loss, known.curve_runs / values["noise"] ** 2,
        )  # fmt: skip
        offset, estimate, precision = (self._of_shown(part, shown) for part in parts)
        return Coordinate(offset=offset, estimate=estimate, precision=precision)

    def _base_model(self, values: Mapping[str, Any], xp: Any) -> Coordinate:
        table = self.table
        if not table.one_curve_per_base_model:
            return Coordinate(weight=self.estimates.base_weight)
        at = table.curve_of_repeated_base
        of_curve = self._mean_of_curve(values, xp, None)
        return Coordinate(
            offset=(of_curve.offset + values["log_loss_ref_expected"])[..., at],
            estimate=of_curve.estimate[..., at],
            precision=of_curve.precision[..., at],
        )

    # ----------------------------------------------------------------- levels of groupings

    def _level(
        self, q: Quantity, g: Grouping | None, values: Mapping[str, Any], xp: Any
    ) -> Coordinate:
        """Return how a quantity of the levels of a grouping is sampled, or of the only cell."""
        above = g is not None and g.name != self.table.groupings[-1].name
        level = _Level(self, g, values, xp)
        multiplier: Any = 1.0
        offset: Any = 0.0
        weight: Any = WEAKLY_IDENTIFIED_ABOVE if above else WEAKLY_IDENTIFIED
        estimate = precision = None
        if q.name == "log_loss_ref":
            offset, weight = level.mean_of_curves(), 1.0
        elif q.name == "log_beta":
            offset = level.log_slope()
            weight = SLOPE_ABOVE if above else level.known.slope_weight
        elif q.name == self.law.exponent:
            multiplier, offset = level.multiplier_of_exponent(), level.slopes_in_factors()
            if above:
                weight = FACTOR_SLOPE_ABOVE
            else:
                estimate, precision = level.known.factor_slope, level.factor_slope_precision()
        elif q.name == "logit_data_share":
            offset, weight = level.log_curvature(), DATA_SHARE_ABOVE if above else DATA_SHARE
        if g is None:
            parts = (offset, multiplier, weight, estimate, precision)
            return Coordinate(*(_only(part) for part in parts))
        # The unknown is the effect of a level; what is sampled is its mean.
        return Coordinate(
            offset + multiplier * level.above(q.name), multiplier, weight, estimate, precision
        )


def _least_squares(known: DriftEstimates, left: Any) -> Any:
    """Return coefficients of drifts, from what is left of log losses, shape (..., runs)."""
    return (left[..., known.runs][..., None, :, :] * known.weight).sum(axis=-1)


def _only(part: Any) -> Any:
    """Return a part of a coordinate without the axis of levels, of which there is one."""
    return part if part is None or isinstance(part, float) else part[..., 0]


@dataclass(frozen=True)
class _Level:
    """What is known of the levels of a grouping when one of their quantities is declared."""

    geometry: Geometry
    grouping: Grouping | None
    values: Mapping[str, Any]
    xp: Any

    @property
    def known(self) -> LevelEstimates:
        g = self.grouping
        return self.geometry.estimates.levels["" if g is None else g.name]

    def above(self, name: str) -> Any:
        """Return the mean of a quantity before this grouping's effects, at its levels."""
        mean = self.values[f"{name}_mean"][..., None]
        if self.grouping is not None:
            for g in self.geometry.table.groupings:
                if g.name == self.grouping.name:
                    break
                mean = mean + self.values[f"{name}_{g.name}"][..., g.index]
        return mean

    def mean(self, name: str) -> Any:
        """Return the mean of a quantity at each level."""
        if self.grouping is None:
            return self.above(name)
        return self.above(name) + self.values[f"{name}_{self.grouping.name}"]

    def _means(self) -> dict[str, Any]:
        names = [q.name for q in self.geometry.table.quantities]
        last = "_mean" if self.grouping is None else f"_{self.grouping.name}"
        return {name: self.mean(name) for name in names if f"{name}{last}" in self.values}

    def multiplier_of_exponent(self) -> Any:
        """Return how far the exponent moves the slope of log loss in a factor."""
        moved = self.geometry.law.factor_slope(self._means(), self.xp)
        return self.xp.sqrt(moved**2 + LEAST_MULTIPLIER**2)

    def slopes_in_factors(self) -> Any:
        """Return slopes in the factors without the exponent's part: gamma, and of base models."""
        base = self.values.get("base_model_effect")
        if base is None:
            return self.mean("gamma")
        weights = self.known.slope_of_base
        shown = [(base @ weights[k])[..., None, :] for k in range(len(self.geometry.table.factors))]
        return self.mean("gamma") - self.xp.concatenate(shown, axis=-2)

    def factor_slope_precision(self) -> Any:
        """Return one over the squared error of the slopes in the factors."""
        sd = self.values.get("log_loss_ref_curve_sd")
        # Where a base model has one curve, the table's usual scatter stands for its effect's.
        sd = self.geometry.estimates.loss_scatter if sd is None else sd[..., None, None]
        return self.known.factor_slope_width / (sd**2 + self.known.noise_variance)

    def mean_of_curves(self) -> Any:
        """Return by what the mean log loss of a level's curves differs from its own."""
        base = self.values.get("base_model_effect")
        offset = 0.0 if base is None else base @ self.known.mean_of_base
        if not self.geometry.table.factors:
            return offset
        exponent = self.mean(self.geometry.law.exponent)
        slope = self.mean("gamma") + self.multiplier_of_exponent() * exponent
        return offset - (slope * self.known.centre).sum(axis=-2)

    def log_slope(self) -> Any:
        """Return by what the log of the local slope differs from that of beta."""
        offset = self.geometry.law.log_slope(self._means(), self.xp)
        if not self.geometry.table.factors:
            return offset
        return offset - (self.mean("delta") * self.known.centre).sum(axis=-2)

    def log_curvature(self) -> Any:
        """Return the log of the curvature at the reference, but for the data share's part."""
        floor = self.xp.exp(log_sigmoid(self.mean("logit_floor"), self.xp))
        return self.xp.log(self.known.curvature * (1.0 - floor) + floor)
