"""Estimators of ring polymers: identities, limits, and the exact oscillator of finitely many beads."""

from __future__ import annotations

import numpy as np
import pytest

from dpsim.analysis.path_integrals import (
    HBAR,
    centroid_virial,
    harmonic_curve,
    harmonic_frequency,
    missing_energy,
    oscillator_energy,
    oscillator_gyration,
    primitive,
    ring_frequencies,
    squared_gyration,
)
from dpsim.units import BOLTZMANN_EV_PER_K

T = 300.0
KT = BOLTZMANN_EV_PER_K * T


def sampled_ring(w: float, mass: float, n_beads: int, n: int) -> np.ndarray:
    """(n_beads, n, 3) A: exact samples of rings in a harmonic well, from their normal modes."""
    random = np.random.default_rng(1)
    ring = ring_frequencies(n_beads, T)
    k = np.arange(n_beads)
    angles = [2.0 * np.pi * m * k / n_beads for m in range(1, n_beads // 2)]
    pairs = [np.sqrt(2.0) * wave(angle) for angle in angles for wave in (np.cos, np.sin)]
    modes = np.array([np.ones(n_beads), *pairs, (-1.0) ** k]) / np.sqrt(n_beads)  # real, orthonormal
    order = [0, *(m for m in range(1, n_beads // 2) for _ in (0, 1)), n_beads // 2]
    np.testing.assert_allclose(modes @ modes.T, np.eye(n_beads), atol=1e-12)
    width = np.sqrt(n_beads * KT / mass / (w**2 + ring[order] ** 2))
    amplitude = width[:, None, None] * random.standard_normal((n_beads, n, 3))
    return np.asarray(np.einsum("mk,mix->kix", modes, amplitude))


@pytest.mark.parametrize("n_beads", [4, 12])
def test_both_estimators_and_the_size_are_those_of_the_oscillator(n_beads: int) -> None:
    w, mass, n = 6.0 * KT / HBAR, 1.008, 20000
    q = sampled_ring(w, mass, n_beads, n)
    exact = 3.0 * oscillator_energy(w, T, n_beads)
    virial = centroid_virial(q, -mass * w**2 * q, T)
    springs = primitive(q, np.full(n, mass), T)
    size = squared_gyration(q)
    for values, expected in ((virial, exact), (springs, exact), (size, 3.0 * oscillator_gyration(w, mass, T, n_beads))):
        assert abs(values.mean() - expected) < 4.0 * values.std() / np.sqrt(n)
    assert virial.std() < springs.std()


def test_limits() -> None:
    assert oscillator_energy(1e-9, T, 16) == pytest.approx(0.5 * KT)
    w = 10.0 * KT / HBAR
    assert oscillator_energy(w, T, 1) == pytest.approx(0.5 * KT)
    assert oscillator_energy(w, T, 4000) == pytest.approx(oscillator_energy(w, T), rel=1e-5)
    assert oscillator_energy(w, T) == pytest.approx(0.25 * HBAR * w, rel=1e-3)
    assert oscillator_energy(1e9 * w, T, 8) == pytest.approx(4.0 * KT)  # more than P kT/2 there is not
    one = np.zeros((1, 2, 3))
    np.testing.assert_allclose(centroid_virial(one, one, T), 1.5 * KT)
    np.testing.assert_allclose(primitive(one, np.ones(2), T), 1.5 * KT)
    np.testing.assert_array_equal(squared_gyration(one), 0.0)


def test_the_oscillator_of_a_kinetic_energy() -> None:
    w = 7.0 * KT / HBAR
    kinetic = 3.0 * oscillator_energy(w, T, 8)
    assert harmonic_frequency(kinetic, T, 8) == pytest.approx(w)
    assert missing_energy(kinetic, T, 8) == pytest.approx(1.0 - kinetic / (3.0 * oscillator_energy(w, T)))
    np.testing.assert_allclose(harmonic_curve(w, T, [1, 8]), [1.5 * KT, kinetic])
    assert missing_energy(1.4 * KT, T, 8) == 0.0
    assert missing_energy(1.5 * KT, T, 1) is None
    assert missing_energy(12.1 * KT, T, 8) is None  # as much as eight beads can have


def test_what_is_missing_is_at_least_that_of_the_mean_oscillator() -> None:
    """A bond and two soft directions."""
    frequencies = [x * 1.2398e-4 / HBAR for x in (3500.0, 1300.0, 600.0)]
    for n_beads in (4, 8, 16, 32):
        kinetic = sum(oscillator_energy(w, T, n_beads) for w in frequencies)
        true = 1.0 - kinetic / sum(oscillator_energy(w, T) for w in frequencies)
        bound = missing_energy(kinetic, T, n_beads)
        assert bound is not None
        assert 0.3 * true < bound < true
