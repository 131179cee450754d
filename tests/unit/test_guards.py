"""dpsim/train/guards.py: each guard refuses what it is for, and lets sound data pass."""

from __future__ import annotations

import numpy as np
import pytest

from dpsim.errors import DataError, ElementError, TrainingError
from dpsim.train.energy_bias import BiasFit, least_squares_shift
from dpsim.train.evaluate import SetErrors
from dpsim.train.guards import Guards, StartLoss, check_elements, check_energies, check_start, check_virials

SEEN = {"water": ["H", "O"], "oxide": ["Hf", "O"], "alloy": ["Al", "Cu"]}


def fit(counts: np.ndarray, difference: np.ndarray) -> BiasFit:
    names = tuple(f"set.000 frame {k}" for k in range(len(difference)))
    return BiasFit(("H", "O"), counts, difference, names, least_squares_shift(counts, difference))


def test_a_guard_refuses_unless_it_is_overridden() -> None:
    with pytest.raises(ElementError, match=r"bad\. To go on all the same: `override: \[elements\]` in `init_from`"):
        Guards().judge("elements", "bad.")
    with pytest.raises(DataError):
        Guards(["elements"]).judge("virials", "bad.")
    with pytest.raises(TrainingError):
        Guards().judge("learning_rate", "bad.")
    assert Guards(["virials"]).judge("virials", "bad.") == "warning (`virials` is overridden): bad."
    assert Guards().judge("energies", "") == ""


def test_unseen_elements() -> None:
    assert check_elements(["O", "H"], SEEN, "water", True, "m") == ""
    assert check_elements(["Xe"], None, "", True, "m") == ""  # the file does not say
    assert check_elements(["Hf", "O"], SEEN, "", False, "m") == ""
    found = check_elements(["Hf", "O"], SEEN, "water", True, "m.dpsim")
    assert found.startswith("`data` has Hf, which the head 'water' of m.dpsim never saw; expected elements among H, O.")
    assert found.endswith("Take a head that did: oxide.")
    assert "with `head: fresh`" in check_elements(["Hf", "Cu"], SEEN, "water", True, "m")
    assert "Pre-train" in check_elements(["Xe"], SEEN, "water", False, "m")


@pytest.mark.parametrize("size", [3.0, 40.0, 1e5], ids=["3 eV/atom", "40 eV/atom", "another unit"])
def test_energies_of_other_origin_are_named(size: float) -> None:
    """Their residual would be hidden by a plain fit: a few large ones pull the bias to themselves."""
    rng = np.random.default_rng(1)
    counts = rng.integers(4, 40, (60, 2)).astype(float)
    n = counts.sum(1)
    difference = counts @ [-12.0, -430.0] + n * rng.normal(0, 0.02, 60)
    assert check_energies(fit(counts, difference)) == ""
    difference[[7, 31]] += size * n[[7, 31]]
    found = check_energies(fit(counts, difference))
    assert found.startswith("`energy` of 2 of 60 frames cannot belong to the others")
    assert "set.000 frame 7 (+" in found and "set.000 frame 31 (+" in found


def test_one_composition_and_heavy_tails_pass() -> None:
    """Water has one composition; zero-shot errors of diverse data are far from normal."""
    rng = np.random.default_rng(2)
    counts = np.tile([128.0, 64.0], (50, 1))
    difference = counts @ [-12.0, -430.0] + 192 * 0.03 * rng.standard_t(2, 50)
    assert check_energies(fit(counts, difference)) == ""
    difference[4] += 192 * 9.0
    assert "set.000 frame 4 (+9" in check_energies(fit(counts, difference))


def errors_of(virial: tuple[np.ndarray, np.ndarray], forces: tuple[np.ndarray, np.ndarray]) -> SetErrors:
    errors = SetErrors("some")
    errors.pairs["virial"].add(*virial)
    errors.pairs["forces"].add(*forces)
    return errors


def test_virials_of_the_wrong_sign() -> None:
    rng = np.random.default_rng(3)
    label, force = rng.normal(size=180), rng.normal(size=600)
    predicted = 0.6 * label + 0.5 * rng.normal(size=180) + 3.0  # a poor model, with an offset
    forces = (force, force + 0.4 * rng.normal(size=600))
    assert check_virials(errors_of((label, predicted), forces)) == ""
    found = check_virials(errors_of((-label, predicted), forces))
    assert found.startswith("`virial` has the wrong sign: its correlation with the model's own is -0.")
    nothing = (force, rng.normal(size=600))  # a model that knows nothing cannot tell
    assert check_virials(errors_of((-label, predicted), nothing)) == ""
    assert check_virials(errors_of((-label[:9], predicted[:9]), forces)) == ""  # nor can one frame
    assert check_virials(errors_of((np.zeros(90), predicted[:90]), forces)) == ""


def test_a_start_that_is_lost() -> None:
    before = StartLoss(2.0, 0.01)
    assert check_start(before, StartLoss(1.0, 0.01), 100, 1e-3) == ""
    assert check_start(before, StartLoss(7.9, 0.5), 100, 1e-3) == ""  # the first steps shake the model
    found = check_start(before, StartLoss(8.1, 0.01), 100, 1e-3)
    assert found.startswith(
        "after 100 steps the loss on the frames of the start is 8.1 (0.01 with the last prefactors)"
    )
    assert "lower it to 0.0001" in found
    assert check_start(before, StartLoss(1.0, 10.1), 100, 1e-3)
    assert check_start(before, StartLoss(float("nan"), 0.01), 100, 1e-3)
