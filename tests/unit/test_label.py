"""Labels: right numbers, and no frame lost in silence when a teacher goes wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teachers_for_tests
from dpsim.config import validate
from dpsim.data.frame import Frame
from dpsim.distill.config import PythonTeacher
from dpsim.distill.found import atoms_of
from dpsim.distill.label import AseLabeller, make_labeller, teacher_calculator
from dpsim.errors import ConfigError, ModelFileError


def a_frame(seed: int = 0, periodic: bool = True, x0: float = 0.0) -> Frame:
    """Eight atoms of Cu and Ni, jittered off a grid in a skewed cell."""
    random = np.random.default_rng(seed)
    cell = np.array([[5.2, 0.0, 0.0], [0.5, 5.1, 0.0], [0.1, 0.3, 5.4]]) if periodic else np.zeros((3, 3))
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3) * 2.6
    positions = grid + random.uniform(-0.2, 0.2, grid.shape)
    positions[0, 0] += x0
    types = np.array([0, 1] * 4)
    return Frame(positions, types, ("Cu", "Ni"), cell, np.full(3, periodic), source=f"frame-{seed}")


def python(name: str, **kwargs: Any) -> PythonTeacher:
    return PythonTeacher(python=f"teachers_for_tests:{name}", kwargs=kwargs)


@pytest.mark.parametrize("periodic", [True, False])
def test_an_ase_calculator_labels_as_it_would_alone(periodic):
    frame = a_frame(periodic=periodic)
    (found,) = make_labeller(python("lennard_jones", epsilon=0.1)).label([frame])
    atoms = atoms_of(frame)
    atoms.calc = teachers_for_tests.lennard_jones(0.1)
    assert found.failure == "" and 'lennard_jones({"epsilon": 0.1})' in found.by
    assert found.frame.energy == atoms.get_potential_energy()
    np.testing.assert_array_equal(found.frame.forces, atoms.get_forces())
    if not periodic:
        assert found.frame.virial is None
        return
    assert found.frame.virial is not None
    h, virial = 1e-5, np.zeros((3, 3))
    for a, b in np.ndindex(3, 3):  # W = -dE/d(strain)
        ends = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * h
            moved = replace(frame, positions=frame.positions @ strain, cell=frame.cell @ strain)
            ends.append(make_labeller(python("lennard_jones", epsilon=0.1)).label([moved])[0].frame.energy)
        virial[a, b] = -(ends[0] - ends[1]) / (2 * h)
    np.testing.assert_allclose(found.frame.virial, virial, atol=1e-6)


def test_the_energy_is_the_one_that_forces_derive_from():
    class Smeared(teachers_for_tests.Odd):
        def calculate(self, atoms=None, properties=None, system_changes=()):
            super().calculate(atoms, properties, system_changes)
            self.results["free_energy"] = -2.0

    assert AseLabeller(Smeared).label([a_frame()])[0].frame.energy == -2.0


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("raises", "RuntimeError: SCF cycle limit"),
        ("nan", "forces not finite"),
        ("unconverged", "the self-consistency did not converge"),
        ("no energy", "no energy"),
        ("no forces", "no forces"),
        ("wrong shape", "forces of shape (1, 3); expected (8, 3)"),
    ],
)
def test_a_frame_that_fails_is_set_aside_and_the_others_are_labelled(mode, reason):
    """Also those after it: a calculator is made anew, whatever the failure left behind."""
    frames = [a_frame(0), a_frame(1, x0=20.0), a_frame(2)]
    found = make_labeller(python("Odd", mode=mode)).label(frames)
    assert [f.failure for f in found] == ["", reason, ""]
    assert [f.frame.energy for f in found] == [1.0, None, 1.0]
    assert found[1].frame is frames[1]


def test_a_full_disk_is_no_frames_fault():
    with pytest.raises(OSError, match="No space left"):
        make_labeller(python("Odd", mode="full disk")).label([a_frame(x0=20.0)])


def test_a_model_labels_as_it_predicts(tmp_path, train_settings):
    from dpsim.models.checkpoint import save_model
    from dpsim.models.config import ModelConfig
    from dpsim.models.energy_model import EnergyModel

    settings = train_settings["model"] | {"type_map": ["Ni", "Cu"], "core_distances": None}
    settings["descriptor"] = settings["descriptor"] | {"sel": [40, 40]}
    save_model(tmp_path / "m.dpsim", EnergyModel(ModelConfig.model_validate(settings)))
    frames = [a_frame(), replace(a_frame(1), type_map=("Cu", "Xe")), a_frame(2, periodic=False)]
    found = make_labeller(str(tmp_path / "m.dpsim")).label(frames)
    assert "elements ['Xe']" in found[1].failure and found[1].frame is frames[1]
    assert found[2].frame.virial is None and "m.dpsim sha256:" in found[0].by
    atoms = atoms_of(frames[0])
    atoms.calc = teacher_calculator(str(tmp_path / "m.dpsim"))
    assert found[0].frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(found[0].frame.forces, atoms.get_forces(), atol=1e-9)
    virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
    np.testing.assert_allclose(0.5 * (found[0].frame.virial + found[0].frame.virial.T), virial, atol=1e-9)


def test_teachers_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ConfigError, match="module cannot be imported.*no_such_module"):
        make_labeller(PythonTeacher(python="no_such_module:x"))
    with pytest.raises(ConfigError, match="has no function or class `lenard_jones`.*Did you mean `lennard_jones`"):
        make_labeller(python("lenard_jones"))
    with pytest.raises(ConfigError, match="gives NoneType; expected an ASE calculator"):
        make_labeller(python("nothing"))
    with pytest.raises(ConfigError, match="no such program: vasp_std"):
        make_labeller(python("refuses"))
    with pytest.raises(ConfigError, match="with {'sigma': 3} fails"):
        make_labeller(python("lennard_jones", sigma=3))
    with pytest.raises(ModelFileError):
        make_labeller(str(tmp_path / "none.dpsim"))


def test_a_module_may_lie_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (tmp_path / "my_dft_beside.py").write_text(Path(teachers_for_tests.__file__).read_text())
    teacher = validate({"python": "my_dft_beside:lennard_jones"}, PythonTeacher, folder=tmp_path)
    assert teacher.folder == tmp_path
    assert make_labeller(teacher).label([a_frame()])[0].frame.energy is not None
