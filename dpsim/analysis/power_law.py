"""y = a x^p: how a cost grows with the number of atoms, or an error with the time step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpsim.analysis.statistics import student_t
from dpsim.errors import DataError

_ERRORS_ARE_KNOWN = 10_000  # degrees of freedom


@dataclass(frozen=True)
class PowerLaw:
    """y = prefactor x^exponent; `error` is one standard error of the exponent, `interval` its 95 % interval."""

    exponent: float
    error: float
    prefactor: float
    interval: tuple[float, float]

    def __call__(self, x: ArrayLike) -> NDArray[np.float64]:
        """y at x."""
        return np.asarray(self.prefactor * np.asarray(x, dtype=np.float64) ** self.exponent)


def fit_power_law(x: ArrayLike, y: ArrayLike, errors: ArrayLike | None = None) -> PowerLaw:
    """log y = log a + p log x by (weighted) least squares.

    Args:
        x, y: equally long, positive, at least two different x.
        errors: standard errors of y, made larger if the points scatter more than they allow; without them the scatter
            about the line is used, which needs three points (two give an infinite error).

    Returns:
        PowerLaw.

    Raises:
        DataError: lengths that differ, values that are not positive, fewer than two different x.
    """
    steps, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if steps.shape != values.shape or steps.ndim != 1 or len(np.unique(steps)) < 2:
        raise DataError(
            f"`x` has shape {steps.shape} and `y` {values.shape}; expected two equally long lists with at least two "
            "different x. Measure at another one."
        )
    if not (np.all(steps > 0.0) and np.all(values > 0.0) and np.isfinite(values).all()):
        raise DataError(f"`y` is {values.tolist()} at {steps.tolist()}; expected positive finite numbers.")
    u, v = np.log(steps), np.log(values)
    sigma = None if errors is None else np.asarray(errors, dtype=np.float64) / values
    weight = np.ones_like(u) if sigma is None else 1.0 / np.maximum(sigma, 1e-12) ** 2
    center = np.average(u, weights=weight)
    spread = float(np.sum(weight * (u - center) ** 2))
    exponent = float(np.sum(weight * (u - center) * v) / spread)
    intercept = float(np.average(v, weights=weight) - exponent * center)
    freedom = len(u) - 2
    chi2 = float(np.sum(weight * (v - intercept - exponent * u) ** 2))
    if sigma is None:
        error = math.sqrt(chi2 / freedom / spread) if freedom else math.inf
        half = student_t(0.95, freedom) * error if freedom else math.inf
    else:
        error = math.sqrt(max(1.0, chi2 / freedom if freedom else 1.0) / spread)
        half = student_t(0.95, _ERRORS_ARE_KNOWN) * error
    return PowerLaw(exponent, error, math.exp(intercept), (exponent - half, exponent + half))
