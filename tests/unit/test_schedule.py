"""dpsim/train/schedule.py against DeePMD-kit v2 Eqs. 56-57."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dpsim.train.config import ScheduleConfig
from dpsim.train.schedule import decay, learning_rate, warmup


def test_staircase_of_the_paper() -> None:
    config = ScheduleConfig(start_lr=1e-3, stop_lr=1e-8, decay_steps=5000)
    r = (1e-8 / 1e-3) ** (5000 / 1_000_000)
    for step in (0, 4999, 5000, 123_456, 999_999, 1_000_000):
        assert learning_rate(config, step, 1_000_000) == pytest.approx(1e-3 * r ** (step // 5000), rel=1e-12)
    assert learning_rate(config, 1_000_000, 1_000_000) == pytest.approx(1e-8, rel=1e-12)


def test_default_staircase_has_about_a_hundred_steps() -> None:
    config = ScheduleConfig()
    assert len({learning_rate(config, s, 1000) for s in range(1000)}) == 100
    assert len({learning_rate(config, s, 7) for s in range(7)}) == 7


@pytest.mark.parametrize("config", [ScheduleConfig(smooth=True), ScheduleConfig(kind="cosine")])
def test_smooth_kinds_fall_from_start_to_stop(config: ScheduleConfig) -> None:
    rates = [learning_rate(config, s, 100) for s in range(101)]
    assert rates[0] == config.start_lr
    assert rates[-1] == pytest.approx(config.stop_lr, rel=1e-9)
    assert all(a > b for a, b in zip(rates, rates[1:], strict=False))


def test_warmup_scales_the_rate_and_leaves_the_decay() -> None:
    config = ScheduleConfig(start_lr=1.0, stop_lr=0.1, smooth=True, warmup_steps=9)
    assert [warmup(config, s) for s in (0, 4, 9, 50)] == [0.1, 0.5, 1.0, 1.0]
    assert [decay(config, s, 109) for s in (0, 9)] == [1.0, 1.0]
    assert learning_rate(config, 4, 109) == 0.5
    assert decay(config, 109, 109) == pytest.approx(0.1)


def test_refuses_a_rate_that_rises() -> None:
    with pytest.raises(ValidationError, match="stop_lr"):
        ScheduleConfig(start_lr=1e-8, stop_lr=1e-3)
