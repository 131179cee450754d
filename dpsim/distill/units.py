"""The work that workers do: functions of plain data, each in a folder of its own within that of the run.

A unit knows the run by the distill.yaml above its folder, and names files by their path from there, so that a folder
may be moved, and units may run on other machines that see it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.config import load_yaml
from dpsim.distill import explore
from dpsim.distill.config import DistillConfig
from dpsim.distill.found import read_found, write_found
from dpsim.distill.label import make_labeller, teacher_calculator
from dpsim.distill.run import CONFIG, Interrupted
from dpsim.distill.training import training_config
from dpsim.errors import DpsimError
from dpsim.train.progress import Silent
from dpsim.train.trainer import TrainResult, train

PART = "part.extxyz"  # labels of a unit that is not finished
_SAVE_SECONDS = 2.0  # work on labels that a kill may cost


def _run_of(folder: Path) -> tuple[Path, DistillConfig]:
    """The run that a unit's folder belongs to, and its configuration."""
    run = next(parent for parent in folder.absolute().parents if (parent / CONFIG).exists())
    return run, load_yaml(run / CONFIG, DistillConfig)


def walk_unit(folder: Path, round_: int, walker: int, driver: str, model: str | None) -> dict[str, Any]:
    """Let one walker go. model: the student's file, counted from the run's folder."""
    run, config = _run_of(folder)
    walk = explore.walkers_of(config, round_)[walker]
    calculator, identity = None, driver
    if driver == "student":
        assert model is not None  # the loop has one
        calculator, identity = DPCalculator(run / model, device=config.explore.device), f"student {model}"
    elif driver == "teacher":
        calculator = teacher_calculator(config.teacher, config.teacher_device)
    return explore.walk(walk, driver, calculator, identity, folder, config.student.model.type_map)


def label_unit(folder: Path, frames: str, begin: int, end: int) -> dict[str, Any]:
    """Label some frames of a file, going on where a kill left it. Returns {"failed": {id: reason}}."""
    run, config = _run_of(folder)
    type_map = config.student.model.type_map
    wanted = read_found(run / frames, type_map)[begin:end]
    done = {f.id: f for f in read_found(folder / PART, type_map)} if (folder / PART).exists() else {}
    labeller = make_labeller(config.teacher, config.teacher_device)
    failed: dict[str, str] = {}
    saved = time.monotonic()
    for found in wanted:
        if found.id in done:
            continue
        (labelled,) = labeller.label([found.frame])
        if labelled.failure:
            failed[found.id] = labelled.failure
        else:
            done[found.id] = found.labelled(labelled.frame, labelled.by)
        if time.monotonic() - saved > _SAVE_SECONDS:
            write_found(folder / PART, done.values())
            saved = time.monotonic()
    if not done:  # that unit is not finished: it is tried again with the next command
        raise DpsimError(next(iter(failed.values())))
    write_found(folder / "labelled.extxyz", (done[f.id] for f in wanted if f.id in done))
    (folder / PART).unlink(missing_ok=True)
    return {"failed": failed}


def train_unit(
    folder: Path, round_: int, member: int, start: str | None, data: Sequence[str], final: bool
) -> dict[str, Any]:
    """Train one student of several. start, data: counted from the run's folder."""
    run, config = _run_of(folder)
    settings = training_config(
        config, round_, member, None if start is None else run / start, [run / d for d in data], final
    )
    return trained(train(settings, folder, resume=True, reporter=Silent()))


def trained(result: TrainResult) -> dict[str, Any]:
    """What is kept of a training. Raises Interrupted where it was stopped."""
    if not result.finished:
        raise Interrupted
    return {"model": result.model.name, "steps": result.step, "metrics": result.metrics}
