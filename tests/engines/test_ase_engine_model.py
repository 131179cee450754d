"""The ASE engine with a Deep Potential: interrupted dynamics equals uninterrupted dynamics, bit by bit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from conformance import Killed
from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.engines.ase_engine import AseEngine, state_from_atoms
from dpsim.engines.base import RunControl, StageSettings
from dpsim.engines.output import THERMO, TRAJECTORY
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel
from dpsim.protocols.structures import water_box


def model(precision: str) -> EnergyModel:
    descriptor = {
        "type": "se_e2_a", "sel": [20, 40], "rcut": 4.0, "rcut_smth": 0.5, "neuron": [4, 8], "axis_neuron": 4,
    }  # fmt: skip
    config = {"type_map": ["O", "H"], "descriptor": descriptor, "fitting": {"neuron": [8, 8]}, "precision": precision}
    return EnergyModel(ModelConfig.model_validate(config), seed=1)


class Interrupted(DPCalculator):
    """Killed at the n-th call; its neighbour list has then another history than that of an uninterrupted run."""

    def __init__(self, potential: EnergyModel, n: int):
        super().__init__(potential, skin=0.3)
        self.n = n

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        self.n -= 1
        if self.n == 0:
            raise Killed
        super().calculate(*args, **kwargs)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["nve", "langevin"])
def test_interrupted_equals_uninterrupted(kind: str, precision: str, tmp_path: Path) -> None:
    thermostat: dict[str, Any] = {"temperature_K": 600.0, "thermostat": "langevin", "thermostat_damping_fs": 20.0}
    stage = StageSettings(
        kind="nve" if kind == "nve" else "nvt",
        n_steps=120,
        timestep_fs=1.0,
        initial_temperature_K=600.0,
        trajectory_every=5,
        **({} if kind == "nve" else thermostat),
    )
    potential = model(precision)
    state = state_from_atoms(water_box(12))

    def run(directory: str, calculator: DPCalculator) -> Any:
        control = RunControl(seed=0, name="water", checkpoint_seconds=0.0 if directory == "parts" else 1e9)
        return AseEngine().run_stage(state, calculator, stage, tmp_path / directory, control)

    whole = run("whole", DPCalculator(potential, skin=0.3))
    for call in (37, 23, 31):
        with pytest.raises(Killed):
            run("parts", Interrupted(potential, call))
    parts = run("parts", DPCalculator(potential, skin=0.3))
    for file in (THERMO, TRAJECTORY):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    np.testing.assert_array_equal(parts.state.momenta, whole.state.momenta)
