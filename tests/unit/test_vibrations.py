"""Spectra of oscillators of known frequency, of a free Brownian particle, and of frames too far apart."""

from __future__ import annotations

import numpy as np
import pytest

from dpsim.analysis.vibrations import vibrational_spectra
from dpsim.errors import DataError

mda = pytest.importorskip("MDAnalysis")
_KJ = 100.0  # A/ps^2 of 1 kJ/mol/A/amu


def universe(velocities, dt, elements, masses, forces=None):
    """A Universe in memory: velocities (frames, atoms, 3) A/ps, forces in kJ/mol/A."""
    from MDAnalysis.coordinates.memory import MemoryReader

    found = mda.Universe.empty(len(elements), trajectory=True, velocities=True, forces=forces is not None)
    found.add_TopologyAttr("elements", list(elements))
    found.add_TopologyAttr("masses", list(masses))
    found.load_new(np.zeros(velocities.shape, np.float32), format=MemoryReader, dt=dt, forces=forces,
                   velocities=velocities.astype(np.float32))  # fmt: skip
    return found


def oscillators(nu: dict[str, float], dt: float, n_frames: int, n_atoms: int = 20, force: bool = True):
    """An Einstein crystal at temperature: every element with its own frequency (THz), random phases, heavy atoms."""
    random = np.random.default_rng(1)
    elements = [name for name in nu for _ in range(n_atoms)]
    omega = 2.0 * np.pi * np.array([nu[name] for name in elements])[:, None]
    t = dt * np.arange(n_frames)[:, None, None]
    amplitude, phase = random.normal(size=(2, len(elements), 3))
    phase *= 100.0
    # opposite atoms move oppositely: the centre of mass rests
    amplitude[1::2], phase[1::2] = -amplitude[::2], phase[::2]
    velocity = amplitude * np.cos(omega * t + phase)
    acceleration = -omega * amplitude * np.sin(omega * t + phase)
    masses = [{"O": 16.0, "H": 1.0}[name] for name in elements]
    forces = acceleration * np.array(masses)[:, None] / _KJ if force else None
    return universe(velocity, dt, elements, masses, forces)


def test_lines_are_where_they_are() -> None:
    run = oscillators({"O": 12.3, "H": 40.0}, dt=0.004, n_frames=4000)
    found = vibrational_spectra([(run, 0)], resolution_THz=1.0)
    for item, nu in zip(found, (12.3, 40.0), strict=True):
        assert item.peak.value == pytest.approx(nu, abs=0.02)
        step = item.spectrum.x[1]
        assert item.spectrum.y.sum() * step == pytest.approx(3.0, abs=0.02)
        above = item.spectrum.x[item.spectrum.y > 0.5 * item.spectrum.y.max()]
        assert above[-1] - above[0] == pytest.approx(1.0, abs=2 * step)
        assert item.rms_frequency.value == pytest.approx(nu, rel=0.01)
        assert item.rms_frequency_of_forces == pytest.approx(nu, rel=0.01)
        assert not item.aliased
    assert [item.species for item in found] == ["O", "H"]


def test_frames_too_far_apart_are_noticed() -> None:
    """40 THz seen every 20 fs appear at 10 THz; the forces know better."""
    (item,) = vibrational_spectra([(oscillators({"H": 40.0}, dt=0.02, n_frames=2000), 0)])
    assert item.peak.value == pytest.approx(10.0, abs=0.05)
    assert item.rms_frequency_of_forces == pytest.approx(40.0, rel=0.02)
    assert item.aliased
    (blind,) = vibrational_spectra([(oscillators({"H": 40.0}, dt=0.02, n_frames=2000, force=False), 0)])
    assert blind.rms_frequency_of_forces is None
    assert not blind.aliased


def test_a_brownian_particle_has_a_lorentzian_within_its_error_bars() -> None:
    """dv = -v/tau dt + noise: c = exp(-t/tau), g = 12 tau / (1 + (2 pi nu tau)^2), so D = g(0) kT / 12 m = kT tau/m."""
    random = np.random.default_rng(3)
    dt, tau, n, n_atoms = 0.01, 0.1, 6000, 50
    keep = np.exp(-dt / tau)
    v = np.empty((n, n_atoms, 3))
    v[0] = random.normal(size=(n_atoms, 3))
    for k in range(1, n):
        v[k] = keep * v[k - 1] + np.sqrt(1.0 - keep**2) * random.normal(size=(n_atoms, 3))
    run = universe(v, dt, ["Ar"] * n_atoms, [40.0] * n_atoms)
    (item,) = vibrational_spectra([(run, 0)], resolution_THz=0.4, blocks=8)
    x = item.spectrum.x
    fine = np.linspace(-60.0, 60.0, 48001)
    # the exact spectrum of the sampled process, seen through the Gaussian
    line = 6.0 * dt * (1.0 - keep**2) / (1.0 + keep**2 - 2.0 * keep * np.cos(2.0 * np.pi * fine * dt))
    sigma = 0.4 / 2.3548
    chosen = x < 8.0
    seen = [np.sum(line * np.exp(-0.5 * ((fine - c) / sigma) ** 2)) * 0.0025 / (sigma * 2.5066) for c in x[chosen]]
    pulls = (item.spectrum.y[chosen] - seen) / item.spectrum.y_error[chosen]
    assert np.sqrt(np.mean(pulls**2)) < 1.7
    assert item.spectrum.y[0] == pytest.approx(12.0 * tau, rel=0.2)
    lag = item.vacf.x
    assert np.abs(item.vacf.y - np.exp(-lag / tau)).max() < 0.02


def test_several_runs_and_bad_input() -> None:
    run = oscillators({"O": 12.3}, dt=0.004, n_frames=1500)
    (item,) = vibrational_spectra([(run, 100), (run, 0)], resolution_THz=2.0, blocks=4)
    assert item.spectrum.n_blocks == 8
    with pytest.raises(DataError, match=r"expected no finer than 1\.\d THz"):
        vibrational_spectra([(run, 0)], resolution_THz=0.3, blocks=4)
    still = universe(np.zeros((1500, 4, 3)), 0.004, ["O"] * 4, [16.0] * 4)
    with pytest.raises(DataError, match="expected atoms that move"):
        vibrational_spectra([(still, 0)], resolution_THz=3.0)
