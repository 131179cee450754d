"""How much data one way of training saves against another: the horizontal distance of two curves of error over frames.

    ln s = < ln n_a(e) - ln n_b(e) >_e        e: errors that both curves reach, evenly in ln e

n_a(e): frames with which curve a comes down to e, by straight lines between its points in log-log. What more frames
made worse does not count: the error of n frames is the lowest of n or fewer. Without an error that both reach there is
a bound: the worst of one curve is better than the best of the other.
Where the error of curve a hardly falls with the frames, or rises with the last of them, its training is what limits it:
the distance then says what training is saved, not what data, and is marked `limited`.
Uncertainty: with repeats, the spread of s where each point is drawn again from its repeats (bootstrap, 68 %); without,
the range of s along the curves, which says how far one number is fair, and nothing of chance.
Source: the figure is that of Zhang et al., DPA-2, npj Comput. Mater. 10, 293 (2024), Fig. 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpsim.analysis.figures import BLUE, GREY, RED, figure
from dpsim.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEVELS, _DRAWS = 200, 500
_LEARNS = 1.2  # by this factor the error must fall from the fewest frames to the most
_RISES = 1.1  # nor may the most frames give an error this much above the best
Curve = Mapping[int, Sequence[float]]  # errors, one per repeat, by number of frames


@dataclass(frozen=True)
class Saving:
    """Frames of curve a for every frame of curve b at equal error. bound: "" | "at least" | "at most".

    low, high: the uncertainty, `of` "repeats" or of the "range" along the curves; factor itself for a bound.
    limited: not by data: more frames do not help curve a.
    """

    factor: float
    low: float
    high: float
    bound: str = ""
    of: str = ""
    limited: bool = False

    def __str__(self) -> str:
        if self.limited:
            return "not told (more frames do not help, train longer)"
        if self.bound:
            return f"{self.bound} {_plain(self.factor)}x"
        return f"{_plain(self.factor)}x ({_plain(self.low)} to {_plain(self.high)}, {self.of})"


def _plain(value: float) -> str:
    """Two digits, no exponent: 0.61, 8.3, 120."""
    return f"{float(f'{value:.2g}'):g}"


def data_saving(a: Curve, b: Curve, seed: int = 0) -> Saving:
    """How many times the frames of curve b curve a needs for the same error.

    Raises: DataError for a curve without points, or an error that is not a number above 0.
    """
    for curve in (a, b):
        if not curve or any(not e > 0 or not math.isfinite(e) for errors in curve.values() for e in errors):
            raise DataError("a curve is empty or has errors that are not numbers above 0; expected some. Leave it out.")
    mean_a, mean_b, limited = _mean(a), _mean(b), _limited(a)
    if bound := _bound(mean_a, mean_b):
        return replace(bound, limited=limited)
    distance = _distances(mean_a, mean_b)
    factor = math.exp(distance.mean())
    if min(len(errors) for curve in (a, b) for errors in curve.values()) < 2:
        return Saving(factor, math.exp(distance.min()), math.exp(distance.max()), of="range", limited=limited)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(_DRAWS):
        again = [_mean({n: rng.choice(np.asarray(e), len(e)) for n, e in curve.items()}) for curve in (a, b)]
        if not _bound(*again):
            drawn.append(_distances(*again).mean())
    low, high = np.percentile(drawn, [16, 84]) if drawn else (math.log(factor),) * 2
    return Saving(factor, math.exp(low), math.exp(high), of="repeats", limited=limited)


def _limited(curve: Curve) -> bool:
    """Whether something else than data limits a curve of several points."""
    errors = [math.exp(np.mean(np.log(curve[n]))) for n in sorted(curve)]
    return len(errors) > 1 and (errors[0] < _LEARNS * min(errors) or errors[-1] > _RISES * min(errors))


def _mean(curve: Mapping[int, Sequence[float] | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """ln n, increasing, and the geometric mean error as ln e, no point above one before it."""
    n = sorted(curve)
    return np.log(n), np.minimum.accumulate([float(np.mean(np.log(curve[k]))) for k in n])


def _bound(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> Saving | None:
    """What can be said of curves of which one is below the other throughout."""
    (n_a, e_a), (n_b, e_b) = a, b
    if e_b[0] <= e_a[-1]:
        factor, bound = math.exp(n_a[-1] - n_b[0]), "at least"
    elif e_a[0] <= e_b[-1]:
        factor, bound = math.exp(n_a[0] - n_b[-1]), "at most"
    else:
        return None
    return Saving(factor, factor, factor, bound)


def _distances(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """ln n_a - ln n_b at errors that both reach."""
    levels = np.linspace(max(a[1][-1], b[1][-1]), min(a[1][0], b[1][0]), _LEVELS)
    return _frames_for(a, levels) - _frames_for(b, levels)


def _frames_for(curve: tuple[np.ndarray, np.ndarray], levels: np.ndarray) -> np.ndarray:
    """ln n at which a curve first comes down to each level."""
    n, e = curve
    first = np.concatenate([[True], np.diff(e) < 0])  # of a flat stretch, its beginning
    return np.interp(levels, e[first][::-1], n[first][::-1])


def plot_data_saving(
    path: str | Path,
    panels: Mapping[str, tuple[Curve, Curve]],
    zero_shot: Mapping[str, float] | None = None,
    names: tuple[str, str] = ("from scratch", "fine-tuned"),
) -> Path:
    """Error against number of frames, log-log, one panel per quantity: {"forces (meV/Å)": (scratch, tuned)}.

    The saving in data is written in each panel; zero_shot: the error without any training, a dashed line.
    """
    if not panels:
        raise DataError("`panels` is empty; expected at least one quantity. Train some points first.")
    with figure(path, 1, len(panels), height=3.4) as (_, axes):
        for ax, (label, curves) in zip(axes[0], panels.items(), strict=True):
            for name, color, marker, curve in zip(names, (RED, BLUE), "so", curves, strict=True):
                if curve:
                    _line(ax, curve, name, color, marker)
            if zero_shot and label in zero_shot:
                ax.axhline(zero_shot[label], color=GREY, lw=1.0, ls="--", label="zero-shot")
            title, _, unit = label.partition(" (")
            ax.set_title(title.capitalize(), pad=16)
            if all(curves):
                saving = data_saving(*curves)
                saved = "not told, train longer" if saving.limited else str(saving)
                ax.text(0.0, 1.02, f"data saved: {saved}", transform=ax.transAxes, va="bottom", fontsize=8)
            ax.set_ylabel(f"test RMSE ({unit}" if unit else "test RMSE")
            _log_axes(ax, sorted({n for curve in curves for n in curve}))
        axes[0][-1].legend()
    return Path(path)


def _line(ax: Axes, curve: Curve, name: str, color: str, marker: str) -> None:
    """Geometric means, with every repeat as a dot."""
    n = sorted(curve)
    ax.plot(n, [math.exp(np.mean(np.log(curve[k]))) for k in n], color=color, marker=marker, ms=4.5, label=name)
    dots = np.array([(k, e) for k in n for e in curve[k]])
    ax.plot(dots[:, 0], dots[:, 1], ".", color=color, ms=3, alpha=0.5)


def _log_axes(ax: Axes, frames: Sequence[int]) -> None:
    """Ticks at the numbers of frames where these are few, and at 1, 2, 5 of every decade of the errors."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("training frames")
    plain = FuncFormatter(lambda x, _: f"{x:g}")
    if len(frames) <= 6:
        ax.set_xticks(list(frames))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(NullFormatter())
