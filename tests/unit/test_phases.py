"""Lattice, mean structure, symmetry and order parameters of crystals that are known exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from scipy.signal import lfilter

from dpsim.analysis.phases import (
    LATTICE,
    Snapshots,
    c_over_a,
    folded,
    lattice_series,
    length_of_mean,
    off_centring,
    phase_point,
    read_snapshots,
    space_group,
    standard,
    strain,
)
from dpsim.errors import DataError
from dpsim.trajectory import TrajectoryWriter, write_topology

REPEAT = (2, 2, 2)


def perovskite(c: float = 4.0, polar: float = 0.0, a: float = 4.0) -> Atoms:
    """ABO3 with its cations displaced along z by `polar`, A, repeated."""
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    atoms = Atoms("PbTiO3", scaled_positions=sites, cell=[a, a, c], pbc=True)
    atoms.positions[:2, 2] += polar
    return atoms.repeat(REPEAT)


def correlated(random: np.random.Generator, shape: tuple[int, ...], memory: float = 0.6) -> np.ndarray:
    """An AR(1) process along the first axis with variance one."""
    noise = random.standard_normal(shape) * np.sqrt(1.0 - memory**2)
    noise[0] /= np.sqrt(1.0 - memory**2)
    return np.asarray(lfilter([1.0], [1.0, -memory], noise, axis=0))


def vibrating(atoms: Atoms, n: int = 400, width: float = 0.1, strains: float = 0.005, seed: int = 0) -> Snapshots:
    """Thermal motion about a structure."""
    random = np.random.default_rng(seed)
    h = atoms.cell.array
    e = strains * correlated(random, (n, 3, 3))
    cells = np.array([standard(h @ (np.eye(3) + 0.5 * (x + x.T))) for x in e])
    fractions = atoms.get_scaled_positions(wrap=False) + width * correlated(random, (n, len(atoms), 3)) @ np.linalg.inv(
        h
    )
    return Snapshots(
        cells, fractions - fractions.mean(axis=1, keepdims=True), np.arange(n) * 0.02, tuple(atoms.symbols)
    )


def test_the_lattice() -> None:
    cells = np.array([[[8.0, 0, 0], [0, 9.0, 0], [0, -4.0, 4.0 * 3**0.5]]] * 3)
    found = lattice_series(cells, (2, 3, 1))
    expected = [4.0, 3.0, 8.0, 120.0, 90.0, 90.0, 48.0 * 3**0.5]
    assert [float(found[name][0]) for name in LATTICE] == pytest.approx(expected)


def test_a_ferroelectric_and_its_parent() -> None:
    """Everything is found within its errors; the symmetry of the mean structure is that of the phase."""
    ti = np.flatnonzero(perovskite().symbols == "Ti")
    oxygen = np.flatnonzero(perovskite().symbols == "O")
    orders = {
        "c_over_a": c_over_a(REPEAT),
        "strain": strain(np.diag(REPEAT)),
        "polar": off_centring(ti, oxygen, 6),
        "local": off_centring(ti, oxygen, 6, magnitude=True),
    }
    ferro = phase_point(vibrating(perovskite(c=4.2, polar=0.3)), orders, REPEAT, REPEAT)
    para = phase_point(vibrating(perovskite(), seed=3), orders, REPEAT, REPEAT)
    shape = np.array([4.0, 4.0, 4.2]) / np.cbrt(4.0 * 4.0 * 4.2)
    for name, expected in {
        "a": 4.0, "c": 4.2, "alpha": 90.0, "volume": 67.2, "c_over_a": 1.05, "polar": 0.3,
        "strain": np.linalg.norm(0.5 * (shape**2 - 1.0)),
    }.items():  # fmt: skip
        value = ferro.values[name]
        assert abs(value.value - expected) < 4.0 * value.error, name
        assert value.error < 0.02 * max(1.0, expected)
    for name in ("strain", "polar"):
        assert para.values[name].value < 4.0 * para.values[name].error
    assert para.values["local"].value > 0.1  # every cell is distorted at any moment
    assert {symbol for _, _, symbol in ferro.symmetries[:3]} == {"P4mm"}
    assert {number for _, number, _ in para.symmetries[1:]} == {221}
    assert ferro.settled and para.settled


def test_the_symmetry_is_that_of_the_atoms_that_keep_their_sites() -> None:
    """Pb walks away; the frame of Ti and O is still cubic."""
    crystal = vibrating(perovskite(), n=200, width=0.05)
    walk = np.zeros_like(crystal.fractions)
    lead = np.flatnonzero(perovskite().symbols == "Pb")
    walk[:, lead] = np.cumsum(np.random.default_rng(1).normal(0.0, 0.02, (200, len(lead), 3)), axis=0)
    fractions = crystal.fractions + walk
    left = Snapshots(
        crystal.cells, fractions - fractions.mean(axis=1, keepdims=True), crystal.times_ps, crystal.symbols
    )
    all_atoms, frame = (phase_point(left, {}, REPEAT, REPEAT, (0.1,), mobile) for mobile in ((), ("Pb",)))
    assert all_atoms.symmetries[0][1] < 100
    assert frame.symmetries[0][1] == 221 and frame.symbols == ("Ti", "O", "O", "O")


def test_a_phase_that_settles_late_is_noticed() -> None:
    crystal = vibrating(perovskite(), n=400)
    drift = 1.0 + 0.1 * np.exp(-np.arange(400) / 30.0)[:, None, None]
    changed = Snapshots(crystal.cells * drift, crystal.fractions, crystal.times_ps, crystal.symbols)
    found = phase_point(changed, {}, REPEAT, REPEAT)
    assert 0.6 < found.equilibration_ps < 4.1 and found.settled
    assert abs(found.values["a"].value - 4.0) < 4.0 * found.values["a"].error
    drift = 1.0 + 0.1 * np.linspace(0.0, 1.0, 400)[:, None, None]
    changed = Snapshots(crystal.cells * drift, crystal.fractions, crystal.times_ps, crystal.symbols)
    assert not phase_point(changed, {}, REPEAT, REPEAT).settled


def test_axes_that_turn_leave_volume_and_strain_at_each_moment_alone() -> None:
    """A tetragonal crystal whose long axis turns from z to x in the middle of a run."""
    crystal = vibrating(perovskite(), n=400)
    long_z, long_x = np.diag([0.98, 0.98, 1.04]), np.diag([1.04, 0.98, 0.98])
    cells = crystal.cells @ np.array([long_z if k < 200 else long_x for k in range(400)])
    turned = Snapshots(cells, crystal.fractions, crystal.times_ps, crystal.symbols)
    cubic = np.diag(np.asarray(REPEAT, dtype=float))
    orders = {"mean": strain(cubic), "moment": strain(cubic, magnitude=True)}
    found = phase_point(turned, orders, REPEAT, REPEAT)
    assert "a" in found.late and not found.late & {"volume", "moment"}
    shape = np.array([0.98, 0.98, 1.04]) / np.cbrt(0.98 * 0.98 * 1.04)
    expected = float(np.linalg.norm(0.5 * (shape**2 - 1.0)))
    assert found.values["moment"].value == pytest.approx(expected, rel=0.05)
    assert found.values["mean"].value < 0.9 * expected


def test_the_strain_does_not_know_of_volume_or_rotation() -> None:
    cell = np.array([[4.0, 0, 0], [0.2, 4.1, 0], [0, 0.1, 4.4]])
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    flat = [np.zeros((1, 1, 3)), np.zeros(1), ("Ar",)]
    values = [
        np.linalg.norm(strain(np.eye(3))(Snapshots(np.array([c]), *flat)))  # type: ignore[arg-type]
        for c in (cell, 2.0 * cell, standard(cell @ rotation))
    ]
    assert values == pytest.approx([values[0]] * 3)
    assert np.linalg.norm(strain(cell)(Snapshots(np.array([cell]), *flat))) == pytest.approx(0.0, abs=1e-12)  # type: ignore[arg-type]


def test_the_length_of_a_mean_vector_is_not_what_noise_makes_of_it() -> None:
    """A vector that is zero on average: in most of many records the length is zero within two errors."""
    random = np.random.default_rng(0)
    found = [length_of_mean(correlated(random, (500, 3))) for _ in range(100)]
    assert sum(e.value <= 2.0 * e.error for e in found) >= 85
    known = [length_of_mean(np.array([0.0, 0.0, 2.0]) + correlated(random, (500, 3))) for _ in range(100)]
    assert sum(e.interval()[0] <= 2.0 <= e.interval()[1] for e in known) >= 85


def test_copies_are_averaged_across_the_boundary() -> None:
    crystal = vibrating(perovskite(c=4.2, polar=-0.3), width=0.02)
    wrapped = Snapshots(crystal.cells, crystal.fractions % 1.0, crystal.times_ps, crystal.symbols)
    still = Snapshots(wrapped.cells[:1], wrapped.fractions[:1], wrapped.times_ps[:1], wrapped.symbols)
    cell, fractions, symbols = folded(still, REPEAT)
    assert symbols == ("Pb", "Ti", "O", "O", "O") and np.allclose(np.diag(cell), [4.0, 4.0, 4.2], atol=0.1)
    assert space_group(cell, fractions, symbols, 0.1) == (99, "P4mm")


def test_reading_a_run(tmp_path: Path) -> None:
    atoms = perovskite(c=4.2)
    topology = write_topology(tmp_path / "t.pdb", list(atoms.symbols), atoms.positions, atoms.cell.array)
    with TrajectoryWriter(tmp_path / "t.trr", len(atoms)) as writer:
        for k in range(30):
            moved = atoms.positions + [0.1 * k, 0.0, 0.0]
            writer.append(k, 0.02 * k, moved, atoms.cell.array)
    found = read_snapshots(topology, tmp_path / "t.trr", 5)
    assert found.cells.shape == (25, 3, 3) and found.symbols[:3] == ("Pb", "Ti", "O")
    centred = atoms.get_scaled_positions(wrap=False)
    assert np.allclose(found.mean_fractions, centred - centred.mean(axis=0), atol=1e-5)
    with pytest.raises(DataError, match="expected at least 20"):
        read_snapshots(topology, tmp_path / "t.trr", 15)
