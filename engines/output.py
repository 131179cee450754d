"""What an engine leaves on disk for a stage: thermo.csv, trajectory.trr, topology.pdb, start.npz, restart.npz.

restart.npz is the truth: it holds the full state in float64 and the lengths of the other files at that step.
Continuing cuts them to these lengths, so no row or frame is repeated or lost whenever the process was killed.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsim.engines.base import Array, RunControl, StageSettings, State
from dpsim.engines.observer import Record
from dpsim.errors import ConfigError, DataError
from dpsim.files import atomic_write
from dpsim.trajectory import TrajectoryWriter, open_truncated, write_topology

THERMO_COLUMNS = (
    "step",
    "time_ps",
    "potential_energy_eV",
    "kinetic_energy_eV",
    "total_energy_eV",
    "conserved_eV",
    "temperature_K",
    "pressure_bar",
    "volume_A3",
)
CHECKPOINT_VERSION = 1
THERMO, TRAJECTORY, TOPOLOGY, RESTART = "thermo.csv", "trajectory.trr", "topology.pdb", "restart.npz"
START = "start.npz"  # a checkpoint of step 0, kept: where diagnoses and comparisons start from

_OWNERS = ("integrator", "calculator")  # fields of a checkpoint that are arrays by name
_EXTENDABLE = ("n_steps",)  # settings that may change between runs of a stage: totals may grow


@dataclass
class Checkpoint:
    """Everything needed to go on after `step` steps as if nothing had happened.

    integrator, calculator: arrays that they need besides the state; generator: state of the random number generator;
    settings: the stage's settings and the identity of the run; *_bytes: lengths of the output files at this step;
    ended_early: why an observer ended the stage; records: what each observer keeps, by its name.
    """

    step: int
    finished: bool
    state: State
    settings: dict[str, Any]
    integrator: dict[str, NDArray[Any]] = field(default_factory=dict)
    calculator: dict[str, NDArray[Any]] = field(default_factory=dict)
    generator: dict[str, Any] | None = None
    thermo_bytes: int = 0
    trajectory_bytes: int = 0
    wall_seconds: float = 0.0
    ended_early: str | None = None
    records: dict[str, Record] = field(default_factory=dict)


def stage_settings(stage: StageSettings, control: RunControl) -> dict[str, Any]:
    """What must be unchanged for a stage to be continued."""
    return json.loads(json.dumps(asdict(stage) | {"seed": control.seed} | dict(control.identity or {})))


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write restart.npz atomically: a kill leaves the old or the new one, complete."""
    state = checkpoint.state
    meta = {
        "version": CHECKPOINT_VERSION,
        "step": checkpoint.step,
        "finished": checkpoint.finished,
        "settings": checkpoint.settings,
        "generator": checkpoint.generator,
        "thermo_bytes": checkpoint.thermo_bytes,
        "trajectory_bytes": checkpoint.trajectory_bytes,
        "wall_seconds": checkpoint.wall_seconds,
        "ended_early": checkpoint.ended_early,
        "records": checkpoint.records,
    }
    arrays: dict[str, NDArray[Any]] = {
        f"{owner}:{key}": value for owner in _OWNERS for key, value in getattr(checkpoint, owner).items()
    }
    for name in ("numbers", "masses", "positions", "momenta", "cell", "pbc"):
        arrays[name] = getattr(state, name)
    content = io.BytesIO()
    np.savez(content, meta=np.array(json.dumps(meta)), **arrays)  # type: ignore[arg-type]
    atomic_write(path, content.getvalue())


def load_checkpoint(path: Path) -> Checkpoint | None:
    """Read restart.npz; None if there is none. Raises DataError where it is not one."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            meta = json.loads(str(file["meta"]))
            owned: dict[str, Any] = {
                owner: {k.partition(":")[2]: file[k] for k in file.files if k.startswith(f"{owner}:")}
                for owner in _OWNERS
            }
            names = ("numbers", "masses", "positions", "momenta", "cell", "pbc")
            state = State(**{name: file[name] for name in names})
        version = meta.pop("version")
        if version != CHECKPOINT_VERSION:
            raise DataError(f"`version` of {path} is {version}; expected {CHECKPOINT_VERSION}. Use that dpsim version.")
        return Checkpoint(state=state, **owned, **meta)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"`{path}` cannot be read as a checkpoint ({error}); expected what dpsim wrote. "
            "Delete the stage's directory to start the stage anew."
        ) from error


def require_same_settings(directory: Path, old: Mapping[str, Any], new: Mapping[str, Any], step: int) -> None:
    """Raise ConfigError where a checkpoint was made with other settings, or already beyond the new total."""
    changed = [k for k in sorted({*old, *new}) if k not in _EXTENDABLE and old.get(k) != new.get(k)]
    if changed:
        differences = "; ".join(f"{k} was {old.get(k)}, is {new.get(k)}" for k in changed)
        raise ConfigError(
            f"`{directory}` was begun with other settings: {differences}. "
            "Give the protocol another `name` (or --directory), or delete the directory to start anew."
        )
    if step > new["n_steps"]:
        raise ConfigError(
            f"`steps` is {new['n_steps']}, but {directory} has already done {step}; expected at least as many. "
            "Durations are totals: raise the total, or delete the directory to start anew."
        )


class Log:
    """A text file that only grows. Its length belongs into the checkpoint, and going on cuts the file to it.

    Args: path: the file; length: bytes to keep of it, None to begin it with `header`.
    Raises: DataError: it is shorter than `length`.
    """

    def __init__(self, path: Path, length: int | None, header: str = ""):
        if length is None:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            self.write(header)
        else:
            self._file = open_truncated(path, length)
            os.lseek(self._file, 0, os.SEEK_END)

    def write(self, text: str) -> None:
        """Append to the file, all of it."""
        data = text.encode()
        while data:
            data = data[os.write(self._file, data) :]

    def sync(self) -> int:
        """Wait until everything written is on the disk. Returns the length, bytes."""
        os.fsync(self._file)
        return os.lseek(self._file, 0, os.SEEK_END)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class StageOutput:
    """The open files of one stage."""

    def __init__(self, directory: Path, symbols: list[str], state: State, checkpoint: Checkpoint | None):
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        if checkpoint is None:
            write_topology(directory / TOPOLOGY, symbols, state.positions, state.cell)
            self._thermo = Log(directory / THERMO, None, ",".join(THERMO_COLUMNS) + "\n")
            self._trajectory = TrajectoryWriter(directory / TRAJECTORY, state.n_atoms)
        else:
            self._thermo = Log(directory / THERMO, checkpoint.thermo_bytes)
            self._trajectory = TrajectoryWriter(directory / TRAJECTORY, state.n_atoms, checkpoint.trajectory_bytes)

    def row(self, step: int, *values: float) -> None:
        """One row of thermo.csv, in the order of THERMO_COLUMNS; numbers in full precision."""
        self._thermo.write(",".join([str(step), *(repr(float(v)) for v in values)]) + "\n")

    def frame(self, step: int, time_ps: float, state: State, forces: Array) -> None:
        """One frame of the trajectory."""
        velocities = state.momenta / state.masses[:, None]
        cell = state.cell if state.has_volume else np.zeros((3, 3))
        self._trajectory.append(step, time_ps, state.positions, cell, velocities, forces)

    def save(self, checkpoint: Checkpoint) -> None:
        """A checkpoint that what was written so far belongs to."""
        self._trajectory.sync()
        checkpoint.thermo_bytes = self._thermo.sync()
        checkpoint.trajectory_bytes = self._trajectory.offset
        if checkpoint.step == 0:
            save_checkpoint(self.directory / START, checkpoint)
        save_checkpoint(self.directory / RESTART, checkpoint)

    def close(self) -> None:
        """Close the files."""
        self._thermo.close()
        self._trajectory.close()


def read_thermo(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The columns of a thermo.csv; a last line that is still being written is left out. Raises DataError."""
    return read_columns(path, THERMO_COLUMNS)


def read_columns(path: str | os.PathLike[str], columns: Sequence[str]) -> dict[str, Array]:
    """The columns of a table of numbers that a stage writes, likewise."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise DataError(f"`{path}` cannot be read ({error}); expected the {Path(path).name} of a stage.") from error
    header, *rows = text[: text.rfind("\n") + 1].splitlines() or [""]
    if header != ",".join(columns):
        raise DataError(f"`{path}` begins with {header[:60]!r}; expected {','.join(columns)}.")
    table = np.array([row.split(",") for row in rows], dtype=np.float64).reshape(-1, len(columns))
    return dict(zip(columns, table.T, strict=True))
