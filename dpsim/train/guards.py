"""What stops a fine-tuning that cannot go well, before it costs hours: each guard refuses, unless overridden by name.

    elements       an element of the data that the model never saw
    energies       labels that no energy bias can explain: frames of another method, or not converged
    virials        labels of the wrong sign, against the model's own
    learning_rate  a start that is lost: after the first steps the loss is worse than that of the model as it came

Each check is a function of numbers that says what is wrong, or '' where nothing is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dpsim.errors import DataError, DpsimError, ElementError, TrainingError
from dpsim.train.config import Guard
from dpsim.train.energy_bias import BiasFit, least_squares_shift
from dpsim.train.evaluate import SetErrors

_ERRORS: dict[Guard, type[DpsimError]] = {
    "elements": ElementError,
    "energies": DataError,
    "virials": DataError,
    "learning_rate": TrainingError,
}

OUTLIER, OUTLIER_FLOOR = 20.0, 0.5  # robust standard deviations, and eV/atom: both are exceeded by a wrong label
WRONG_SIGN, KNOWS_FORCES = -0.5, 0.5  # correlations of virials, and of forces, that together tell a wrong sign
LEAST_NUMBERS = 12  # that a correlation needs


@dataclass(frozen=True)
class Guards:
    """Refuses what a check found, unless its guard is overridden: then it is said, and the run goes on."""

    override: Sequence[str] = ()

    def judge(self, guard: Guard, found: str) -> str:
        """Raise what a check found; '' or, where overridden, what to tell the user.

        Raises: ElementError, DataError or TrainingError, whatever the guard is about.
        """
        if not found:
            return ""
        if guard in self.override:
            return f"warning (`{guard}` is overridden): {found}"
        raise _ERRORS[guard](f"{found} To go on all the same: `override: [{guard}]` in `init_from`.")


def check_elements(
    data: Sequence[str], seen: Mapping[str, Sequence[str]] | None, head: str, keep_head: bool, model: str
) -> str:
    """Whether the model saw every element of the data.

    Args: data: elements; seen: of each head of the file, the elements it learned from (None: the file does not say);
    head: the one that is used; keep_head: whether its net is kept, or only the descriptor, which all heads trained.
    """
    if seen is None:
        return ""
    of_all = {symbol for of_head in seen.values() for symbol in of_head}
    known = set(seen.get(head, of_all)) if keep_head else of_all
    unseen = [symbol for symbol in data if symbol not in known]
    if not unseen:
        return ""
    others = [name for name, of_head in seen.items() if name != head and set(data) <= set(of_head)]
    advice = "Pre-train on data with them, or leave the data out."
    if others:
        advice = f"Take a head that did: {', '.join(others)}."
    elif set(unseen) <= of_all:
        advice = "Other heads did: keep the descriptor only, with `head: fresh`."
    whose = f"the head {head!r} of {model}" if keep_head and head else model
    return (
        f"`data` has {', '.join(unseen)}, which {whose} never saw; expected elements among "
        f"{', '.join(sorted(known))}. {advice}"
    )


def check_energies(fit: BiasFit) -> str:
    """Whether some frames are far off any bias: beyond OUTLIER robust standard deviations and OUTLIER_FLOOR eV/atom.

    The bias is fitted to the frames that belong together alone, so that a few wrong ones cannot pull it to them.
    """
    keep = np.ones(len(fit.difference), dtype=bool)
    residual, scatter, inside = fit.residual(), 0.0, keep
    for _ in range(20):
        residual = fit.residual(least_squares_shift(fit.counts[keep], fit.difference[keep]))
        centre = np.median(residual)
        scatter = 1.4826 * float(np.median(np.abs(residual - centre)))
        inside = np.abs(residual - centre) <= max(OUTLIER * scatter, OUTLIER_FLOOR)
        if (inside == keep).all():
            break
        keep = inside
    wrong = np.flatnonzero(~inside)
    if not len(wrong):
        return ""
    worst = wrong[np.argsort(-np.abs(residual[wrong]))][:3]
    named = ", ".join(f"{fit.sources[k]} ({residual[k]:+.3g} eV/atom)" for k in worst)
    return (
        f"`energy` of {len(wrong)} of {len(residual)} frames cannot belong to the others: after the energy bias is "
        f"fitted they are off by far more than the common {scatter:.2g} eV/atom: {named}"
        f"{', ...' if len(wrong) > len(worst) else ''}. Remove them (another method or unit, or not converged?)."
    )


def check_virials(errors: SetErrors) -> str:
    """Whether virials run against the model's own: only a model that knows the forces, and their sign, can tell."""
    (label, predicted), forces = errors.pairs["virial"].arrays(), errors.pairs["forces"].arrays()
    correlation = _correlation(label, predicted)
    if not (correlation < WRONG_SIGN and _correlation(*forces) > KNOWS_FORCES):
        return ""
    return (
        f"`virial` has the wrong sign: its correlation with the model's own is {correlation:.2f} over {len(label)} "
        "components, that of the forces is positive; expected the same of both. virial = -dE/d(strain) = -stress * "
        "volume, with a stress that is positive under tension. Multiply the virials by -1 (a pressure tensor was taken "
        "for a stress, or a stress for a virial?), or leave them out."
    )


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; 0 of too few numbers, or of numbers that are all the same."""
    if len(x) < LEAST_NUMBERS or not (x.std() and y.std()):
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


class StartLoss(NamedTuple):
    """The loss of the trial frames with the prefactors of the first step, forces mostly, and of the last."""

    first: float
    last: float


def check_start(before: StartLoss, now: StartLoss, steps: int, learning_rate: float) -> str:
    """Whether the first steps lost what the model knew. Energies may go astray for a while, forces may not."""
    if all(math.isfinite(x) and x <= factor * y for x, y, factor in zip(now, before, LOST, strict=True)):
        return ""
    return (
        f"after {steps} steps the loss on the frames of the start is {now.first:.3g} ({now.last:.3g} with the last "
        f"prefactors); expected at most {LOST.first:g} times the {before.first:.3g} ({LOST.last:g} times the "
        f"{before.last:.3g}) of the model as it came. `schedule.start_lr` = {learning_rate:g} destroys the start: "
        f"lower it to {learning_rate / 10:.1g} or so, or add `schedule.warmup_steps`."
    )


LOST = StartLoss(4.0, 1000.0)  # times the loss of the model as it came; 4: errors of forces twice as large
