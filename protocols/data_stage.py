"""Frames of a data set as a finished stage, so that what analyses runs analyses ab initio molecular dynamics too."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpsim.data.frame import Frame
from dpsim.data.readers import open_dataset
from dpsim.engines.ase_engine import state_from_atoms
from dpsim.engines.base import StageResult, StageSettings
from dpsim.engines.output import THERMO, THERMO_COLUMNS, TOPOLOGY, TRAJECTORY
from dpsim.errors import DataError
from dpsim.files import atomic_write
from dpsim.protocols.context import StageRecord
from dpsim.trajectory import TrajectoryWriter, write_topology


def stage_of_data(data: str | Path, directory: Path, name: str = "nvt", interval_fs: float = 1000.0) -> StageRecord:
    """Write the frames as the files that a stage leaves. Temperature and velocities are unknown; labels are kept.

    Args:
        data: DeePMD npy, HDF5 or extxyz: configurations of the same atoms, in the order of time.
        directory: for topology.pdb, trajectory.trr and thermo.csv.
        interval_fs: between frames; any, for analyses of structure.

    Raises: DataError where the atoms are not the same.
    """
    from ase import Atoms

    frames = [system.frame(k) for system in open_dataset(data) for k in range(len(system))]
    first, last = frames[0], frames[-1]
    if other := next((frame for frame in frames if frame.symbols != first.symbols), None):
        raise DataError(f"{other.source} has other atoms than {first.source}; expected the same ones, in one order.")
    directory.mkdir(parents=True, exist_ok=True)
    write_topology(directory / TOPOLOGY, first.symbols, first.positions, first.cell)
    times = 1e-3 * interval_fs * np.arange(len(frames))
    labelled = all(frame.forces is not None for frame in frames)  # frames of a trajectory are of one size
    with TrajectoryWriter(directory / TRAJECTORY, first.n_atoms) as trajectory:
        for k, frame in enumerate(frames):
            forces = frame.forces if labelled else None
            trajectory.append(k, times[k], frame.positions, frame.cell, forces=forces)
    lines = [",".join(THERMO_COLUMNS), *(_row(k, times[k], frame) for k, frame in enumerate(frames)), ""]
    atomic_write(directory / THERMO, "\n".join(lines).encode())
    state = state_from_atoms(Atoms(last.symbols, positions=last.positions, cell=last.cell, pbc=last.pbc))
    n_steps = len(frames) - 1
    settings = StageSettings("nvt", n_steps, timestep_fs=interval_fs)
    return StageRecord(name, directory, settings, StageResult(state, n_steps, True, 0.0, 0.0))


def _row(step: int, time_ps: float, frame: Frame) -> str:
    """Of thermo.csv."""
    volume = abs(np.linalg.det(frame.cell)) or None
    known = {"time_ps": time_ps, "potential_energy_eV": frame.energy, "volume_A3": volume}
    values = [known.get(column) for column in THERMO_COLUMNS[1:]]
    return ",".join([str(step), *("nan" if value is None else repr(float(value)) for value in values)])
