"""Where a quantity changes from one phase's behaviour to another's, as temperature or pressure is scanned.

Two descriptions of the n values y_k +- s_k at x_k are compared:

    smooth   one polynomial in x: of degree 2, from ten points on of degree 3
    broken   a break between x_k and x_k+1; on each side a constant (of two points) or 1, x, or, on one of the sides,
             1, |x - x_break|^(1/2), as a mean-field order parameter goes near its transition

    Lambda = (R_smooth - min_k R_broken) / max(1, R_broken / (n - 5)),   R = sum_k (residual / s_k)^2

The errors count as larger than given where even the broken description misses the points by more. Lambda of data made
from the smooth fit and the errors says how often chance alone does as well, `p_value`: above `significance` there is no
transition. The interval of a transition comes from a bootstrap over the points (weights from a flat Dirichlet
distribution) and over their errors: 95 % of the breaks found lie in it. What is left of a break and right of it is
searched again; where neither the smooth nor a broken description does, so are overlapping halves of the points, at a
smaller `significance`.

x: K or bar; y, s: in any unit. Sources: the greatest of the F statistics over the places of a break, D. W. K. Andrews,
Econometrica 61, 821 (1993); the bootstrap, D. B. Rubin, Ann. Stat. 9, 130 (1981).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from dpsim.errors import DataError

Array = NDArray[np.float64]

FEWEST_POINTS = 6
_CUBIC_FROM = 10  # points
_ON_EACH_SIDE = 2
_SIMULATIONS = 1000
_RESAMPLINGS = 200
_NO_ERROR = 1e-6  # of the range of y: exact numbers are not known better


@dataclass(frozen=True)
class Transition:
    """Between `low` and `high` (95 % of the bootstrap, whole intervals between points) y jumps by `jump` +- its error.

    A jump of zero within its error is a kink: a continuous transition.
    """

    low: float
    high: float
    jump: float
    jump_error: float
    p_value: float

    @property
    def middle(self) -> float:
        return 0.5 * (self.low + self.high)


@dataclass(frozen=True)
class TransitionSearch:
    """What was found, in the order of x; p_value: of the strongest break; None where there are too few points."""

    transitions: tuple[Transition, ...]
    p_value: float | None
    explanation: str


def find_transitions(
    x: ArrayLike, y: ArrayLike, errors: ArrayLike, significance: float = 0.01, seed: int = 0
) -> TransitionSearch:
    """Transitions in y(x), or that the points do not support one.

    Args:
        x: K or bar, (n,), any order, all different.
        y, errors: values and their standard errors, (n,).
        significance: largest p value that counts as a transition.

    Raises:
        DataError: lengths that differ, numbers that are not finite, one x twice.
    """
    points = _checked(x, y, errors)
    n = len(points)
    if n < FEWEST_POINTS:
        text = f"{n} points; a transition is looked for in {FEWEST_POINTS} or more."
        return TransitionSearch((), None, text)
    p_value, found = _search(points, significance, np.random.default_rng(seed))
    if not found:
        text = f"No transition: chance alone does as well as a break in {100.0 * p_value:.2g} % of cases."
        return TransitionSearch((), p_value, text)
    texts = [
        f"between {t.low:g} and {t.high:g} (p {'<' if t.p_value < 1e-3 else '='} {max(t.p_value, 1e-3):.1g})"
        for t in found
    ]
    return TransitionSearch(tuple(found), p_value, "A break " + ", ".join(texts) + ".")


def hysteresis(heating: Sequence[Transition], cooling: Sequence[Transition]) -> list[tuple[float, float, float]]:
    """(width, lowest, highest): how much higher a transition lies on heating; [] where the numbers differ."""
    if len(heating) != len(cooling):
        return []
    return [(h.middle - c.middle, h.low - c.high, h.high - c.low) for h, c in zip(heating, cooling, strict=True)]


def _search(points: Array, significance: float, random: np.random.Generator) -> tuple[float, list[Transition]]:
    """The p value of the strongest break in these points, and the transitions among them."""
    x, y, errors = points.T
    fits = _Fits(x, 1.0 / errors)
    statistic, best = fits.compare(y[None])
    smooth = fits.smooth_fit(y)
    simulated, _ = fits.compare(smooth + errors * random.standard_normal((_SIMULATIONS, len(x))))
    p_value = float((1 + np.count_nonzero(simulated >= statistic[0])) / (1 + _SIMULATIONS))
    if p_value > significance:
        missed = np.sum(((y - smooth) / errors) ** 2)
        several = stats.chi2.sf(missed, max(1, len(x) - 4)) < significance
        return p_value, _in_windows(points, significance, random) if several else []
    candidate = fits.candidates[int(best[0])]
    low, high = _interval(points, fits, int(best[0]), random)
    jump, jump_error = _jump(points, candidate)
    k = candidate.k
    parts = [points[: k + 1], points[k + 1 :]]
    others = [t for p in parts if len(p) >= FEWEST_POINTS for t in _search(p, significance, random)[1]]
    found = [Transition(low, high, jump, jump_error, p_value), *others]
    return p_value, sorted(found, key=lambda t: t.middle)


def _in_windows(points: Array, significance: float, random: np.random.Generator) -> list[Transition]:
    """Breaks of several, none of which describes all points: looked for in overlapping halves, then between them."""
    n, half = len(points), max(len(points) // 2, FEWEST_POINTS)
    if n < 2 * FEWEST_POINTS:
        return []
    starts = range(0, n - half + 1, max(1, half // 2))
    found = [t for s in starts for t in _search(points[s : s + half], significance / len(starts), random)[1]]
    kept = _apart(found)
    edges = [-np.inf, *(t.middle for t in kept), np.inf]
    for low, high in zip(edges, edges[1:], strict=False) if kept else ():
        between = points[(points[:, 0] > low) & (points[:, 0] < high)]
        if len(between) >= FEWEST_POINTS:
            found += _search(between, significance / len(starts), random)[1]
    return _apart(found)


def _apart(found: Sequence[Transition]) -> list[Transition]:
    """Without those whose interval overlaps that of a surer one."""
    kept: list[Transition] = []
    for transition in sorted(found, key=lambda t: t.p_value):
        if all(transition.low >= other.high or transition.high <= other.low for other in kept):
            kept.append(transition)
    return sorted(kept, key=lambda t: t.middle)


@dataclass(frozen=True)
class _Candidate:
    """A break after point k, and the functions (n, m) that describe both sides; `root` is the side with the root."""

    k: int
    root: str
    functions: Array


class _Fits:
    """The smooth and all broken descriptions, for points at x weighed by w."""

    def __init__(self, x: Array, w: Array):
        self.w, self.n = w, len(x)
        scaled = (x - x.mean()) / np.ptp(x)
        self._smooth = scaled[:, None] ** np.arange(4 if self.n >= _CUBIC_FROM else 3)
        self.candidates = sorted(_candidates(x), key=lambda c: c.functions.shape[1])
        widths = [c.functions.shape[1] for c in self.candidates]
        self._stacks = [
            np.array([c.functions for c in self.candidates if c.functions.shape[1] == m]) for m in sorted({*widths})
        ]

    def smooth_fit(self, y: Array) -> Array:
        q = np.linalg.qr(self.w[:, None] * self._smooth)[0]
        return q @ (q.T @ (self.w * y)) / self.w

    def compare(self, y: Array) -> tuple[Array, NDArray[np.int64]]:
        """Lambda and the index of the best candidate for each row of y."""
        centred = self.w * (y - (y @ self.w**2)[:, None] / np.sum(self.w**2))
        smooth = _residual(self._smooth * self.w[:, None], centred)
        broken = self.broken(self.w, centred)
        best = np.argmin(broken, axis=0)
        least = broken[best, np.arange(len(y))]
        return (smooth - least) / np.maximum(1.0, least / max(1, self.n - 5)), best

    def broken(self, w: Array, y: Array) -> Array:
        """What each candidate, weighed by w, leaves of each row of y, which is weighed already."""
        return np.concatenate([_residual(stack * w[:, None], y) for stack in self._stacks])


def _candidates(x: Array) -> list[_Candidate]:
    """Every break with enough points on both sides, in every shape."""
    found = []
    for k in range(_ON_EACH_SIDE - 1, len(x) - _ON_EACH_SIDE):
        distance = np.abs(x - 0.5 * (x[k] + x[k + 1])) / np.ptp(x)
        left = np.arange(len(x)) <= k
        long = {"left": k + 1 > _ON_EACH_SIDE, "right": len(x) - k - 1 > _ON_EACH_SIDE}
        for root in ("", *(side for side in long if long[side])):
            columns = []
            for side, mask in (("left", left), ("right", ~left)):
                columns.append(mask.astype(float))
                if long[side]:
                    columns.append(np.where(mask, np.sqrt(distance) if root == side else distance, 0.0))
            found.append(_Candidate(k, root, np.stack(columns, axis=1)))
    return found


def _residual(functions: Array, y: Array) -> Array:
    """Sum of squares that least squares by functions (..., n, m) leave of each row of y (rows, n): (..., rows)."""
    q = np.linalg.qr(functions)[0]
    return np.maximum(np.sum(y**2, axis=1) - np.sum((y @ q) ** 2, axis=-1), 0.0)


def _interval(points: Array, fits: _Fits, best: int, random: np.random.Generator) -> tuple[float, float]:
    """The intervals between points in which 95 % of the breaks lie, points and errors resampled."""
    x, y, errors = points.T
    functions = fits.candidates[best].functions
    scale = np.sqrt(
        max(1.0, _residual(functions * fits.w[:, None], (fits.w * (y - y.mean()))[None])[0] / max(1, fits.n - 5))
    )
    found = []
    for _ in range(_RESAMPLINGS):
        weights = np.sqrt(random.dirichlet(np.ones(fits.n)) * fits.n) * fits.w
        drawn = y + scale * errors * random.standard_normal(fits.n)
        broken = fits.broken(weights, (weights * (drawn - y.mean()))[None])
        found.append(fits.candidates[int(np.argmin(broken))].k)
    first, last = np.quantile(found, [0.025, 0.975], method="inverted_cdf")
    k = fits.candidates[best].k
    return float(x[min(int(first), k)]), float(x[max(int(last), k) + 1])


def _jump(points: Array, candidate: _Candidate) -> tuple[float, float]:
    """Right minus left, both continued to the break, where all functions but the constants vanish."""
    _, y, errors = points.T
    weighed = candidate.functions / errors[:, None]
    inverse = np.linalg.pinv(weighed)
    coefficients = inverse @ (y / errors)
    residual = float(np.sum((y / errors - weighed @ coefficients) ** 2))
    scale = max(1.0, residual / max(1, len(y) - weighed.shape[1]))
    right = int(np.argmax(candidate.functions[-1] == 1.0))  # the constant of the right side
    contrast = np.zeros(weighed.shape[1])
    contrast[0], contrast[right] = -1.0, 1.0
    error = np.sqrt(scale * contrast @ (inverse @ inverse.T) @ contrast)
    return float(contrast @ coefficients), float(error)


def _checked(x: ArrayLike, y: ArrayLike, errors: ArrayLike) -> Array:
    """(n, 3), sorted by x, with errors that are not zero."""
    columns = [np.asarray(v, dtype=np.float64) for v in (x, y, errors)]
    if len({c.shape for c in columns}) > 1 or columns[0].ndim != 1 or not all(np.isfinite(c).all() for c in columns):
        raise DataError(
            f"`x`, `y` and `errors` have the shapes {[c.shape for c in columns]}, or numbers that are not finite; "
            "expected as many finite numbers each. Leave out the points that failed."
        )
    points = np.stack(columns, axis=1)[np.argsort(columns[0])]
    if len(points) and np.any(np.diff(points[:, 0]) == 0.0):
        raise DataError("`x` has one value twice; expected different ones. Average them.")
    least = _NO_ERROR * (float(np.ptp(points[:, 1])) + 1e-3 * float(np.abs(points[:, 1]).max())) if len(points) else 0.0
    points[:, 2] = np.maximum(points[:, 2], least or 1e-300)
    return points
