"""Rings of beads in i-PI: exact averages of oscillators, restarts bit by bit, and runs that go wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ipi", reason="i-PI is not installed: pip install 'dpsim[ipi]'")

from ase import Atoms

from conformance import Killed
from dpsim.analysis.path_integrals import HBAR, oscillator_energy, oscillator_gyration
from dpsim.analysis.statistics import Estimate, mean_with_error
from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.calculators.ipi_driver import BOHR, HARTREE, Answer, BeadPotential
from dpsim.engines.ase_engine import state_from_atoms
from dpsim.engines.base import RunControl, StageSettings
from dpsim.engines.ipi_path_integrals import (
    ESTIMATORS,
    PathIntegralEngine,
    Ring,
    RingRun,
    bead_forces,
    read_estimators,
    ring_state,
)
from dpsim.engines.output import THERMO, TRAJECTORY, load_checkpoint, read_thermo
from dpsim.errors import SimulationError
from dpsim.trajectory import count_frames, read_frame
from pair_calculators import ExplodingCalculator, FailingCalculator, PairCalculator, argon

INVERSE_CM = 1.239841984e-4 / HBAR
"""1 cm^-1 in inverse ASE time."""
STAGE = StageSettings("nvt", 30, timestep_fs=2.0, temperature_K=40.0, thermostat="langevin", thermostat_damping_fs=50.0,
                      thermo_every=2, trajectory_every=6)  # fmt: skip
THREE = Ring(3)


class EinsteinCrystal:
    """Every atom is an isotropic oscillator about its site: V = sum m w^2 (q - q0)^2 / 2."""

    def __init__(self, atoms: Atoms, frequencies: dict[str, float]):
        w = np.array([frequencies[s] for s in atoms.get_chemical_symbols()])
        self.sites, self.k = atoms.positions.copy(), (atoms.get_masses() * w**2)[:, None]

    def compute(self, cells: Sequence[np.ndarray], positions: Sequence[np.ndarray]) -> list[Answer]:
        apart = np.array(positions) * BOHR - self.sites
        energies = 0.5 * np.sum(self.k * apart**2, axis=(1, 2)) / HARTREE
        forces = -self.k * apart * (BOHR / HARTREE)
        return [(float(e), f, np.zeros((3, 3))) for e, f in zip(energies, forces, strict=True)]


def run(folder: Path, calculator: Any, ring: Ring = THREE, stage: StageSettings = STAGE, **control: Any) -> Any:
    options: dict[str, Any] = {"seed": 0, "name": "ring", "checkpoint_seconds": 1e9} | control
    atoms = argon()
    engine = PathIntegralEngine(ring, len(atoms))
    return engine.run_stage(state_from_atoms(atoms), calculator, stage, folder, RunControl(**options))


def agrees(found: Estimate, exact: float) -> bool:
    return abs(found.value - exact) < 4.5 * found.error and found.error < 0.05 * abs(exact)


def test_an_einstein_crystal_has_the_exact_energies_and_sizes_of_finitely_many_beads(tmp_path: Path) -> None:
    n_beads, temperature, n = 6, 300.0, 120
    atoms = Atoms(["H"] * n + ["O"] * n, np.random.default_rng(0).normal(size=(2 * n, 3)))
    frequencies = {"H": 1500.0 * INVERSE_CM, "O": 500.0 * INVERSE_CM}
    stage = StageSettings("nvt", 600, timestep_fs=0.5, temperature_K=temperature, thermostat="langevin",
                          thermostat_damping_fs=20.0, thermo_every=2, trajectory_every=400)  # fmt: skip
    start = ring_state(state_from_atoms(atoms), n_beads)
    control = RunControl(0, "einstein")
    RingRun(start, EinsteinCrystal(atoms, frequencies), stage, Ring(n_beads), tmp_path, control).to_the_end()
    found, later = read_estimators(tmp_path, ["H", "O"]), slice(50, None)
    for element, mass in (("H", atoms.get_masses()[0]), ("O", atoms.get_masses()[-1])):
        w = frequencies[element]
        energy = 3.0 * oscillator_energy(w, temperature, n_beads)
        size = 3.0 * oscillator_gyration(w, mass, temperature, n_beads)
        for name, exact in (("centroid_virial_eV", energy), ("primitive_eV", energy), ("squared_gyration_A2", size)):
            assert agrees(mean_with_error(found[f"{element}_{name}"][later]), exact), (element, name)
    thermo = read_thermo(tmp_path / THERMO)
    potential = 3.0 * n * sum(oscillator_energy(w, temperature, n_beads) for w in frequencies.values())
    assert agrees(mean_with_error(thermo["potential_energy_eV"][later]), potential)
    assert agrees(mean_with_error(thermo["kinetic_energy_eV"][later]), potential)
    assert agrees(mean_with_error(thermo["temperature_K"][later]), temperature)
    assert np.isnan(thermo["pressure_bar"]).all()
    assert np.ptp(thermo["conserved_eV"]) < 0.05 * np.ptp(thermo["potential_energy_eV"]) * n_beads


def test_frames_are_beads_and_the_pressure_is_that_of_quantum_nuclei(tmp_path: Path) -> None:
    result = run(tmp_path, PairCalculator(), Ring(3))
    n = len(argon())
    assert result.state.n_atoms == 3 * n
    assert count_frames(tmp_path / TRAJECTORY) == 3 * 6
    last = [read_frame(tmp_path / TRAJECTORY, 15 + k) for k in range(3)]
    assert [frame.step for frame in last] == [90, 91, 92]
    np.testing.assert_allclose(np.concatenate([f.positions for f in last]), result.state.positions, atol=1e-5)
    thermo = read_thermo(tmp_path / THERMO)
    found = read_estimators(tmp_path, ["Ar"])
    np.testing.assert_allclose(thermo["kinetic_energy_eV"], n * found["Ar_centroid_virial_eV"], rtol=1e-12)
    np.testing.assert_allclose(found["time_ps"], thermo["time_ps"])
    assert found["Ar_squared_gyration_A2"][0] == pytest.approx(0.0, abs=1e-20)  # rings open from a point
    assert found["Ar_squared_gyration_A2"][-1] > 1e-4


@pytest.mark.parametrize("ring", [Ring(3, 0.5), Ring(1)])
def test_interrupted_anywhere_equals_uninterrupted(ring: Ring, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", PairCalculator(), ring)
    for attempt, call in enumerate((7, 19, 3, 1)):
        with pytest.raises(Killed):
            failing = FailingCalculator(call, Killed())
            run(tmp_path / "parts", failing, ring, checkpoint_seconds=0.0 if attempt % 2 == 0 else 1e9)
    parts = run(tmp_path / "parts", PairCalculator(), ring)
    for file in (THERMO, TRAJECTORY, ESTIMATORS):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    np.testing.assert_array_equal(parts.state.momenta, whole.state.momenta)


def test_a_student_continues_bit_by_bit_and_beads_have_lists_of_their_own(tmp_path: Path) -> None:
    stage = replace(STAGE, temperature_K=300.0, n_steps=12, thermo_every=1, trajectory_every=4)
    atoms = student_atoms()
    for folder, stops in (("whole", 0), ("parts", 3)):
        while True:
            calculator, count = DPCalculator("water-pbe0ts-student"), iter(range(1000))
            engine = PathIntegralEngine(Ring(2), len(atoms))
            control = RunControl(0, "ring", should_stop=lambda c=count, s=stops: s > 0 and next(c) >= s)  # type: ignore[misc]
            result = engine.run_stage(state_from_atoms(atoms), calculator, stage, tmp_path / folder, control)
            if result.finished:
                break
    for file in (THERMO, TRAJECTORY, ESTIMATORS):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    assert load_checkpoint(tmp_path / "parts" / "restart.npz").calculator.keys() >= {"0.positions", "1.positions"}  # type: ignore[union-attr]


def student_atoms() -> Atoms:
    from ase.io import read

    atoms = read(Path(__file__).parents[2] / "examples" / "water" / "water.extxyz")
    assert isinstance(atoms, Atoms)
    return atoms


def test_models_evaluate_all_beads_at_once() -> None:
    atoms = argon()
    assert not isinstance(bead_forces(PairCalculator(), state_from_atoms(atoms)), BeadPotential)
    water = student_atoms()
    calculator = DPCalculator("water-pbe0ts-student")
    forces = bead_forces(calculator, state_from_atoms(water))
    assert isinstance(forces, BeadPotential)
    answers = forces.compute([water.cell.array.T / BOHR] * 2, [water.positions / BOHR] * 2)
    water.calc = calculator
    for energy, f, _ in answers:
        assert energy * HARTREE == pytest.approx(water.get_potential_energy(), rel=1e-7)
        np.testing.assert_allclose(f * HARTREE / BOHR, water.get_forces(), atol=1e-4)


def test_what_is_not_finite_stops_at_once_and_names_the_atom(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="force of Ar atom 3 is .*nan.*failed_step_"):
        run(tmp_path, ExplodingCalculator(20))
    assert list(tmp_path.glob("failed_step_*.extxyz"))


def test_a_request_to_stop_is_heeded_and_other_beads_are_refused(tmp_path: Path) -> None:
    result = run(tmp_path, PairCalculator(), should_stop=lambda: True)
    assert not result.finished
    with pytest.raises(Exception, match="n_beads was 3, is 4"):
        run(tmp_path, PairCalculator(), Ring(4))
    assert run(tmp_path, PairCalculator()).finished
