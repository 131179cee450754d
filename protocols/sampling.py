"""Which part of a run an analysis uses: the stages it names, from the frame on where equilibrium has begun.

A stage is in equilibrium where its potential energy is, and at constant pressure its volume too: the later of the
starts in its first half that leave most effective samples. It has not settled if what is left of either still drifts
(statistics.equilibrated_part).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from dpsim.analysis.statistics import equilibrated_part
from dpsim.engines.output import read_thermo
from dpsim.errors import ConfigError
from dpsim.protocols.analyses import Sampling
from dpsim.protocols.context import StageRecord
from dpsim.protocols.schema import Protocol
from dpsim.trajectory import count_frames, open_universe

if TYPE_CHECKING:
    from MDAnalysis import Universe


@dataclass(frozen=True)
class Sample:
    """The part of a stage that counts. skipped_ps: left out at its start; settled: what is left does not drift."""

    stage: StageRecord
    skipped_ps: float
    settled: bool

    @property
    def interval_ps(self) -> float:
        """Time between frames."""
        return self.stage.settings.trajectory_every * self.stage.settings.timestep_fs * 1e-3

    @property
    def first_frame(self) -> int:
        return math.ceil(self.skipped_ps / self.interval_ps - 1e-6)

    @cached_property
    def n_frames(self) -> int:
        """Of the whole stage."""
        return count_frames(self.stage.trajectory)

    def universe(self) -> Universe:
        return open_universe(self.stage.topology, self.stage.trajectory)


def samples(analysis: Sampling, stages: Mapping[str, StageRecord]) -> list[Sample]:
    """Of the stages that are named, or of the last that suits."""
    fitting = [stage for stage in stages.values() if stage.settings.kind in analysis.stage_types]
    chosen = [stages[name] for name in analysis.stages] if analysis.stages else fitting[-1:]
    return [sample(stage, analysis.skip) for stage in chosen]


def sample(stage: StageRecord, skip_fs: float | None) -> Sample:
    """What counts of a stage: all but `skip_fs`, or what follows the start of equilibrium."""
    thermo = read_thermo(stage.thermo)
    time = thermo["time_ps"] - thermo["time_ps"][0]
    if skip_fs is not None:
        return Sample(stage, 1e-3 * skip_fs, True)
    columns = ["potential_energy_eV"] + (["volume_A3"] if stage.settings.kind == "npt" else [])
    starts, settled = zip(*(equilibrated_part(thermo[column]) for column in columns), strict=True)
    return Sample(stage, float(time[max(starts)]), all(settled))


def require_frames(analysis: Sampling, protocol: Protocol, needed: Callable[[float], int], what: str) -> None:
    """Refuse stages with too few frames, before anything is run: half of them may precede equilibrium.

    needed: how many, by the time between frames in ps. Raises ConfigError.
    """
    kind: str = analysis.type  # type: ignore[attr-defined]  # every analysis has one
    settings = {n: s.settings() for n, s in zip(protocol.stage_names(), protocol.stages, strict=True)}
    fitting = [name for name, stage in settings.items() if stage.kind in analysis.stage_types]
    for name in analysis.stages or fitting[-1:]:
        stage = settings[name]
        interval = 1e-3 * stage.trajectory_every * stage.timestep_fs
        total = 1 + stage.n_steps // stage.trajectory_every
        left = total - total // 2 if analysis.skip is None else total - math.ceil(1e-3 * analysis.skip / interval)
        if left < needed(interval):
            raise ConfigError(
                f"`{name}` leaves {left} frames, {interval:.3g} ps apart, to {kind}; "
                f"expected at least {needed(interval)}{what}. Simulate longer, or write frames more often (half of a "
                "stage is kept in any case, the rest may precede equilibrium)."
            )


def joined(parts: Sequence[Sample]) -> tuple[Universe, list[int]]:
    """The trajectories of several stages as one, and the indices of the frames that count."""
    universe = parts[0].universe()
    if len(parts) > 1:
        universe.load_new([str(part.stage.trajectory) for part in parts])
    frames: list[int] = []
    before = 0
    for part in parts:
        frames += range(before + part.first_frame, before + part.n_frames)
        before += part.n_frames
    return universe, frames


def label_of(parts: Sequence[Sample]) -> str:
    """The stages' names, joined by +, those of replicas once."""
    return joined_names([part.stage for part in parts])


def joined_names(stages: Sequence[StageRecord]) -> str:
    """Likewise, of stages."""
    return "+".join(dict.fromkeys(stage.name for stage in stages))


def unsettled(parts: Sequence[Sample]) -> list[str]:
    """A warning for each stage that has not come to equilibrium early enough."""
    return [
        f"Stage {part.stage.name} still drifts after {part.skipped_ps:.3g} ps: it has not reached equilibrium. "
        "Equilibrate longer."
        for part in parts
        if not part.settled
    ]


def left_out(parts: Sequence[Sample]) -> str:
    """How much of the stages was left out, in words."""
    return "left out before equilibrium: " + ", ".join(f"{p.skipped_ps:.3g} ps of {p.stage.name}" for p in parts)
