"""The learning rate as a function of the step: lr(t) = start_lr * warmup(t) * decay(t)."""

from __future__ import annotations

import math

from dpsim.train.config import ScheduleConfig


def decay(config: ScheduleConfig, step: int, steps: int) -> float:
    """The decay of the learning rate at `step` of `steps`, from 1 to stop_lr / start_lr, warm-up left out.

    exponential: d(t) = r^floor(t / s), r = (stop_lr / start_lr)^(s / t_stop); smooth: without the floor.
    cosine:      d(t) = q + (1 - q) (1 + cos(pi t / t_stop)) / 2, q = stop_lr / start_lr.
    t counts from the end of the warm-up. Source: DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023), Eqs. 56-57.
    """
    length = steps - config.warmup_steps
    t = min(max(step - config.warmup_steps, 0), length)
    ratio = config.stop_lr / config.start_lr
    if config.kind == "cosine":
        return ratio + (1 - ratio) * 0.5 * (1 + math.cos(math.pi * t / length))
    if not config.smooth:
        interval = config.decay_steps or max(1, min(5000, steps // 100))
        t = t // interval * interval
    return float(ratio ** (t / length))


def warmup(config: ScheduleConfig, step: int) -> float:
    """Linear rise to 1 over the warm-up: (t + 1) / (t_warmup + 1)."""
    return min(1.0, (step + 1) / (config.warmup_steps + 1))


def learning_rate(config: ScheduleConfig, step: int, steps: int) -> float:
    """The learning rate at `step` (from 0) of a run of `steps`."""
    return config.start_lr * warmup(config, step) * decay(config, step, steps)
