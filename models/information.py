"""Expected information gain from draws: what an outcome would tell about a goal, in nats.

A candidate run has an outcome ``y = f + noise``: ``f`` is its expected log loss, drawn jointly with
the goal, so that whatever the two share (a law's parameters, a checkpoint's effect, slope drift) is
integrated out and never conditioned on. Two estimators share one set of draws:

* `Nested`: nested Monte Carlo. An outcome is drawn from one draw and weighs all the others by
  their Student-t likelihood. Nothing is linearised, but the weights of a long batch fall on few
  draws; the effective sample size tells.
* `Regression`: the goal is regressed on normal scores of the outcomes. Given jointly normal draws
  it is exact. It conditions on one more run at a cost linear in draws times candidates, so it is
  what plans batches.

What a goal asks about comes in blocks (one for each target), and a gain is the mean over blocks of
the mutual information with each. So a target listed twice doubles nothing, and the figure is a
lower bound of the information about all blocks together.

References
----------
.. [1] Lindley 1956, On a Measure of the Information Provided by an Experiment.
.. [2] Rainforth, Cornish, Yang, Warrington 2018, On Nesting Monte Carlo Estimators,
   arXiv:1709.06181.
.. [3] Ince et al. 2017, A Statistical Framework for Neuroimaging Data Analysis Based on Mutual
   Information Estimated via a Gaussian Copula, section 3: the bound from normal scores.
.. [4] Leskovec et al. 2007, Cost-effective Outbreak Detection in Networks, section 3: greedy choice
   under costs, and the bound on how far the best batch may lie above it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy  # its parts are imported when they are used, which keeps start-up short

from tunecast.models.predict import spread_out

GROUPS = 10  # of draws, for jackknife standard errors
OUTER = 1000  # outcomes of nested Monte Carlo
# A nested estimate needs so many effective draws: with fewer it is low, and its error does not say.
ENOUGH = 30
NEWTON_STEPS, NEWTON_GAIN = 12, 1e-5  # of regressed logits; the gain in nats that ends them
SETTLED = 0.01  # the share of draws in which a settled contest goes the other way
NOISE_DRAWS = 200  # over which the distribution of run noise is averaged
WORTH = 1e-3  # nats; a run that adds less is not made unless there is a budget to spend

type Array = np.ndarray


@dataclass(frozen=True)
class Outcomes:
    """What candidate runs would show.

    Parameters
    ----------
    expected : ndarray, shape (draws, candidates)
        Expected log loss.
    scale : ndarray, shape (draws, candidates)
        Scale of run noise on log loss; of the mean over replicates where there are several.
    df : ndarray, shape (draws,)
        Degrees of freedom of the noise; infinity for normal noise.
    """

    expected: Array
    scale: Array
    df: Array

    def take(self, draws: Array | slice, candidates: Array | slice = slice(None)) -> Outcomes:
        """Return some draws of some candidates."""
        return Outcomes(
            self.expected[draws][:, candidates], self.scale[draws][:, candidates], self.df[draws]
        )

    @cached_property
    def noise_variance(self) -> Array:
        """Variance of the normal noise that hides as much, shape (candidates,).

        It has the entropy of the noise of all draws together, heavy tails and an uncertain scale
        included: where noise is small against what it hides, information goes by that alone.
        """
        at = spread_out(len(self.df), NOISE_DRAWS)
        unit = np.exp(np.log(self.scale[at]).mean(axis=0))
        grid = np.linspace(-9.0, 7.0, 97)  # of log |noise| over its unit
        x = np.exp(grid)[:, None] * unit
        density = sum(np.exp(log_student(x, self.scale[s], self.df[s])) for s in at) / len(at)
        mass = 2 * np.trapezoid(density * x, grid, axis=0)
        density /= mass
        entropy = -2 * np.trapezoid(density * np.log(density + 1e-300) * x, grid, axis=0)
        return np.exp(2 * entropy) / (2 * np.pi * np.e)


@dataclass(frozen=True)
class Values:
    """A goal of numbers: losses at targets, or parameters of cells.

    Parameters
    ----------
    blocks : tuple of ndarray, shape (draws, quantities) each
        What is asked; only the order of the draws of a quantity matters.
    """

    blocks: tuple[Array, ...]

    def take(self, draws: Array | slice) -> Values:
        """Return some draws."""
        return Values(tuple(b[draws] for b in self.blocks))


@dataclass(frozen=True)
class Contests:
    """A goal of winners: which of several log losses is the lowest, at each target.

    Parameters
    ----------
    blocks : tuple of ndarray, shape (draws, methods) each
        Expected log losses at each target.
    """

    blocks: tuple[Array, ...]

    def take(self, draws: Array | slice) -> Contests:
        """Return some draws."""
        return Contests(tuple(b[draws] for b in self.blocks))

    def entropy(self) -> float:
        """Return the entropy of who wins in nats, the mean over targets: all there is to tell."""
        shares = [np.bincount(winners(b)) / len(b) for b in self.blocks]
        return float(np.mean([-(p * np.log(p)).sum() for p in shares]))


type Goal = Values | Contests


def normal_scores(values: Array) -> Array:
    """Return each column's ranks as quantiles of a standard normal, shape as ``values``."""
    order = values.argsort(axis=0).argsort(axis=0)
    n = len(values)
    # A column without spread has no ranks to speak of.
    spread = values.max(axis=0) > values.min(axis=0)
    return np.where(spread, scipy.special.ndtri((order + 0.5) / n), 0.0)


def log_student(residual: Array, scale: Array, df: Array) -> Array:
    """Return the log density of Student-t noise, or of normal noise where ``df`` is infinite."""
    infinite = np.isinf(df)
    nu = np.where(infinite, 1.0, df)
    z2 = (residual / scale) ** 2
    constant = (
        scipy.special.gammaln((nu + 1) / 2)
        - scipy.special.gammaln(nu / 2)
        - 0.5 * np.log(np.pi * nu)
    )
    student = constant - (nu + 1) / 2 * np.log1p(z2 / nu)
    normal = -0.5 * (z2 + np.log(2 * np.pi))
    return np.where(infinite, normal, student) - np.log(scale)


# --------------------------------------------------------------------------- nested Monte Carlo


@dataclass(frozen=True)
class Estimate:
    """A gain with its Monte Carlo standard error, in nats, and the draws behind it.

    Parameters
    ----------
    gain, error : float
        Mutual information and standard error.
    ess : float
        Effective number of posterior draws that an outcome leaves (the median over outcomes);
        NaN for an estimator without weights.
    """

    gain: float
    error: float
    ess: float = np.nan


class Nested:
    """Nested Monte Carlo over a growing batch: what its outcomes tell about a goal, in all.

    The outcome drawn from draw ``o`` weighs every draw ``s`` by the likelihood of that outcome.
    For winners the gain is the mean of ``log p(y | winner) - log p(y)`` [2]_. Averages with and
    without ``s = o`` have opposite errors of the same first order, so their mean is used. For
    values it is the entropy of the normal scores less that of the weighted draws, taken for normal
    ones; or for one quantity, if that is more, less the log score of a kernel density of the
    weighted draws at draw ``o``. Both are lower bounds, the first one for one quantity.

    Parameters
    ----------
    outcomes : Outcomes
        Of all candidates.
    goal : Values or Contests
        What is asked.
    rng : numpy.random.Generator
        Draws the noise of the outcomes.
    outer : int
        How many outcomes are drawn.
    """

    def __init__(
        self, outcomes: Outcomes, goal: Goal, rng: np.random.Generator, outer: int = OUTER
    ) -> None:
        self.outcomes, self.goal, self.rng = outcomes, goal, rng
        draws = len(outcomes.df)
        self.at = spread_out(draws, outer)
        self.log_weight = np.zeros((len(self.at), draws), dtype=np.float32)
        # All draws, and all but each group of them.
        self._folds = [np.arange(draws), *_without_groups(draws)]
        self._scores = goal.blocks if isinstance(goal, Contests) else _scores_of(goal)
        self._known = np.zeros(len(self._folds))  # nats in the batch so far, by fold

    def gain(self, candidate: int) -> Estimate:
        """Return what one more run would add to the batch."""
        return self._estimate(self._weighed(candidate))[0]

    def add(self, candidate: int) -> Estimate:
        """Put a run into the batch, for good, and return what it adds."""
        self.log_weight = self._weighed(candidate)
        estimate, self._known = self._estimate(self.log_weight)
        return estimate

    def _weighed(self, candidate: int) -> Array:
        f, scale = self.outcomes.expected[:, candidate], self.outcomes.scale[:, candidate]
        df = self.outcomes.df
        own_df = df[self.at]
        noise = self.rng.standard_normal(len(self.at))
        finite = np.isfinite(own_df)
        noise[finite] /= np.sqrt(self.rng.chisquare(own_df[finite]) / own_df[finite])
        y = f[self.at] + scale[self.at] * noise
        return self.log_weight + log_student(y[:, None] - f, scale, df)

    def _estimate(self, log_weight: Array) -> tuple[Estimate, Array]:
        weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True)).astype(float)
        found = [self._evaluate(weight, kept) for kept in self._folds]
        told = np.array([f[0] for f in found])
        difference = told - self._known
        error = float(np.sqrt(np.var(difference[1:]) * (GROUPS - 1)))
        return Estimate(float(difference[0]), error, found[0][1]), told

    def _evaluate(self, weight: Array, kept: Array) -> tuple[float, float]:
        """Return the batch's gain and effective sample size, from some of the draws."""
        rows = np.flatnonzero(np.isin(self.at, kept))
        weight = weight[np.ix_(rows, kept)]
        at = np.searchsorted(kept, self.at[rows])
        own = weight[np.arange(len(at)), at]
        others = weight.copy()
        others[np.arange(len(at)), at] = 0.0
        share = others / np.maximum(others.sum(axis=1, keepdims=True), 1e-300)
        ess = 1 / np.maximum((share**2).sum(axis=1), 1e-12)
        if isinstance(self.goal, Contests):
            won = [b[kept].argmin(axis=1) for b in self.goal.blocks]
            told = [float(_class_terms(weight, own, w, at).mean()) for w in won]
        else:
            told = [_value_gain(share, ess, g[kept], at) for g in self._scores]
        return float(np.mean(told)), float(np.median(ess))


def _scores_of(goal: Values) -> tuple[Array, ...]:
    return tuple(normal_scores(b) for b in goal.blocks)


def _without_groups(draws: int) -> list[Array]:
    """Return the draws that are left when each of `GROUPS` consecutive groups is taken out."""
    edges = np.linspace(0, draws, GROUPS + 1).astype(int)
    return [np.r_[0:low, high:draws] for low, high in itertools.pairwise(edges)]


def _class_terms(weight: Array, own: Array, winner: Array, at: Array) -> Array:
    """Return ``log p(y | winner) - log p(y)`` of each outcome, its own draw half counted."""
    count = np.bincount(winner)
    present = np.flatnonzero(count)
    by_class = weight @ np.eye(len(count))[winner][:, present]
    here = np.searchsorted(present, winner[at])
    same = by_class[np.arange(len(at)), here]
    n_same, n = count[winner[at]], len(winner)
    every = by_class.sum(axis=1)
    with_own = np.log(same / n_same) - np.log(every / n)
    # The only draw of its class tells nothing of the class without itself.
    alone = n_same == 1
    left = np.maximum(same - own, 1e-300), np.maximum(n_same - 1, 1)
    without = np.log(left[0] / left[1]) - np.log(np.maximum(every - own, 1e-300) / (n - 1))
    return np.where(alone, 0.0, (with_own + without) / 2)


def _value_gain(share: Array, ess: Array, scores: Array, at: Array) -> float:
    found = _value_terms(share, ess, scores)
    if scores.shape[1] == 1:
        kernel = _kernel_terms(share, ess, scores[:, 0], at)
        more = kernel - found
        # The larger of two bounds, unless chance decides which one that is.
        if more.mean() > 4 * more.std() / np.sqrt(len(more)):
            found = kernel
    return float(found.mean())


def _kernel_terms(share: Array, ess: Array, scores: Array, at: Array) -> Array:
    """Return log density after over before at each outcome's own draw, a standard normal before.

    The weights leave that draw out. The kernel is normal, of Silverman's bandwidth.
    """
    order = np.argsort(scores)
    ordered, below = scores[order], np.cumsum(share[:, order], axis=1)
    middle = [ordered[np.minimum((below < q).sum(axis=1), len(scores) - 1)] for q in (0.25, 0.75)]
    mean = share @ scores
    sd = np.sqrt(np.maximum(share @ scores**2 - mean**2, 1e-12))
    robust = np.minimum(sd, (middle[1] - middle[0]) / 1.34 + 1e-3 * sd)
    width = (0.9 * robust * ess**-0.2)[:, None]
    own = scores[at]
    kernel = np.exp(-0.5 * ((own[:, None] - scores) / width) ** 2) / width
    # A little of the density before guards against a draw that no other is near to.
    density = 0.99 * (share * kernel).sum(axis=1) + 0.01 * np.exp(-0.5 * own**2)
    return np.log(density) + 0.5 * own**2


def _value_terms(share: Array, ess: Array, scores: Array) -> Array:
    """Return half the log ratio of determinants, before over after, for each outcome."""
    width = scores.shape[1]
    mean = share @ scores
    products = (scores[:, :, None] * scores[:, None, :]).reshape(len(scores), -1)
    second = (share @ products).reshape(-1, width, width)
    after = second - mean[:, :, None] * mean[:, None, :]
    freedom = np.maximum(ess - 1, 0.5)
    after = after * (ess / freedom)[:, None, None]
    before = np.cov(scores, rowvar=False).reshape(width, width)
    ridge = 1e-9 * np.eye(width)
    ratio = np.linalg.slogdet(before + ridge)[1] - np.linalg.slogdet(after + ridge)[1]
    # The logarithm of an estimated variance is low by 1 / freedom.
    return 0.5 * (ratio - width / freedom)


# --------------------------------------------------------------------------- regression


@dataclass(frozen=True)
class Regression:
    """What a batch's outcomes tell, by regression of the goal on their normal scores.

    A pivoted Cholesky factorisation that adds one run at a time: `given` costs draws times
    candidates. Fantasies, one for each draw, stand for the outcomes of the batch; they are joint,
    so that what two runs share counts once.

    Values are regressed linearly: ``-log(1 - R^2) / 2`` for one quantity, a lower bound [3]_ but
    for the noise, which is taken for normal noise of the same entropy. Winners are regressed by
    multinomial logits: ``E[log q(winner | y)] + H(winner)``, a lower bound whatever ``q`` is
    (Barber and Agakov 2003). What ``q`` knows of the batch are the log losses that a linear
    regression on its outcomes expects: no more numbers for a long batch than for a short one. From
    both is taken what chance alone gives.

    Parameters
    ----------
    scores : ndarray, shape (draws, candidates)
        Normal scores of expected log losses, float32.
    noise : ndarray, shape (candidates,)
        Variance of run noise in units of the scores.
    goal : Values or Contests
        What is asked: normal scores of values, log losses of contests.
    fresh : ndarray, shape (draws, runs)
        Standard normal noise of the outcomes, one column for each run that may yet be added; all
        candidates share it, so that they are compared on the same luck.
    variance : ndarray, shape (candidates,)
        Of the scores, given the batch.
    cross : ndarray, shape (candidates, quantities)
        Covariances with the quantities of the goal, given the batch.
    covariance : ndarray, shape (quantities, quantities)
        Of the goal's quantities, given the batch.
    loads : tuple of ndarray, shape (candidates,)
        Covariances of candidates with each innovation of the batch.
    innovations : ndarray, shape (draws, runs in the batch)
        Fantasies, standardised and independent.
    means : tuple of ndarray, shape (draws, methods)
        For contests: log losses less their mean over draws, as regressed on the batch.
    logits : tuple of ndarray, shape (draws, winners)
        For contests: of ``q``, at each target.
    """

    scores: Array
    noise: Array
    goal: Goal
    fresh: Array
    variance: Array
    cross: Array
    covariance: Array
    loads: tuple[Array, ...]
    innovations: Array
    means: tuple[Array, ...]
    logits: tuple[Array, ...]

    @property
    def draws(self) -> int:
        """Number of draws."""
        return len(self.scores)

    def given(self, candidate: int) -> Regression:
        """Return the same with one more run in the batch."""
        e = self.innovation(np.array([candidate]))
        spread = np.sqrt(self.variance[candidate] + self.noise[candidate])
        load = self.scores[:, candidate] @ self.scores / self.draws
        for done in self.loads:
            load = load - done * done[candidate]
        load = load / spread
        asked = self.cross[candidate] / spread
        means, logits = self.means, self.logits
        if isinstance(self.goal, Contests):
            means = tuple(
                mean + e * (e[:, 0] @ (block - block.mean(axis=0)) / self.draws)
                for mean, block in zip(means, self.goal.blocks, strict=True)
            )
            logits = tuple(
                _logits(mean, winners(block))
                for mean, block in zip(means, self.goal.blocks, strict=True)
            )
        return replace(
            self,
            fresh=self.fresh[:, 1:],
            variance=np.maximum(self.variance - load**2, 0.0),
            cross=self.cross - load[:, None] * asked,
            covariance=self.covariance - np.outer(asked, asked),
            loads=(*self.loads, load),
            innovations=np.column_stack([self.innovations, e]),
            means=means,
            logits=logits,
        )

    def gains(self, candidates: Array) -> Array:
        """Return what each candidate would add to the batch, in nats, shape (candidates,)."""
        if isinstance(self.goal, Values):
            return self._value_gains(self.goal, candidates)
        e = self.innovation(candidates)
        total = np.zeros(len(candidates))
        for block, logits in zip(self.goal.blocks, self.logits, strict=True):
            winner = winners(block)
            chance = (logits.shape[1] - 1) / (2 * self.draws)
            for i in range(len(candidates)):
                total[i] += _added(logits, winner, e[:, i]) - chance
        return total / len(self.goal.blocks)

    def screen(self) -> Array:
        """Return the gain of every candidate, for winners to the second order in its effect.

        For winners: Rao's score statistic of the candidate's coefficients, by draw, taken for an
        R^2.
        """
        everyone = np.arange(len(self.noise))
        if isinstance(self.goal, Values):
            return self._value_gains(self.goal, everyone)
        e = self.innovation(everyone)
        squares = e * e
        total = np.zeros(len(everyone))
        for block, logits in zip(self.goal.blocks, self.logits, strict=True):
            q = scipy.special.softmax(logits, axis=1)[:, 1:].astype(np.float32)
            n = q.shape[1]
            if n == 0:
                continue
            hit = winners(block)[:, None] == np.arange(1, n + 1)
            score = (e.T @ (hit - q) / self.draws).astype(float)
            weight = np.eye(n, dtype=np.float32) * q[:, :, None] - q[:, :, None] * q[:, None, :]
            inside = squares.T @ weight.reshape(-1, n * n) / self.draws
            inside = inside.reshape(-1, n, n).astype(float) + 1e-9 * np.eye(n)
            solved = np.linalg.solve(inside, score[:, :, None])[:, :, 0]
            # Of one feature it is the share of variance between the winners, so at most 1.
            share = np.clip((score * solved).sum(axis=1), 0, 0.98)
            total += -0.5 * np.log1p(-share) - n / (2 * self.draws)
        return total / len(self.goal.blocks)

    def right_winner(self) -> Array:
        """Return the probability that the winner named is the right one, at each target."""
        return np.array(
            [scipy.special.softmax(logits, axis=1).max(axis=1).mean() for logits in self.logits]
        )

    def regret(self) -> Array:
        """Return by how many nats the method named exceeds the best, on average, at each target.

        Named is the method of the lowest loss as regressed on the batch's outcomes, or the most
        probable winner, whichever rule pays less: the best rule pays no more than either.
        """
        assert isinstance(self.goal, Contests)
        found = []
        for block, means, logits in zip(self.goal.blocks, self.means, self.logits, strict=True):
            losses = np.exp(block)
            lowest = (means + block.mean(axis=0)).argmin(axis=1)
            likeliest = np.unique(block.argmin(axis=1))[logits.argmax(axis=1)]
            paid = [losses[np.arange(self.draws), named].mean() for named in (lowest, likeliest)]
            found.append(min(paid) - losses.min(axis=1).mean())
        return np.array(found)

    def innovation(self, candidates: Array) -> Array:
        """Return outcomes less what the batch tells of them, standardised, (draws, candidates)."""
        y = self.scores[:, candidates] + self.fresh[:, :1] * np.sqrt(
            self.noise[candidates], dtype=np.float32
        )
        if self.loads:
            y -= self.innovations @ np.array(self.loads, dtype=np.float32)[:, candidates]
        spread = np.sqrt(self.variance[candidates] + self.noise[candidates])
        return y / np.maximum(spread, 1e-12).astype(np.float32)

    def _value_gains(self, goal: Values, candidates: Array) -> Array:
        spread = np.maximum(self.variance[candidates] + self.noise[candidates], 1e-24)
        total = np.zeros(len(candidates))
        end = 0
        for width in (b.shape[1] for b in goal.blocks):
            block = slice(end, end := end + width)
            c = self.cross[candidates, block]
            # Sums of squares can leave a variance of zero a rounding error below it.
            inside = self.covariance[block, block] + 1e-6 * np.eye(width)
            r2 = (c * np.linalg.solve(inside, c.T).T).sum(axis=1) / spread
            # Covariances from so many draws are never quite zero.
            chance = width * self.variance[candidates] / spread / self.draws
            r2 = np.clip((r2 - chance) / (1 - chance), -1, 1 - 1e-9)
            total -= 0.5 * np.log1p(-r2)
        return total / len(goal.blocks)


def differences(goal: Contests) -> Values:
    """Return what decides contests: differences of log losses whose sign is not settled.

    Of each two methods at each target, unless one beats the other in all but `SETTLED` of the
    draws; if all are as good as settled, of those that are least so. Information about them is
    easier to estimate than that about the winner, which falls to zero where one run alone changes
    no verdict, though two together would.
    """
    apart = [
        block[:, [a]] - block[:, [b]]
        for block in goal.blocks
        for a, b in itertools.combinations(range(block.shape[1]), 2)
    ]
    first = [float((x < 0).mean()) for x in apart]
    doubt = np.minimum(first, 1 - np.array(first))
    return Values(
        tuple(x for x, d in zip(apart, doubt, strict=True) if d >= min(SETTLED, doubt.max()))
    )


def winners(losses: Array) -> Array:
    """Return which method wins in each draw, as a number among those that win in any."""
    return np.unique(losses.argmin(axis=1), return_inverse=True)[1]


def regression(
    outcomes: Outcomes, goal: Goal, rng: np.random.Generator, runs: int = 1
) -> Regression:
    """Return the regression estimator before any run is chosen.

    Parameters
    ----------
    outcomes : Outcomes
        Of all candidates.
    goal : Values or Contests
        What is asked.
    rng : numpy.random.Generator
        Draws the noise of the fantasies.
    runs : int
        How many runs will be added at most.
    """
    z = normal_scores(outcomes.expected)
    noise = outcomes.noise_variance / _unit(outcomes.expected) ** 2
    n = len(z)
    scores = z.astype(np.float32)
    asked = np.empty((n, 0))
    means: tuple[Array, ...] = ()
    logits: tuple[Array, ...] = ()
    if isinstance(goal, Values):
        asked = np.column_stack(_scores_of(goal))
    else:
        means = tuple(np.zeros(b.shape) for b in goal.blocks)
        logits = tuple(_logits(m, winners(b)) for m, b in zip(means, goal.blocks, strict=True))
    return Regression(
        scores=scores,
        noise=noise,
        goal=goal,
        # One more, for asking what a run would add to the whole batch.
        fresh=rng.standard_normal((n, runs + 1)).astype(np.float32),
        variance=(scores**2).mean(axis=0).astype(float),
        cross=(scores.T @ asked.astype(np.float32) / n).astype(float),
        covariance=asked.T @ asked / n,
        loads=(),
        innovations=np.empty((n, 0), dtype=np.float32),
        means=means,
        logits=logits,
    )


def _unit(values: Array) -> Array:
    """Return what a unit of the normal scores is in each column, the geometric mean over draws.

    That mean is what the entropies of a column and of its scores differ by; for normal draws it is
    the standard deviation.
    """
    n = len(values)
    step = max(1, n // 50)
    score = scipy.special.ndtri((np.arange(n) + 0.5) / n)
    ordered = np.sort(values, axis=0)
    slope = (ordered[step:] - ordered[:-step]) / (score[step:] - score[:-step])[:, None]
    # The logarithm of a sum of spacings, which is Gamma distributed, is low by as much.
    low = scipy.special.digamma(step) - np.log(step)
    return np.exp(np.log(np.maximum(slope, 1e-9)).mean(axis=0) - low)


def _probabilities(logits: Array, winner: Array) -> tuple[Array, float]:
    """Return the probability of each winner, and the mean log likelihood of those that won."""
    q = scipy.special.softmax(logits, axis=1)
    # By logarithms of the shares of those that won: far from zero but where q is hopeless.
    return q, float(np.log(np.maximum(q[np.arange(len(winner)), winner], 1e-300)).mean())


def _newton(basis: Array, offset: Array, winner: Array) -> Array:
    """Return logits ``offset + basis @ coefficients`` of the highest likelihood.

    Parameters
    ----------
    basis : ndarray, shape (draws, winners, coefficients)
        How each coefficient enters the logit of each winner.
    offset : ndarray, shape (draws, winners)
        Logits to start from.
    winner : ndarray of int, shape (draws,)
        Who won.
    """
    n, _, width = basis.shape
    if width == 0:
        return offset
    hit = np.eye(offset.shape[1])[winner]
    flat = basis.reshape(-1, width)
    logits = offset
    q, best = _probabilities(logits, winner)
    # A slight ridge keeps coefficients finite where winners are separated perfectly.
    coefficients, ridge = np.zeros(width), 1e-6
    for _ in range(NEWTON_STEPS):
        gradient = flat.T @ (hit - q).ravel() / n - ridge * coefficients
        weighted = (basis * q[:, :, None]).reshape(-1, width)
        mean = weighted.reshape(n, -1, width).sum(axis=1)
        hessian = (flat.T @ weighted - mean.T @ mean) / n + ridge * np.eye(width)
        step = np.linalg.solve(hessian, gradient)
        for length in (1.0, 0.3, 0.1):
            new = coefficients + length * step
            trial = offset + (flat @ new).reshape(offset.shape)
            trial_q, reached = _probabilities(trial, winner)
            if reached > best:
                break
        else:
            break
        coefficients, logits, q, gained, best = new, trial, trial_q, reached - best, reached
        if gained < NEWTON_GAIN:
            break
    return logits


def _logits(means: Array, winner: Array) -> Array:
    """Return multinomial logits of who wins, regressed on the methods' means, (draws, winners)."""
    n, classes = len(means), int(winner.max()) + 1
    apart = means - means.mean(axis=1, keepdims=True)
    spread = apart.std()
    features = np.column_stack([np.ones(n), apart / spread if spread > 0 else apart])
    width = features.shape[1]
    basis = np.zeros((n, classes, width * (classes - 1)))
    for j in range(1, classes):
        basis[:, j, (j - 1) * width : j * width] = features
    return _newton(basis, np.zeros((n, classes)), winner)


def _added(logits: Array, winner: Array, feature: Array) -> float:
    """Return what one more feature adds to the mean log likelihood of the winners.

    The logits so far are stretched by a common factor, because knowing more makes them surer, and
    get an intercept and a slope each.
    """
    n, classes = logits.shape
    basis = np.zeros((n, classes, 2 * classes - 1))
    for j in range(1, classes):
        basis[:, j, j - 1] = feature
        basis[:, j, classes + j - 2] = 1.0
    basis[:, :, -1] = logits
    fitted = _newton(basis, logits, winner)
    return _probabilities(fitted, winner)[1] - _probabilities(logits, winner)[1]


# --------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Batch:
    """Runs in the order chosen, and how good the choice is at least.

    Parameters
    ----------
    chosen : tuple of int
        Candidates in order.
    gains : tuple of float
        What each adds to those before it, in nats, as estimated while choosing.
    rule : {"gain per cost", "gain"}
        By what they were chosen; both are tried and the better batch is kept [4]_.
    share_of_best : float
        The batch's gain over an upper bound of that of any batch of the same budget (online bound
        of [4]_), which holds if gains diminish as the batch grows.
    risen : int
        How often a candidate was found to add more than a step earlier: where two runs
        complement one another, gains do not diminish.
    """

    chosen: tuple[int, ...]
    gains: tuple[float, ...]
    rule: str
    share_of_best: float
    risen: int


def choose(start: Regression, costs: Array, budget: float, runs: int, groups: Array) -> Batch:
    """Return the better of two greedy batches within a budget.

    Parameters
    ----------
    start : Regression
        Before any run.
    costs : ndarray, shape (candidates,)
        Cost of each candidate, in the unit of the budget.
    budget : float
        What the batch may cost. It is spent while any run tells more than chance would; if it is
        infinite, the batch ends where the next run would add less than `WORTH`.
    runs : int
        How many runs it may have.
    groups : ndarray of int, shape (candidates,)
        Candidates of one group are the same run, which is bought once.
    """
    found = [
        _greedy(start, costs, budget, runs, groups, rule) for rule in ("gain per cost", "gain")
    ]
    return max(found, key=lambda batch: sum(batch.gains))


def _greedy(
    start: Regression, costs: Array, budget: float, runs: int, groups: Array, rule: str
) -> Batch:
    n = len(costs)
    weight = 1 / costs if rule == "gain per cost" else np.ones(n)
    # Without a budget to spend, a batch ends where it is no longer worth it.
    least = WORTH if np.isinf(budget) else 0.0
    state, left = start, budget
    open_ = np.ones(n, dtype=bool)
    before = np.full(n, np.inf)
    chosen: list[int] = []
    gains: list[float] = []
    risen = 0
    while True:
        now = state.gains(np.arange(n))
        # A hundredth of a nat is beyond the noise between two evaluations of one candidate.
        risen += int((now > before + 0.01).sum())
        before = now
        open_ &= costs <= left
        worth = np.where(open_ & (now > least), now * weight, -np.inf)
        best = int(worth.argmax())
        if len(chosen) == runs or np.isinf(worth[best]):
            break
        chosen.append(best)
        gains.append(float(now[best]))
        left -= costs[best]
        open_[groups == groups[best]] = False
        state = state.given(best)
    total = sum(gains)
    rest = _affordable(now, costs, budget, ~np.isin(groups, groups[chosen]))
    share = total / (total + rest) if total > 0 else np.nan
    return Batch(tuple(chosen), tuple(gains), rule, share, risen)


def _affordable(gains: Array, costs: Array, budget: float, among: Array) -> float:
    """Return the largest sum of gains within a budget when runs can be bought in part."""
    at = np.flatnonzero(among & (gains > 0) & np.isfinite(gains) & (costs <= budget))
    at = at[np.argsort(-gains[at] / costs[at])]
    spent = np.cumsum(costs[at])
    part = np.clip((budget - (spent - costs[at])) / costs[at], 0, 1)
    return float((gains[at] * part).sum())


def along(
    outcomes: Outcomes, goal: Goal, chosen: Sequence[int], seed: int, jackknife: bool = True
) -> list[Estimate]:
    """Return the gain of each run of a batch given those before it.

    Standard errors come from a jackknife over consecutive groups of draws, so that neighbouring
    draws of a chain may be alike; without it they are NaN. Near a gain of 0, where it is of second
    order in what chance gives and a jackknife sees too little, they are at least those of a
    chi-squared over twice the draws.
    """
    few = outcomes.take(slice(None), np.asarray(chosen, dtype=int))
    gains = _gains_along(few, goal, seed)
    if not jackknife:
        return [Estimate(float(g), np.nan) for g in gains]
    left_out = [
        _gains_along(few.take(kept), goal.take(kept), seed) for kept in _without_groups(len(few.df))
    ]
    freedom = max(
        b.shape[1] if isinstance(goal, Values) else int(winners(b).max()) for b in goal.blocks
    )
    least = np.sqrt(freedom / 2) / len(few.df)
    errors = np.hypot(np.sqrt(np.var(left_out, axis=0) * (GROUPS - 1)), least)
    return [Estimate(float(g), float(e)) for g, e in zip(gains, errors, strict=True)]


def _gains_along(few: Outcomes, goal: Goal, seed: int) -> Array:
    runs = few.expected.shape[1]
    state = regression(few, goal, np.random.default_rng([seed, 3]), runs)
    gains = np.empty(runs)
    for i in range(runs):
        gains[i] = state.gains(np.array([i]))[0]
        state = state.given(i)
    return gains


def nested_along(
    outcomes: Outcomes,
    goal: Goal,
    chosen: Sequence[int],
    rng: np.random.Generator,
    outer: int = OUTER,
) -> list[Estimate]:
    """Return the same gains by nested Monte Carlo, NaN from where fewer than `ENOUGH` draws count.

    Outcomes narrow a posterior down, and soon no draw of it is close to a whole batch of them.
    """
    nested = Nested(outcomes, goal, rng, outer)
    found: list[Estimate] = []
    for candidate in chosen:
        estimate = nested.add(candidate)
        if estimate.ess < ENOUGH:
            break
        found.append(estimate)
    return found + [Estimate(np.nan, np.nan)] * (len(chosen) - len(found))
