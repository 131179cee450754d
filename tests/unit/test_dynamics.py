"""The drift and its unit, against energies whose drift is known by construction."""

import numpy as np
import pytest

from dpsim.analysis.dynamics import energy_drift, fluctuation_scaling
from dpsim.errors import DataError


def test_drift_is_in_meV_per_atom_per_ps():
    # 192 atoms gain 0.5 eV in 10 ps: 500 meV / 192 / 10 = 0.26042 meV/atom/ps
    time_ps = np.linspace(0.0, 10.0, 501)
    result = energy_drift(time_ps, -30_000.0 + 0.05 * time_ps, n_atoms=192)
    assert result.drift_meV_per_atom_per_ps == pytest.approx(0.2604167, rel=1e-5)
    assert result.drift == result.drift_meV_per_atom_per_ps
    assert result.duration_ps == pytest.approx(10.0)


def test_fluctuation_is_the_standard_deviation_per_atom():
    # a vibration of amplitude 0.3 eV in 100 atoms: 3 meV/atom, divided by sqrt 2
    time_ps = np.linspace(0.0, 5.0, 5001)
    result = energy_drift(time_ps, 7.0 + 0.3 * np.sin(2.0 * np.pi * time_ps / 0.010123), n_atoms=100)
    assert result.fluctuation == pytest.approx(3.0 / np.sqrt(2.0), rel=1e-2)
    low, high = result.interval()
    assert low < 0.0 < high
    assert high < 0.01


def test_a_small_drift_is_seen_below_large_vibrations():
    random = np.random.default_rng(0)
    time_ps = np.arange(0.0, 2.0, 0.0005)
    vibration = 0.2 * np.sin(2.0 * np.pi * time_ps / 0.0093 + 1.0) + 0.1 * np.sin(2.0 * np.pi * time_ps / 0.021)
    energy = -29_950.0 + vibration + 0.01 * random.normal(size=len(time_ps)) + 192 * 0.02e-3 * time_ps
    result = energy_drift(time_ps, energy, n_atoms=192)
    low, high = result.interval()
    assert low < 0.02 < high
    assert low > 0.0  # the drift is significant
    assert result.reliable


def test_the_start_of_time_does_not_matter():
    time_ps = np.linspace(0.0, 1.0, 300)
    energy = np.random.default_rng(1).normal(size=300)
    a, b = energy_drift(time_ps, energy, 10), energy_drift(time_ps + 25.0, energy - 1e4, 10)
    assert a.drift == pytest.approx(b.drift, rel=1e-6)
    assert a.error == pytest.approx(b.error, rel=1e-6)


@pytest.mark.parametrize("exponent", [2.0, 4.0])
def test_scaling_exponent(exponent):
    steps = np.array([0.25, 0.5, 1.0])
    result = fluctuation_scaling(steps, 0.07 * steps**exponent, errors=0.01 * steps**exponent)
    assert result.exponent == pytest.approx(exponent)
    assert result.prefactor == pytest.approx(0.07)
    # relative errors of 1/7 at three points: sigma_p = (1/7) / sqrt(2 ln(2)^2)
    assert result.error == pytest.approx(1.0 / 7.0 / np.sqrt(2.0) / np.log(2.0), rel=1e-6)
    assert result.interval[0] < exponent < result.interval[1]


def test_two_time_steps_have_an_exponent_without_an_error():
    result = fluctuation_scaling([0.5, 1.0], [1.0, 4.0])
    assert result.exponent == pytest.approx(2.0)
    assert np.isinf(result.error)


def test_scatter_makes_the_error_when_none_is_given():
    random = np.random.default_rng(2)
    steps = np.array([0.1, 0.2, 0.4, 0.8, 1.6])
    covered = 0
    for _ in range(400):
        result = fluctuation_scaling(steps, steps**2 * np.exp(0.1 * random.normal(size=5)))
        covered += result.interval[0] <= 2.0 <= result.interval[1]
    assert 0.91 <= covered / 400 <= 0.99


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: energy_drift([0.0, 1.0, 2.0], [0.0, 1.0, 2.0], 0), "`n_atoms` is 0"),
        (lambda: energy_drift([0.0, 1.0, 2.0], [0.0, np.nan, 2.0], 3), "nan at sample 1"),
        (lambda: fluctuation_scaling([1.0, 1.0], [1.0, 2.0]), "two different time steps"),
        (lambda: fluctuation_scaling([1.0, 2.0], [1.0, 0.0]), "positive"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(DataError, match=message):
        call()
