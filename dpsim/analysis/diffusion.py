"""Self-diffusion from unwrapped trajectories: the mean squared displacement, where it is diffusive, D with an error.

    MSD(t) = < |r_i(s + t) - r_i(s)|^2 >        over atoms i and origins s; r from the centre of mass of all atoms

An atom of a liquid rattles in its cage and diffuses with it: MSD(t) = 6 D t + c once t is longer than the cage lives, c
being what the rattling adds. So D is the slope between a lag and twice the lag, which c leaves alone,

    D(t) = [MSD(2t) - MSD(t)] / 6t = < q_s(t) >
    q_s(t) = 1/N sum_i [|r_i(s + 2t) - r_i(s)|^2 - |r_i(s + t) - r_i(s)|^2] / 6t

the covariance-based estimator, close to the best possible one for diffusion on top of bounded noise. q_s is a time
series of the whole system: the error of its mean (analysis/statistics.py) counts everything that is correlated, origins
that overlap as well as atoms that move together. Independent runs are joined end to end, which keeps that error right.

The slope stays the same from a lag t on where D(2t) - D(t), paired origin by origin, is zero within its own error, that
error is small enough to have noticed, and D at 4t, 8t, ... does not differ either. Of the shortest such t in which
atoms have moved by 1 A the result is D(2t): what is left of the cage at t, too little to be noticed, has gone by then.
Where no lag qualifies there is no D, and `regime` says why.

Source: MSD by FFT: V. Calandrini et al., Collection SFN 12, 201 (2011). Estimator: C. L. Vestergaard, P. C. Blainey and
H. Flyvbjerg, Phys. Rev. E 89, 022726 (2014), Eq. 14. Finite size: I.-C. Yeh and G. Hummer, J. Phys. Chem. B 108, 15873
(2004), Eq. 12.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpsim.analysis.statistics import Estimate, mean_with_error
from dpsim.errors import DataError
from dpsim.trajectory import open_universe
from dpsim.units import BOLTZMANN_EV_PER_K, factor

if TYPE_CHECKING:
    from MDAnalysis import Universe

Array = NDArray[np.float64]
Regime = Literal["diffusive", "caged", "too short"]

CM2_PER_S = 1e-4  # of 1 A^2/ps
_XI = 2.837297  # of a cubic lattice of images
_CHUNK = 64  # atoms at a time: bounds the memory of the FFTs
_FEWEST_FRAMES = 40
CAGE_A = 1.0  # A; atoms rattle, and hydrogens librate, by about half of this
_LAG_RATIO = math.sqrt(2.0)
_LONGEST = 0.125  # of a run: four times a lag must fit in half of it
_NOTICEABLE = 0.2  # a change of the slope by this part of MSD/6t must exceed its interval
_LATER_CONFIDENCE = 0.998  # of the comparisons with still longer lags, of which there are several
_DIFFUSIVE = 0.5  # smallest d ln MSD / d ln t: below, atoms vibrate about sites more than they move on


@dataclass(frozen=True)
class Diffusion:
    """Self-diffusion of one species.

    estimate: D (A^2/ps) at `lag_ps`, None where `regime` is not diffusive; explanation: in words.
    lags_ps, msd, slopes, slope_errors: MSD (A^2) and D(t) with its standard error, for figures, (n,).
    exponent: d ln MSD / d ln t at `lag_ps`. upper: D is below this with 97.5 % confidence, where atoms are caged.
    """

    regime: Regime
    explanation: str
    estimate: Estimate | None
    lag_ps: float
    exponent: float
    n_atoms: int
    n_runs: int
    lags_ps: Array = field(repr=False)
    msd: Array = field(repr=False)
    slopes: Array = field(repr=False)
    slope_errors: Array = field(repr=False)
    upper: float | None = None

    @property
    def value(self) -> float:
        """D, A^2/ps; NaN where there is none."""
        return math.nan if self.estimate is None else self.estimate.value

    @property
    def error(self) -> float:
        """Standard error of D, A^2/ps."""
        return math.inf if self.estimate is None else self.estimate.error

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Confidence interval of D, A^2/ps."""
        return (-math.inf, math.inf) if self.estimate is None else self.estimate.interval(confidence)


@dataclass(frozen=True)
class Walk:
    """Where atoms went in one run: positions (n_frames, n_atoms, 3) A, unwrapped, from the centre of mass of all."""

    positions: NDArray[np.floating]
    symbols: tuple[str, ...]
    interval_ps: float

    def of(self, species: str) -> NDArray[np.floating]:
        """The positions of one element's atoms. Raises DataError where there are none."""
        chosen = np.array([s == species for s in self.symbols])
        if not chosen.any():
            raise DataError(
                f"`species` is {species!r}; expected one of {sorted(set(self.symbols))}, the elements of the "
                "trajectory. Correct it."
            )
        return self.positions[:, chosen]


def read_walk(source: Universe | tuple[str | Path, str | Path], start: int = 0) -> Walk:
    """The unwrapped positions of a run, without the motion of its centre of mass.

    Where the cell changes, positions are taken in fractions of it times the mean cell: an atom that has diffused far
    would otherwise be carried along with every change of the volume.

    Args:
        source: an MDAnalysis Universe, or the paths (topology, trajectory); as dpsim writes it, unwrapped.
        start: first frame to use.

    Raises:
        DataError: fewer than two frames, elements without masses.
    """
    universe = open_universe(*source) if isinstance(source, tuple) else source
    n_frames = len(universe.trajectory)
    if n_frames - start < 2:
        raise DataError(f"`trajectory` has {n_frames} frames, from {start} on; expected at least 2. Run longer.")
    symbols = tuple(str(s).capitalize() for s in universe.atoms.elements)
    masses = np.asarray(universe.atoms.masses, dtype=np.float64)
    if not np.all(masses > 0.0):
        raise DataError("`masses` of the trajectory has zeros; expected a mass for every element. Name real elements.")
    positions = np.empty((n_frames - start, len(symbols), 3))
    cells = np.zeros((n_frames - start, 3, 3))
    times = np.empty(n_frames - start)
    for k, frame in enumerate(universe.trajectory[start:]):
        positions[k], times[k] = frame.positions, frame.time
        if frame.dimensions is not None:
            cells[k] = frame.triclinic_dimensions
    if np.ptp(cells, axis=0).max() > 1e-6:
        positions = np.einsum("tni,tij->tnj", positions, np.linalg.inv(cells) @ cells.mean(axis=0))
    positions -= np.einsum("n,tni->ti", masses / masses.sum(), positions)[:, None]
    return Walk(positions, symbols, float(times[-1] - times[0]) / (len(times) - 1))


def mean_squared_displacement(positions: ArrayLike) -> Array:
    """MSD of unwrapped positions (n_frames, n_atoms, 3) at every lag from 0, over atoms and origins, (n_frames,).

    MSD(m) = 1/(n - m) sum_s [r(s)^2 + r(s+m)^2] - 2/(n - m) sum_s r(s).r(s+m), the second sum by FFT.
    """
    paths = np.asarray(positions)
    n = len(paths)
    total = np.zeros(n)
    origins = n - np.arange(n)
    for first in range(0, paths.shape[1], _CHUNK):
        x = paths[:, first : first + _CHUNK].astype(np.float64)
        x -= x.mean(axis=0)  # the smaller the numbers, the less cancels
        spectrum = np.fft.rfft(x, n=2 * n, axis=0)
        products = np.fft.irfft((spectrum * spectrum.conj()).sum(axis=(1, 2)), n=2 * n)[:n]
        squares = np.concatenate([[0.0], np.cumsum((x * x).sum(axis=(1, 2)))])
        total += (squares[n] - squares[:n] + squares[n - np.arange(n)] - 2.0 * products) / origins
    return np.maximum(total / paths.shape[1], 0.0)


def diffusion_coefficient(
    runs: Sequence[ArrayLike],
    interval_ps: float,
    confidence: float = 0.95,
    shortest_ps: float = 0.0,
    least_A: float = CAGE_A,
) -> Diffusion:
    """D of one species from independent runs of one system, in the diffusive regime, if they reach it.

    Args:
        runs: positions of the species in each run, (n_frames, n_atoms, 3) A, unwrapped, without the drift of the whole.
        interval_ps: time between frames, ps.
        confidence: of the intervals by which a lag qualifies.
        shortest_ps: no lag below this is considered.
        least_A: nor one in which atoms move less than this (root mean square), A: they have not left their cage, or a
            hydrogen its molecule, whatever the slope does. 0 for walkers that have neither.

    Returns:
        Diffusion. For periodic cells see `finite_size_correction`.

    Raises:
        DataError: no runs, runs of different atoms, fewer than 40 frames in one, positions that are not finite.
    """
    paths = _checked(runs, interval_ps)
    n = min(len(path) for path in paths)
    lags = _lags(max(1, math.ceil(shortest_ps / interval_ps - 1e-9)), max(1, int(_LONGEST * n)))
    growth = _Growth(paths, interval_ps)
    slopes = {lag: mean_with_error(growth.slopes(lag)) for lag in sorted({*lags, *(2 * lag for lag in lags)})}
    steady = [lag for lag in lags if _steady(growth, lag, lags[-1], confidence)]
    still = [lag for lag in steady if growth.exponent(lag) < _DIFFUSIVE]
    moving = [lag for lag in steady if lag not in still and growth.msd(lag) >= least_A**2]

    caged = bool(still) and still[-1] in lags[-2:]  # at the end: a liquid has a plateau too, at short lags

    regime: Regime = "diffusive" if moving else "caged" if caged else "too short"
    lag = moving[0] if moving else still[-1] if caged else lags[-1]
    time, exponent, upper = lag * interval_ps, growth.exponent(lag), slopes[lag].interval(confidence)[1]
    explanation = {
        "diffusive": f"The slope of the MSD stays the same from {time:g} ps on; D is that from {2 * time:g} ps on.",
        "caged": f"Atoms vibrate about sites: up to {time:g} ps the MSD grows like t^{exponent:.2f}, not like t. D is "
        f"below {max(0.0, upper):.2g} A^2/ps. If it is a liquid, run longer.",
        "too short": f"In lags up to {time:g} ps, an eighth of a run, atoms move by {growth.msd(lag) ** 0.5:.2g} A; "
        "the slope of the MSD still changes, or is not known well enough to tell. Run longer.",
    }[regime]
    return Diffusion(
        regime=regime,
        explanation=explanation,
        estimate=slopes[2 * lag] if moving else None,
        lag_ps=2.0 * time if moving else time,
        exponent=exponent,
        n_atoms=paths[0].shape[1],
        n_runs=len(paths),
        lags_ps=np.array([*slopes]) * interval_ps,
        msd=np.array([growth.msd(k) for k in slopes]),
        slopes=np.array([s.value for s in slopes.values()]),
        slope_errors=np.array([s.error for s in slopes.values()]),
        upper=upper if regime == "caged" else None,
    )


def finite_size_correction(temperature_K: float, viscosity_mPa_s: float, length_A: float) -> float:
    """What to add to D of a cubic periodic cell to get that of the infinite system, A^2/ps.

    D_inf - D_L = xi k_B T / (6 pi eta L), xi = 2.837297: the images' backflow slows the atoms. For 64 water molecules
    it is some 25 % of D. Two models in the same cell are compared without it.

    Args: temperature_K: K; viscosity_mPa_s: shear viscosity eta, mPa s; length_A: edge L of the cell, A.
    """
    eta = viscosity_mPa_s * 1e-3 * float(factor("Pa", "eV/A^3")) * 1e12  # Pa s -> eV ps / A^3
    return _XI * BOLTZMANN_EV_PER_K * temperature_K / (6.0 * math.pi * eta * length_A)


class _Growth:
    """How far atoms get in a lag: averages over the atoms as series over the origins, all runs end to end."""

    def __init__(self, paths: Sequence[NDArray[np.floating]], interval_ps: float):
        self.paths, self.interval_ps = paths, interval_ps
        self._squares: dict[int, list[Array]] = {}

    def squares(self, lag: int) -> list[Array]:
        """1/N sum_i |r_i(s + lag) - r_i(s)|^2 for every origin s, one array per run."""
        if lag not in self._squares:
            self._squares[lag] = [
                np.einsum("tni,tni->t", step := path[lag:] - path[:-lag], step) / path.shape[1] for path in self.paths
            ]
        return self._squares[lag]

    def msd(self, lag: int) -> float:
        return float(np.concatenate(self.squares(lag)).mean())

    def exponent(self, lag: int) -> float:
        """log2 MSD(2t)/MSD(t)."""
        msd = self.msd(lag)
        return math.log2(self.msd(2 * lag) / msd) if msd > 0.0 and self.msd(2 * lag) > 0.0 else 0.0

    def slopes(self, lag: int) -> Array:
        """q_s of the module."""
        return np.concatenate(self._slopes(lag))

    def change(self, lag: int, longer_lag: int) -> Estimate:
        """D(longer_lag) - D(lag), from the same origins."""
        pairs = zip(self._slopes(longer_lag), self._slopes(lag), strict=True)
        return mean_with_error(np.concatenate([longer - shorter[: len(longer)] for longer, shorter in pairs]))

    def _slopes(self, lag: int) -> list[Array]:
        scale = 1.0 / (6.0 * lag * self.interval_ps)
        pairs = zip(self.squares(2 * lag), self.squares(lag), strict=True)
        return [scale * (longer - shorter[: len(longer)]) for longer, shorter in pairs]


def _lags(first: int, longest: int) -> list[int]:
    """Lags in frames, each some sqrt(2) times the one before."""
    count = 1 + int(math.log(max(longest, first) / first) / math.log(_LAG_RATIO) + 1e-9)
    return [int(lag) for lag in np.unique(np.round(first * _LAG_RATIO ** np.arange(count)).astype(int))]


def _steady(growth: _Growth, lag: int, longest: int, confidence: float) -> bool:
    """Whether the slope at a lag is that at all longer ones, and at twice the lag would have been seen to differ."""
    change = growth.change(lag, 2 * lag)
    low, high = change.interval(confidence)
    noticeable = _NOTICEABLE * growth.msd(lag) / (6.0 * lag * growth.interval_ps)
    if not (low <= 0.0 <= high and 0.5 * (high - low) <= noticeable):
        return False
    longer = 4 * lag
    while longer <= 2 * longest:
        low, high = growth.change(lag, longer).interval(_LATER_CONFIDENCE)
        if not low <= 0.0 <= high:
            return False
        longer *= 2
    return True


def _checked(runs: Sequence[ArrayLike], interval_ps: float) -> list[NDArray[np.floating]]:
    paths = [np.asarray(run) for run in runs]
    shapes = [path.shape for path in paths]
    if not paths or any(len(s) != 3 or s[1:] != (shapes[0][1], 3) or not s[1] for s in shapes):
        raise DataError(
            f"`runs` have the shapes {shapes}; expected at least one, of (n_frames, n_atoms, 3), of the same atoms. "
            "Analyse different systems one by one."
        )
    if min(s[0] for s in shapes) < _FEWEST_FRAMES:
        raise DataError(
            f"`runs` have {[s[0] for s in shapes]} frames; expected at least {_FEWEST_FRAMES} in each. Run longer, or "
            "write the trajectory more often."
        )
    if not interval_ps > 0.0 or not all(np.isfinite(path).all() for path in paths):
        raise DataError(
            f"`interval_ps` is {interval_ps:g}, or `runs` hold numbers that are not finite; expected a positive time "
            "and finite positions. Look at the trajectory."
        )
    return paths
