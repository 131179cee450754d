"""Energies and sizes of ring polymers: what P beads of path-integral molecular dynamics say of quantum nuclei.

A nucleus is a ring of P beads q_k with the centroid q_c = 1/P sum_k q_k, held together by springs of the frequency
w_P = P k_B T / hbar, each bead in the potential V. Estimators of its kinetic energy, per atom:

    centroid virial   K = 3/2 k_B T - 1/(2P) sum_k (q_k - q_c) . f_k           little noise, also for many beads
    primitive         K = 3/2 P k_B T - m w_P^2/(2P) sum_k |q_k - q_{k+1}|^2   noise grows as sqrt(P); needs no forces

Both have one mean, whatever P is, if the beads are sampled as they should be: their difference is a check of time step
and thermostat, not of P. Size: Rg^2 = 1/P sum_k |q_k - q_c|^2.

For an oscillator of frequency w, with w_k = 2 w_P sin(pi k/P) those of the free ring, everything is known:

    <K> = <V> = k_B T/2 sum_k w^2/(w^2 + w_k^2),  k = 0 ... P-1    -> hbar w/4 coth(hbar w/2 k_B T) for P -> infinity
    <Rg^2> = k_B T/m sum_{k>0} 1/(w^2 + w_k^2)

Sources: M. F. Herman, E. J. Bruskin and B. J. Berne, J. Chem. Phys. 76, 5150 (1982); T. E. Markland and M. Ceriotti,
Nat. Rev. Chem. 2, 0109 (2018).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from dpsim.units import ASE_TIME_FS, BOLTZMANN_EV_PER_K

Array = NDArray[np.float64]

HBAR = 6.582119569e-16 * 1e15 / ASE_TIME_FS
"""eV times ASE's unit of time (CODATA 2018)."""


def centroid_virial(positions: Array, forces: Array, temperature_K: float) -> Array:
    """Kinetic energy of each atom, (n_atoms,) eV, from beads (n_beads, n_atoms, 3): A, and eV/A of -dV/dq."""
    apart = positions - positions.mean(axis=0)
    virial = np.einsum("pix,pix->i", apart, forces) / len(positions)
    found: Array = 1.5 * BOLTZMANN_EV_PER_K * temperature_K - 0.5 * virial
    return found


def primitive(positions: Array, masses: Array, temperature_K: float) -> Array:
    """Likewise from the springs; masses (n_atoms,) amu."""
    n_beads, kt = len(positions), BOLTZMANN_EV_PER_K * temperature_K
    stretched = np.sum((positions - np.roll(positions, -1, axis=0)) ** 2, axis=(0, 2))
    found: Array = 1.5 * n_beads * kt - 0.5 * masses * n_beads * (kt / HBAR) ** 2 * stretched
    return found


def squared_gyration(positions: Array) -> Array:
    """Rg^2 of each atom, (n_atoms,) A^2."""
    found: Array = np.sum((positions - positions.mean(axis=0)) ** 2, axis=(0, 2)) / len(positions)
    return found


def ring_frequencies(n_beads: int, temperature_K: float) -> Array:
    """w_k of the free ring, (n_beads,) in inverse ASE time."""
    chain = n_beads * BOLTZMANN_EV_PER_K * temperature_K / HBAR
    return 2.0 * chain * np.sin(np.pi * np.arange(n_beads) / n_beads)


def oscillator_energy(frequency: float, temperature_K: float, n_beads: int | None = None) -> float:
    """<K> = <V> of an oscillator with so many beads, eV; frequency in inverse ASE time. None: quantum mechanics."""
    kt = BOLTZMANN_EV_PER_K * temperature_K
    if n_beads is None:
        x = 0.5 * HBAR * frequency / kt
        return 0.5 * kt * (x / np.tanh(x) if x > 1e-6 else 1.0)
    ring = ring_frequencies(n_beads, temperature_K)
    return 0.5 * kt * float(np.sum(frequency**2 / (frequency**2 + ring**2)))


def oscillator_gyration(frequency: float, mass: float, temperature_K: float, n_beads: int) -> float:
    """<Rg^2> along one direction, A^2."""
    ring = ring_frequencies(n_beads, temperature_K)[1:]
    return BOLTZMANN_EV_PER_K * temperature_K / mass * float(np.sum(1.0 / (frequency**2 + ring**2)))


def harmonic_frequency(kinetic_energy: float, temperature_K: float, n_beads: int) -> float | None:
    """The frequency of the isotropic oscillator with this kinetic energy (eV, in three directions) and so many beads.

    0 for a classical energy or less; None for more than so many beads can have.
    """
    third = kinetic_energy / 3.0
    kt = BOLTZMANN_EV_PER_K * temperature_K
    if third <= 0.5 * kt:
        return 0.0
    if third >= 0.5 * kt * n_beads:
        return None
    highest = 1e3 * n_beads * kt / HBAR
    low = 1e-6 * kt / HBAR
    if oscillator_energy(highest, temperature_K, n_beads) <= third:
        return None
    return float(brentq(lambda w: oscillator_energy(w, temperature_K, n_beads) - third, low, highest, rtol=1e-12))


def missing_energy(kinetic_energy: float, temperature_K: float, n_beads: int) -> float | None:
    """The part of the kinetic energy that so many beads lack, if the atom were an isotropic oscillator.

    A lower bound in any harmonic motion: <K> of infinitely many beads is a convex function of that of P beads, so that
    unequal directions lack more than their mean.

    None where that cannot be told: of one bead, and of as much as so many beads can have.
    """
    frequency = harmonic_frequency(kinetic_energy, temperature_K, n_beads)
    if frequency is None or n_beads == 1:
        return None
    return 1.0 - kinetic_energy / (3.0 * oscillator_energy(frequency, temperature_K)) if frequency > 0.0 else 0.0


def harmonic_curve(frequency: float, temperature_K: float, beads: ArrayLike) -> Array:
    """Kinetic energy of the isotropic oscillator against the number of beads, (n,) eV."""
    return np.array([3.0 * oscillator_energy(frequency, temperature_K, int(p)) for p in np.atleast_1d(beads)])
