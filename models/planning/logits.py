"""Multinomial logistic regression of who wins, by Newton's method."""

from __future__ import annotations

import numpy as np
import scipy  # its parts are imported when they are used, which keeps start-up short

NEWTON_STEPS = 12
NEWTON_TOLERANCE = 1e-5  # nats; a step that gains less is the last


def winner_logits(predicted: np.ndarray, winner: np.ndarray) -> np.ndarray:
    """Return logits of who wins, regressed on predicted losses, shape (draws, winners).

    Parameters
    ----------
    predicted : ndarray, shape (draws, methods)
        Log losses of the methods as a batch predicts them.
    winner : ndarray of int, shape (draws,)
        Who wins, as a number among those that win in any draw.
    """
    n, classes = len(predicted), int(winner.max()) + 1
    relative = predicted - predicted.mean(axis=1, keepdims=True)
    spread = relative.std()
    features = np.column_stack([np.ones(n), relative / spread if spread > 0 else relative])
    width = features.shape[1]
    basis = np.zeros((n, classes, width * (classes - 1)))
    for j in range(1, classes):
        basis[:, j, (j - 1) * width : j * width] = features
    return _most_likely_logits(basis, np.zeros((n, classes)), winner)


def likelihood_gain(logits: np.ndarray, winner: np.ndarray, feature: np.ndarray) -> float:
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
    fitted = _most_likely_logits(basis, logits, winner)
    return _probabilities(fitted, winner)[1] - _probabilities(logits, winner)[1]


def score_test_information(
    logits: np.ndarray, winner: np.ndarray, features: np.ndarray
) -> np.ndarray:
    """Return `likelihood_gain` of each feature to the second order in its effect.

    Rao's score statistic of the feature's coefficients, by draw, taken for an R^2.

    Parameters
    ----------
    logits : ndarray, shape (draws, winners)
        So far.
    winner : ndarray of int, shape (draws,)
        Who wins.
    features : ndarray, shape (draws, features)
        Each on its own beside the logits, standardised.
    """
    draws = len(features)
    q = scipy.special.softmax(logits, axis=1)[:, 1:].astype(np.float32)
    n = q.shape[1]
    if n == 0:
        return np.zeros(features.shape[1])
    hit = winner[:, None] == np.arange(1, n + 1)
    score = (features.T @ (hit - q) / draws).astype(float)
    weight = np.eye(n, dtype=np.float32) * q[:, :, None] - q[:, :, None] * q[:, None, :]
    inside = (features * features).T @ weight.reshape(-1, n * n) / draws
    inside = inside.reshape(-1, n, n).astype(float) + 1e-9 * np.eye(n)
    solved = np.linalg.solve(inside, score[:, :, None])[:, :, 0]
    # Of one feature it is the share of variance between the winners, so at most 1.
    r2 = np.clip((score * solved).sum(axis=1), 0, 0.98)
    return -0.5 * np.log1p(-r2)


def _probabilities(logits: np.ndarray, winner: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the probability of each winner, and the mean log likelihood of those that won."""
    q = scipy.special.softmax(logits, axis=1)
    # By logarithms of the shares of those that won: far from zero but where q is hopeless.
    return q, float(np.log(np.maximum(q[np.arange(len(winner)), winner], 1e-300)).mean())


def _most_likely_logits(basis: np.ndarray, offset: np.ndarray, winner: np.ndarray) -> np.ndarray:
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
        if gained < NEWTON_TOLERANCE:
            break
    return logits
