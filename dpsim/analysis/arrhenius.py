"""D(T) of several temperatures: an activation energy with its error, and whether one line is enough.

    ln D = ln D0 - E_a / k_B T        least squares with weights 1/s^2, s = error(D)/D

The errors s are estimates from nu = 4 ... 16 independent numbers each, which has two consequences. Weights that are
noisy make the usual error of the line too small: its square is multiplied by 1 + 4 sum_i h_i (1 - h_i) / nu_i, h_i the
leverage of point i (P. Meier, Biometrics 9, 59 (1953), for a mean, where h_i is its share of the weights). And the
interval uses Student's t with F. E. Satterthwaite's degrees of freedom (Biometrics Bull. 2, 110 (1946)).

A break: two lines, each through at least two points, against one. Of all places for it the best is taken,

    Delta = chi^2(one line) - min_k chi^2(lines through 1 ... k and k + 1 ... n)

and p is how often one line with these errors gives a larger Delta by chance, from simulated data: that pays for having
chosen k, and for errors that are estimates. Likewise the probability of the scatter about one line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpsim.analysis.statistics import Estimate, student_t
from dpsim.errors import DataError
from dpsim.units import BOLTZMANN_EV_PER_K

Array = NDArray[np.float64]
_SAMPLES = 4000  # of the simulated data: p is known to 0.003 at 0.05
_FEWEST_FOR_A_BREAK = 4


@dataclass(frozen=True)
class ArrheniusLine:
    """ln D = ln D0 - E_a/k_B T through the points from `temperatures_K[0]` to `[-1]`.

    activation_energy_eV, error_eV: E_a and its standard error; degrees_of_freedom: of its t.
    log_prefactor: ln D0, in the unit of D. chi2: sum of squared residuals in errors, of n - 2 degrees of freedom.
    """

    temperatures_K: tuple[float, ...]
    activation_energy_eV: float
    error_eV: float
    log_prefactor: float
    degrees_of_freedom: float
    chi2: float

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Confidence interval of E_a, eV."""
        half = student_t(confidence, self.degrees_of_freedom) * self.error_eV  # type: ignore[arg-type]
        return self.activation_energy_eV - half, self.activation_energy_eV + half

    def predict(self, temperature_K: Array) -> Array:
        """D on the line, in the unit of D."""
        return np.exp(self.log_prefactor - self.activation_energy_eV / (BOLTZMANN_EV_PER_K * temperature_K))


@dataclass(frozen=True)
class Arrhenius:
    """One line through all points, and what is said against it.

    scatter_p_value: probability of a larger chi2 if the line is right; None for two points.
    break_p_value: probability of a Delta as large if one line is right; None with fewer than four points.
    below, above: the two lines of the best break; between: the temperatures on both sides of it, K.
    """

    line: ArrheniusLine
    scatter_p_value: float | None = None
    break_p_value: float | None = None
    below: ArrheniusLine | None = None
    above: ArrheniusLine | None = None
    between: tuple[float, float] | None = None

    def broken(self, confidence: float = 0.95) -> bool:
        """Whether one line is too little."""
        return self.break_p_value is not None and self.break_p_value < 1.0 - confidence


def fit_arrhenius(points: Sequence[tuple[float, Estimate]], seed: int = 0) -> Arrhenius | None:
    """The line through D(T), and the test for a break.

    Args:
        points: (temperature in K, D with its error, positive), any unit, any order; two different temperatures at least
            give a line, four a test.
        seed: of the simulated data.

    Returns:
        Arrhenius; None with fewer than two temperatures.

    Raises:
        DataError: a temperature, a D or an error that is not positive, a temperature twice.
    """
    ordered = sorted(points, key=lambda point: point[0])
    temperature = np.array([t for t, _ in ordered])
    if len(ordered) < 2:
        return None
    values = np.array([d.value for _, d in ordered])
    errors = np.array([d.error for _, d in ordered])
    if not (np.all(temperature > 0) and np.all(values > 0) and np.all(errors > 0)) or np.any(np.diff(temperature) == 0):
        raise DataError(
            f"`points` are D = {values.tolist()} -+ {errors.tolist()} at {temperature.tolist()} K; expected positive "
            "numbers, each temperature once. Leave out temperatures without diffusion."
        )
    x, y, sigma = 1.0 / (BOLTZMANN_EV_PER_K * temperature), np.log(values), errors / values
    freedom = np.array([d.degrees_of_freedom for _, d in ordered], dtype=np.float64)
    line = _line(temperature, x, y, sigma, freedom)
    if len(x) < 3:
        return Arrhenius(line)
    random = np.random.default_rng(seed)
    shape = (_SAMPLES, len(x))
    noise = sigma * random.normal(size=shape)
    noisy_sigma = sigma * np.sqrt(random.chisquare(freedom, size=shape) / freedom)
    one = _chi2(x, noise, noisy_sigma)
    scatter = float(np.mean(one >= line.chi2))
    if len(x) < _FEWEST_FOR_A_BREAK:
        return Arrhenius(line, scatter)
    cuts = range(2, len(x) - 1)
    two = [_two(x, y[None], sigma[None], k)[0] for k in cuts]
    best = cuts[int(np.argmin(two))]
    by_chance = one - np.min([_two(x, noise, noisy_sigma, k) for k in cuts], axis=0)
    below, above = slice(best), slice(best, None)
    return Arrhenius(
        line,
        scatter,
        break_p_value=float(np.mean(by_chance >= line.chi2 - min(two))),
        below=_line(temperature[below], x[below], y[below], sigma[below], freedom[below]),
        above=_line(temperature[above], x[above], y[above], sigma[above], freedom[above]),
        between=(float(temperature[best - 1]), float(temperature[best])),
    )


def _line(temperature: Array, x: Array, y: Array, sigma: Array, freedom: Array) -> ArrheniusLine:
    """Weighted least squares, with the errors of the module."""
    weight = sigma**-2
    center = float(np.average(x, weights=weight))
    spread = float(np.sum(weight * (x - center) ** 2))
    share = weight * (x - center) / spread  # slope = sum share_i y_i
    slope = float(share @ y)
    intercept = float(np.average(y, weights=weight)) - slope * center
    leverage = weight / weight.sum() + weight * (x - center) ** 2 / spread
    noisy_weights = 1.0 + 4.0 * float(np.sum(leverage * (1.0 - leverage) / freedom))
    parts = (share * sigma) ** 2
    variance = float(parts.sum())
    return ArrheniusLine(
        temperatures_K=tuple(temperature.tolist()),
        activation_energy_eV=-slope,
        error_eV=math.sqrt(variance * noisy_weights),
        log_prefactor=intercept,
        degrees_of_freedom=variance**2 / float(np.sum(parts**2 / freedom)),
        chi2=float(np.sum(weight * (y - intercept - slope * x) ** 2)),
    )


def _chi2(x: Array, y: Array, sigma: Array) -> Array:
    """chi^2 of the best line through each row of y (samples, n) with errors sigma (samples, n)."""
    weight = sigma**-2
    total = weight.sum(axis=1, keepdims=True)
    x0 = x - (weight * x).sum(axis=1, keepdims=True) / total
    y0 = y - (weight * y).sum(axis=1, keepdims=True) / total
    slope = (weight * x0 * y0).sum(axis=1, keepdims=True) / (weight * x0**2).sum(axis=1, keepdims=True)
    return np.asarray((weight * (y0 - slope * x0) ** 2).sum(axis=1))


def _two(x: Array, y: Array, sigma: Array, k: int) -> Array:
    """chi^2 of two lines, through the points before k and from k on."""
    return _chi2(x[:k], y[:, :k], sigma[:, :k]) + _chi2(x[k:], y[:, k:], sigma[:, k:])
