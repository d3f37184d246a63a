# SPDX-License-Identifier: Apache-2.0
"""Gaussian-process regression for the few dozen trials of a search, in numpy alone.

One process for each figure: a Matérn kernel of order 5/2 with a length for each feature, and noise.
Lengths and noise maximize the posterior: the lengths' prior grows with the number of features, so
that a process with more features than trials is a smooth one, not a forgetful one (Hvarfner et al.
2024, arXiv:2402.02229, section 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_STEPS = 60
_STEP_FIRST, _STEP_LEAST, _STEP_MOST = 0.3, 1e-3, 0.8
_GROW, _SHRINK = 1.2, 0.5
"""Of the step of each parameter while its gradient keeps its sign, or not (Rprop)."""
_NOISE_PRIOR = (-4.0, 1.0)
"""Mean and deviation of the logarithm of the noise's share of the variance: some 2 %."""
_BOUNDS = (-7.0, 7.0)
"""Of all logarithms."""
_JITTER = 1e-8


@dataclass(frozen=True)
class Process:
    """A fitted process; what it says is in the figures' own units."""

    features: Array
    """[trials, features], of those that it learned from."""
    lengths: Array
    noise: float
    """Share of the variance."""
    weights: Array
    inverse: Array
    """Of the covariance of the trials."""
    mean: float
    scale: float

    def predict(self, features: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the noiseless figure for each row."""
        k = _kernel(features, self.features, self.lengths)[0]
        variance = 1.0 - np.einsum("ij,jk,ik->i", k, self.inverse, k)
        deviation = np.sqrt(np.maximum(variance, 1e-10))
        return self.mean + self.scale * (k @ self.weights), self.scale * deviation

    def believing(self, features: Array) -> Process:
        """The same process after trials at `features` that give just what it expects of them: near
        them it is surer, elsewhere it thinks as before (Ginsbourger et al. 2010, Kriging Believer).
        """
        if not len(features):
            return self
        expected = (self.predict(features)[0] - self.mean) / self.scale
        known = _kernel(self.features, self.features, self.lengths)[0]
        known = (known + (self.noise + _JITTER) * np.eye(len(known))) @ self.weights
        return _conditioned(
            np.vstack([self.features, features]),
            np.concatenate([known, expected]),
            self.lengths,
            noise=self.noise,
            mean=self.mean,
            scale=self.scale,
        )


def fit(features: Array, figures: Array) -> Process:
    """The process that explains the figures best.

    Args:
        features: [trials, features], each feature between 0 and 1.
        figures: [trials], finite; at least one.
    """
    mean = float(figures.mean())
    scale = float(figures.std()) or 1.0
    y = (figures - mean) / scale
    count = features.shape[1]
    # Lengths first, noise last; all as logarithms.
    prior_mean = np.full(count + 1, math.sqrt(2) + math.log(max(1, count)) / 2)
    prior_deviation = np.full(count + 1, math.sqrt(3))
    prior_mean[-1], prior_deviation[-1] = _NOISE_PRIOR
    theta = prior_mean.copy()
    best, best_theta = -math.inf, theta
    step = np.full(count + 1, _STEP_FIRST)
    before = np.zeros(count + 1)
    for _ in range(_STEPS):
        value, gradient = _evidence(features, y, theta)
        away = (theta - prior_mean) / prior_deviation
        value -= 0.5 * float(away @ away)
        gradient = gradient - away / prior_deviation
        if value > best:
            best, best_theta = value, theta.copy()
        same = np.sign(gradient) * np.sign(before)
        factor = np.where(same > 0, _GROW, np.where(same < 0, _SHRINK, 1.0))
        step = np.clip(step * factor, _STEP_LEAST, _STEP_MOST)
        theta = np.clip(theta + step * np.sign(gradient), *_BOUNDS)
        before = gradient
    lengths, noise = np.exp(best_theta[:-1]), math.exp(best_theta[-1])
    return _conditioned(features, y, lengths, noise=noise, mean=mean, scale=scale)


def _conditioned(
    features: Array, y: Array, lengths: Array, *, noise: float, mean: float, scale: float
) -> Process:
    k = _kernel(features, features, lengths)[0] + (noise + _JITTER) * np.eye(len(y))
    inverse: Array = np.asarray(np.linalg.inv(k), dtype=np.float64)
    return Process(
        features=features,
        lengths=lengths,
        noise=noise,
        weights=inverse @ y,
        inverse=inverse,
        mean=mean,
        scale=scale,
    )


def _kernel(a: Array, b: Array, lengths: Array) -> tuple[Array, Array]:
    """The covariances, [a, b], and the distances that they follow from."""
    a, b = a / lengths, b / lengths
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2 * (a @ b.T)
    root = np.sqrt(5 * np.maximum(squares, 0.0))
    k: Array = (1 + root + root * root / 3) * np.exp(-root)
    return k, root


def _evidence(features: Array, y: Array, theta: Array) -> tuple[float, Array]:
    """Logarithm of the marginal likelihood, and its gradient by the logarithms in `theta`."""
    lengths, noise = np.exp(theta[:-1]), math.exp(theta[-1])
    k, root = _kernel(features, features, lengths)
    full = k + (noise + _JITTER) * np.eye(len(y))
    factor = np.linalg.cholesky(full)
    inverse = np.linalg.inv(full)
    weights = inverse @ y
    value = -0.5 * float(y @ weights) - float(np.log(np.diag(factor)).sum())
    # d(log likelihood) = ½ tr((w wᵀ − K⁻¹) dK); for a length, dK = 5/3 (1 + √5 r) e^(−√5 r) Δ²/ℓ².
    outer = np.outer(weights, weights) - inverse
    common = outer * (5 / 3) * (1 + root) * np.exp(-root)
    x = features / lengths
    # Σ_ij c_ij (x_i − x_j)² = 2 (Σ_i x_i² Σ_j c_ij − xᵀ C x), for each feature.
    slopes = 2 * ((x * x) * common.sum(axis=1)[:, None] - x * (common @ x)).sum(axis=0)
    return value, 0.5 * np.append(slopes, noise * np.trace(outer))
