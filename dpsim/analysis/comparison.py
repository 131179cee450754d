"""Runs beside each other: by how many standard errors do their numbers differ, and is that more than chance?

For two values a, b with standard errors e_a, e_b (independent runs)

    z = (b - a) / sqrt(e_a^2 + e_b^2),       p = erfc(|z| / sqrt 2)

is the probability of a difference as large by chance. Of m comparisons made at once some are large by chance, so a
difference counts as significant by Holm's rule: if the smallest p is below alpha/m, the next below alpha/(m - 1), ...
until one is not. With probability 1 - alpha none is called significant wrongly.

Source: S. Holm, Scand. J. Stat. 6, 65 (1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from dpsim.analysis.figures import PALETTE, figure
from dpsim.analysis.report import Curve, Result

Key = TypeVar("Key")


@dataclass(frozen=True)
class Difference:
    """Of one quantity between a run and the first one that has it.

    value, error: b - a and its standard error; z, p: see the module, NaN where an error is missing.
    """

    name: str
    first: str
    run: str
    a: Result
    b: Result
    z: float
    p: float
    significant: bool = False

    @property
    def value(self) -> float:
        return float(self.b.value or 0.0) - float(self.a.value or 0.0)

    @property
    def error(self) -> float | None:
        return None if math.isnan(self.z) else math.hypot(self.a.error or 0.0, self.b.error or 0.0)

    @property
    def in_errors(self) -> str | None:
        """-1.3 standard errors, marked where significant; None without errors."""
        if self.error is None:
            return None
        return f"{self.z:+.1f} σ{' ✱' if self.significant else ''}".replace("-", "−")


def differences(runs: Mapping[str, Sequence[Result]], alpha: float = 0.05) -> list[Difference]:
    """Every number that two or more runs have: each run's against that of the first which has it."""
    found = []
    first: dict[str, tuple[str, Result]] = {}
    for run, results in runs.items():
        for result in results:
            if result.value is None:
                continue
            if result.name not in first:
                first[result.name] = (run, result)
                continue
            other, a = first[result.name]
            found.append(Difference(result.name, other, run, a, result, *_z_and_p(a, result)))
    return _marked(found, alpha)


def _z_and_p(a: Result, b: Result) -> tuple[float, float]:
    if a.error is None or b.error is None or not math.hypot(a.error, b.error) > 0.0 or a.unit != b.unit:
        return math.nan, math.nan
    z = (float(b.value or 0.0) - float(a.value or 0.0)) / math.hypot(a.error, b.error)
    return z, math.erfc(abs(z) / math.sqrt(2.0))


def _marked(found: Sequence[Difference], alpha: float) -> list[Difference]:
    """With `significant` set."""
    passed = holm({(d.name, d.run): d.p for d in found}, alpha)
    return [replace(d, significant=(d.name, d.run) in passed) for d in found]


def holm(p_values: Mapping[Key, float], alpha: float) -> list[Key]:
    """What is significant by Holm's rule, the smallest p first; those that are NaN are no comparisons."""
    order = sorted((key for key, p in p_values.items() if not math.isnan(p)), key=lambda key: p_values[key])
    for k, key in enumerate(order):
        if p_values[key] > alpha / (len(order) - k):
            return order[:k]
    return order


def curve_distance(a: Curve, b: Curve) -> float | None:
    """Root mean square of (b - a) in units of its standard error, on the points of a within the range of b.

    About 1 is what chance gives. None without errors or without common points.
    """
    if a.error is None or b.error is None:
        return None
    ax, bx = _array(a.x), _array(b.x)
    inside = (ax >= bx.min()) & (ax <= bx.max()) if len(bx) else np.zeros(len(ax), bool)
    y, error = (np.interp(ax[inside], bx, _array(v)) for v in (b.y, b.error))
    both = np.hypot(_array(a.error)[inside], error)
    use = np.isfinite(both) & (both > 0.0) & np.isfinite(y) & np.isfinite(_array(a.y)[inside])
    if not use.any():
        return None
    return float(np.sqrt(np.mean(((y - _array(a.y)[inside])[use] / both[use]) ** 2)))


def file_name(name: str) -> str:
    """The name of a number or curve as that of a file."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


def plot_curves(path: str | Path, curves: Mapping[str, Curve]) -> Path:
    """The curve of each run, with bands of two standard errors."""
    with figure(path) as (_, axes):
        ax = axes[0, 0]
        for k, (run, curve) in enumerate(curves.items()):
            color, x, y = PALETTE[k % len(PALETTE)], _array(curve.x), _array(curve.y)
            style = "-" if k < len(PALETTE) else "--"
            if curve.error is not None:
                half = 2.0 * _array(curve.error)
                ax.fill_between(x, y - half, y + half, color=color, alpha=0.2, lw=0)
            ax.plot(x, y, color=color, ls=style, label=run, marker="o" if len(x) < 20 else None, ms=4)
        one = next(iter(curves.values()))
        ax.set_xlabel(one.x_label.replace("(A)", "(Å)"))
        ax.set_ylabel(one.y_label)
        ax.legend()
    return Path(path)


def plot_values(path: str | Path, label: str, unit: str, values: Mapping[str, Result]) -> Path:
    """One number of each run, with bars of two standard errors."""
    with figure(path, height=0.9 + 0.35 * len(values)) as (_, axes):
        ax = axes[0, 0]
        for k, result in enumerate(values.values()):
            half = 2.0 * result.error if result.error is not None else None
            color = PALETTE[k % len(PALETTE)]
            ax.errorbar(float(result.value or 0.0), -k, xerr=half, fmt="o", ms=5, capsize=3, color=color)
        ax.set_yticks([-k for k in range(len(values))], list(values))
        ax.set_ylim(0.5 - len(values), 0.5)
        ax.set_xlabel(f"{label} ({unit})" if unit else label)
    return Path(path)


def plot_series(
    path: str | Path, label: str, unit: str, x_label: str, series: Mapping[str, Mapping[float, Result]]
) -> Path:
    """One number against a condition, a line for each series {x: result}, with bars of two standard errors."""
    with figure(path) as (_, axes):
        ax = axes[0, 0]
        for k, (name, values) in enumerate(series.items()):
            x = sorted(values)
            y = [float(values[v].value or 0.0) for v in x]
            half = [2.0 * (values[v].error or 0.0) for v in x]
            color = PALETTE[k % len(PALETTE)]
            ax.errorbar(x, y, yerr=half, fmt="o-", ms=5, lw=1.0, capsize=3, color=color, label=name or None)
        ax.set_xlabel(x_label)
        ax.set_ylabel(f"{label} ({unit})" if unit else label)
        if any(series):
            ax.legend()
    return Path(path)


def scatter_p_value(results: Sequence[Result], dof: float = 4.0) -> float:
    """How often independent runs of one thing scatter as much by chance as these, by their own standard errors.

    Welch's test: with w_i = 1/e_i^2, W = sum_i w_i, <x> the weighted mean of the n values,

        F = sum_i w_i (x_i - <x>)^2 / (n - 1) / (1 + 2 (n - 2)/(n^2 - 1) q),    q = sum_i (1 - w_i/W)^2 / dof

    follows F with n - 1 and (n^2 - 1)/(3 q) degrees of freedom. NaN for fewer than two values.

    Args: dof: degrees of freedom of each error; those of correlated samples have 4 to 16, long runs more.

    Source: B. L. Welch, Biometrika 38, 330 (1951).
    """
    from scipy.stats import f

    known = [(float(r.value), float(r.error)) for r in results if r.value is not None and r.error and r.error > 0.0]
    n = len(known)
    if n < 2:
        return math.nan
    x, e = np.array(known).T
    w = e**-2
    q = float(np.sum((1.0 - w / w.sum()) ** 2)) / dof
    spread = float(np.sum(w * (x - np.average(x, weights=w)) ** 2)) / (n - 1)
    return float(f.sf(spread / (1.0 + 2.0 * (n - 2) / (n**2 - 1) * q), n - 1, (n**2 - 1) / (3.0 * q)))


def _array(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """null of JSON is NaN."""
    return np.array([math.nan if v is None else v for v in values], dtype=np.float64)
