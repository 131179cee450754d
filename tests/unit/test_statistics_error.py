"""Error bars must cover the truth as often as they claim: Monte Carlo over series whose truth is known."""

import numpy as np
import pytest
from scipy.signal import lfilter

from dpsim.analysis.statistics import (
    block_average,
    equilibration_start,
    integrated_autocorrelation_time,
    linear_fit_correlated,
    mean_with_error,
)
from dpsim.errors import DataError


def ar1(random: np.random.Generator, n: int, tau: float) -> np.ndarray:
    """Gaussian series of unit variance with rho(k) = exp(-k/tau), stationary from its first sample."""
    phi = np.exp(-1.0 / tau)
    noise = np.sqrt(1.0 - phi**2) * random.normal(size=n + int(20 * tau))
    return lfilter([1.0], [1.0, -phi], noise)[-n:]


def vibrations(random: np.random.Generator, n: int) -> np.ndarray:
    """Three undamped vibrations of random phase: the energy of a velocity-Verlet run without anything slow."""
    periods = np.array([9.3, 17.1, 41.0]) * (1.0 + 0.01 * random.normal(size=3))
    phases = random.uniform(0.0, 2.0 * np.pi, size=3)
    return np.cos(2.0 * np.pi * np.arange(n)[:, None] / periods + phases).sum(axis=1)


SERIES = {
    "white": lambda random: random.normal(size=600),
    "short correlation": lambda random: ar1(random, 1000, 5.0),
    "25 independent samples": lambda random: ar1(random, 1000, 20.0),
    "vibrations on a slow process": lambda random: vibrations(random, 2000) + 0.3 * ar1(random, 2000, 20.0),
}


@pytest.mark.parametrize("name", SERIES)
def test_95_percent_intervals_cover_the_truth(name):
    random, trials = np.random.default_rng(7), 500
    covered_mean = covered_slope = 0
    for _ in range(trials):
        series = SERIES[name](random)
        t = 0.5 * np.arange(len(series))
        low, high = mean_with_error(3.0 + series).interval(0.95)
        covered_mean += low <= 3.0 <= high
        low, high = linear_fit_correlated(t, 3.0 - 0.2 * t + series).slope_interval(0.95)
        covered_slope += low <= -0.2 <= high
    # 500 trials of a true 95 % interval fall outside 92-98 % once in 500
    assert 0.92 <= covered_mean / trials <= 0.98
    assert 0.92 <= covered_slope / trials <= 0.98


def test_undamped_vibrations_are_covered_with_an_error_of_the_right_size():
    # a sum of sinusoids is bounded, so nearly every interval covers; the error must still be the true scatter
    random = np.random.default_rng(8)
    t = 0.5 * np.arange(2000)
    fits = [linear_fit_correlated(t, 0.1 * t + vibrations(random, 2000)) for _ in range(300)]
    scatter = np.std([fit.slope for fit in fits])
    assert 0.7 < np.sqrt(np.mean([fit.slope_error**2 for fit in fits])) / scatter < 1.4
    naive = np.sqrt(np.mean([fit.residual_std**2 / fit.t_sum_of_squares for fit in fits]))
    assert naive > 3.0 * scatter  # sigma/sqrt(n) would hide drifts that are plainly visible


def test_a_random_walk_is_called_unreliable():
    random = np.random.default_rng(9)
    fits = [linear_fit_correlated(np.arange(1000), np.cumsum(random.normal(size=1000))) for _ in range(100)]
    assert np.mean([fit.reliable for fit in fits]) < 0.2


@pytest.mark.parametrize("tau", [2.0, 10.0])
def test_autocorrelation_time_of_an_exponential_decay(tau):
    # tau_int = 1/2 + sum_k phi^k = 1/2 (1 + phi)/(1 - phi)
    phi = np.exp(-1.0 / tau)
    exact = 0.5 * (1.0 + phi) / (1.0 - phi)
    assert integrated_autocorrelation_time(ar1(np.random.default_rng(1), 100_000, tau)) == pytest.approx(
        exact, rel=0.08
    )


def test_blocking_and_low_frequencies_agree():
    x = ar1(np.random.default_rng(2), 65_536, 10.0)
    phi = np.exp(-0.1)
    exact = np.sqrt((1.0 + phi) / (1.0 - phi) / 65_536)
    blocks = block_average(x)
    assert blocks.converged
    assert blocks.error == pytest.approx(exact, rel=0.15)
    assert mean_with_error(x).error == pytest.approx(exact, rel=0.4)  # 16 degrees of freedom: known to 18 %
    assert not block_average(np.cumsum(x)).converged


def test_five_independent_numbers_give_the_textbook_error():
    x = np.array([1.0, 2.0, 4.0, 3.0, 2.5])
    estimate = mean_with_error(x)
    assert estimate.value == pytest.approx(x.mean())
    assert estimate.error == pytest.approx(x.std(ddof=1) / np.sqrt(5))
    assert estimate.degrees_of_freedom == 4


def test_constants_and_exact_lines_have_no_error():
    estimate = mean_with_error(np.full(50, -31_000.7))
    assert (estimate.value, estimate.error) == (pytest.approx(-31_000.7), pytest.approx(0.0, abs=1e-9))
    t = np.linspace(0.0, 1.0, 500)
    fit = linear_fit_correlated(t, -31_000.0 + 2.5 * t)
    assert fit.slope == pytest.approx(2.5)
    assert fit.slope_error == 0.0
    assert fit.predict(0.5) == pytest.approx(-30_998.75)


def test_uneven_times_and_the_error_of_the_line():
    random = np.random.default_rng(3)
    t = np.sort(random.uniform(0.0, 10.0, size=400))
    fit = linear_fit_correlated(t, 1.0 + 2.0 * t + 0.1 * random.normal(size=400))
    assert abs(fit.slope - 2.0) < 4.0 * fit.slope_error
    assert fit.predict_error(0.0) == pytest.approx(fit.intercept_error)
    assert fit.predict_error(fit.t_mean) < fit.intercept_error


def test_equilibration_start_finds_the_end_of_a_transient():
    random = np.random.default_rng(4)
    x = 8.0 * np.exp(-np.arange(2000) / 60.0) + ar1(random, 2000, 5.0)
    assert 100 <= equilibration_start(x) <= 500
    assert equilibration_start(ar1(random, 2000, 5.0)) < 400


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_with_error([1.0]), "at least 2 samples"),
        (lambda: mean_with_error([1.0, np.nan, 2.0]), "nan at sample 1"),
        (lambda: linear_fit_correlated([0.0, 1.0, 1.0], [0.0, 1.0, 2.0]), "at sample 2"),
        (lambda: linear_fit_correlated([0.0, 1.0, 2.0], [0.0, 1.0]), "at least 3 samples"),
        (lambda: linear_fit_correlated([0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]), "expected 3, one per time"),
    ],
)
def test_bad_series_are_named(call, message):
    with pytest.raises(DataError, match=message):
        call()
