"""How well runs with different time steps conserve the energy, and which step is short enough.

Velocity Verlet with the step dt conserves a shadow energy that differs from E by O(dt^2), so E fluctuates. Its size is
best told beside the fluctuation of the kinetic energy K, which no step can avoid:

    r = std(E)/std(K)          independent of the number of atoms, where std(E)/N is not

For a harmonic oscillator of angular frequency w, with h = w dt, it is known exactly:

    v^2 + w^2 x^2 (1 - h^2/4) = const,    r = h^2/(4 - h^2) = T_x/T_v - 1,    unstable at h = 2

so that r also says by how much the temperature of positions exceeds that of velocities. Between rounding, which does
not shrink with dt, and the onset of instability r = c dt^2; `step_law` finds between which steps.

Source: E. Hairer, C. Lubich, G. Wanner, Acta Numerica 12, 399 (2003), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpsim.analysis.dynamics import MEV_PER_EV, DriftResult, energy_drift
from dpsim.analysis.power_law import PowerLaw, fit_power_law
from dpsim.analysis.statistics import Estimate, linear_fit_correlated, mean_with_error, student_t

Array = NDArray[np.float64]
ORDER = 2.0  # of velocity Verlet
_TOLERANCE = 0.3  # exponents this close to it follow the law; a harmonic oscillator leaves it at r = 0.15


@dataclass(frozen=True)
class Conservation:
    """Of one run. drift: meV/atom/ps; fluctuation: std(E) about the line, meV/atom; ratio: r; errors are standard ones.

    freedom: degrees of freedom of the errors of fluctuation and ratio.
    """

    timestep_fs: float
    drift: DriftResult
    fluctuation: float
    fluctuation_error: float
    ratio: float
    ratio_error: float
    freedom: int

    def ratio_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Confidence interval of r, not below 0."""
        half = student_t(confidence, self.freedom) * self.ratio_error
        return max(0.0, self.ratio - half), self.ratio + half


@dataclass(frozen=True)
class StepLaw:
    """Where r = c dt^2 holds: from `first_fs` to `last_fs`, between neighbouring steps of the scan.

    fit: the power of dt over these steps, its error from their scatter. points: (dt, r, error of r) of these steps.
    """

    first_fs: float
    last_fs: float
    fit: PowerLaw
    points: tuple[tuple[float, float, float], ...]

    def step_of(self, ratio: float) -> tuple[float, float]:
        """The step (fs, with its error) of which the law gives this r, from the point that is nearest to it."""
        step, r, error = min(self.points, key=lambda point: abs(math.log(point[1] / ratio)))
        found = step * (ratio / r) ** (1.0 / ORDER)
        return found, found * error / r / ORDER

    def excess(self, timestep_fs: float, ratio: float) -> float:
        """How many times what the law gives an r is, from the nearest step of the law."""
        step, r, _ = min(self.points, key=lambda point: abs(math.log(point[0] / timestep_fs)))
        return ratio / (r * (timestep_fs / step) ** ORDER)


def conservation(
    timestep_fs: float, time_ps: ArrayLike, total_energy_eV: ArrayLike, kinetic_energy_eV: ArrayLike, n_atoms: int
) -> Conservation:
    """Drift and fluctuations of a run.

    Args:
        timestep_fs: its time step, fs.
        time_ps, total_energy_eV, kinetic_energy_eV: ps and eV of the whole system, (n,).
        n_atoms: atoms of the system.

    Raises:
        DataError: as `energy_drift`.
    """
    drift = energy_drift(time_ps, total_energy_eV, n_atoms)
    total, kinetic = _variance(time_ps, total_energy_eV), _variance(time_ps, kinetic_energy_eV)
    fluctuation, ratio = math.sqrt(total.value), math.sqrt(total.value / kinetic.value) if kinetic.value else 0.0
    known = _relative_error(total)
    return Conservation(
        timestep_fs=timestep_fs,
        drift=drift,
        fluctuation=MEV_PER_EV / n_atoms * fluctuation,
        fluctuation_error=MEV_PER_EV / n_atoms * fluctuation * known,
        ratio=ratio,
        ratio_error=ratio * math.hypot(known, _relative_error(kinetic)),
        freedom=min(total.degrees_of_freedom, kinetic.degrees_of_freedom),
    )


def _variance(time_ps: ArrayLike, energy_eV: ArrayLike) -> Estimate:
    """Mean square about the fitted line, with the error of correlated samples."""
    times, energy = np.asarray(time_ps, dtype=np.float64), np.asarray(energy_eV, dtype=np.float64)
    fit = linear_fit_correlated(times, energy - energy[0])
    left = energy - energy[0] - fit.predict(times)
    return mean_with_error(left**2)


def _relative_error(variance: Estimate) -> float:
    """Of its root."""
    return 0.5 * variance.error / variance.value if variance.value else 0.0


def step_law(points: Sequence[Conservation]) -> StepLaw | None:
    """The longest row of neighbouring steps between which r grows like dt^2; None where there is none.

    Args: points: runs from one start, of any order; those without fluctuation do not count.
    """
    rows = sorted((p.timestep_fs, p.ratio, p.ratio_error) for p in points if p.ratio > 0.0)
    dt, r = (np.array([row[k] for row in rows]) for k in (0, 1))
    exponents = np.diff(np.log(r)) / np.diff(np.log(dt)) if len(rows) > 1 else np.array([])
    best = slice(0, 0)
    start = 0
    for k, p in enumerate(exponents):
        if abs(p - ORDER) > _TOLERANCE:
            start = k + 1
        elif k + 2 - start > best.stop - best.start:
            best = slice(start, k + 2)
    if best.stop == 0:
        return None
    return StepLaw(
        float(dt[best][0]), float(dt[best][-1]), fit_power_law(dt[best], r[best]), tuple(rows[best.start : best.stop])
    )
