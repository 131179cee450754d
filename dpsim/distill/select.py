"""Select: how wrong the student is on each explored frame, and which frames are worth a label.

    e_i = |F_i(student) - F_i(teacher)|                     with a teacher
    e_i = (<|F_i - <F_i>|^2>)^1/2                           with a committee of students
    deviation of a frame = max_i e_i, or (mean_i e_i^2)^1/2

Below the first trust level a frame is accurate, above the second it has failed, between them it is a candidate. Of the
candidates those are chosen that differ most from one another and from all that was labelled before.
Source: Zhang et al., Phys. Rev. Mater. 3, 023804 (2019) and DP-GEN, Comput. Phys. Commun. 253, 107206 (2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dpsim.calculators.base import Calculator, evaluate_frames
from dpsim.calculators.committee import model_deviation
from dpsim.data.frame import Frame
from dpsim.distill.config import SelectConfig
from dpsim.distill.fingerprint import most_different
from dpsim.distill.found import Found
from dpsim.errors import SimulationError

Array = NDArray[np.float64]
Class = Literal["accurate", "candidate", "failed"]
_HOPELESS = 10.0  # times the second trust level


@dataclass
class Counts:
    """Frames of one condition in one round. missing: never reached, their walker having ended before; set_aside:
    those the teacher could not label. chosen: of the candidates (or, where there are none, of the failed).
    """

    accurate: int = 0
    candidate: int = 0
    failed: int = 0
    missing: int = 0
    set_aside: int = 0
    chosen: int = 0

    @property
    def fraction_accurate(self) -> float:
        """Accurate ones over all that could be judged; frames that a walker did not reach have failed."""
        judged = self.accurate + self.candidate + self.failed + self.missing
        return self.accurate / judged if judged else 0.0


def deviations_from_labels(student: Calculator, labelled: Sequence[Frame], measure: str) -> list[float]:
    """How far the student's forces are from those that label the frames, eV/A; inf where it gives none."""
    errors = []
    for frame in labelled:
        own = _forces(student, frame)
        assert frame.forces is not None  # it is labelled
        errors.append(math.inf if own is None else _measured(np.linalg.norm(own - frame.forces, axis=1), measure))
    return errors


def deviations_of_committee(students: Sequence[Calculator], frames: Sequence[Frame], measure: str) -> list[float]:
    """How far several students disagree, eV/A; inf where one of them gives no forces."""
    errors = []
    for frame in frames:
        own = [f for student in students if (f := _forces(student, frame)) is not None]
        whole = len(own) == len(students)
        errors.append(_measured(model_deviation(np.array(own))["devi_f"], measure) if whole else math.inf)
    return errors


def _forces(student: Calculator, frame: Frame) -> Array | None:
    try:
        prediction = next(evaluate_frames(student, [frame], virial=False))
    except SimulationError:  # not finite
        return None
    assert prediction.forces is not None
    return prediction.forces.cpu().numpy()


def _measured(error: Array, measure: str) -> float:
    if not len(error):
        return 0.0
    return float(error.max() if measure == "max" else np.sqrt((error**2).mean()))


def classify(deviation: float, trust: tuple[float, float]) -> Class:
    """Where a deviation (eV/A) lies between the trust levels."""
    return "accurate" if deviation < trust[0] else "candidate" if deviation <= trust[1] else "failed"


def choose_unjudged(
    found: Sequence[Found], known: Sequence[Frame], rcut: float, config: SelectConfig, n: int
) -> list[Found]:
    """The most different frames, while there is no student to judge them."""
    picks = most_different([f.frame for f in found], known, rcut, n, config.min_distance)
    return [found[k].judged(None, "no student yet: the farthest from all others" + _at(d)) for k, d in picks]


def choose(
    found: Sequence[Found],
    deviations: Mapping[str, float],
    known: Sequence[Frame],
    rcut: float,
    config: SelectConfig,
    n: int,
) -> list[Found]:
    """The candidates that differ most; where there is none, of the failed frames those nearest to the second level,
    but none that is wrong by more than ten times that: such frames are of a walker that was exploding.

    Args: deviations: eV/A, by id; known: frames labelled before; n: how many at most.
    """
    low, high = config.trust
    pool = [f for f in found if classify(deviations[f.id], config.trust) == "candidate"]
    why = f"deviation {{:.4g}} eV/A between {low:g} and {high:g}"
    if not pool:
        failed = (f for f in found if high < deviations[f.id] <= _HOPELESS * high)
        pool = sorted(failed, key=lambda f: deviations[f.id])[:n]
        why = f"no candidate; deviation {{:.4g}} eV/A, the least above {high:g}"
    if not pool:
        return []
    worst = max(range(len(pool)), key=lambda k: deviations[pool[k].id])
    picks = most_different([f.frame for f in pool], known, rcut, n, config.min_distance, first=worst)
    chosen = [(pool[k], d) for k, d in picks]
    return [f.judged(deviations[f.id], why.format(deviations[f.id]) + _at(d)) for f, d in chosen]


def _at(distance: float) -> str:
    return "" if math.isinf(distance) else f"; distance {distance:.3g}"
