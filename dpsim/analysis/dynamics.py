"""What the total energy of a run says about its time step, precision and model: drift, fluctuation, scaling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dpsim.analysis.power_law import fit_power_law
from dpsim.analysis.statistics import LinearFit, linear_fit_correlated
from dpsim.errors import DataError

MEV_PER_EV = 1000.0


@dataclass(frozen=True)
class DriftResult:
    """Conservation of the total energy in one run.

    drift, error: slope of the total energy per atom and its standard error, meV/atom/ps;
    fluctuation: standard deviation of the points about the fitted line, meV/atom;
    fit: the line through energy per atom (meV/atom, relative to the first point) against time (ps).
    """

    drift_meV_per_atom_per_ps: float
    error_meV_per_atom_per_ps: float
    fluctuation_meV_per_atom: float
    n_effective: float
    duration_ps: float
    n_atoms: int
    reliable: bool
    fit: LinearFit

    @property
    def drift(self) -> float:
        """Drift, meV/atom/ps."""
        return self.drift_meV_per_atom_per_ps

    @property
    def error(self) -> float:
        """Standard error of the drift, meV/atom/ps."""
        return self.error_meV_per_atom_per_ps

    @property
    def fluctuation(self) -> float:
        """Standard deviation about the fitted line, meV/atom."""
        return self.fluctuation_meV_per_atom

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Confidence interval of the drift, meV/atom/ps."""
        return self.fit.slope_interval(confidence)


@dataclass(frozen=True)
class ScalingResult:
    """fluctuation = prefactor dt^exponent; `interval` is the 95 % confidence interval of the exponent."""

    exponent: float
    error: float
    prefactor: float
    interval: tuple[float, float]
    timesteps_fs: tuple[float, ...]
    fluctuations: tuple[float, ...]


def energy_drift(time_ps: ArrayLike, total_energy_eV: ArrayLike, n_atoms: int) -> DriftResult:
    """Drift of the total energy, which exact Newtonian dynamics conserves.

    drift = 1000/n_atoms dE/dt, from a least-squares line whose error allows for correlated residuals (in velocity
    Verlet the energy vibrates with the fastest bonds, and wanders slowly with the structure).

    Args:
        time_ps: times, ps, (n,).
        total_energy_eV: potential plus kinetic energy of the whole system, eV, (n,).
        n_atoms: number of atoms of the system.

    Returns:
        DriftResult, in meV/atom/ps and meV/atom.

    Raises:
        DataError: n_atoms below 1, fewer than three samples, NaN, times that do not increase.

    Source: statistics.linear_fit_correlated.
    """
    if n_atoms < 1:
        raise DataError(f"`n_atoms` is {n_atoms}; expected at least 1. Pass the number of atoms of the system.")
    times = np.asarray(time_ps, dtype=np.float64)
    energy = np.asarray(total_energy_eV, dtype=np.float64)
    reference = energy.flat[0] if energy.size else 0.0
    fit = linear_fit_correlated(times, MEV_PER_EV / n_atoms * (energy - reference))
    return DriftResult(
        drift_meV_per_atom_per_ps=fit.slope,
        error_meV_per_atom_per_ps=fit.slope_error,
        fluctuation_meV_per_atom=fit.residual_std,
        n_effective=fit.n_effective,
        duration_ps=float(times[-1] - times[0]),
        n_atoms=int(n_atoms),
        reliable=fit.reliable,
        fit=fit,
    )


def fluctuation_scaling(
    timesteps_fs: ArrayLike, fluctuations: ArrayLike, errors: ArrayLike | None = None
) -> ScalingResult:
    """Exponent p in fluctuation ~ dt^p; velocity Verlet on a smooth surface gives p = 2.

    Verlet conserves a shadow Hamiltonian H + O(dt^2), so H itself fluctuates by O(dt^2). Forces that are not the
    gradient of the energy, a kink at the cutoff, or rounding leave a floor that does not shrink with dt: p < 2.

    Args:
        timesteps_fs: at least two different time steps, fs.
        fluctuations: standard deviation of the total energy at each, any one unit, positive.
        errors: standard errors of `fluctuations`, same unit; without them as `fit_power_law`.

    Returns:
        ScalingResult.

    Raises:
        DataError: lengths that differ, values that are not positive, fewer than two different time steps.

    Source: E. Hairer, C. Lubich, G. Wanner, Acta Numerica 12, 399 (2003), section 4.
    """
    steps = np.asarray(timesteps_fs, dtype=np.float64)
    values = np.asarray(fluctuations, dtype=np.float64)
    if steps.shape != values.shape or steps.ndim != 1 or len(np.unique(steps)) < 2:
        raise DataError(
            f"`timesteps_fs` has shape {steps.shape} and `fluctuations` {values.shape}; expected two equally long "
            "lists with at least two different time steps. Run the check at another time step."
        )
    if not (np.all(steps > 0.0) and np.all(values > 0.0) and np.isfinite(values).all()):
        raise DataError(
            f"`fluctuations` is {values.tolist()} at {steps.tolist()} fs; expected positive finite numbers. "
            "Look at the run whose energy does not fluctuate."
        )
    law = fit_power_law(steps, values, errors)
    return ScalingResult(
        exponent=law.exponent,
        error=law.error,
        prefactor=law.prefactor,
        interval=law.interval,
        timesteps_fs=tuple(steps.tolist()),
        fluctuations=tuple(values.tolist()),
    )
