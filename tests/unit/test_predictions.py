"""`dpsim evaluate`: predictions beside labels, nothing else touched."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write

from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.calculators.predictions import predict_file
from dpsim.data.extxyz import ExtxyzSystem, LabelKeys
from dpsim.errors import ConfigError, DataError, ElementError
from dpsim.models.energy_model import EnergyModel
from test_ase_calculator import liquid, small_model


@pytest.fixture(scope="module")
def model() -> EnergyModel:
    return small_model()


def labelled(n: int = 2, seed: int = 0, **settings) -> Atoms:
    atoms = liquid(n, seed=seed, **settings)
    atoms.info.update(REF_energy=-1.5, name="liquid water")
    atoms.arrays["REF_forces"] = np.random.default_rng(seed).normal(size=(len(atoms), 3))
    return atoms


def test_predictions_stand_beside_labels(model: EnergyModel, tmp_path: Path) -> None:
    structures = [labelled(n, seed=n) for n in (1, 3, 2)] + [
        labelled(2, pbc=False),
        labelled(2, pbc=(True, True, False)),
    ]
    source, output = tmp_path / "s.extxyz", tmp_path / "new" / "p.extxyz"
    write(source, structures)
    assert predict_file(model, source, output) == len(structures)
    for before, after in zip(read(source, ":"), read(output, ":"), strict=True):
        own = before.copy()
        own.calc = DPCalculator(model)
        assert after.info["dpsim_energy"] == pytest.approx(own.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(after.arrays["dpsim_forces"], own.get_forces(), atol=1e-10)
        assert ("dpsim_virial" in after.info, "dpsim_stress" in after.info) == (before.pbc.any(), before.pbc.all())
        if before.pbc.all():
            stress = own.get_stress(voigt=False)
            np.testing.assert_allclose(after.info["dpsim_stress"].reshape(3, 3), stress, atol=1e-12)
            virial = after.info["dpsim_virial"].reshape(3, 3)
            np.testing.assert_allclose(virial, -stress * own.get_volume(), atol=1e-10)
        for key, value in before.info.items():
            assert after.info[key] == value
        for key, values in before.arrays.items():
            np.testing.assert_array_equal(after.arrays[key], values)
        assert after.info["REF_energy"] == -1.5 and after == before
    labels = ExtxyzSystem(output).frame(0)
    assert labels.energy == -1.5 and labels.virial is None  # predictions are no labels
    keys = LabelKeys(energy=("dpsim_energy",), forces=("dpsim_forces",), virial=("dpsim_virial",))
    assert ExtxyzSystem(output, keys).frame(0).virial is not None
    lines = source.read_text().splitlines(), output.read_text().splitlines()
    assert all(new.startswith(old.rstrip()) for old, new in zip(*lines, strict=True) if "Lattice" not in old)
    with pytest.raises(DataError, match="frame 0 has predictions"):
        predict_file(model, output, tmp_path / "again.extxyz")
    assert not list(tmp_path.glob(".*")) and not (tmp_path / "again.extxyz").exists()


def test_plain_xyz(model: EnergyModel, tmp_path: Path) -> None:
    (tmp_path / "w.xyz").write_text("3\na molecule\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48")
    predict_file(model, tmp_path / "w.xyz", tmp_path / "p.xyz")
    found = read(tmp_path / "p.xyz", format="extxyz")
    found.calc = DPCalculator(model)
    np.testing.assert_allclose(found.arrays["dpsim_forces"], found.get_forces(), atol=1e-10)
    assert "a molecule" in (tmp_path / "p.xyz").read_text()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(model: EnergyModel, tmp_path: Path) -> None:
    def peak(n: int) -> int:
        source = tmp_path / f"{n}.extxyz"
        write(source, [labelled(2, seed=0)] * n)
        tracemalloc.start()
        try:
            predict_file(model, source, tmp_path / "p.extxyz")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(200)
    assert peak(800) < 1.3 * peak(200)


def test_refusals(model: EnergyModel, tmp_path: Path) -> None:
    source, output = tmp_path / "s.extxyz", tmp_path / "p.extxyz"
    write(source, Atoms("C", pbc=False))
    with pytest.raises(ElementError, match="'C'"):
        predict_file(model, source, output)
    with pytest.raises(ConfigError, match="another"):
        predict_file(model, source, source)
    for wrong in (tmp_path / "nowhere.extxyz", tmp_path):
        with pytest.raises(DataError, match="no extxyz file"):
            predict_file(model, wrong, output)
    assert not output.exists() and not list(tmp_path.glob(".*"))
