"""A Deep Potential as OpenMM's Force: the numbers of DPCalculator, in every way that OpenMM uses a Force."""

from __future__ import annotations

import importlib
import re
import runpy
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write

pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'dpsim[openmm]'")

import openmm
from openmm import app, unit

from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.calculators.openmm_force import openmm_force
from dpsim.errors import ConfigError, ElementError
from dpsim.models.checkpoint import save_model
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel
from dpsim.protocols.structures import water_box

ROOT = Path(__file__).parents[2]
KJ_PER_MOL_PER_EV = 96.48533212331  # CODATA 2018: e N_A / 1000


def small_model(precision: str = "float64") -> EnergyModel:
    descriptor = {"type": "se_e2_a", "sel": [20, 40], "rcut": 4.0, "rcut_smth": 0.5, "neuron": [4, 8], "axis_neuron": 4}
    config = {"type_map": ["O", "H"], "descriptor": descriptor, "fitting": {"neuron": [8, 8]}, "precision": precision}
    return EnergyModel(ModelConfig.model_validate(config), seed=1)


def topology_of(atoms: Atoms) -> app.Topology:
    """One residue per molecule of three atoms."""
    topology = app.Topology()
    chain = topology.addChain()
    for k, symbol in enumerate(atoms.get_chemical_symbols()):
        if k % 3 == 0:
            residue = topology.addResidue("HOH", chain)
        topology.addAtom(f"{symbol}{k % 3}", app.Element.getBySymbol(symbol), residue)
    if atoms.pbc.all():
        topology.setPeriodicBoxVectors(atoms.cell.array * 0.1 * unit.nanometer)
    return topology


def tip3p_topology(atoms: Atoms) -> app.Topology:
    """With the names and bonds that OpenMM's force field of water knows."""
    topology = topology_of(atoms)
    for residue in topology.residues():
        o, h1, h2 = residue.atoms()
        o.name, h1.name, h2.name = "O", "H1", "H2"
        topology.addBond(o, h1)
        topology.addBond(o, h2)
    return topology


def system_of(atoms: Atoms, *forces: openmm.Force) -> openmm.System:
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    for force in forces:
        system.addForce(force)
    if atoms.pbc.all():
        system.setDefaultPeriodicBoxVectors(*(atoms.cell.array * 0.1))
    return system


def context_for(system: openmm.System, atoms: Atoms) -> openmm.Context:
    context = openmm.Context(system, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(atoms.positions * 0.1)
    return context


def context_of(atoms: Atoms, *forces: openmm.Force) -> openmm.Context:
    return context_for(system_of(atoms, *forces), atoms)


def energy_and_forces(context: openmm.Context) -> tuple[float, np.ndarray]:
    """eV, eV/A."""
    state = context.getState(energy=True, forces=True)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
    return energy / KJ_PER_MOL_PER_EV, forces / KJ_PER_MOL_PER_EV / 10.0


@pytest.mark.parametrize("periodic", [True, False])
def test_the_numbers_are_those_of_ase(periodic: bool) -> None:
    atoms = water_box(6)
    if not periodic:
        atoms.pbc, atoms.cell = False, None
    model = small_model()
    atoms.calc = DPCalculator(model)
    energy, forces = energy_and_forces(context_of(atoms, openmm_force(topology_of(atoms), model)))
    assert energy == pytest.approx(atoms.get_potential_energy(), rel=1e-13)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-12)


def test_a_tilted_box_and_positions_outside_of_it() -> None:
    atoms = water_box(6)
    model = small_model()
    tilt = np.array([[1.0, 0.0, 0.0], [0.2, 1.0, 0.0], [-0.3, 0.1, 1.0]])
    atoms.set_cell(tilt @ atoms.cell.array, scale_atoms=True)
    atoms.calc = DPCalculator(model)
    expected = atoms.get_forces()
    atoms.positions[3:9] += atoms.cell.array[1] - 2.0 * atoms.cell.array[2]
    _, forces = energy_and_forces(context_of(atoms, openmm_force(topology_of(atoms), model)))
    np.testing.assert_allclose(forces, expected, atol=1e-10)


def test_particles_outside_the_subset_feel_nothing() -> None:
    atoms = water_box(6)
    model = small_model()
    chosen = [9, 10, 11, 0, 1, 2]
    symbols = ["Na" if k in (4, 5) else s for k, s in enumerate(atoms.get_chemical_symbols())]  # not the model's
    force = openmm_force(symbols, model, particles=chosen, periodic=True)
    energy, forces = energy_and_forces(context_of(atoms, force))
    part = atoms[chosen]
    part.calc = DPCalculator(model)
    assert energy == pytest.approx(part.get_potential_energy(), rel=1e-13)
    np.testing.assert_allclose(forces[chosen], part.get_forces(), atol=1e-12)
    assert not np.delete(forces, chosen, axis=0).any()


def test_serialised_systems_carry_the_model() -> None:
    atoms = water_box(4)
    system = system_of(atoms, openmm_force(topology_of(atoms), small_model("float32"), particles=range(6)))
    before = energy_and_forces(context_for(system, atoms))  # also fills caches, which do not travel
    again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    assert again.usesPeriodicBoundaryConditions()
    after = energy_and_forces(context_for(again, atoms))
    assert after[0] == before[0]
    np.testing.assert_array_equal(after[1], before[1])


def test_a_barostat_sees_the_box_and_costs_one_evaluation_per_move() -> None:
    atoms = water_box(4)
    calls = 0
    model = small_model()
    force = openmm_force(topology_of(atoms), model)
    barostat = openmm.MonteCarloBarostat(1e4, 300.0, 1)
    barostat.setRandomNumberSeed(1)
    context = context_of(atoms, force, barostat)
    context.setVelocitiesToTemperature(300.0, 1)
    original = type(model).forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(self, *args, **kwargs)

    type(model).forward = counted  # type: ignore[method-assign]
    try:
        context.getIntegrator().step(20)
    finally:
        type(model).forward = original  # type: ignore[method-assign]
    volume = context.getState().getPeriodicBoxVolume().value_in_unit(unit.angstrom**3)
    assert volume != pytest.approx(atoms.get_volume(), rel=1e-6)
    assert calls <= 2 * 20 + 2
    atoms.set_cell(context.getState().getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom))
    atoms.positions = context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    atoms.calc = DPCalculator(model)
    np.testing.assert_allclose(energy_and_forces(context)[1], atoms.get_forces(), atol=1e-10)


def test_refusals_name_what_is_wrong() -> None:
    model = small_model()
    with pytest.raises(ElementError, match=r"elements \['C', 'N'\].*it knows \['O', 'H'\]"):
        openmm_force(["O", "C", "N"], model, periodic=False)
    with pytest.raises(ConfigError, match="`periodic` is not given"):
        openmm_force(["O"], model)
    with pytest.raises(ConfigError, match="`particles` is .*expected different indices below 3"):
        openmm_force(["O", "H", "H"], model, particles=[0, 3], periodic=False)
    topology = app.Topology()
    topology.addAtom("M", None, topology.addResidue("X", topology.addChain()))
    with pytest.raises(ConfigError, match=r"`element` of the atoms \[0\]"):
        openmm_force(topology, model)


def test_errors_of_the_model_reach_the_user() -> None:
    atoms = molecule("H2O")
    context = context_of(atoms, openmm_force(topology_of(atoms), small_model()))
    positions = atoms.positions * 0.1
    positions[1] = np.nan
    context.setPositions(positions)
    with pytest.raises(openmm.OpenMMException, match="finite|nan"):
        context.getState(energy=True)


@pytest.mark.slow
def test_the_example_runs_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model("model.dpsim", small_model("float32"))
    write("water.extxyz", water_box(4))
    options = ["--skip", "0", "--model", "model.dpsim", "--structure", "water.extxyz", "--directory", "run"]
    for duration, rows in (("0.3", 30), ("0.4", 40)):  # ps
        monkeypatch.setattr(sys, "argv", ["density.py", "--duration", duration, *options])
        runpy.run_path(str(ROOT / "examples" / "openmm" / "density.py"), run_name="__main__")
        assert "density at 330 K and 1 bar: " in capsys.readouterr().out
        assert len(Path("run", "density.csv").read_text().splitlines()) == rows + 1


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ml_potential: Any) -> None:
    """The Python of docs/openmm.md, one block after the other, on a small box."""
    monkeypatch.chdir(tmp_path)
    atoms = water_box(8)
    with open("water.pdb", "w") as file:
        app.PDBFile.writeFile(tip3p_topology(atoms), atoms.positions * unit.angstrom, file)
    text = (ROOT / "docs" / "openmm.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert len(Path("log.csv").read_text().splitlines()) == 3
    context = context_for(names["mixed"], atoms)
    context.getIntegrator().step(1)


# ---- OpenMM-ML -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ml_potential() -> Any:
    pytest.importorskip("openmmml", reason="OpenMM-ML is not installed: pip install 'dpsim[openmm]'")
    from openmmml import MLPotential

    if "dpsim" not in MLPotential._implFactories:  # run from the source, without entry points
        module, _, name = entry_point().partition(":")
        MLPotential.registerImplFactory("dpsim", getattr(importlib.import_module(module), name)())
    return MLPotential


def entry_point() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name: str = project["entry-points"]["openmmml.potentials"]["dpsim"]
    return name


def test_a_pure_ml_system(ml_potential: Any) -> None:
    atoms = water_box(4)
    model = small_model()
    system = ml_potential("dpsim", model=model).createSystem(topology_of(atoms))
    assert system.usesPeriodicBoundaryConditions()
    atoms.calc = DPCalculator(model)
    energy, forces = energy_and_forces(context_for(system, atoms))
    assert energy == pytest.approx(atoms.get_potential_energy(), rel=1e-13)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-12)


def test_a_mixed_system_is_ml_inside_and_mm_outside(ml_potential: Any) -> None:
    """E = E_ML(subset) + E_MM(all) - E_MM(subset alone); with lambda_interpolate = 0 it is E_MM(all)."""
    atoms = water_box(4)
    atoms.pbc, atoms.cell = False, None
    topology = tip3p_topology(atoms)
    mm = app.ForceField("tip3p.xml").createSystem(topology, rigidWater=False, nonbondedMethod=app.NoCutoff)
    model = small_model()
    subset = [0, 1, 2]
    mixed = ml_potential("dpsim", model=model).createMixedSystem(topology, mm, subset, interpolate=True)
    context = context_for(mixed, atoms)
    part = atoms[subset]
    part.calc = DPCalculator(model)
    context.setParameter("lambda_interpolate", 0.0)
    all_mm = energy_and_forces(context_for(mm, atoms))[0]
    assert energy_and_forces(context)[0] == pytest.approx(all_mm, rel=1e-9)
    context.setParameter("lambda_interpolate", 1.0)
    single = app.Modeller(topology, atoms.positions * 0.1)
    single.delete(list(topology.residues())[1:])
    alone = app.ForceField("tip3p.xml").createSystem(single.topology, rigidWater=False, nonbondedMethod=app.NoCutoff)
    expected = part.get_potential_energy() + all_mm - energy_and_forces(context_for(alone, part))[0]
    assert energy_and_forces(context)[0] == pytest.approx(expected, rel=1e-9)
    context.getIntegrator().step(2)
