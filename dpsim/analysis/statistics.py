"""Error bars for correlated time series: means, straight lines, and where equilibration ends.

Samples of a simulation are correlated, so sigma/sqrt(n) is wrong: too small where the series wanders slowly, too large
where it vibrates about a fixed value. What enters the error of a mean or of a slope is the long-run variance

    S = sum_k C(k),   C(k) = <e(i) e(i+k)>,   error(mean)^2 = S / n,   error(slope)^2 = S / sum_i (t_i - <t>)^2,

the spectral density of the series e at frequency zero. `_long_run_variance` measures it from the K lowest frequencies
of the record itself; the quotient (estimate - truth) / error then follows Student's t with K degrees of freedom, and
`interval()` uses that t, so that short records get honestly wide intervals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from dpsim.errors import DataError

Array = NDArray[np.float64]

_COARSE_POINTS = 128  # blocks used to judge the slow correlations; vibrations average out within a block
_FINE_POINTS = 4096  # longer records are averaged down to this many blocks before the low frequencies are measured
_MAX_MODES = 16  # t_16 intervals are only 6 % wider than Gaussian ones; more modes would risk a bias for nothing
_MIN_MODES = 4
_MIN_BLOCKS = 16  # the error from fewer blocks is too uncertain to show that blocks are long enough
_SAMPLES_PER_MODE = 5.0  # K <= n_effective / 5 keeps the K modes below the corner frequency of the slow process
_COARSENED = 1000  # a longer series is averaged down to this many for its equilibrium: vibrations do not matter there
_FEWEST = 20  # samples; fewer say nothing about equilibrium
_LATEST = 0.5  # of a series: half of it is used in any case
_DRIFT, _DRIFT_LATE = 0.99, 0.8  # confidence with which what is left drifts, and where half was left out
_MIN_SLOW_SAMPLES = 20.0  # below, the record is a few correlation times long: too short to tell


@dataclass(frozen=True)
class Estimate:
    """A mean with the standard error of correlated samples.

    tau is the integrated autocorrelation time in samples (0.5 for independent ones, smaller for a vibrating series);
    n_effective = n / (2 tau). Below about 20 effective samples `reliable` is False: the record is too short to tell.
    """

    value: float
    error: float
    n_effective: float
    tau: float
    degrees_of_freedom: int
    reliable: bool = True

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The confidence interval value -+ t error, with Student's t of `degrees_of_freedom`."""
        half = student_t(confidence, self.degrees_of_freedom) * self.error
        return self.value - half, self.value + half


@dataclass(frozen=True)
class LinearFit:
    """y = intercept + slope t by least squares, with errors that allow for correlated residuals.

    residual_std is the standard deviation of the points about the line; `long_run_variance` the S of this module.
    """

    slope: float
    slope_error: float
    intercept: float
    intercept_error: float
    residual_std: float
    n_effective: float
    degrees_of_freedom: int
    n: int
    t_mean: float
    t_sum_of_squares: float
    long_run_variance: float
    reliable: bool = True

    def slope_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The confidence interval slope -+ t slope_error, with Student's t of `degrees_of_freedom`."""
        half = student_t(confidence, self.degrees_of_freedom) * self.slope_error
        return self.slope - half, self.slope + half

    def predict(self, t: ArrayLike) -> Array:
        """The fitted line at times t."""
        return self.intercept + self.slope * np.asarray(t, dtype=np.float64)

    def predict_error(self, t: ArrayLike) -> Array:
        """Standard error of the fitted line at times t: sqrt(S (1/n + (t - <t>)^2 / sum (t_i - <t>)^2))."""
        offset = np.asarray(t, dtype=np.float64) - self.t_mean
        return np.sqrt(self.long_run_variance * (1.0 / self.n + offset**2 / self.t_sum_of_squares))


@dataclass(frozen=True)
class BlockAverage:
    """The Flyvbjerg-Petersen blocking table: `errors[k]` is the error of the mean from blocks of `sizes[k]` samples."""

    value: float
    error: float
    block_size: int
    sizes: NDArray[np.int64]
    errors: Array
    error_errors: Array
    converged: bool


def student_t(confidence: float, degrees_of_freedom: int) -> float:
    """The two-sided quantile of Student's t: 1.96 for 95 % and many degrees of freedom."""
    return float(stats.t.ppf(0.5 + 0.5 * confidence, degrees_of_freedom))


def format_value(value: float | None, error: float | None = None, digits: int = 4) -> str:
    """A number as a person writes it: `2.896 ± 0.026`, `(1.20 ± 0.15) × 10⁻⁵`, `1187`.

    Two digits of the error, the value to the same decimal; without an error, `digits` significant digits.
    """
    if value is None or not math.isfinite(value):
        return "–" if value is None or math.isnan(value) else ("∞" if value > 0 else "−∞")
    if error is None or not math.isfinite(error) or error <= 0.0:
        size = math.floor(math.log10(abs(value))) if value else 0
        if -4 <= size < 6:
            text = f"{value:.{max(0, digits - 1 - size)}f}"
            return _minus_sign(text.rstrip("0").rstrip(".") if "." in text else text)
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{_minus_sign(mantissa)} × 10{_superscript(int(exponent))}"
    error_size = math.floor(math.log10(float(f"{error:.1e}")))
    size = max(error_size, math.floor(math.log10(abs(value))) if value else error_size)
    if -4 <= size < 6 and error_size >= -6:
        decimals = max(0, 1 - error_size)
        return f"{_minus_sign(f'{value:.{decimals}f}')} ± {error:.{decimals}f}"
    decimals = max(0, size - error_size + 1)
    value, error = value / 10.0**size, error / 10.0**size
    return f"({_minus_sign(f'{value:.{decimals}f}')} ± {error:.{decimals}f}) × 10{_superscript(size)}"


def _minus_sign(text: str) -> str:
    """A true minus; no minus before zero."""
    if not text.startswith("-"):
        return text
    return "−" + text[1:] if text.strip("-0.") else text[1:]


def _superscript(exponent: int) -> str:
    """The exponent in superscript digits."""
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def autocorrelation(x: ArrayLike) -> Array:
    """Normalised autocorrelation function rho(k) = C(k)/C(0) of one series about its mean, by FFT, shape (n,).

    C(k) = 1/n sum_i (x_i - <x>)(x_{i+k} - <x>), the usual (biased, positive definite) estimator; rho = 0 for k > 0
    where the series is constant.
    """
    series = _series(x, minimum=1)
    deviation = series - series.mean()
    n = len(series)
    spectrum = np.fft.rfft(deviation, n=2 * n)
    covariance = np.fft.irfft(spectrum * spectrum.conj())[:n]
    if covariance[0] <= _noise_floor(series) ** 2 * n:
        return np.eye(1, n).ravel()
    return np.asarray(covariance / covariance[0], dtype=np.float64)


def integrated_autocorrelation_time(x: ArrayLike, window: float = 5.0) -> float:
    """Integrated autocorrelation time of a series, in samples (0.5 for independent samples).

    tau(M) = 1/2 + sum_{k=1}^{M} rho(k), with Sokal's automatic window: the smallest M with M >= window tau(M).

    Args:
        x: the series, (n,).
        window: Sokal's constant c; 5 suits a nearly exponential decay.

    Returns:
        tau, at least 1/(2n) (an oscillating series can cancel almost completely).

    Raises:
        DataError: fewer than two samples, or one that is not finite.

    Source: A. Sokal, Monte Carlo Methods in Statistical Mechanics (1997), Eqs. 3.10-3.16.
    """
    rho = autocorrelation(_series(x, minimum=2))
    tau = np.cumsum(rho) - 0.5
    closed = np.arange(len(tau)) >= window * tau
    m = int(np.argmax(closed)) if closed.any() else len(tau) - 1
    return max(float(tau[m]), 0.5 / len(rho))


def block_average(x: ArrayLike) -> BlockAverage:
    """Error of the mean of a correlated series by blocking, with an automatic choice of the block.

    Samples are averaged in blocks of B = 1, 2, 4, ...; error(B) = std(block means)/sqrt(n_blocks) grows until blocks
    are longer than the correlation. Chosen is the smallest B with B^3 > 2 n (error(B)/error(1))^4, where systematic
    and statistical error of the error balance; `converged` is False where no B satisfies it: the record is too short.

    Args:
        x: the series, (n,).

    Returns:
        BlockAverage; `error_errors` is error(B)/sqrt(2 (n_blocks - 1)).

    Raises:
        DataError: fewer than two samples, or one that is not finite.

    Source: H. Flyvbjerg and H. G. Petersen, J. Chem. Phys. 91, 461 (1989); the choice of B: R. M. Lee et al.,
    Phys. Rev. E 83, 066706 (2011).
    """
    series = _series(x, minimum=2)
    n = len(series)
    longest = max(1, n // _MIN_BLOCKS) if n >= 2 * _MIN_BLOCKS else n // 2
    sizes = 2 ** np.arange(int(math.log2(longest)) + 1)
    blocks = [_block_means(series, n // int(size), int(size)) for size in sizes]
    errors = np.array([b.std(ddof=1) / math.sqrt(len(b)) for b in blocks])
    error_errors = np.array([e / math.sqrt(2.0 * (len(b) - 1)) for e, b in zip(errors, blocks, strict=True)])
    growth = errors / errors[0] if errors[0] > 0.0 else np.ones_like(errors)
    enough = sizes.astype(np.float64) ** 3 > 2.0 * n * growth**4
    chosen = int(np.argmax(enough)) if enough.any() else int(np.argmax(errors))
    return BlockAverage(
        value=float(series.mean()),
        error=float(errors[chosen]),
        block_size=int(sizes[chosen]),
        sizes=sizes.astype(np.int64),
        errors=errors,
        error_errors=error_errors,
        converged=bool(enough.any()),
    )


def mean_with_error(x: ArrayLike) -> Estimate:
    """The mean of a correlated series and its standard error.

    error^2 = S/n, with the long-run variance S from the lowest frequencies of the series (see the module). A slow
    drift of the series counts as noise, as it must: the mean of a series that still drifts is not known well.

    Args:
        x: equidistant samples, (n,).

    Returns:
        Estimate in the unit of x.

    Raises:
        DataError: fewer than two samples, or one that is not finite.

    Source: the orthonormal-series estimator of E. Lazarus, D. J. Lewis, J. H. Stock and M. W. Watson, J. Bus. Econ.
    Stat. 36, 541 (2018).
    """
    series = _series(x, minimum=2)
    n = len(series)
    mean = float(series.mean())
    deviation = series - mean
    variance = float(deviation @ deviation) / (n - 1)
    spectral, modes, reliable = _long_run_variance(np.arange(n, dtype=np.float64), deviation, n_parameters=1)
    tau = _tau(spectral, variance, n)
    return Estimate(mean, math.sqrt(spectral / n), n / (2.0 * tau), tau, modes, reliable)


def linear_fit_correlated(t: ArrayLike, y: ArrayLike) -> LinearFit:
    """Least-squares line through a time series whose residuals are correlated.

    slope = sum_i (t_i - <t>)(y_i - <y>) / sum_i (t_i - <t>)^2,   error(slope)^2 = S / sum_i (t_i - <t>)^2,

    with the long-run variance S of the residuals (see the module), measured orthogonally to the line itself, so that
    fitting the line does not make the residuals look too quiet. Vibrations of known or unknown period, exponentially
    correlated noise and white noise are covered alike; a random walk is not a stationary residual and comes out with
    `reliable` False.

    Args:
        t: times, (n,), increasing; any unit.
        y: values, (n,); any unit.

    Returns:
        LinearFit in the units of y and t.

    Raises:
        DataError: fewer than three samples, lengths that differ, times that do not increase, or NaN.

    Source: as `mean_with_error`.
    """
    times, series = _series(t, minimum=3, name="t"), _series(y, minimum=3, name="y")
    if len(times) != len(series):
        raise DataError(f"`y` has {len(series)} samples; expected {len(times)}, one per time. Pass equal lengths.")
    if np.any(np.diff(times) <= 0.0):
        k = int(np.argmax(np.diff(times) <= 0.0))
        raise DataError(
            f"`t` is {times[k]:g}, then {times[k + 1]:g} at sample {k + 1}; expected increasing times. "
            "Remove the repeated or reordered samples."
        )
    n = len(times)
    offset = times - times.mean()
    sum_of_squares = float(offset @ offset)
    deviation = series - series.mean()
    slope = float(offset @ deviation) / sum_of_squares
    residual = deviation - slope * offset
    variance = float(residual @ residual) / (n - 2)
    if variance <= _noise_floor(series) ** 2:  # an exact line: what is left is rounding
        residual, variance = np.zeros(n), 0.0
    spectral, modes, reliable = _long_run_variance(times, residual, n_parameters=2)
    t_mean = float(times.mean())
    return LinearFit(
        slope=slope,
        slope_error=math.sqrt(spectral / sum_of_squares),
        intercept=float(series.mean()) - slope * t_mean,
        intercept_error=math.sqrt(spectral * (1.0 / n + t_mean**2 / sum_of_squares)),
        residual_std=math.sqrt(variance),
        n_effective=n / (2.0 * _tau(spectral, variance, n)),
        degrees_of_freedom=modes,
        n=n,
        t_mean=t_mean,
        t_sum_of_squares=sum_of_squares,
        long_run_variance=spectral,
        reliable=reliable,
    )


def equilibrated_part(x: ArrayLike) -> tuple[int, bool]:
    """Where equilibrium begins, in the first half of a series, and whether what is left has settled.

    It has not if it still drifts, by a line whose error allows for correlated samples: with 99 % confidence, or with
    80 % where half of it was left out. Of stationary series 0 to 4 % are called unsettled, of those that relax over
    their length 98 %.

    Args:
        x: the series, (n,). Fewer than 20 samples say nothing: (0, True), as for constant ones and those that are not
            finite.

    Returns:
        The index of the first sample that counts, and whether the rest has settled.
    """
    series = np.asarray(x, dtype=np.float64)
    if len(series) < _FEWEST or not np.isfinite(series).all() or np.ptp(series) <= _noise_floor(series):
        return 0, True
    size = max(1, len(series) // _COARSENED)
    means = series[: len(series) // size * size].reshape(-1, size).mean(axis=1)
    start = equilibration_start(means, latest=_LATEST)
    confidence = _DRIFT_LATE if start > 0.9 * _LATEST * len(means) else _DRIFT
    low, high = linear_fit_correlated(np.arange(len(means) - start), means[start:]).slope_interval(confidence)
    return size * start, low <= 0.0 <= high


def equilibration_start(x: ArrayLike, candidates: int = 60, latest: float = 0.9) -> int:
    """The first sample of the equilibrated part of a series: the start that leaves most effective samples.

    t0 = argmax_t (n - t) / (2 tau[x_t ... x_n]): dropping the initial transient shortens tau more than it costs data.

    Args:
        x: the series, (n,).
        candidates: how many starting points are tried.
        latest: where the last of them lies, as a part of the series. Short ends have tau that are wrong by chance.

    Returns:
        The index t0; 0 if the whole series is equilibrated.

    Raises:
        DataError: fewer than ten samples, or one that is not finite.

    Source: J. D. Chodera, J. Chem. Theory Comput. 12, 1799 (2016).
    """
    series = _series(x, minimum=10)
    n = len(series)
    starts = np.unique(np.linspace(0, int(latest * n), min(candidates, n)).astype(int))
    # tau below 1/2 (vibrations) must not win over more data, so independent samples are the best that counts
    effective = [(n - s) / (2.0 * max(integrated_autocorrelation_time(series[s:]), 0.5)) for s in starts]
    return int(starts[int(np.argmax(effective))])


def _series(x: ArrayLike, minimum: int, name: str = "x") -> Array:
    """The input as a float64 vector, checked."""
    series = np.asarray(x, dtype=np.float64)
    if series.ndim != 1 or len(series) < minimum:
        raise DataError(
            f"`{name}` has shape {series.shape}; expected one series of at least {minimum} samples. "
            "Run longer or write output more often."
        )
    if not np.isfinite(series).all():
        k = int(np.argmax(~np.isfinite(series)))
        raise DataError(f"`{name}` is {series[k]} at sample {k}; expected finite numbers. Look at the run around it.")
    return series


def _noise_floor(series: Array) -> float:
    """Standard deviation that rounding alone gives to numbers of this size."""
    return 4.0 * float(np.finfo(np.float64).eps) * float(np.abs(series).max())


def _block_means(series: Array, n_blocks: int, size: int) -> Array:
    """Means of consecutive blocks; the remainder at the end is left out."""
    return np.asarray(series[: n_blocks * size].reshape(n_blocks, size).mean(axis=1), dtype=np.float64)


def _tau(spectral: float, variance: float, n: int) -> float:
    """tau = S / (2 sigma^2), in samples."""
    return 0.5 if variance <= 0.0 else max(spectral / (2.0 * variance), 0.5 / n)


def _long_run_variance(t: Array, residual: Array, n_parameters: int) -> tuple[float, int, bool]:
    """S of a residual series from its projections on the lowest frequencies that the fit left free.

    With p_m, m = 1 ... K, the cosines cos(pi (n_parameters + m - 1) (t - t_first)/(t_last - t_first)) made orthonormal
    to each other and to the fitted polynomial, the projections q_m = sum_i p_m(t_i) e_i are untouched by the fit and
    each has variance S where the spectrum is flat, so S = 1/K sum_m q_m^2 with K degrees of freedom. (Cosines rather
    than polynomials: these are no larger at the ends than the line is, so the half periods of a vibration left over
    at the ends weigh in S as they do in the slope.)

    Returns:
        S, K, and whether the record is long enough (in correlation times) to trust them.
    """
    n = len(residual)
    coarse = max(1, n // _COARSE_POINTS)
    blocks = _block_means(residual, n // coarse, coarse)
    n_slow = len(blocks) / (2.0 * max(integrated_autocorrelation_time(blocks), 0.5))
    modes = int(np.clip(round(n_slow / _SAMPLES_PER_MODE), _MIN_MODES, _MAX_MODES))
    modes = min(modes, n - n_parameters)
    fine = max(1, n // _FINE_POINTS)
    t_fine, e_fine = _block_means(t, n // fine, fine), _block_means(residual, n // fine, fine)
    margin = 0.5 / len(t_fine)  # a sample stands for the interval around it
    scaled = margin + (1.0 - 2.0 * margin) * (t_fine - t_fine[0]) / (t_fine[-1] - t_fine[0])
    fitted = scaled[:, None] ** np.arange(n_parameters)
    cosines = np.cos(np.pi * scaled[:, None] * np.arange(n_parameters, n_parameters + modes))
    basis = np.linalg.qr(np.hstack([fitted, cosines]))[0]
    projections = basis[:, n_parameters:].T @ e_fine
    # a block mean of `fine` samples has the long-run variance S / fine
    return float(fine * np.mean(projections**2)), modes, bool(n_slow >= _MIN_SLOW_SAMPLES)
