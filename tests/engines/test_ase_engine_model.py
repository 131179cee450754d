"""The ASE engine with a model or a student: interrupted dynamics equals uninterrupted dynamics, bit by bit."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from conformance import Killed
from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.data.frame import Frame
from dpsim.distill.compress import compress
from dpsim.engines.ase_engine import AseEngine, atoms_from_state, state_from_atoms
from dpsim.engines.base import Engine, RunControl, StageSettings
from dpsim.engines.output import THERMO, TRAJECTORY
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel
from dpsim.models.student import Student
from dpsim.protocols.structures import water_box


def model(precision: str) -> EnergyModel:
    descriptor = {
        "type": "se_e2_a", "sel": [20, 40], "rcut": 4.0, "rcut_smth": 0.5, "neuron": [4, 8], "axis_neuron": 4,
    }  # fmt: skip
    config = {"type_map": ["O", "H"], "descriptor": descriptor, "fitting": {"neuron": [8, 8]}, "precision": precision}
    return EnergyModel(ModelConfig.model_validate(config), seed=1)


@cache
def student(precision: Literal["float32", "float64"]) -> Student:
    atoms = water_box(4)
    types = np.array([0, 1, 1] * 4)
    frame = Frame(atoms.positions, types, ("O", "H"), atoms.cell.array, np.array(atoms.pbc))
    return compress(model("float64"), [frame], tolerance=1e-4, r_min=0.4, precision=precision)[0]


class Interrupted(DPCalculator):
    """Killed at the n-th call; its neighbour list has then another history than that of an uninterrupted run."""

    def __init__(self, potential: EnergyModel | Student, n: int):
        super().__init__(potential, skin=0.3)
        self.n = n

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        self.n -= 1
        if self.n == 0:
            raise Killed
        super().calculate(*args, **kwargs)


THERMOSTAT: dict[str, Any] = {"temperature_K": 600.0, "thermostat": "langevin", "thermostat_damping_fs": 20.0}
BAROSTAT: dict[str, Any] = {
    "temperature_K": 600.0, "thermostat_damping_fs": 50.0, "pressure_bar": 1.0, "barostat_damping_fs": 100.0,
    "cell_change": "triclinic",
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {"nve": {}, "nvt": THERMOSTAT, "npt": BAROSTAT}


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["nve", "nvt"])
def test_interrupted_equals_uninterrupted(kind: str, precision: str, tmp_path: Path) -> None:
    check_interruptions(model(precision), kind, tmp_path)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["nve", "nvt", "npt"])
def test_interrupted_student_equals_uninterrupted(kind: str, precision: Any, tmp_path: Path) -> None:
    """Its sums are rounded in the order its list was built in: the engine has to keep that with the checkpoint."""
    check_interruptions(student(precision), kind, tmp_path)


def check_interruptions(
    potential: EnergyModel | Student, kind: str, folder: Path, engine: Engine | None = None, **settings: Any
) -> None:
    """Kill a run three times; its files have to be, byte by byte, those of one left alone."""
    engine = engine or AseEngine()
    stage = StageSettings(
        kind=kind,  # type: ignore[arg-type]
        n_steps=60,
        timestep_fs=1.0,
        initial_temperature_K=600.0,
        trajectory_every=5,
        **(KINDS[kind] | settings),
    )
    state = state_from_atoms(water_box(12))

    def run(directory: str, calculator: DPCalculator) -> Any:
        control = RunControl(seed=0, name="water", checkpoint_seconds=0.0 if directory == "parts" else 1e9)
        return engine.run_stage(state, calculator, stage, folder / directory, control)

    used = DPCalculator(potential, skin=0.3)
    moved = atoms_from_state(state)
    moved.rattle(0.1, seed=0)
    moved.calc = used
    moved.get_forces()  # what a calculator did before a stage has no part in it
    whole = run("whole", used)
    for call in (19, 11, 16):
        with pytest.raises(Killed):
            run("parts", Interrupted(potential, call))
    parts = run("parts", DPCalculator(potential, skin=0.3))
    for file in (THERMO, TRAJECTORY):
        assert (folder / "parts" / file).read_bytes() == (folder / "whole" / file).read_bytes(), file
    np.testing.assert_array_equal(parts.state.momenta, whole.state.momenta)
