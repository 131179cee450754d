"""Equations of state E(V): fits, their errors, and the pressures at which one phase gives way to another.

Birch-Murnaghan, third order, with x = (V0/V)^(2/3):

    E(V) = E0 + 9/16 V0 B0 [(x - 1)^3 B0' + (x - 1)^2 (6 - 4x)]
    P(V) = 3/2 B0 (x^(7/2) - x^(5/2)) [1 + 3/4 (B0' - 4) (x - 1)]

Vinet, with y = (V/V0)^(1/3) and k = 3/2 (B0' - 1):

    E(V) = E0 + 9 V0 B0/k^2 [1 - (1 - k (1 - y)) exp(k (1 - y))]
    P(V) = 3 B0 (1 - y)/y^2 exp(k (1 - y))

E, E0 eV/atom; V, V0 A^3/atom; B0, P eV/A^3; B0' without unit.
Sources: F. Birch, Phys. Rev. 71, 809 (1947); P. Vinet et al., J. Phys. C 19, L467 (1986).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpsim.errors import DataError

Form = Literal["birch-murnaghan", "vinet"]
Array = NDArray[np.float64]
_GRID = 400  # pressures at which two phases are compared before the crossing is made precise


def energy(form: Form, volume: ArrayLike, parameters: Sequence[float]) -> Array:
    """E(V), eV/atom, of the parameters E0, V0, B0, B0'."""
    e0, v0, b0, b0_prime = parameters
    v = np.asarray(volume, dtype=np.float64)
    if form == "vinet":
        k, compression = 1.5 * (b0_prime - 1.0), 1.0 - np.cbrt(v / v0)
        return e0 + 9.0 * v0 * b0 / k**2 * (1.0 - (1.0 - k * compression) * np.exp(k * compression))
    x = np.cbrt(v0 / v) ** 2
    return e0 + 9.0 / 16.0 * v0 * b0 * ((x - 1.0) ** 3 * b0_prime + (x - 1.0) ** 2 * (6.0 - 4.0 * x))


def pressure(form: Form, volume: ArrayLike, parameters: Sequence[float]) -> Array:
    """P(V) = -dE/dV, eV/A^3."""
    _, v0, b0, b0_prime = parameters
    v = np.asarray(volume, dtype=np.float64)
    if form == "vinet":
        y = np.cbrt(v / v0)
        return 3.0 * b0 * (1.0 - y) / y**2 * np.exp(1.5 * (b0_prime - 1.0) * (1.0 - y))
    x = np.cbrt(v0 / v) ** 2
    return 1.5 * b0 * (x**3.5 - x**2.5) * (1.0 + 0.75 * (b0_prime - 4.0) * (x - 1.0))


@dataclass(frozen=True)
class EquationOfState:
    """A fit: parameters (E0, V0, B0, B0'), their covariance (4, 4), the rms of what it leaves (eV/atom), the range."""

    form: Form
    parameters: tuple[float, float, float, float]
    covariance: Array
    rms: float
    volumes: tuple[float, float]

    @property
    def errors(self) -> Array:
        """Standard errors of the parameters, (4,), from the residuals of the fit."""
        return np.sqrt(np.diag(self.covariance))

    def energy(self, volume: ArrayLike) -> Array:
        """E(V), eV/atom."""
        return energy(self.form, volume, self.parameters)

    def pressure(self, volume: ArrayLike) -> Array:
        """P(V), eV/A^3."""
        return pressure(self.form, volume, self.parameters)

    def volume_at(self, p: float) -> float:
        """V(P), A^3/atom; only of a pressure within the range of the fit."""
        from scipy.optimize import brentq

        return float(brentq(lambda v: float(self.pressure(v)) - p, *self.volumes))

    def enthalpy(self, p: float) -> float:
        """H(P) = E + P V, eV/atom."""
        v = self.volume_at(p)
        return float(self.energy(v)) + p * v

    def enthalpies(self, p: Array) -> Array:
        """H(P) of many pressures, interpolated on a fine grid of volumes."""
        v = np.linspace(self.volumes[1], self.volumes[0], 10 * _GRID)
        at = self.pressure(v)
        return np.interp(p, at, self.energy(v) + at * v)

    def enthalpy_error(self, p: float) -> float:
        """Standard error of H(P), eV/atom: dH/dp_i at constant P is dE/dp_i at constant V."""
        v = self.volume_at(p)
        steps = 1e-6 * np.maximum(np.abs(self.parameters), 1e-3)
        slopes = [
            (energy(self.form, v, np.add(self.parameters, d)) - energy(self.form, v, np.subtract(self.parameters, d)))
            / (2.0 * d.sum())
            for d in np.diag(steps)
        ]
        return float(np.sqrt(np.array(slopes) @ self.covariance @ np.array(slopes)))


def fit_eos(volumes: ArrayLike, energies: ArrayLike, form: Form = "birch-murnaghan") -> EquationOfState:
    """Least squares over E(V).

    Args: volumes (n,) A^3/atom; energies (n,) eV/atom; at least five points with the minimum among them.

    Raises: DataError where there are fewer points, or the lowest energy lies at an end.
    """
    from scipy.optimize import least_squares

    v, e = np.asarray(volumes, dtype=np.float64), np.asarray(energies, dtype=np.float64)
    if v.ndim != 1 or v.shape != e.shape or len(v) < 5:
        raise DataError(f"`volumes` has shape {v.shape}; expected at least 5, and as many energies. Add points.")
    lowest = int(np.argmin(e))
    if v[lowest] in (v.min(), v.max()):
        raise DataError(
            f"the lowest energy is at {v[lowest]:.4g} A^3/atom, an end of the range {v.min():.4g} ... {v.max():.4g}; "
            "expected a minimum inside. Start nearer the equilibrium, or widen the range."
        )
    middle, scale = v[lowest], np.ptp(e)
    curvature, _, bottom = np.polyfit(v - middle, e, 2)
    start = np.array([bottom, middle, max(2.0 * curvature * middle, 1e-6), 4.0])
    units = np.array([scale, middle, start[2], 1.0])

    def residuals(x: Array) -> Array:
        parameters = x * units
        return (energy(form, v, [parameters[0] + bottom, *parameters[1:]]) - e) / scale

    x = least_squares(
        residuals, np.array([0.0, *(start / units)[1:]]), xtol=1e-15, ftol=1e-15, gtol=1e-15, x_scale="jac"
    )
    left = float(np.sum(x.fun**2))
    covariance = np.linalg.inv(x.jac.T @ x.jac) * (left / max(len(v) - 4, 1)) * np.outer(units, units)
    e0, v0, b0, b0_prime = (x.x * units).tolist()
    parameters = (e0 + float(bottom), v0, b0, b0_prime)
    return EquationOfState(
        form, parameters, covariance, scale * float(np.sqrt(left / len(v))), (float(v.min()), float(v.max()))
    )


def transition_pressures(first: EquationOfState, second: EquationOfState) -> list[tuple[float, float]]:
    """Pressures P_t, with standard errors, at which H1(P) = H2(P), within the range of both fits, eV/A^3.

    error(P_t) = sqrt(error(H1)^2 + error(H2)^2) / |V1 - V2|, as d(H1 - H2)/dP = V1 - V2.
    """
    from scipy.optimize import brentq

    low, high = (max(float(e.pressure(e.volumes[1])) for e in (first, second)),
                 min(float(e.pressure(e.volumes[0])) for e in (first, second)))  # fmt: skip
    if not low < high:
        return []
    margin = 1e-9 * (high - low)  # brentq wants the ends inside
    grid = np.linspace(low + margin, high - margin, _GRID)

    def difference(p: float) -> float:
        return first.enthalpy(p) - second.enthalpy(p)

    values = first.enthalpies(grid) - second.enthalpies(grid)
    found = []
    for k in np.flatnonzero(np.sign(values[:-1]) * np.sign(values[1:]) < 0):
        p = float(brentq(difference, grid[k], grid[k + 1]))
        error = np.hypot(first.enthalpy_error(p), second.enthalpy_error(p))
        found.append((p, float(error / abs(first.volume_at(p) - second.volume_at(p)))))
    return found
