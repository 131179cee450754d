"""Angle distributions of cases whose answer is known: lattices, molecules, directions at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpsim.analysis.angles import angle_distribution, angles_at, load_angle_references
from dpsim.analysis.curves import compare_curve, reference_curve, save_curves
from dpsim.errors import DataError

mda = pytest.importorskip("MDAnalysis")


def universe(positions, dimensions, elements):
    """A Universe in memory: positions (frames, atoms, 3) A, dimensions (6,) or None."""
    from MDAnalysis.coordinates.memory import MemoryReader

    found = mda.Universe.empty(len(elements), trajectory=True)
    found.add_TopologyAttr("elements", list(elements))
    boxes = None if dimensions is None else np.tile(np.array(dimensions, np.float32), (len(positions), 1))
    found.load_new(np.asarray(positions, np.float32), format=MemoryReader, dimensions=boxes)
    return found


def fcc(a: float, n: int) -> np.ndarray:
    base = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    grid = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    return a * (grid + base).reshape(-1, 3)


def test_the_twelve_neighbours_of_a_close_packing() -> None:
    """66 angles at each atom: 24 of 60, 12 of 90, 24 of 120 and 6 of 180 degrees; also in a cell smaller than they."""
    for n in (1, 2):
        positions = fcc(4.0, n)
        cell = 4.0 * n * np.eye(3)
        found = angles_at(positions, cell, np.array(["Cu"] * len(positions)), ("Cu", "Cu", "Cu"), ((0.0, 3.3),) * 2)
        values, counts = np.unique(np.round(found, 3), return_counts=True)
        assert dict(zip(values, counts // len(positions), strict=True)) == {60.0: 24, 90.0: 12, 120.0: 24, 180.0: 6}


def test_the_second_shell_alone() -> None:
    """Six neighbours along the axes: 12 right angles, 3 straight ones."""
    positions = fcc(4.0, 2)
    found = angles_at(positions, 8.0 * np.eye(3), np.array(["Cu"] * 32), ("Cu", "Cu", "Cu"), ((3.3, 4.2),) * 2)
    assert np.unique(np.round(found, 3), return_counts=True)[1].tolist() == [12 * 32, 3 * 32]


def test_water_in_vacuum_and_outer_elements_that_differ() -> None:
    """H-O-H is one angle; H-O-C and C-O-H are the same two, without a cell."""
    half = np.radians(104.5) / 2
    positions = np.array([[0, 0, 0], [np.sin(half), np.cos(half), 0], [-np.sin(half), np.cos(half), 0], [0, 0, 1.5]])
    elements = np.array(["O", "H", "H", "C"])
    shells = ((0.0, 1.6), (0.0, 1.6))
    assert angles_at(positions, np.zeros((3, 3)), elements, ("H", "O", "H"), shells) == pytest.approx([104.5])
    for triplet in (("H", "O", "C"), ("C", "O", "H")):
        assert angles_at(positions, np.zeros((3, 3)), elements, triplet, shells) == pytest.approx([90.0, 90.0])
    assert not len(angles_at(positions, np.zeros((3, 3)), elements, ("O", "C", "O"), ((0.0, 1.0),) * 2))


def test_directions_at_random_give_the_sine() -> None:
    """An ideal gas: P = sin/2 per radian, mean 90 degrees, within error bars that are right."""
    random = np.random.default_rng(1)
    gas = universe(random.uniform(0, 9.0, (200, 24, 3)), [9, 9, 9, 90, 90, 90], ["Ar"] * 24)
    found = angle_distribution(gas, ("Ar", "Ar", "Ar"), ((0.0, 3.0), (0.0, 3.0)), bins=30)
    curve = found.curve
    exact = -np.diff(np.cos(np.radians(np.linspace(0, 180, 31)))) / 2 / 6.0
    assert np.sum(curve.y) * 6.0 == pytest.approx(1.0)
    pulls = (curve.y - exact) / curve.y_error
    assert np.sqrt(np.mean(pulls**2)) < 1.6
    assert abs(found.mean.value - 90.0) < 4.0 * found.mean.error
    expected = 0.5 * (23 * 4 / 3 * np.pi * 27 / 729) ** 2 * 22 / 23
    assert found.angles_per_center.value == pytest.approx(expected, abs=4.0 * found.angles_per_center.error)


def test_a_reference_is_read_and_compared(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    gas = universe(random.uniform(0, 9.0, (100, 24, 3)), [9, 9, 9, 90, 90, 90], ["Ar"] * 24)
    found = angle_distribution(gas, ("Ar", "Ar", "Ar"), ((0.0, 3.0), (0.0, 3.0)), bins=30)
    path = save_curves(tmp_path / "a.csv", "angle_deg", [("adf_Ar-Ar-Ar_3A", found.curve)])
    (reference,) = load_angle_references(path)
    assert (reference.triplet, reference.cutoff) == (("Ar", "Ar", "Ar"), 3.0)
    assert compare_curve(found.curve, reference.curve).difference.value == pytest.approx(0.0, abs=1e-4)
    x = np.arange(1.0, 180.0, 2.0)
    np.savez(tmp_path / "b.npz", angle_deg=x, adf_ArArAr_3p4A=3.0 * np.sin(np.radians(x)), adf_HOH=np.ones(90))
    first, second = load_angle_references(tmp_path / "b.npz")
    assert (first.cutoff, second.triplet, second.cutoff) == (3.4, ("H", "O", "H"), None)
    same = compare_curve(found.curve, first.curve)
    assert same.rms_in_errors < 2.0 * same.rms_expected
    assert same.difference.value < 2.5 * same.noise
    other = compare_curve(found.curve, second.curve)
    assert other.difference.value == pytest.approx(0.42, abs=0.05)  # int |sin(theta)/2 - 1/pi| d theta
    assert other.rms_in_errors > 5.0


def test_bad_input(tmp_path: Path) -> None:
    gas = universe(np.random.default_rng(3).uniform(0, 9.0, (12, 8, 3)), [9, 9, 9, 90, 90, 90], ["Ar"] * 8)
    with pytest.raises(DataError, match="expected one of"):
        angle_distribution(gas, ("Ar", "Ne", "Ar"), ((0.0, 3.0), (0.0, 3.0)))
    with pytest.raises(DataError, match="no two neighbours in a block"):
        angle_distribution(gas, ("Ar", "Ar", "Ar"), ((0.0, 0.5), (0.0, 0.5)))
    with pytest.raises(DataError, match="and a frame in each"):
        angle_distribution(gas, ("Ar", "Ar", "Ar"), ((0.0, 3.0), (0.0, 3.0)), blocks=20)
    np.savez(tmp_path / "c.npz", angle=np.ones(3))
    with pytest.raises(DataError, match="expected `angle_deg`"):
        load_angle_references(tmp_path / "c.npz")
    with pytest.raises(DataError, match="does not increase"):
        reference_curve("x", [1.0, 0.0, 2.0], [1.0, 1.0, 1.0])
