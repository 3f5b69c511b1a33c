"""What an outcome tells, from importance weights of the posterior draws.

Each row of the weights is an outcome, simulated from one draw (its *own*); each column a draw,
weighted by the likelihood that it gives to the outcome.
"""

from __future__ import annotations

import numpy as np


def leave_own_out(weights: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return normalised weights without each outcome's own draw, and effective sample sizes.

    Parameters
    ----------
    weights : ndarray, shape (outcomes, draws)
        Importance weights.
    own : ndarray of int, shape (outcomes,)
        The draw that each outcome was simulated from.

    Returns
    -------
    normalised : ndarray, shape (outcomes, draws)
    ess : ndarray, shape (outcomes,)
    """
    others = weights.copy()
    others[np.arange(len(own)), own] = 0.0
    normalised = others / np.maximum(others.sum(axis=1, keepdims=True), 1e-300)
    return normalised, 1 / np.maximum((normalised**2).sum(axis=1), 1e-12)


def winner_information(weights: np.ndarray, own: np.ndarray, winner: np.ndarray) -> np.ndarray:
    """Return ``log p(y | winner) - log p(y)`` of each outcome.

    Averages with and without the outcome's own draw have opposite errors of the same first order,
    so their mean is used.

    Parameters
    ----------
    weights, own
        As in `leave_own_out`, the weights not normalised.
    winner : ndarray of int, shape (draws,)
        Who wins in each draw.
    """
    count = np.bincount(winner)
    present = np.flatnonzero(count)
    by_class = weights @ np.eye(len(count))[winner][:, present]
    here = np.searchsorted(present, winner[own])
    rows = np.arange(len(own))
    own_weight = weights[rows, own]
    same = by_class[rows, here]
    n_same, n = count[winner[own]], len(winner)
    every = by_class.sum(axis=1)
    with_own = np.log(same / n_same) - np.log(every / n)
    # The only draw of its class tells nothing of the class without itself.
    only_one = n_same == 1
    left = np.maximum(same - own_weight, 1e-300), np.maximum(n_same - 1, 1)
    without = np.log(left[0] / left[1]) - np.log(np.maximum(every - own_weight, 1e-300) / (n - 1))
    return np.where(only_one, 0.0, (with_own + without) / 2)


def continuous_information(
    normalised: np.ndarray, ess: np.ndarray, scores: np.ndarray, own: np.ndarray
) -> np.ndarray:
    """Return what each outcome tells about quantities, in nats.

    It is the entropy of the normal scores less that of the weighted draws, taken for normal ones;
    or for one quantity, if that is more, less the log score of a kernel density of the weighted
    draws at the outcome's own draw. Both are lower bounds, the first one for one quantity.

    Parameters
    ----------
    normalised, ess
        From `leave_own_out`.
    scores : ndarray, shape (draws, quantities)
        Normal scores of the quantities.
    own : ndarray of int, shape (outcomes,)
        The draw that each outcome was simulated from.
    """
    information = _normal_information(normalised, ess, scores)
    if scores.shape[1] == 1:
        kernel = _kernel_information(normalised, ess, scores[:, 0], own)
        more = kernel - information
        # The larger of two bounds, unless chance decides which one that is.
        if more.mean() > 4 * more.std() / np.sqrt(len(more)):
            return kernel
    return information


def _kernel_information(
    normalised: np.ndarray, ess: np.ndarray, scores: np.ndarray, own: np.ndarray
) -> np.ndarray:
    """Return log density after over before at each outcome's own draw, a standard normal before.

    The weights leave that draw out. The kernel is normal, of Silverman's bandwidth.
    """
    order = np.argsort(scores)
    ordered, below = scores[order], np.cumsum(normalised[:, order], axis=1)
    quartiles = [
        ordered[np.minimum((below < q).sum(axis=1), len(scores) - 1)] for q in (0.25, 0.75)
    ]
    mean = normalised @ scores
    sd = np.sqrt(np.maximum(normalised @ scores**2 - mean**2, 1e-12))
    robust = np.minimum(sd, (quartiles[1] - quartiles[0]) / 1.34 + 1e-3 * sd)
    width = (0.9 * robust * ess**-0.2)[:, None]
    at = scores[own]
    kernel = np.exp(-0.5 * ((at[:, None] - scores) / width) ** 2) / width
    # A little of the density before guards against a draw that no other is near to.
    density = 0.99 * (normalised * kernel).sum(axis=1) + 0.01 * np.exp(-0.5 * at**2)
    return np.log(density) + 0.5 * at**2


def _normal_information(normalised: np.ndarray, ess: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return half the log ratio of determinants, before over after, for each outcome."""
    width = scores.shape[1]
    mean = normalised @ scores
    products = (scores[:, :, None] * scores[:, None, :]).reshape(len(scores), -1)
    second = (normalised @ products).reshape(-1, width, width)
    after = second - mean[:, :, None] * mean[:, None, :]
    freedom = np.maximum(ess - 1, 0.5)
    after = after * (ess / freedom)[:, None, None]
    before = np.cov(scores, rowvar=False).reshape(width, width)
    ridge = 1e-9 * np.eye(width)
    ratio = np.linalg.slogdet(before + ridge)[1] - np.linalg.slogdet(after + ridge)[1]
    # The logarithm of an estimated variance is low by 1 / freedom.
    return 0.5 * (ratio - width / freedom)
