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


@dataclass(frozen=True)
class Cost:
    """Of one kind of work: how many, of what, and the wall time of all of it, s (None: nobody knows)."""

    what: str
    number: str
    seconds: float | None


def estimate(config: DistillConfig) -> list[Cost]:
    """What a whole run costs if every round is needed, from one timed force call of teacher and student each."""
    frames = check(config)
    n_atoms = float(np.mean([f.n_atoms for f in frames]))
    student = blank_student(config.student.model)
    batch = Batch.from_frames([frames[0].with_type_map(student.type_map)], student.rcut)
    forces_of_student = _seconds(lambda: student(batch)) * n_atoms / frames[0].n_atoms
    teacher = None if isinstance(config.teacher, OfflineTeacher) else _teacher_seconds(config, frames[0])
    explore_, at_once = config.explore, config.workers.n_at_once
    walkers = len(explore_.conditions) * explore_.walkers
    of = {"student": forces_of_student, "teacher": teacher, "perturb": 0.0}
    costs = []
    drivers = [config.driver(k) for k in range(config.rounds)]
    for driver in dict.fromkeys(drivers):
        steps = sum(
            walkers * round(explore_.duration_of(k) / explore_.timestep) for k, d in enumerate(drivers) if d == driver
        )
        each = of[driver]
        costs.append(
            Cost(f"explore, driven by the {driver}", f"{steps} steps", None if each is None else steps * each / at_once)
        )
    judged = walkers * explore_.frames
    by_teacher = config.selector == "teacher"
    first = 0 if config.has_first_student else 1
    labels = config.rounds * config.select.max_frames
    if by_teacher:
        labels = first * min(judged, config.select.max_frames) + (config.rounds - first) * judged
    labels = min(labels, config.budget.labels or labels)
    costs.append(Cost("label", f"{labels} frames at most", None if teacher is None else labels * teacher / at_once))
    settings = config.student.train
    n_students = 1 if by_teacher else config.committee
    trainings = config.rounds + (1 if config.data else 0)
    steps = n_students * (settings.steps + (trainings - 1) * (settings.later_steps or settings.steps))
    steps += n_students * (settings.final_steps or 0)
    in_batch = settings.batch_size * n_atoms if isinstance(settings.batch_size, int) else max(_AUTO_ATOMS, n_atoms)
    costs.append(Cost("train", f"{steps} steps at most", steps * _STEP_COST * forces_of_student * in_batch / n_atoms))
    return costs


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
    table = Table(title=f"{config.name}: {config.rounds} rounds at most", title_justify="left", expand=False)
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
