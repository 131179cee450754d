"""Starting structures: the water box, and files that must be refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write

from dpsim.errors import ConfigError, DataError
from dpsim.protocols.schema import Structure
from dpsim.protocols.structures import load_structure, water_box


@pytest.mark.parametrize("n", [1, 10, 64])
def test_water_box(n: int) -> None:
    atoms = water_box(n, 1.0)
    assert atoms.get_chemical_symbols() == ["O", "H", "H"] * n
    assert atoms.get_masses().sum() / atoms.get_volume() * 1.66053906660 == pytest.approx(1.0, rel=1e-3)
    assert np.allclose([atoms.get_distance(0, k, mic=True) for k in (1, 2)], 0.98)
    assert atoms.get_angle(1, 0, 2, mic=True) == pytest.approx(105.5)
    if n > 1:
        distances = atoms.get_all_distances(mic=True)
        group = np.arange(3 * n) // 3
        assert distances[group[:, None] != group].min() > 1.6


def test_water_box_is_a_function_of_the_seed() -> None:
    np.testing.assert_array_equal(water_box(8, seed=0).positions, water_box(8, seed=0).positions)
    assert np.abs(water_box(8, seed=0).positions - water_box(8, seed=1).positions).max() > 0.1


def test_frames_and_repeats(tmp_path: Path) -> None:
    frames = [Atoms("H", cell=[3, 3, 3], pbc=True, positions=[[k, 0, 0]]) for k in range(3)]
    write(tmp_path / "a.extxyz", frames)
    atoms = load_structure(Structure(file=tmp_path / "a.extxyz", frame=1, repeat=(2, 1, 3)), 0)
    assert len(atoms) == 6
    assert atoms.positions[0, 0] == 1.0
    with pytest.raises(ConfigError, match=r"`structure\.frame` is 3; expected -3 \.\.\. 2"):
        load_structure(Structure(file=tmp_path / "a.extxyz", frame=3), 0)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        load_structure(Structure(file=tmp_path / "none.xyz"), 0)
    (tmp_path / "bad.extxyz").write_text("this is no structure\n")
    with pytest.raises(DataError, match=r"bad\.extxyz cannot be read"):
        load_structure(Structure(file=tmp_path / "bad.extxyz"), 0)


def test_bad_structures(tmp_path: Path) -> None:
    def refused(atoms: Atoms, message: str) -> None:
        write(tmp_path / "a.extxyz", atoms)
        with pytest.raises(DataError, match=message):
            load_structure(Structure(file=tmp_path / "a.extxyz"), 0)

    refused(Atoms("OH", positions=[[0, 0, 0], [0, 0, 0.1]]), r"atoms 0 and 1 \(O, H\).*0\.100 A apart")
    refused(Atoms("O", positions=[[np.nan, 0, 0]]), "`positions` of .* in row 0")
    water = molecule("H2O")
    water.pbc = True
    refused(water, "lattice vector 0 is zero")
