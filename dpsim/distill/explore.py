"""Explore: walkers simulate at the conditions that the model is for, and leave frames evenly spread over their time.

A walker is a unit of work: dynamics in any engine with the forces of the student or of the teacher, or, to begin with
where nobody has forces yet, the structures with random displacements and strains. One that explodes, or whose driver
fails, keeps the frames before; those it did not reach are counted as missing.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpsim.data.frame import Frame
from dpsim.data.readers import open_dataset
from dpsim.distill.accept_config import Condition
from dpsim.distill.config import DistillConfig, ExploreConfig
from dpsim.distill.found import Found, Origin, frame_of, write_found
from dpsim.engines.ase_engine import state_from_atoms
from dpsim.engines.base import RunControl, StageSettings, generator
from dpsim.engines.output import TRAJECTORY
from dpsim.engines.registry import make_engine
from dpsim.errors import ConfigError
from dpsim.protocols.schema import Structure
from dpsim.protocols.structures import load_structure
from dpsim.train.evaluate import spread_frames
from dpsim.trajectory import count_frames, read_frame

FRAMES = "frames.extxyz"
_EXPLODED = 5.0  # times the condition's temperature
_GIVEN = 5  # times as many frames are looked at as are chosen of them
_THERMO_FS = 10.0  # how often a walker's temperature is looked at, at least


@dataclass(frozen=True)
class Walker:
    """Where a walker starts and what it does. index: among those at its condition."""

    round: int
    condition: Condition
    index: int
    structure: Structure
    explore: ExploreConfig
    seed: int

    @property
    def name(self) -> str:
        """Unique in its round, fit for a file name."""
        return f"{self.condition.name}.w{self.index}"

    @property
    def parent(self) -> str:
        """What the structure is called in origins."""
        s = self.structure
        start = f"water_box:{s.water_box}" if s.file is None else f"{s.file.name}:{s.frame}"
        return start if s.repeat == (1, 1, 1) else f"{start}:{'x'.join(map(str, s.repeat))}"

    def origin(self, step: int) -> Origin:
        """Of the frame at a step."""
        identity = f"r{self.round:02d}.{self.name}.s{step:07d}"
        return Origin(identity, self.round, self.name, self.condition.name, step, self.parent)

    def stage(self) -> StageSettings:
        """The dynamics in the engine's terms."""
        explore, condition = self.explore, self.condition
        n_steps = round(explore.duration_of(self.round) / explore.timestep)
        every = self.steps()[0]
        common: dict[str, Any] = {
            "n_steps": n_steps,
            "timestep_fs": explore.timestep,
            "initial_temperature_K": condition.temperature,
            "temperature_K": condition.temperature,
            "thermostat_damping_fs": explore.damping,
            "trajectory_every": every,
            "thermo_every": max(1, min(every, round(_THERMO_FS / explore.timestep))),
            "max_temperature_K": explore.max_temperature or _EXPLODED * condition.temperature,
        }
        if condition.pressure is None:
            return StageSettings(kind="nvt", thermostat=explore.thermostat, **common)
        return StageSettings(
            kind="npt",
            pressure_bar=condition.pressure,
            barostat_damping_fs=explore.pressure_damping,
            cell_change="isotropic",
            **common,
        )

    def steps(self) -> tuple[int, list[int]]:
        """The interval of the trajectory, and the steps of the frames that are judged."""
        explore = self.explore
        n_steps = round(explore.duration_of(self.round) / explore.timestep)
        every = max(1, (n_steps - round(explore.skip / explore.timestep)) // explore.frames)
        last = n_steps // every
        return every, [every * k for k in range(last - explore.frames + 1, last + 1)]


def walkers_of(config: DistillConfig, round_: int) -> list[Walker]:
    """Those of a round: `walkers` at each condition; they start at the structures in turn, also from round to round."""
    explore = config.explore
    return [
        Walker(
            round=round_,
            condition=condition,
            index=k,
            structure=explore.structures[(round_ * explore.walkers + k) % len(explore.structures)],
            explore=explore,
            seed=config.seed,
        )
        for condition in explore.conditions
        for k in range(explore.walkers)
    ]


def walk(
    walker: Walker, driver: str, calculator: Any, identity: str, folder: Path, type_map: list[str]
) -> dict[str, Any]:
    """Let a walker go, or go on, and leave its frames in `folder`/frames.extxyz.

    Args: driver: perturb, or whose `calculator` moves the atoms; identity: of the calculator, to go on with no other.
    Returns: {"expected": frames, "frames": how many there are, "failure": "" or why it ended early}.
    Raises: ConfigError, DataError for what cannot be begun; OSError.
    """
    failure = ""
    if driver == "perturb":
        found = _perturbed(walker, type_map)
    else:
        failure = _simulate(walker, calculator, identity, folder / "md")
        found = _read(walker, folder / "md", type_map)
    write_found(folder / FRAMES, found)
    return {"expected": walker.explore.frames, "frames": len(found), "failure": failure}


def _simulate(walker: Walker, calculator: Any, identity: str, folder: Path) -> str:
    """Run the stage to its end; "", or why it ended early. An error before the first frame is raised."""
    engine = make_engine(walker.explore.engine)
    state = state_from_atoms(load_structure(walker.structure, walker.seed))
    stage = walker.stage()
    engine.require(stage, state)
    control = RunControl(
        seed=walker.seed,
        name=f"round {walker.round} {walker.name}",
        identity={"engine": engine.name, "driver": identity, "structure": walker.parent},
    )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        engine.run_stage(state, calculator, stage, folder, control)
    except (ConfigError, MemoryError):
        raise
    except Exception as error:  # of the engine, or of a calculator that is not ours
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or not _has_frames(folder):
            raise
        return str(error) or type(error).__name__
    return ""


def _has_frames(folder: Path) -> bool:
    return (folder / TRAJECTORY).is_file() and count_frames(folder / TRAJECTORY) > 0


def _read(walker: Walker, folder: Path, type_map: list[str]) -> list[Found]:
    """The judged frames of a trajectory, as many as there are."""
    start = load_structure(walker.structure, walker.seed)
    every, steps = walker.steps()
    n = count_frames(folder / TRAJECTORY)
    found = []
    for step in (s for s in steps if s // every < n):
        seen = read_frame(folder / TRAJECTORY, step // every)
        atoms = start.copy()
        atoms.set_cell(seen.cell if start.cell.rank == 3 else start.cell)
        atoms.positions = seen.positions
        origin = walker.origin(step)
        found.append(Found(frame_of(atoms, type_map, origin.id), origin))
    return found


def _perturbed(walker: Walker, type_map: list[str]) -> list[Found]:
    """The structure, displaced and strained anew for each frame: r -> (1 + e) r + d, e symmetric."""
    start = load_structure(walker.structure, walker.seed)
    random = generator(walker.seed, f"round {walker.round} {walker.name}/perturb")
    found = []
    for k in range(walker.explore.frames):
        strain = random.normal(0.0, walker.explore.strain, (3, 3))
        deform = np.eye(3) + (0.5 * (strain + strain.T) if start.pbc.any() else 0.0)
        atoms = start.copy()
        atoms.set_cell(start.cell.array @ deform)
        moved = random.normal(0.0, walker.explore.displacement, (len(start), 3))
        atoms.positions = start.positions @ deform + moved
        origin = walker.origin(k)
        found.append(Found(frame_of(atoms, type_map, origin.id), origin))
    return found


def given_frames(config: DistillConfig) -> list[Found]:
    """Frames of the sets `given`, evenly spread: some times more than are chosen. Raises DataError, ElementError."""
    type_map = config.student.model.type_map
    systems = [s for path in config.explore.given for s in open_dataset(path, type_map)]
    found = []
    for s, k in spread_frames(systems, _GIVEN * config.select.max_frames):
        frame = systems[s].frame(k).with_type_map(type_map)
        parent = f"{systems[s].name}:{k}"
        origin = Origin(f"r00.given.{s:03d}.{k:07d}", 0, f"given.{s:03d}", "given", k, parent)
        found.append(Found(replace(frame, energy=None, forces=None, virial=None, source=origin.id), origin))
    return found


def check_structures(config: DistillConfig) -> list[Frame]:
    """Read every structure, and ask the engine about every condition. Raises DpsimError naming what does not fit."""
    type_map, frames = config.student.model.type_map, []
    engine = make_engine(config.explore.engine)
    for walker in walkers_of(config.model_copy(update={"explore": _all_structures(config.explore)}), 0):
        atoms = load_structure(walker.structure, walker.seed)
        engine.require(walker.stage(), state_from_atoms(atoms))
        frames.append(frame_of(atoms, type_map, walker.parent))
    return frames


def _all_structures(explore: ExploreConfig) -> ExploreConfig:
    return explore.model_copy(update={"walkers": len(explore.structures)})
