"""Readers of the DeePMD npy layout, its HDF5 form, and extxyz."""

import numpy as np
import pytest

from dpsim.data.extxyz import ExtxyzSystem, LabelKeys
from dpsim.data.readers import open_dataset, open_system
from dpsim.errors import DataError
from systems_for_tests import SHARED_DATA, random_arrays, write_hdf5, write_npy


def assert_frames_equal(a, b, tolerance=0.0):
    assert a.symbols == b.symbols
    np.testing.assert_array_equal(a.pbc, b.pbc)
    for name in ("positions", "cell", "energy", "forces", "virial"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        if x is not None:
            np.testing.assert_allclose(x, y, rtol=0, atol=tolerance, err_msg=name)


# -- DeePMD npy


def test_npy_frames(tmp_path):
    arrays = random_arrays(n_frames=7)
    system = open_system(write_npy(tmp_path / "a", arrays, sets=3))
    assert len(system) == 7 and system.n_atoms == 4 and system.type_map == ("O", "H")
    assert all(system.has(label) for label in ("energy", "forces", "virial")) and not system.has("dipole")
    for k in range(7):
        frame = system.frame(k)
        np.testing.assert_array_equal(frame.positions, arrays["coord"][k].reshape(-1, 3))
        np.testing.assert_array_equal(frame.cell, arrays["box"][k].reshape(3, 3))
        np.testing.assert_array_equal(frame.forces, arrays["force"][k].reshape(-1, 3))
        np.testing.assert_array_equal(frame.virial, arrays["virial"][k].reshape(3, 3))
        assert frame.energy == arrays["energy"][k] and frame.symbols == ["O", "H", "H", "O"] and frame.pbc.all()
    assert system.frame(3).source == f"{tmp_path}/a/set.001 frame 0"
    for k in (-1, 7):
        with pytest.raises(IndexError):
            system.frame(k)


def test_npy_other_shapes_dtypes_and_orders(tmp_path):
    arrays = random_arrays()
    variant = {
        "coord": np.asfortranarray(arrays["coord"]),
        "box": arrays["box"].reshape(-1, 3, 3),
        "energy": arrays["energy"][:, None],
        "force": arrays["force"].reshape(5, -1, 3).astype(np.float32),
        "virial": arrays["virial"].astype(">f8"),
    }
    a, b = open_system(write_npy(tmp_path / "a", arrays)), open_system(write_npy(tmp_path / "b", variant))
    for k in range(5):
        assert_frames_equal(a.frame(k), b.frame(k), 1e-6)
    assert a.digest() != b.digest()
    assert a.digest() == open_system(write_npy(tmp_path / "elsewhere", arrays)).digest()


def test_npy_labels_may_be_absent_in_some_sets(tmp_path):
    folder = write_npy(tmp_path / "a", random_arrays(n_frames=4), sets=2)
    (folder / "set.001" / "virial.npy").unlink()
    system = open_system(folder)
    assert system.has("virial") and system.frame(1).virial is not None and system.frame(2).virial is None


def test_nopbc(tmp_path):
    arrays = random_arrays()
    system = open_system(write_npy(tmp_path / "a", arrays, nopbc=True))
    assert not system.frame(0).pbc.any() and not system.frame(0).cell.any()
    del arrays["box"]
    assert_frames_equal(open_system(write_npy(tmp_path / "b", arrays, nopbc=True)).frame(2), system.frame(2))


def test_mixed_type_drops_padding(tmp_path):
    arrays = random_arrays(n_frames=2)
    arrays["real_atom_types"] = np.array([[2, 1, 0, 1], [0, 2, -1, -1]])
    system = open_system(write_npy(tmp_path / "a", arrays, types=(0, 0, 0, 0), type_map=("H", "C", "O")))
    assert system.frame(0).symbols == ["O", "C", "H", "C"]
    frame = system.frame(1)
    assert frame.symbols == ["H", "O"] and frame.forces.shape == frame.positions.shape == (2, 3)
    np.testing.assert_array_equal(frame.forces, arrays["force"][1].reshape(-1, 3)[:2])


def test_only_the_frames_asked_for_are_read(tmp_path):
    """Memory-mapped: a set of (nominally) 14 GB in sparse files opens and gives its frames at once."""
    folder = write_npy(tmp_path / "a", random_arrays(n_frames=1))
    n = 40_000_000
    for name, width in (("coord", 12), ("box", 9), ("energy", 1), ("force", 12), ("virial", 9)):
        (folder / "set.000" / f"{name}.npy").unlink()
        try:
            big = np.lib.format.open_memmap(folder / f"set.000/{name}.npy", "w+", np.float64, (n, width))
        except OSError:
            pytest.skip("this file system cannot hold sparse files of 4 GB")
        big[-1] = 3.0
        big._mmap.close()
    system = open_system(folder)
    assert len(system) == n and system.frame(n - 1).energy == 3.0 and system.frame(n // 2).energy == 0.0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "type_map.raw").unlink(), "type_map.raw.*missing"),
        (lambda f: (f / "set.000" / "coord.npy").unlink(), "coord.npy.*missing"),
        (lambda f: (f / "set.000" / "box.npy").unlink(), "nopbc"),
        (lambda f: (f / "type.raw").write_text("0 1 1"), r"\(5, 12\).*expected \(5, 9\)"),
        (lambda f: (f / "type.raw").write_text("0 1 1 2"), r"type 2 \(atom 3\)"),
        (lambda f: (f / "type.raw").write_text("0 1 1 O"), "not a list of integers"),
        (lambda f: np.save(f / "set.000" / "energy.npy", np.zeros(4)), r"energy.npy.*shape \(4,\).*expected \(5, 1\)"),
        (lambda f: np.save(f / "set.000" / "box.npy", np.zeros((5, 3))), r"box.npy.*shape \(5, 3\)"),
        (lambda f: np.save(f / "set.000" / "force.npy", np.array([None] * 5)), "force.npy.*cannot be read"),
        (lambda f: (f / "set.000" / "coord.npy").write_bytes(b"no numpy file"), "coord.npy.*cannot be read"),
        (lambda f: (f / "set.000").rename(f / "elsewhere"), "no set"),
    ],
)
def test_npy_errors_name_the_file(tmp_path, damage, message):
    folder = write_npy(tmp_path / "a", random_arrays())
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        open_system(folder)
    assert str(folder) in str(caught.value)


def test_truncated_npy(tmp_path):
    folder = write_npy(tmp_path / "a", random_arrays())
    file = folder / "set.000" / "force.npy"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"force.npy.*cannot be read"):
        open_system(folder)


def test_type_map_can_be_given(tmp_path):
    folder = write_npy(tmp_path / "a", random_arrays(), type_map=None)
    assert open_system(folder, type_map=["Si", "C"]).frame(0).symbols == ["Si", "C", "C", "Si"]


def test_real_atom_types_outside_type_map(tmp_path):
    arrays = random_arrays(n_frames=2)
    arrays["real_atom_types"] = np.array([[0, 1, 1, 0], [0, 1, 5, 0]])
    with pytest.raises(DataError, match=r"real_atom_types.npy frame 1.*type 5"):
        open_system(write_npy(tmp_path / "a", arrays)).frame(1)


# -- HDF5


def test_hdf5_equals_npy(tmp_path):
    arrays = random_arrays()
    npy = open_system(write_npy(tmp_path / "a", arrays))
    file = write_hdf5(tmp_path / "data.hdf5", "water/one", arrays)
    write_hdf5(file, "two", arrays, nopbc=True)
    systems = open_dataset(file)
    assert [s.name for s in systems] == ["data.hdf5#/two", "data.hdf5#/water/one"]
    for k in range(5):
        assert_frames_equal(systems[1].frame(k), npy.frame(k))
        assert_frames_equal(open_system(f"{file}#/water/one").frame(k), npy.frame(k))
    assert not systems[0].frame(0).pbc.any()
    assert len(open_dataset(f"{file}#/water")) == 1
    assert systems[0].digest() != systems[1].digest()


def test_hdf5_at_the_root_of_the_file(tmp_path):
    file = write_hdf5(tmp_path / "one.h5", "/", random_arrays())
    assert len(open_system(file)) == 5 and len(open_dataset(tmp_path)) == 1


def test_hdf5_errors(tmp_path):
    file = write_hdf5(tmp_path / "data.hdf5", "one", random_arrays())
    write_hdf5(file, "two", random_arrays())
    with pytest.raises(DataError, match=r"holds 2 systems.*#/group"):
        open_system(file)
    with pytest.raises(DataError, match=r"/three.*is not a system"):
        open_system(f"{file}#/three")
    (tmp_path / "bad.hdf5").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        open_dataset(tmp_path / "bad.hdf5")


def test_files_written_by_dpdata(tmp_path):
    dpdata = pytest.importorskip("dpdata", reason="dpdata is not installed")
    arrays = random_arrays()
    ours = open_system(write_npy(tmp_path / "a", arrays))
    system = dpdata.LabeledSystem(str(tmp_path / "a"), fmt="deepmd/npy")
    system.to("deepmd/npy", str(tmp_path / "npy"), set_size=2, prec=np.float64)
    system.to("deepmd/hdf5", str(tmp_path / "all.hdf5"))
    dpdata.MultiSystems(system).to("deepmd/npy/mixed", str(tmp_path / "mixed"))
    for path in ("npy", "all.hdf5", "mixed"):
        (theirs,) = open_dataset(tmp_path / path)
        for k in range(5):
            assert_frames_equal(theirs.frame(k), ours.frame(k), 1e-4)  # some of dpdata's formats are float32


# -- datasets


def test_open_dataset(tmp_path):
    write_npy(tmp_path / "b" / "x", random_arrays())
    write_npy(tmp_path / "a", random_arrays())
    write_hdf5(tmp_path / "c.hdf5", "s", random_arrays())
    assert [len(s) for s in open_dataset(tmp_path)] == [5, 5, 5]
    assert [s.path.name for s in open_dataset(tmp_path)][:2] == ["a", "x"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data"):
        open_dataset(tmp_path / "empty")
    with pytest.raises(DataError, match="does not exist"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"is not a system.*open_dataset"):
        open_system(tmp_path)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="../shared/data is absent")
def test_real_water():
    (system,) = open_dataset(SHARED_DATA / "water_pbe0ts" / "train")
    assert len(system) == 320 and system.n_atoms == 192 and system.type_map == ("O", "H")
    assert system.has("forces") and not system.has("virial")
    assert abs(np.diag(system.frame(0).cell)[0] - 12.44466114) < 1e-6


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="../shared/data is absent")
def test_every_real_system_opens():
    import json

    manifest = json.loads((SHARED_DATA / "manifest.json").read_text())
    for name in ("acac", "perovskite_pbesol", "mlearn_mo"):
        systems = open_dataset(SHARED_DATA / name / "train")
        assert sum(len(s) for s in systems) == manifest[name]["train"][0]
        for system in systems:
            assert np.isfinite(system.frame(len(system) - 1).forces).all()


# -- extxyz


def atoms_with_labels(seed, pbc=True):
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    generator = np.random.default_rng(seed)
    n = 3 + seed
    atoms = Atoms("OH" + "C" * (n - 2), generator.uniform(0, 5, (n, 3)), cell=np.diag([5.0, 6, 7]) + 0.1, pbc=pbc)
    results = {"energy": float(seed) - 10, "forces": generator.normal(0, 1, (n, 3))}
    if np.all(pbc):
        results["stress"] = np.arange(6) * 0.01
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def test_extxyz_calculator_results(tmp_path):
    from ase.io import write

    images = [atoms_with_labels(k) for k in range(3)]
    write(tmp_path / "a.extxyz", images, format="extxyz")
    system = open_system(tmp_path / "a.extxyz")
    assert len(system) == 3 and system.type_map == ("H", "C", "O") and system.n_atoms == 5
    assert system.has("virial") and system.has("energy")
    for k, atoms in enumerate(images):
        frame = system.frame(k)
        np.testing.assert_allclose(frame.positions, atoms.positions, atol=1e-7)
        np.testing.assert_allclose(frame.cell, atoms.cell[:], atol=1e-7)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-7)
        assert frame.energy == pytest.approx(atoms.get_potential_energy())
        np.testing.assert_allclose(frame.virial, -atoms.get_stress(voigt=False) * atoms.get_volume(), atol=1e-6)
        assert frame.symbols == atoms.get_chemical_symbols()


def test_extxyz_prefers_reference_labels(tmp_path):
    from ase.io import write

    atoms = atoms_with_labels(1)
    virial, stress = np.arange(9.0).reshape(3, 3), np.diag([0.1, 0.2, 0.3])
    virial = virial + virial.T
    atoms.info.update(REF_energy=-77.0, dft_energy=-66.0, dft_virial=virial, REF_stress=stress)
    atoms.arrays["REF_forces"] = np.full((4, 3), 2.5)
    write(tmp_path / "a.xyz", atoms, format="extxyz")
    frame = open_system(tmp_path / "a.xyz").frame(0)
    assert frame.energy == -77.0 and np.all(frame.forces == 2.5)
    np.testing.assert_allclose(frame.virial, -stress * atoms.get_volume(), atol=1e-6)
    own = ExtxyzSystem(tmp_path / "a.xyz", LabelKeys(energy=("dft_energy",), virial=("dft_virial",))).frame(0)
    assert own.energy == -66.0
    np.testing.assert_allclose(own.virial, virial, atol=1e-6)


def test_extxyz_periodicity(tmp_path):
    from ase.io import write

    write(tmp_path / "a.xyz", [atoms_with_labels(0, pbc) for pbc in ((1, 1, 0), (0, 0, 0))], format="extxyz")
    system = open_system(tmp_path / "a.xyz")
    assert system.frame(0).pbc.tolist() == [True, True, False] and system.frame(0).cell[0, 0] > 5
    assert system.frame(0).virial is None
    assert not system.frame(1).cell.any() and system.frame(1).energy == -10.0


def test_plain_xyz_and_odd_columns(tmp_path):
    (tmp_path / "plain.xyz").write_text("2\n\nO 0 0 0\nH 0 0 1\n")
    frame = open_system(tmp_path / "plain.xyz").frame(0)
    assert frame.symbols == ["O", "H"] and frame.energy is None and not frame.pbc.any()
    (tmp_path / "odd.xyz").write_text(
        '1\nProperties=pos:R:3:species:S:1:REF_forces:R:3 REF_energy=-1.5 pbc="F F F"\n0 0 0 Ar 1 2 3\n'
    )
    frame = open_system(tmp_path / "odd.xyz").frame(0)
    assert frame.symbols == ["Ar"] and frame.forces.tolist() == [[1, 2, 3]] and frame.energy == -1.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no frames"),
        ("two\n\nO 0 0 0\n", "not a number"),
        ("2\n\nO 0 0 0\n", "is it whole|Is it whole"),
        ("1\n\nQq 0 0 0\n", "Qq.*chemical symbols"),
        ('1\nProperties=species:S:1:pos:R:3 REF_energy="high"\nO 0 0 0\n', "frame 0.*REF_energy.*high"),
        ("1\nProperties=species:S:1:pos:R:3\nO 0 zero 0\n", "frame 0: ASE cannot read"),
    ],
)
def test_extxyz_errors(tmp_path, text, message):
    (tmp_path / "a.xyz").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        open_system(tmp_path / "a.xyz").frame(0)
    assert "a.xyz" in str(caught.value)
