"""dpsim/analysis/data_saving.py: horizontal distances of curves whose distance is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpsim.analysis.data_saving import data_saving, plot_data_saving
from dpsim.errors import DataError

N = [10, 40, 160, 640]


def power_law(n: int, factor: float = 1.0) -> float:
    """The error of n frames, of a model to which each frame counts `factor` times."""
    return 300.0 * float(n * factor) ** -0.4


def test_a_shifted_power_law() -> None:
    scratch = {n: [power_law(n)] for n in N}
    tuned = {n: [power_law(n, 8.0)] for n in N}
    saving = data_saving(scratch, tuned)
    assert (saving.factor, saving.low, saving.high) == pytest.approx((8.0, 8.0, 8.0), rel=1e-6)
    assert saving.of == "range" and not saving.bound
    assert data_saving(tuned, scratch).factor == pytest.approx(1 / 8.0, rel=1e-6)
    assert data_saving(scratch, {7: [power_law(7, 8)], 99: [power_law(99, 8)]}).factor == pytest.approx(8.0, rel=1e-6)


def test_a_saving_that_shrinks_has_a_range() -> None:
    scratch = {n: [1000.0 / n] for n in (10, 100, 1000)}  # slope -1
    tuned = {n: [100.0 / n**0.5] for n in (10, 100, 1000)}  # slope -1/2: they meet at 100 frames
    saving = data_saving(scratch, tuned)
    assert saving.low == pytest.approx(10**-0.5, rel=0.05) and saving.high == pytest.approx(10**0.5, rel=0.05)


def test_bounds_where_the_curves_share_no_error() -> None:
    scratch, tuned = {10: [90.0], 100: [50.0]}, {10: [20.0], 50: [10.0]}
    saving = data_saving(scratch, tuned)
    assert (saving.bound, saving.factor) == ("at least", pytest.approx(10.0))
    assert str(saving) == "at least 10x"
    assert str(data_saving(tuned, scratch)) == "at most 0.1x"


def test_what_more_frames_made_worse_does_not_count() -> None:
    scratch = {10: [100.0], 100: [50.0], 1000: [25.0]}
    bumpy = {10: [50.0], 20: [70.0], 100: [25.0]}
    assert data_saving(scratch, bumpy).factor == pytest.approx(10.0, rel=0.05)


@pytest.mark.parametrize("errors", [(241.0, 244.0, 236.0), (9.9, 5.4, 6.7)])
def test_no_saving_of_data_is_claimed_where_training_is_the_limit(errors: tuple[float, ...]) -> None:
    scratch = {n: [e] for n, e in zip((15, 75, 376), errors, strict=True)}
    saving = data_saving(scratch, {n: [0.9 * min(errors)] for n in scratch})
    assert saving.limited and "train longer" in str(saving)
    assert not data_saving({10: [2.0], 100: [1.0]}, scratch).limited


def test_repeats_give_an_error_bar() -> None:
    rng = np.random.default_rng(1)
    scratch = {n: power_law(n) * np.exp(0.05 * rng.normal(size=4)) for n in N}
    tuned = {n: power_law(n, 8.0) * np.exp(0.05 * rng.normal(size=4)) for n in N}
    saving = data_saving(scratch, tuned)
    assert saving.of == "repeats" and 0.02 < np.log(saving.high / saving.low) < 0.3
    assert saving.low / 1.2 < 8.0 < saving.high * 1.2


def test_figure_and_bad_input(tmp_path: Path) -> None:
    scratch, tuned = {n: [power_law(n), 1.1 * power_law(n)] for n in N}, {n: [power_law(n, 8)] for n in N}
    plot_data_saving(tmp_path / "a.png", {"energy (meV/atom)": (scratch, tuned)}, {"energy (meV/atom)": 80.0})
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    for bad in ({}, {10: [float("nan")]}, {10: [0.0]}):
        with pytest.raises(DataError, match="a curve is empty or has errors"):
            data_saving(scratch, bad)
    with pytest.raises(DataError, match="`panels` is empty"):
        plot_data_saving(tmp_path / "b.png", {})
