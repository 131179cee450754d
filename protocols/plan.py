"""What a protocol will do and what that costs, known before it is begun: `dpsim run FILE --dry-run`.

The time of a step is measured, by a few steps in the engine itself; the size of the files follows from the intervals.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from dpsim.engines.base import Engine, RunControl, StageSettings, State
from dpsim.errors import SimulationError
from dpsim.trajectory import frame_bytes

MEASURED_SECONDS = 2.0
_LEAST_STEPS = 4  # are timed, however long they take
_WARM_UP = 2  # steps that are not
_THERMO_ROW_BYTES = 160
_CHECKPOINT_BYTES_PER_ATOM = 2 * 64  # start and restart: positions, momenta, masses, numbers
_TEMPERATURE_K = 300.0
_NEVER = 10**9


@dataclass(frozen=True)
class Step:
    """A part of the work: what, of how many atoms and steps, the wall time (s; None: unknown) and the files (bytes)."""

    what: str
    n_atoms: int
    n_steps: int
    seconds: float | None
    n_bytes: float = 0.0
    simulated_ps: float = 0.0


@dataclass(frozen=True)
class Plan:
    """The parts, how many of them are worked on at the same time, and what else there is to say."""

    title: str
    steps: Sequence[Step]
    n_at_once: int = 1
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def seconds(self) -> float | None:
        """Wall time, s: that of all parts shared among the workers, and at least that of the longest."""
        times = [step.seconds for step in self.steps]
        known = [t for t in times if t is not None]
        if len(known) < len(times) or not known:
            return None
        return max(sum(known) / min(self.n_at_once, len(known)), *known)

    @property
    def n_bytes(self) -> float:
        """Of all files."""
        return sum(step.n_bytes for step in self.steps)


def plan_stages(stages: Mapping[str, StageSettings], n_atoms: int, seconds_per_step: float | None) -> list[Step]:
    """A part for each stage; a minimisation counts with all the steps that it may take."""
    return [
        Step(
            f"{name}, at most" if stage.kind == "minimise" else name,
            n_atoms,
            stage.n_steps,
            None if seconds_per_step is None else stage.n_steps * seconds_per_step,
            _bytes_of(stage, n_atoms),
            1e-3 * stage.n_steps * stage.timestep_fs,
        )
        for name, stage in stages.items()
    ]


def together(what: str, parts: Sequence[Step]) -> Step:
    """Parts that are done one after the other, as one."""
    times = [part.seconds for part in parts]
    known = [t for t in times if t is not None]
    return Step(
        what,
        parts[0].n_atoms,
        sum(part.n_steps for part in parts),
        sum(known) if len(known) == len(times) else None,
        sum(part.n_bytes for part in parts),
        sum(part.simulated_ps for part in parts),
    )


def _bytes_of(stage: StageSettings, n_atoms: int) -> float:
    """Of the files of a stage."""
    frames = stage.n_steps // stage.trajectory_every + 1
    rows = stage.n_steps // stage.thermo_every + 1
    return frames * frame_bytes(n_atoms) + rows * _THERMO_ROW_BYTES + n_atoms * _CHECKPOINT_BYTES_PER_ATOM


class _Clock:
    """An observer that notes when each step was done, and ends the stage when it has seen enough."""

    every = 1

    def __init__(self, seconds: float):
        self.enough = seconds
        self.times: list[float] = []

    def observe(self, step: int, state: State) -> str | None:
        self.times.append(time.monotonic())
        timed = len(self.times) - 1 - _WARM_UP
        return "measured" if timed >= _LEAST_STEPS and self.times[-1] - self.times[_WARM_UP] >= self.enough else None

    def seconds_per_step(self) -> float | None:
        timed = self.times[_WARM_UP:]
        return (timed[-1] - timed[0]) / (len(timed) - 1) if len(timed) > 1 else None


def measure(
    engine: Engine,
    state: State,
    calculator: Any,
    stages: Mapping[str, StageSettings],
    seconds: float = MEASURED_SECONDS,
) -> float | None:
    """Wall time of one step (s) of the first dynamics among these stages, from a few steps of it; None if they fail."""
    dynamics = [stage for stage in stages.values() if stage.kind != "minimise"]
    timestep = dynamics[0].timestep_fs if dynamics else 0.1
    temperature = (dynamics[0].temperature_K if dynamics else None) or _TEMPERATURE_K
    return time_steps(engine, state, calculator, to_be_timed(timestep, temperature), seconds)


def to_be_timed(timestep_fs: float, temperature_K: float, n_steps: int = _NEVER) -> StageSettings:
    """Dynamics that writes nothing and does not stop of itself."""
    return StageSettings(
        kind="nve", n_steps=n_steps, timestep_fs=timestep_fs, initial_temperature_K=temperature_K,
        trajectory_every=_NEVER, thermo_every=_NEVER, max_temperature_K=1e9,
    )  # fmt: skip


def time_steps(
    engine: Engine, state: State, calculator: Any, stage: StageSettings, seconds: float = MEASURED_SECONDS
) -> float | None:
    """Likewise, of a stage `to_be_timed`."""
    clock = _Clock(seconds)
    try:
        with tempfile.TemporaryDirectory(prefix="dpsim-plan-") as folder:
            engine.run_stage(state, calculator, stage, Path(folder), RunControl(0, "measure", observers=(clock,)))
    except SimulationError:  # of a structure that has to be relaxed first: the steps before it were timed
        pass
    return clock.seconds_per_step()


def plan_table(plan: Plan) -> Table:
    """The plan as a person reads it."""
    from dpsim.protocols.progress import duration

    table = Table(title=plan.title, title_justify="left", caption="\n".join(_notes(plan)), caption_justify="left")
    table.add_column("what")
    for heading in ("atoms", "steps", "simulated", "wall time", "disk"):
        table.add_column(heading, justify="right")
    total = Step("all", 0, sum(s.n_steps for s in plan.steps), plan.seconds, plan.n_bytes,
                 sum(s.simulated_ps for s in plan.steps))  # fmt: skip
    for step in (*plan.steps, total):
        if step is total:
            table.add_section()
        table.add_row(
            step.what,
            str(step.n_atoms) if step.n_atoms else "",
            str(step.n_steps),
            f"{step.simulated_ps:g} ps" if step.simulated_ps else "",
            "unknown" if step.seconds is None else duration(step.seconds),
            size(step.n_bytes),
        )
    return table


def _notes(plan: Plan) -> list[str]:
    notes = list(plan.notes)
    if plan.n_at_once > 1 and len(plan.steps) > 1:
        notes.append(f"wall time of all: {min(plan.n_at_once, len(plan.steps))} at the same time")
    free = shutil.disk_usage(".").free
    if plan.n_bytes > free:
        notes.append(f"the disk here has {size(free)} left: too little")
    return notes


def size(n_bytes: float) -> str:
    """1.3 GB"""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000.0:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000.0
    return f"{n_bytes:.3g} TB"
