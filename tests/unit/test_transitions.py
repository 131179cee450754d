"""Transitions in synthetic data: found where they are, with an interval, and not where they are not."""

from __future__ import annotations

import numpy as np
import pytest

from dpsim.analysis.transitions import Transition, find_transitions, hysteresis
from dpsim.errors import DataError

T = np.arange(300.0, 1001.0, 50.0)


def with_noise(y: np.ndarray, error: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return y + error * np.random.default_rng(seed).standard_normal(len(y)), np.full(len(y), error)


@pytest.mark.parametrize("critical", [649.0, 705.0, 763.0])
def test_a_jump_and_a_continuous_transition_are_found(critical: float) -> None:
    """Tetragonality that drops to one, and Landau's P ~ sqrt(1 - T/Tc)."""
    jump = np.where(critical > T, 1.06 - 4e-5 * (T - 300.0), 1.0)
    landau = np.sqrt(np.maximum(0.0, 1.0 - T / critical))
    for y, error in ((jump, 0.002), (landau, 0.01)):
        found = find_transitions(T, *with_noise(y, error))
        assert len(found.transitions) == 1
        one = found.transitions[0]
        assert one.low <= critical <= one.high and one.high - one.low <= 100.0
        assert one.p_value < 0.01 and f"{one.low:g} and {one.high:g}" in found.explanation
    one = find_transitions(T, *with_noise(jump, 0.002)).transitions[0]
    expected = 1.0 - (1.06 - 4e-5 * (one.middle - 300.0))
    assert abs(one.jump - expected) < 4.0 * one.jump_error


def test_there_is_none_in_smooth_or_noisy_data() -> None:
    """Thermal expansion, however precisely known; noise; a step that drowns in noise."""
    volume = 64.0 + 1e-3 * (T - 300.0) + 8e-7 * (T - 300.0) ** 2
    for error in (0.05, 1e-4):
        found = find_transitions(T, *with_noise(volume, error))
        assert not found.transitions and found.explanation.startswith("No transition")
    assert not find_transitions(T, *with_noise(np.where(T < 700.0, 0.2, 0.0), 0.2)).transitions


def test_false_alarms_are_as_rare_as_asked_for() -> None:
    volume = 64.0 + 1e-3 * T
    alarms = sum(
        bool(find_transitions(T[::2], *with_noise(volume[::2], 0.02, k), significance=0.1).transitions)
        for k in range(40)
    )
    assert alarms <= 10  # 4 expected; more than 10 in 0.1 %


def test_several_transitions() -> None:
    """Three, as of barium titanate."""
    x = np.linspace(100.0, 500.0, 21)
    y = np.select([x < 170.0, x < 270.0, x < 390.0], [1.0, 0.6, 0.3], 0.0)
    found = find_transitions(x, *with_noise(y, 0.02)).transitions
    assert [t.middle for t in found] == pytest.approx([170.0, 270.0, 390.0])


def test_too_few_points_and_mistakes() -> None:
    few = find_transitions([1.0, 2.0, 3.0], [1.0, 1.0, 0.0], [0.1] * 3)
    assert not few.transitions and few.p_value is None and "6 or more" in few.explanation
    with pytest.raises(DataError, match="one value twice"):
        find_transitions([1.0, 1.0], [1.0, 1.0], [0.1, 0.1])
    with pytest.raises(DataError, match="not finite"):
        find_transitions([1.0, 2.0], [1.0, np.nan], [0.1, 0.1])


def test_hysteresis() -> None:
    up, down = Transition(700.0, 750.0, 1.0, 0.1, 0.0), Transition(600.0, 650.0, 1.0, 0.1, 0.0)
    assert hysteresis([up], [down]) == [(100.0, 50.0, 150.0)]
    assert hysteresis([up], []) == []
