"""The Monte Carlo barostat samples constant pressure: an ideal gas, whose volumes are known exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dpsim.engines.monte_carlo_barostat import MonteCarloBarostat
from dpsim.units import BOLTZMANN_EV_PER_K, EV_PER_A3_IN_BAR


@pytest.mark.parametrize("cell_change", ["isotropic", "anisotropic", "triclinic"])
def test_the_volume_of_an_ideal_gas_is_gamma_distributed(cell_change: Any) -> None:
    """p(V) ~ V^n exp(-P V / kT), of mean (n + 1) kT / P and standard deviation sqrt(n + 1) kT / P."""
    n, unit_volume = 8, 50.0
    kT = BOLTZMANN_EV_PER_K * 300.0
    barostat = MonteCarloBarostat(cell_change, kT / unit_volume * EV_PER_A3_IN_BAR, 300.0, n)
    random = np.random.default_rng(2)
    cell = 7.5 * np.eye(3)
    volumes = []
    for _ in range(12000):
        trial = barostat.propose(np.zeros((1, 3)), cell, random)
        if barostat.accept(trial, 0.0, random):
            volume = abs(np.linalg.det(trial.cell))
            cell = volume ** (1.0 / 3.0) * np.eye(3)  # no forces hold the shape: it would run away
        volumes.append(abs(np.linalg.det(cell)))
    sample = np.array(volumes[1000:])
    assert sample.mean() == pytest.approx((n + 1) * unit_volume, rel=0.06)
    assert sample.std() == pytest.approx(np.sqrt(n + 1) * unit_volume, rel=0.15)


@pytest.mark.parametrize("cell_change", ["isotropic", "anisotropic", "triclinic"])
def test_atoms_keep_their_scaled_coordinates(cell_change: Any) -> None:
    random = np.random.default_rng(0)
    cell = np.array([[7.0, 0.0, 0.0], [1.0, 8.0, 0.0], [-2.0, 0.5, 9.0]])
    scaled = random.normal(size=(5, 3))
    barostat = MonteCarloBarostat(cell_change, 1.0, 300.0, 5.0)
    for _ in range(20):
        trial = barostat.propose(scaled @ cell, cell, random)
        np.testing.assert_allclose(trial.positions, scaled @ trial.cell, atol=1e-12)
        assert trial.volume_change == pytest.approx(np.linalg.det(trial.cell) - np.linalg.det(cell), abs=1e-9)
        assert not np.allclose(trial.cell, cell)


def test_it_goes_on_where_its_memory_was_taken() -> None:
    def run(barostat: MonteCarloBarostat, random: np.random.Generator, n: int) -> list[float]:
        cell, volumes = 10.0 * np.eye(3), []
        for _ in range(n):
            trial = barostat.propose(np.zeros((1, 3)), cell, random)
            barostat.accept(trial, random.normal() * 0.05, random)
            volumes.append(trial.log_volume_ratio)
        return volumes

    first = MonteCarloBarostat("anisotropic", 1.0, 300.0, 5.0)
    random = np.random.default_rng(1)
    run(first, random, 100)
    memory, state = first.memory(), random.bit_generator.state
    expected = run(first, random, 50)
    second = MonteCarloBarostat("anisotropic", 1.0, 300.0, 5.0)
    second.recall(memory)
    random.bit_generator.state = state
    assert run(second, random, 50) == expected
