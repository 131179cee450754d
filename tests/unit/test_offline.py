"""Labels from outside: what is handed out, and that only whole labels of the right structure come back."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.test
import numpy as np
import pytest
from ase.io import read, write

from dpsim.config import validate
from dpsim.data.frame import Frame
from dpsim.distill.config import OfflineFormat
from dpsim.distill.found import atoms_of, frame_of
from dpsim.distill.label import Labelled, Waiting, make_labeller
from dpsim.distill.offline import exchange
from dpsim.errors import ConfigError
from test_label import a_frame

OUTCAR = Path(ase.test.__file__).parent / "testdata" / "vasp" / "OUTCAR_example_1"
FRAMES = [a_frame(0), a_frame(1), a_frame(2)]


def waiting(config: OfflineFormat, folder: Path, frames: list[Frame]) -> str:
    with pytest.raises(Waiting) as stopped:
        exchange(config, folder, frames)
    return str(stopped.value)


def labelled(frame: Frame, energy: float = -3.0, **changes: Any) -> Any:
    """Atoms with labels: forces that name their atom, a stress."""
    atoms = atoms_of(frame)
    n = len(atoms)
    atoms.arrays["REF_forces"] = np.arange(3.0 * n).reshape(n, 3)
    atoms.info |= {"REF_energy": energy, "REF_stress": np.diag([1e-3, 2e-3, 3e-3])}
    for name, value in changes.items():
        if value is None:
            del atoms.info[name]
        elif name in ("cell", "positions"):
            setattr(atoms, name, value)
        else:
            atoms.info[name] = value
    return atoms


def put(folder: Path, frame: Frame, atoms: Any, name: str = "result.extxyz") -> None:
    write(folder / "frames" / frame.source / name, atoms, format="extxyz")


def test_frames_are_handed_out_and_results_taken_up_as_they_come(tmp_path):
    config = OfflineFormat()
    text = waiting(config, tmp_path, FRAMES)
    assert "labels of 3 of 3 frames" in text and str(tmp_path / "frames") in text and "OUTCAR" in text
    for frame in FRAMES:
        given = read(tmp_path / "frames" / frame.source / "frame.extxyz")
        np.testing.assert_allclose(given.positions, frame.positions, atol=1e-7)
        assert given.get_chemical_symbols() == frame.symbols and given.info["id"] == frame.source
    put(tmp_path, FRAMES[0], labelled(FRAMES[0]))
    put(tmp_path, FRAMES[2], labelled(FRAMES[2], energy=7.0))
    assert "labels of 1 of 3 frames" in waiting(config, tmp_path, FRAMES)
    put(tmp_path, FRAMES[1], labelled(FRAMES[1]))
    found = exchange(config, tmp_path, FRAMES)
    assert [f.frame.energy for f in found] == [-3.0, -3.0, 7.0] and not any(f.failure for f in found)
    np.testing.assert_array_equal(found[0].frame.forces, np.arange(24.0).reshape(8, 3))
    volume = abs(np.linalg.det(FRAMES[0].cell))
    np.testing.assert_allclose(found[0].frame.virial, -volume * np.diag([1e-3, 2e-3, 3e-3]))
    np.testing.assert_array_equal(found[0].frame.positions, FRAMES[0].positions)
    assert found[0].by.startswith("result.extxyz (extxyz) sha256:")


def test_one_file_may_hold_all_results(tmp_path):
    """In any order, told apart by id; those it lacks may lie in their folders."""
    waiting(OfflineFormat(), tmp_path, FRAMES)
    given = read(tmp_path / "frames" / "all.extxyz", index=":")
    assert [a.info["id"] for a in given] == [f.source for f in FRAMES]
    some = [labelled(FRAMES[k], energy=float(k), id=FRAMES[k].source) for k in (2, 0)]
    write(tmp_path / "frames" / "results.extxyz", some, format="extxyz")
    put(tmp_path, FRAMES[1], labelled(FRAMES[1], energy=1.0))
    assert [f.frame.energy for f in exchange(OfflineFormat(), tmp_path, FRAMES)] == [0.0, 1.0, 2.0]


def test_atoms_may_come_back_in_another_order_and_wrapped(tmp_path):
    frame = FRAMES[0]
    waiting(OfflineFormat(), tmp_path, [frame])
    atoms = labelled(frame)
    atoms.positions += np.array([1, -2, 0]) @ frame.cell
    order = np.random.default_rng(0).permutation(8)
    put(tmp_path, frame, atoms[order])
    (found,) = exchange(OfflineFormat(), tmp_path, [frame])
    np.testing.assert_array_equal(found.frame.forces, np.arange(24.0).reshape(8, 3))


BAD = {
    "other elements": (lambda f: labelled(replace(f, type_map=("Cu", "Au"))), "is of Au4Cu4; expected"),
    "fewer atoms": (lambda f: labelled(f)[:7], "expected Cu4Ni4"),
    "another cell": (lambda f: labelled(f, cell=f.cell * 1.01), "has the cell"),
    "moved atoms": (lambda f: labelled(f, positions=f.positions + 0.05), "A off; expected a single point"),
    "no energy": (lambda f: labelled(f, REF_energy=None), "no energy"),
    "NaN": (lambda f: labelled(f, energy=float("nan")), "energy not finite"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(BAD))
def test_a_result_that_is_no_label_of_the_frame_sets_it_aside(tmp_path, kind):
    make, reason = BAD[kind]
    waiting(OfflineFormat(), tmp_path, FRAMES[:2])
    put(tmp_path, FRAMES[0], make(FRAMES[0]))
    put(tmp_path, FRAMES[1], labelled(FRAMES[1]))
    bad, good = exchange(OfflineFormat(), tmp_path, FRAMES[:2])
    assert reason in bad.failure and bad.frame is FRAMES[0] and good.failure == ""


def test_frames_can_be_given_up_and_the_last_ones_left_behind(tmp_path):
    config = OfflineFormat(enough=0.6)
    waiting(config, tmp_path, FRAMES)
    (tmp_path / "frames" / FRAMES[1].source / "FAILED").write_text("no\nconvergence\n")
    waiting(config, tmp_path, FRAMES)
    put(tmp_path, FRAMES[0], labelled(FRAMES[0]))
    found = exchange(config, tmp_path, FRAMES)
    assert [f.failure for f in found] == [
        "", "given up: no convergence", "no result when those of the others were taken up",
    ]  # fmt: skip


def test_half_written_results_are_waited_for(tmp_path):
    waiting(OfflineFormat(), tmp_path, FRAMES[:1])
    own = tmp_path / "frames" / FRAMES[0].source
    put(tmp_path, FRAMES[0], labelled(FRAMES[0]))
    whole = (own / "result.extxyz").read_text()
    (own / "result.extxyz").write_text(whole[: len(whole) // 2])
    assert "Not readable yet: frame-0: result.extxyz" in waiting(OfflineFormat(), tmp_path, FRAMES[:1])
    (own / "result.extxyz").unlink()
    (tmp_path / "frames" / "results.extxyz").write_text(whole[: len(whole) // 2])
    assert "results.extxyz` ends" in waiting(OfflineFormat(), tmp_path, FRAMES[:1])


def outcar_frame() -> Frame:
    """The structure of an output that comes with ASE."""
    atoms = read(OUTCAR, index=-1, format="vasp-out")
    return frame_of(atoms, sorted(set(atoms.get_chemical_symbols())), "of-vasp")


@pytest.mark.skipif(not OUTCAR.is_file(), reason="this ASE comes without its test data")
def test_outputs_of_vasp_are_read_and_judged(tmp_path):
    frame = outcar_frame()
    text = OUTCAR.read_text()
    waiting(OfflineFormat(), tmp_path, [frame])
    own = tmp_path / "frames" / "of-vasp"
    (own / "OUTCAR").write_text(text[: text.index("General timing")])
    assert "is not finished" in waiting(OfflineFormat(), tmp_path, [frame])
    (own / "OUTCAR").write_text(text.replace("aborting loop because EDIFF is reached", "-" * 38))
    assert "did not converge (OUTCAR)" in exchange(OfflineFormat(), tmp_path, [frame])[0].failure
    shutil.copy(OUTCAR, own / "OUTCAR")
    (found,) = exchange(OfflineFormat(), tmp_path, [frame])
    expected = read(OUTCAR, index=-1, format="vasp-out")
    assert found.failure == "" and found.by.startswith("OUTCAR (vasp-out) sha256:")
    assert found.frame.energy == expected.calc.results["free_energy"]
    np.testing.assert_allclose(found.frame.forces, expected.get_forces(apply_constraint=False))
    virial = -expected.get_stress(voigt=False) * expected.get_volume()
    np.testing.assert_allclose(found.frame.virial, virial, rtol=1e-9, atol=1e-9)


def test_inputs_of_programs_are_written_with_a_template(tmp_path):
    template = tmp_path / "template"
    template.mkdir()
    (template / "INCAR").write_text("ENCUT = 500\n")
    settings = {"format": "vasp", "options": {"sort": True}, "template": "template"}
    waiting(validate(settings, OfflineFormat, folder=tmp_path), tmp_path, FRAMES[:1])
    own = tmp_path / "frames" / FRAMES[0].source
    assert (own / "INCAR").read_text() == "ENCUT = 500\n"
    assert read(own / "POSCAR").get_chemical_symbols() == ["Cu"] * 4 + ["Ni"] * 4
    espresso = {
        "format": "espresso-in",
        "options": {"pseudopotentials": {"Cu": "Cu.upf", "Ni": "Ni.upf"}, "kspacing": 0.3,
                    "input_data": {"system": {"ecutwfc": 60}, "control": {"tprnfor": True, "tstress": True}}},
    }  # fmt: skip
    waiting(validate(espresso, OfflineFormat), tmp_path / "pw", FRAMES[:1])
    text = (tmp_path / "pw" / "frames" / FRAMES[0].source / "espresso.pwi").read_text()
    assert "ecutwfc" in text and "Cu.upf" in text


def test_inputs_that_cannot_be_written_are_said_at_once(tmp_path):
    with pytest.raises(ConfigError, match="expected one that ASE writes.*Did you mean `vasp`"):
        validate({"format": "vaspp"}, OfflineFormat)
    with pytest.raises(ConfigError, match="`template` is .*, which is no folder"):
        validate({"template": "nowhere"}, OfflineFormat, folder=tmp_path)
    with pytest.raises(ConfigError, match="ASE cannot write frame-0"):
        exchange(OfflineFormat(format="espresso-in"), tmp_path, FRAMES[:1])


def test_what_is_there_is_not_written_over(tmp_path):
    waiting(OfflineFormat(), tmp_path, FRAMES)
    put(tmp_path, FRAMES[0], labelled(FRAMES[0]), name="frame.extxyz")  # labelled in place
    (tmp_path / "frames" / "all.extxyz").unlink()  # as if killed while handing out
    waiting(OfflineFormat(), tmp_path, FRAMES)
    put(tmp_path, FRAMES[1], labelled(FRAMES[1]))
    put(tmp_path, FRAMES[2], labelled(FRAMES[2]))
    found = exchange(OfflineFormat(), tmp_path, FRAMES)
    assert [type(f) for f in found] == [Labelled] * 3 and found[0].frame.energy == -3.0


def test_a_teacher_that_is_offline_cannot_be_asked_now():
    from dpsim.distill.config import OfflineTeacher

    with pytest.raises(ConfigError, match="`teacher` is offline"):
        make_labeller(OfflineTeacher(offline=OfflineFormat()))
