"""Velocity autocorrelation of each element and its spectrum, the vibrational density of states, with error bars.

    c(t) = < v_i(s) . v_i(s + t) > / < v_i . v_i >            over atoms i of an element and origins s
    g(nu) = 3 . 2 int c(t) w(t) cos(2 pi nu t) dt,             int_0^inf g d nu = 3, the modes of an atom
    w(t) = exp(-t^2 / 2 s^2),  s = 1 / (2 pi sigma)            g is seen through a Gaussian of width sigma

Of a harmonic crystal g is the density of its modes; g(0) = 12 m D / k_B T of a liquid tells how it diffuses. Velocities
are those from the centre of mass of all atoms. The integral is a sum over frames, so a vibration faster than half a
period per frame appears at a wrong, lower frequency. Forces give the mean square frequency without any such limit,

    < nu^2 > = < a_i . a_i > / (4 pi^2 < v_i . v_i >)           exact in equilibrium, for any potential

and a spectrum that has less has lost its fastest vibrations.

Source: J. M. Dickey and A. Paskin, Phys. Rev. 188, 1407 (1969); S.-T. Lin, M. Blanco and W. A. Goddard, J. Chem. Phys.
119, 11792 (2003), Eqs. 6-10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpsim.analysis.curves import BlockCurve, curve_of_blocks, highest_peak
from dpsim.analysis.rdf_shells import Array, Value, jackknife
from dpsim.analysis.structure import elements_of
from dpsim.errors import DataError

if TYPE_CHECKING:
    from MDAnalysis import Universe

CM_PER_THZ = 33.3564095198  # cm^-1 of 1 THz
_FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))  # of a Gaussian, in sigma
_LONGEST = 3.5  # the window is cut off where it is exp(-3.5^2/2) = 0.2 %
_POINTS = 5  # per width of the Gaussian
_CHUNK = 64  # atoms at a time: bounds the memory of the FFTs
_ACCELERATION = 100.0  # A/ps^2 of 1 kJ/mol/A/amu
_ALIASED = 0.85  # a spectrum with less than this part of the rms frequency has lost vibrations


@dataclass(frozen=True)
class Vibrations:
    """The spectrum of one element.

    spectrum: g (1/THz, per atom) against frequency (THz); vacf: c against time (ps).
    peak, peak_height: the highest maximum, THz and 1/THz. rms_frequency: sqrt <nu^2> of the spectrum, THz;
    rms_frequency_of_forces: what it has to be, None without forces in the trajectory.
    """

    species: str
    spectrum: BlockCurve
    vacf: BlockCurve
    peak: Value
    peak_height: Value
    rms_frequency: Value
    rms_frequency_of_forces: float | None

    @property
    def aliased(self) -> bool:
        """Whether frames are too far apart for the fastest vibrations."""
        exact = self.rms_frequency_of_forces
        return exact is not None and self.rms_frequency.value < _ALIASED * exact


@dataclass(frozen=True)
class _Motion:
    """One stretch of a run: velocities and accelerations from the centre of mass, A/ps and A/ps^2."""

    velocities: NDArray[np.float32]
    accelerations: NDArray[np.float32] | None


def vibrational_spectra(
    runs: Sequence[tuple[Universe, int]], resolution_THz: float = 1.0, blocks: int = 5
) -> list[Vibrations]:
    """The spectra of all elements.

    Args:
        runs: (Universe, first frame to use) of one or more runs of one system; trajectories with velocities.
        resolution_THz: full width at half maximum of the Gaussian through which spectra are seen.
        blocks: stretches of each run, for the error bars; each must be twice as long as the window.

    Returns:
        Vibrations of each element, in the order of the structure.

    Raises:
        DataError: no velocities, runs that are too short for this resolution.
    """
    elements = elements_of(runs[0][0])
    interval = _interval_ps(runs[0][0])
    sigma, n_lags = resolution_THz / _FWHM, _lags_of_window(resolution_THz, interval)
    stretches = []
    for universe, first in runs:
        size = (len(universe.trajectory) - first) // blocks
        if size < 2 * n_lags:
            possible = resolution_THz * 2.0 * n_lags / max(size, 1)
            raise DataError(
                f"`resolution` is {resolution_THz:g} THz, for which each of {blocks} blocks needs {2 * n_lags} frames "
                f"({2 * n_lags * interval:.3g} ps); expected no finer than {possible:.2g} THz of a run of "
                f"{len(universe.trajectory) - first} frames. Run longer, or take that."
            )
        stretches += [_motion(universe, first + k * size, size) for k in range(blocks)]
    lag: Array = interval * np.arange(n_lags, dtype=np.float64)
    window: Array = np.exp(-0.5 * (2.0 * math.pi * sigma * lag) ** 2)
    frequency: Array = np.arange(0.0, 0.5 / interval, resolution_THz / _POINTS)
    transform: Array = 6.0 * interval * np.cos(2.0 * math.pi * np.outer(frequency, lag)) * window
    transform[:, 1:] *= 2.0  # t and -t
    return [
        _spectrum(name, [_of(part, elements == name) for part in stretches], lag, frequency, transform)
        for name in dict.fromkeys(elements.tolist())
    ]


def frames_needed(resolution_THz: float, interval_ps: float, blocks: int) -> int:
    """Length of a run, in frames, for this resolution and so many blocks."""
    return 2 * blocks * _lags_of_window(resolution_THz, interval_ps)


def _lags_of_window(resolution_THz: float, interval_ps: float) -> int:
    """Lags until w is 0.2 %."""
    return 1 + math.ceil(_LONGEST * _FWHM / (2.0 * math.pi * resolution_THz) / interval_ps)


def velocity_autocorrelation(velocities: NDArray[np.floating], n_lags: int) -> Array:
    """1/N sum_i < v_i(s) . v_i(s + lag) > over all origins s, of velocities (n_frames, n_atoms, 3), (n_lags,).

    sum_s v(s).v(s + lag) is the inverse Fourier transform of |v(f)|^2, padded by zeros.
    """
    n, n_atoms = velocities.shape[:2]
    total = np.zeros(n_lags)
    for first in range(0, n_atoms, _CHUNK):
        spectrum = np.fft.rfft(velocities[:, first : first + _CHUNK].astype(np.float64), n=2 * n, axis=0)
        total += np.fft.irfft((spectrum * spectrum.conj()).sum(axis=(1, 2)), n=2 * n)[:n_lags]
    return np.asarray(total / (n - np.arange(n_lags)) / n_atoms, dtype=np.float64)


def _spectrum(species: str, parts: Sequence[_Motion], lag: Array, frequency: Array, transform: Array) -> Vibrations:
    correlations = np.array([velocity_autocorrelation(part.velocities, len(lag)) for part in parts])
    if not np.all(correlations[:, 0] > 0.0):
        raise DataError(f"`velocities` of {species} are zero; expected atoms that move. Choose another stage.")
    correlations /= correlations[:, :1]
    spectrum = curve_of_blocks(species, frequency, correlations @ transform.T)
    peak, height = highest_peak(spectrum)

    def rms(g: Array) -> float:
        return math.sqrt(max(0.0, float(frequency**2 @ g / g.sum())))

    return Vibrations(
        species=species,
        spectrum=spectrum,
        vacf=curve_of_blocks(species, lag, correlations),
        peak=peak,
        peak_height=height,
        rms_frequency=jackknife(spectrum.blocks, rms, spectrum.inflation),
        rms_frequency_of_forces=_rms_frequency(parts),
    )


def _rms_frequency(parts: Sequence[_Motion]) -> float | None:
    """sqrt(< a^2 > / < v^2 >) / 2 pi, THz."""
    if any(part.accelerations is None for part in parts):
        return None
    a2 = np.mean([np.mean(np.square(a, dtype=np.float64)) for part in parts if (a := part.accelerations) is not None])
    v2 = np.mean([np.mean(np.square(part.velocities, dtype=np.float64)) for part in parts])
    return math.sqrt(float(a2 / v2)) / (2.0 * math.pi)


def _of(part: _Motion, chosen: NDArray[np.bool_]) -> _Motion:
    a = part.accelerations
    return _Motion(part.velocities[:, chosen], None if a is None else a[:, chosen])


def _motion(universe: Universe, first: int, n_frames: int) -> _Motion:
    """Velocities and accelerations of a stretch."""
    masses = np.asarray(universe.atoms.masses, dtype=np.float64)
    if not np.all(masses > 0.0):
        raise DataError("`masses` of the trajectory has zeros; expected a mass for every element. Name real elements.")
    weight = masses / masses.sum()
    velocities = np.empty((n_frames, len(masses), 3), dtype=np.float32)
    forces = np.empty_like(velocities) if universe.trajectory.ts.has_forces else None
    for k, frame in enumerate(universe.trajectory[first : first + n_frames]):
        if not frame.has_velocities:
            raise DataError(
                f"`trajectory` has no velocities in frame {frame.frame}; expected those of a dynamics stage. Run one."
            )
        v = frame.velocities.astype(np.float64)
        velocities[k] = v - weight @ v
        if forces is not None:
            forces[k] = _ACCELERATION * frame.forces / masses[:, None]
    return _Motion(velocities, forces)


def _interval_ps(universe: Universe) -> float:
    """Time between frames, ps."""
    n = len(universe.trajectory)
    if n < 2:
        raise DataError(f"`trajectory` has {n} frames; expected many. Run longer.")
    last, first = float(universe.trajectory[-1].time), float(universe.trajectory[0].time)
    return (last - first) / (n - 1)
