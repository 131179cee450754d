"""What can be known before anything is made: whether it will work (`check`), and what it will cost (`plan`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from dpsim.data.frame import Batch, Frame
from dpsim.distill import explore
from dpsim.distill.config import DistillConfig, OfflineTeacher
from dpsim.distill.found import atoms_of
from dpsim.distill.label import teacher_calculator
from dpsim.distill.tabulate import sources
from dpsim.errors import ConfigError, DpsimError, UnsupportedModelError
from dpsim.models.checkpoint import load_trainable
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel

_STEP_COST = 3.0  # a training step costs about so many force calls of as many atoms
_AUTO_ATOMS = 32  # in a batch of "auto"
_SEL = 64  # stands for `auto` where there is no data yet


def check(config: DistillConfig) -> list[Frame]:
    """The starting structures, if everything that a run needs is there and fits together. Raises DpsimError."""
    frames = explore.check_structures(config)
    _check_student(config)
    _check_teacher(config, frames)
    return frames


def _check_student(config: DistillConfig) -> None:
    """That it can be built and, where it is to be, compressed."""
    given = config.student.init_from
    student = load_trainable(given) if given is not None else blank_student(config.student.model)
    if missing := sorted(set(config.student.model.type_map) - set(student.type_map)):
        raise ConfigError(f"`student.init_from` {given} does not know {missing}; expected the elements of `type_map`.")
    if config.compress is not None:
        try:
            sources(student)
        except UnsupportedModelError as error:
            raise ConfigError(
                f"`student.model` cannot be compressed: {error} Or write `compress: null` for a student as it is."
            ) from None


def blank_student(config: ModelConfig) -> EnergyModel:
    """A student that has learned nothing, with a guess for every `sel` that is auto."""
    sels: list[Any] = [
        e.sel if e.sel != "auto" else [_SEL] * len(config.type_map) if e.sel_by_type else _SEL
        for e in config.descriptor.environments
    ]
    update: dict[str, Any] = {"descriptor": config.descriptor.with_sel(sels)}
    if config.core_distances == "auto":
        update["core_distances"] = None
    return EnergyModel(config.model_copy(update=update))


def _check_teacher(config: DistillConfig, frames: Sequence[Frame]) -> None:
    """That it gives finite forces on every starting structure, and a stress where the volume may change."""
    if isinstance(config.teacher, OfflineTeacher):
        return
    calculator = teacher_calculator(config.teacher, config.teacher_device)
    if _is_asked_sparingly(config):
        return
    for frame in frames:
        atoms = atoms_of(frame)
        atoms.calc = calculator
        try:
            forces = np.asarray(atoms.get_forces())
        except DpsimError as error:
            raise type(error)(f"the teacher on {frame.source}: {error}") from error
        except Exception as error:  # of a calculator that is not ours
            raise ConfigError(
                f"the teacher fails on {frame.source} ({type(error).__name__}: {error}); expected energy and forces. "
                "Try it on that structure by hand."
            ) from error
        if not np.isfinite(forces).all():
            atom = int(np.argmax(~np.isfinite(forces).all(axis=1)))
            raise ConfigError(
                f"the teacher's force on atom {atom} of {frame.source} is {forces[atom]}; expected numbers. Check the "
                "structure and the teacher."
            )
    drives = "teacher" in {config.driver(k) for k in range(config.rounds)}
    npt = any(c.pressure is not None for c in config.explore.conditions)
    if drives and npt and "stress" not in getattr(calculator, "implemented_properties", ()):
        raise ConfigError(
            "the teacher gives no stress, but it drives walkers at constant pressure; expected one. Leave out "
            "`pressure`, or let the student drive."
        )


def _is_asked_sparingly(config: DistillConfig) -> bool:
    """Whether the teacher labels what a committee chose, and does nothing else: a label may cost hours."""
    drives = "teacher" in {config.driver(k) for k in range(config.rounds)}
    return config.selector == "committee" and not drives and not isinstance(config.teacher, str)


@dataclass(frozen=True)
class Cost:
    """Of one kind of work: how many, of what, and the wall time of all of it, s (None: nobody knows)."""

    what: str
    number: str
    seconds: float | None


@dataclass(frozen=True)
class ForceCalls:
    """Wall times of one force call on a structure of average size, s; of the teacher None where nobody knows."""

    n_atoms: float
    student: float
    teacher: float | None

    def of(self, who: str) -> float | None:
        return self.student if who == "student" else self.teacher


def _time_force_calls(config: DistillConfig, frames: Sequence[Frame]) -> ForceCalls:
    n_atoms, first = float(np.mean([f.n_atoms for f in frames])), frames[0]
    student = blank_student(config.student.model)
    batch = Batch.from_frames([first.with_type_map(student.type_map)], student.rcut)
    unknown = isinstance(config.teacher, OfflineTeacher) or _is_asked_sparingly(config)
    teacher = None if unknown else _teacher_seconds(config, first) * n_atoms / first.n_atoms
    return ForceCalls(n_atoms, _seconds(lambda: student(batch)) * n_atoms / first.n_atoms, teacher)


def estimate(config: DistillConfig) -> list[Cost]:
    """What a whole run costs if every round is needed, from one timed force call of teacher and student each."""
    calls = _time_force_calls(config, check(config))
    return [*_explore_costs(config, calls), _label_cost(config, calls), _train_cost(config, calls),
            *_accept_costs(config, calls)]  # fmt: skip


def _explore_costs(config: DistillConfig, calls: ForceCalls) -> list[Cost]:
    explore_ = config.explore
    steps = {"teacher": 0, "student": 0}  # other drivers simulate nothing
    for k in range(config.rounds):
        if (driver := config.driver(k)) in steps:
            walkers = len(explore_.conditions) * explore_.walkers
            steps[driver] += walkers * round(explore_.duration_of(k) / explore_.timestep)
    return [
        Cost(f"explore, driven by the {who}", f"{n} steps", _shared(config, n, calls.of(who)))
        for who, n in steps.items()
        if n
    ]


def _label_cost(config: DistillConfig, calls: ForceCalls) -> Cost:
    """A teacher that judges is asked about every frame, once there is a student to judge."""
    chosen, explored = config.select.max_frames, len(config.explore.conditions) * config.explore.walkers
    explored *= config.explore.frames
    unjudged = config.rounds if config.selector == "committee" else 0 if config.has_first_student else 1
    n = unjudged * chosen + (config.rounds - unjudged) * explored
    n = min(n, config.budget.labels or n)
    return Cost("label", f"{n} frames at most", _shared(config, n, calls.teacher))


def _train_cost(config: DistillConfig, calls: ForceCalls) -> Cost:
    settings = config.student.train
    trainings = config.rounds + (1 if config.data else 0)
    each = settings.steps + (trainings - 1) * (settings.later_steps or settings.steps) + (settings.final_steps or 0)
    steps = each * (config.committee if config.selector == "committee" else 1)
    atoms = max(_AUTO_ATOMS, calls.n_atoms)
    if isinstance(settings.batch_size, int):
        atoms = settings.batch_size * calls.n_atoms
    return Cost("train", f"{steps} steps at most", steps * _STEP_COST * calls.student * atoms / calls.n_atoms)


def _accept_costs(config: DistillConfig, calls: ForceCalls) -> list[Cost]:
    if (test := config.accept) is None:
        return []
    structures, conditions = test.structures or config.explore.structures, test.conditions or config.explore.conditions
    steps = sum(test.stage(condition).n_steps for condition in conditions) * len(structures) * test.runs
    costs = [(who, steps, _shared(config, steps, calls.of(who))) for who in ("teacher", "student")]
    return [Cost(f"acceptance test, {who}", f"{n} steps", seconds) for who, n, seconds in costs]


def _shared(config: DistillConfig, n: int, each: float | None) -> float | None:
    """The time of n force calls, divided among the workers."""
    return None if each is None else n * each / config.workers.n_at_once


def _teacher_seconds(config: DistillConfig, frame: Frame) -> float:
    atoms = atoms_of(frame)
    atoms.calc = teacher_calculator(config.teacher, config.teacher_device)
    random = np.random.default_rng(0)

    def call() -> None:
        atoms.positions += random.normal(0.0, 1e-3, atoms.positions.shape)
        atoms.get_forces()

    return _seconds(call)


def _seconds(call: Callable[[], Any]) -> float:
    """Of one call, after one that warms up."""
    call()
    began = time.monotonic()
    call()
    return time.monotonic() - began


def plan_table(config: DistillConfig) -> Table:
    """What `dpsim distill --dry-run` shows: the plan, and about how long each part takes at most."""
    walkers = len(config.explore.conditions) * config.explore.walkers
    title = (
        f"{config.name}: {config.rounds} rounds at most of {walkers} walkers at "
        f"{', '.join(c.name for c in config.explore.conditions)}, {walkers * config.explore.frames} frames a round"
    )
    table = Table(title=title, title_justify="left", expand=False)
    table.add_column("work")
    table.add_column("how much")
    table.add_column("about", justify="right")
    costs = estimate(config)
    for cost in costs:
        table.add_row(cost.what, cost.number, _duration(cost.seconds))
    known = [c.seconds for c in costs if c.seconds is not None]
    table.add_section()
    table.add_row("together", "if every round is needed", _duration(sum(known)))
    return table


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"
