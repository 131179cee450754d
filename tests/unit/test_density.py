"""The mean density, its error, and what is left out before equilibrium."""

from __future__ import annotations

import numpy as np
import pytest

from dpsim.analysis.density import G_PER_CM3, mean_density
from dpsim.errors import DataError

MASS = 64 * 18.015
VOLUME = MASS * G_PER_CM3 / 0.997  # of 64 molecules of water


def volumes(random: np.random.Generator, n: int = 2000, tau: float = 10.0, start: float = 0.0) -> np.ndarray:
    """Fluctuations of 2 %, correlated over `tau` samples, that begin `start` too large."""
    keep = np.exp(-1.0 / tau)
    kicks = random.normal(0.0, 0.02 * np.sqrt(1 - keep**2), n)
    x = np.zeros(n)
    for k in range(1, n):
        x[k] = keep * x[k - 1] + kicks[k]
    return VOLUME * (1.0 + x + start * np.exp(-np.arange(n) / 60.0))


def test_value_and_error() -> None:
    random = np.random.default_rng(1)
    time = 0.005 * np.arange(2000)
    inside, errors = 0, []
    for _ in range(40):
        found = mean_density([(time, volumes(random)) for _ in range(2)], MASS)
        low, high = found.density.interval()
        inside += low <= 0.997 <= high
        errors.append(found.density.error / found.density.value)
        assert found.equilibrated
    assert inside >= 33
    assert np.mean(errors) == pytest.approx(0.02 * np.sqrt(2 * 10.0 / 4000), rel=0.2)


def test_the_start_is_left_out() -> None:
    random = np.random.default_rng(2)
    time = 0.005 * np.arange(2000)
    found = mean_density([(time, volumes(random, start=0.3))], MASS)
    low, high = found.density.interval(0.999)
    assert low <= 0.997 <= high
    assert 0.5 < found.equilibration_ps[0] < 5.0
    kept = mean_density([(time, volumes(random, start=0.3))], MASS, find_equilibration=False)
    assert kept.density.value < 0.993
    late = mean_density([(time, volumes(random))], MASS, skip_ps=4.0)
    assert late.equilibration_ps[0] >= 4.0


@pytest.mark.parametrize(
    ("runs", "mass", "words"),
    [
        ([], MASS, "at least one run"),
        ([([0.0, 1.0], [2.0, 3.0])], 0.0, "positive mass"),
        ([(np.arange(20.0), np.full(20, 7.0))], MASS, "never change"),
        ([(np.arange(20.0), np.full(20, np.nan))], MASS, "not positive"),
    ],
)
def test_bad_input(runs: list, mass: float, words: str) -> None:
    with pytest.raises(DataError, match=words):
        mean_density(runs, mass)
