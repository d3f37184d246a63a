# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kompakt.controllers import gaussian
from kompakt.controllers.gaussian import Array


def sample(count: int, features: int, *, seed: int = 0) -> tuple[Array, Array]:
    """Features, and a figure that follows from the first two of them, with some noise."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, (count, features))
    y = np.sin(4 * x[:, 0]) + 0.5 * x[:, 1] ** 2 + rng.normal(0, 0.02, count)
    return x, 30 + 7 * y


def test_it_predicts_as_scikit_learn_does() -> None:
    """With the same lengths and the same noise: means and deviations of unseen points."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Matern

    x, y = sample(25, 3)
    unseen = sample(40, 3, seed=1)[0]
    ours = gaussian.fit(x, y)
    theirs = GaussianProcessRegressor(
        Matern(length_scale=ours.lengths, nu=2.5), alpha=ours.noise + 1e-8, optimizer=None
    ).fit(x, (y - y.mean()) / y.std())

    mean, deviation = ours.predict(unseen)
    expected, spread = theirs.predict(unseen, return_std=True)

    np.testing.assert_allclose(mean, y.mean() + y.std() * expected, rtol=1e-6)
    np.testing.assert_allclose(deviation, y.std() * spread, rtol=1e-4, atol=1e-6)


def test_the_evidence_is_that_of_a_normal_distribution() -> None:
    """And its gradient is the slope of it."""
    from scipy.stats import multivariate_normal

    x, y = sample(12, 2)
    y = (y - y.mean()) / y.std()
    theta = np.array([0.3, -0.2, -2.0])
    value, gradient = gaussian._evidence(x, y, theta)
    k = gaussian._kernel(x, x, np.exp(theta[:2]))[0] + (np.exp(-2.0) + 1e-8) * np.eye(12)
    constant = 6 * np.log(2 * np.pi)

    assert value - constant == pytest.approx(multivariate_normal(np.zeros(12), k).logpdf(y))
    for place in range(3):
        step = 1e-5 * np.eye(3)[place]
        up, down = (gaussian._evidence(x, y, theta + sign * step)[0] for sign in (1, -1))
        assert gradient[place] == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-6)


def test_it_learns_what_matters() -> None:
    """Unseen figures are told within a tenth of their spread; the feature that matters most has the
    shortest length.
    """
    x, y = sample(40, 4)
    unseen, truth = sample(100, 4, seed=1)
    process = gaussian.fit(x, y)

    error = process.predict(unseen)[0] - truth

    assert np.sqrt(np.mean(error**2)) < 0.1 * truth.std()
    assert process.lengths.argmin() == 0


@given(st.integers(0, 1000), st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_believing_changes_no_mean_and_makes_surer(seed: int, count: int) -> None:
    """A trial that gives what was expected teaches nothing but certainty."""
    x, y = sample(10, 2, seed=seed)
    under_way, unseen = sample(count, 2, seed=seed + 1)[0], sample(20, 2, seed=seed + 2)[0]
    process = gaussian.fit(x, y)
    believed = process.believing(under_way)

    before, after = process.predict(unseen), believed.predict(unseen)

    np.testing.assert_allclose(after[0], before[0], rtol=1e-4)
    assert (after[1] <= before[1] * (1 + 1e-4)).all()
    assert (believed.predict(under_way)[1] < process.predict(under_way)[1] + 1e-6).all()


@pytest.mark.parametrize("count", [1, 2])
def test_few_or_equal_figures_are_no_trouble(count: int) -> None:
    """One trial, or two at one place that agree: the mean is what was seen."""
    process = gaussian.fit(np.zeros((count, 1)), np.full(count, 5.0))
    mean, deviation = process.predict(np.array([[0.0], [1.0]]))
    assert mean == pytest.approx(5.0)
    assert np.isfinite(deviation).all()
