"""trajectory.py: what MDAnalysis reads is what was written, in its units, whatever happened to the file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.build import bulk

from dpsim.errors import DataError
from dpsim.trajectory import (
    PS_PER_ASE_TIME,
    TrajectoryWriter,
    count_frames,
    open_universe,
    read_frame,
    standard_cell,
    write_topology,
)

N = 8
CELL = np.diag([10.0, 11.0, 12.0])


def frames(n: int = 4) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.normal(0, 30, (N, 3)), rng.normal(0, 0.01, (N, 3)), rng.normal(0, 1, (N, 3))) for _ in range(n)]


def write(path: Path, n: int = 4, cell: np.ndarray = CELL) -> TrajectoryWriter:
    writer = TrajectoryWriter(path, N)
    for k, (x, v, f) in enumerate(frames(n)):
        writer.append(20 * k, 0.01 * k, x, cell, v, f)
    return writer


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    symbols = ["O", "H", "H", "Cl", "Na", "C", "Ca", "Uue"[:1]]
    return write_topology(tmp_path / "topology.pdb", symbols, np.zeros((N, 3)), CELL)


def test_mdanalysis_reads_values_units_and_elements(tmp_path: Path, topology: Path) -> None:
    write(tmp_path / "t.trr").close()
    universe = open_universe(topology, tmp_path / "t.trr")
    assert universe.atoms.elements.tolist() == ["O", "H", "H", "Cl", "Na", "C", "Ca", "U"]
    assert len(universe.trajectory) == 4
    for k, (x, v, f) in enumerate(frames()):
        ts = universe.trajectory[k]
        assert ts.time == pytest.approx(0.01 * k)
        assert ts.data["step"] == 20 * k
        np.testing.assert_allclose(ts.dimensions, [10, 11, 12, 90, 90, 90], rtol=1e-6)
        np.testing.assert_allclose(ts.positions, x, rtol=1e-6)  # A, unwrapped
        np.testing.assert_allclose(ts.velocities, v * units.fs * 1000.0, rtol=1e-5)  # A/ps
        np.testing.assert_allclose(ts.forces, f / (units.kJ / units.mol), rtol=1e-5)  # kJ/mol/A


def test_unit_of_time_is_ases() -> None:
    assert pytest.approx(1e-3 / units.fs, rel=1e-7) == PS_PER_ASE_TIME


def test_velocities_give_the_kinetic_energy(tmp_path: Path, topology: Path) -> None:
    """One atom of 1 amu at 1 A/ASE time has 1/2 eV, by way of MDAnalysis' units."""
    writer = TrajectoryWriter(tmp_path / "t.trr", N)
    writer.append(0, 0.0, np.zeros((N, 3)), CELL, np.full((N, 3), 3**-0.5), np.zeros((N, 3)))
    writer.close()
    velocity = open_universe(topology, tmp_path / "t.trr").atoms.velocities[0]
    kinetic_kj_per_mol = 0.5 * 1.0 * np.sum(velocity**2) * 1e-2  # amu (A/ps)^2 = 1e-2 kJ/mol
    assert kinetic_kj_per_mol * units.kJ / units.mol == pytest.approx(0.5, rel=1e-5)


def test_own_reader(tmp_path: Path) -> None:
    write(tmp_path / "t.trr").close()
    assert count_frames(tmp_path / "t.trr") == 4
    frame = read_frame(tmp_path / "t.trr", 3)
    x, v, f = frames()[3]
    assert frame.step == 60
    assert frame.velocities is not None
    assert frame.forces is not None
    np.testing.assert_allclose(frame.positions, x, rtol=1e-6)
    np.testing.assert_allclose(frame.velocities, v, rtol=1e-6)
    np.testing.assert_allclose(frame.forces, f, rtol=1e-6)
    np.testing.assert_allclose(frame.cell, CELL)
    with pytest.raises(DataError, match=r"`index` is 4; expected 0 \.\.\. 3"):
        read_frame(tmp_path / "t.trr", 4)


@pytest.mark.parametrize("missing", [1, 100, 250])
def test_a_frame_cut_short_by_a_kill_is_not_seen(tmp_path: Path, topology: Path, missing: int) -> None:
    """A kill between the two writes of a frame leaves a body (complete or not) whose first eight bytes are zero."""
    writer = write(tmp_path / "t.trr")
    writer.close()
    data = (tmp_path / "t.trr").read_bytes()
    size = len(data) // 4
    partial = data[: 3 * size] + bytes(8) + data[3 * size + 8 : len(data) - missing + 1]
    (tmp_path / "t.trr").write_bytes(partial)
    assert count_frames(tmp_path / "t.trr") == 3
    universe = open_universe(topology, tmp_path / "t.trr")
    assert len(universe.trajectory) == 3
    np.testing.assert_allclose(universe.trajectory[2].positions, frames()[2][0], rtol=1e-6)


def test_resume_cuts_to_the_checkpoint_and_ignores_stale_indices(tmp_path: Path, topology: Path) -> None:
    path = tmp_path / "t.trr"
    writer = write(path, 2)
    offset = writer.offset
    for k, (x, v, f) in enumerate(frames()[2:], start=2):
        writer.append(20 * k, 0.01 * k, x + 7.0, CELL, v, f)
    writer.close()
    assert len(open_universe(topology, path).trajectory) == 4  # writes MDAnalysis' index file
    resumed = TrajectoryWriter(path, N, offset)
    for k, (x, v, f) in enumerate(frames()[2:], start=2):
        resumed.append(20 * k, 0.01 * k, x, CELL, v, f)
    resumed.close()
    universe = open_universe(topology, path)
    np.testing.assert_allclose(universe.trajectory[2].positions, frames()[2][0], rtol=1e-6)
    write(tmp_path / "whole.trr").close()
    assert path.read_bytes() == (tmp_path / "whole.trr").read_bytes()


def test_reading_while_writing(tmp_path: Path, topology: Path) -> None:
    writer = write(tmp_path / "t.trr", 2)
    assert len(open_universe(topology, tmp_path / "t.trr").trajectory) == 2
    for x, v, f in frames():
        writer.append(99, 1.0, x, CELL, v, f)
    assert len(open_universe(topology, tmp_path / "t.trr").trajectory) == 6
    writer.close()


def test_tilted_cells_are_turned_with_their_atoms(tmp_path: Path, topology: Path) -> None:
    """Readers keep lengths and angles only: distances over the boundary must survive."""
    cell = np.array(bulk("Cu").cell.array) * 3.0
    x = np.random.default_rng(1).normal(0, 3, (N, 3))
    writer = TrajectoryWriter(tmp_path / "t.trr", N)
    writer.append(0, 0.0, x, cell)
    writer.close()
    ts = open_universe(topology, tmp_path / "t.trr").trajectory[0]
    turned = ts.triclinic_dimensions.astype(float)
    np.testing.assert_allclose(turned @ turned.T, cell @ cell.T, rtol=1e-5)
    fractional = ts.positions @ np.linalg.inv(turned)
    np.testing.assert_allclose(fractional, x @ np.linalg.inv(cell), atol=1e-5)


def test_standard_cell_is_a_rotation() -> None:
    cell = np.random.default_rng(2).normal(size=(3, 3)) * 5.0
    box, rotation = standard_cell(cell)
    assert rotation is not None
    np.testing.assert_allclose(box @ rotation, cell, atol=1e-12)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.all(np.diag(box) > 0)
    assert box[0, 1] == box[0, 2] == box[1, 2] == 0.0


def test_no_cell(tmp_path: Path, topology: Path) -> None:
    writer = write(tmp_path / "t.trr", 2, np.zeros((3, 3)))
    writer.close()
    assert open_universe(topology, tmp_path / "t.trr").trajectory[1].dimensions is None


def test_errors(tmp_path: Path) -> None:
    writer = write(tmp_path / "t.trr", 1)
    with pytest.raises(DataError, match=r"`positions` has shape \(3, 3\); expected \(8, 3\)"):
        writer.append(0, 0.0, np.zeros((3, 3)), CELL)
    with pytest.raises(DataError, match="`step` is 2147483648"):
        writer.append(2**31, 0.0, np.zeros((N, 3)), CELL)
    writer.close()
    with pytest.raises(DataError, match="expected at least 99999"):
        TrajectoryWriter(tmp_path / "t.trr", N, 99999)
    with pytest.raises(DataError, match="is missing"):
        TrajectoryWriter(tmp_path / "none.trr", N, 10)
    with pytest.raises(DataError, match="missing or empty"):
        open_universe(tmp_path / "none.pdb", tmp_path / "t.trr")


def test_large_topology(tmp_path: Path) -> None:
    n = 100_010
    write_topology(tmp_path / "t.pdb", ["Si"] * n, np.full((n, 3), -5000.0), np.eye(3) * 200.0)
    writer = TrajectoryWriter(tmp_path / "t.trr", n)
    writer.append(0, 0.0, np.full((n, 3), -5000.0), np.eye(3) * 200.0)
    writer.close()
    universe = open_universe(tmp_path / "t.pdb", tmp_path / "t.trr")
    assert len(universe.atoms) == n
    assert set(universe.atoms.elements) == {"Si"}
    shutil.rmtree(tmp_path)
