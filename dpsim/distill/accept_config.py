"""What the acceptance test of a student is told: `accept:` of a distill.yaml, or a file of its own for `dpsim accept`.

`Condition` is that of a distillation as well (dpsim/distill/config.py).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from dpsim.config import (
    EnergyDrift,
    EnergyPerAtom,
    FilePath,
    Length,
    ModelName,
    Pressure,
    StrictModel,
    Temperature,
    Time,
)
from dpsim.engines.base import StageSettings
from dpsim.engines.registry import EngineName
from dpsim.protocols.schema import Structure

_NVE_FRAME = 1000.0  # fs between frames at constant energy, where only the energy is looked at


class Condition(StrictModel):
    """What the model is meant for: a temperature, and a pressure where the volume may change."""

    temperature: Temperature = Field(gt=0.0)
    pressure: Pressure | None = Field(None, description="constant pressure; default: constant volume")

    @property
    def name(self) -> str:
        """Short, fit for a file name: 330K, 330K_1bar."""
        return f"{self.temperature:g}K" + ("" if self.pressure is None else f"_{self.pressure:g}bar")


class AcceptCriteria(StrictModel):
    """How far a student may be from its teacher. Each is judged by its whole confidence interval."""

    energy: EnergyPerAtom = Field(2.0, gt=0.0, description="rms error of energy differences")
    forces: float = Field(0.1, gt=0.0, description="rms error of a force component, over the teacher's rms force")
    virial: EnergyPerAtom = Field(20.0, gt=0.0, description="rms error of a component of the virial")
    data: float = Field(1.15, ge=1.0, description="force error on labelled data, over the teacher's or `baseline`'s")
    rdf: float = Field(0.05, gt=0.0, description="rms relative difference of each g(r), weighted by g")
    density: float = Field(0.01, gt=0.0, description="relative difference of the density at constant pressure")
    diffusion: float = Field(0.2, gt=0.0, description="D over the teacher's D, at most 1 + this, or 1/(1 + this)")
    drift: EnergyDrift = Field(0.1, gt=0.0, description="drift of the total energy at constant energy")


class AcceptConfig(StrictModel):
    """The acceptance test: fresh dynamics of teacher and student, and how alike they must be."""

    structures: tuple[Structure, ...] | None = Field(
        None, min_length=1, description="where simulations start; in a distillation, default: those explored"
    )
    conditions: tuple[Condition, ...] | None = Field(
        None, min_length=1, description="at which; in a distillation, default: those explored"
    )
    data: tuple[FilePath, ...] = Field((), description="labelled sets, never trained on, to compare both with")
    baseline: ModelName | None = Field(
        None, description="a model as small as the student, trained on all labelled data: what can be reached on `data`"
    )
    engine: EngineName = Field("ase", description="the code that integrates the equations of motion")
    precision: Literal["float32", "float64"] | None = Field(None, description="default: each model's own")
    device: str = Field("cpu", description='"cpu", "cuda", "cuda:1", ...')
    timestep: Time = Field(0.5, gt=0.0, description="0.5 fs suits liquids with hydrogen")
    equilibration: Time = Field(2000.0, ge=0.0, description="time left out at the start of every simulation")
    duration: Time = Field(10000.0, gt=0.0, description="time that counts, of every simulation")
    runs: PositiveInt = Field(4, description="independent simulations of each model, structure and condition")
    frame_every: Time = Field(20.0, gt=0.0, description="time between the frames of trajectories")
    nve_duration: Time = Field(5000.0, gt=0.0, description="length of the student's simulations at constant energy")
    frames: int = Field(100, ge=20, description="fresh frames of the student, of each condition, to ask the teacher on")
    data_frames: int = Field(200, ge=2, description="of each labelled set at most this many frames, evenly spread")
    r_max: Length | None = Field(None, gt=0.0, description="end of the RDFs; default: half the cell's smallest height")
    species: tuple[str, ...] | None = Field(
        None, description="elements whose diffusion is compared; default: all; [] for none"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="of the intervals that must be acceptable")
    cost: bool = Field(True, description="measure time and memory of both models, for the model card")
    seed: int = Field(0, ge=0, description="the one seed of every random number")
    criteria: AcceptCriteria = AcceptCriteria()

    @model_validator(mode="after")
    def _long_enough(self) -> AcceptConfig:
        if self.duration < 40.0 * self.frame_every:
            raise ValueError(
                f"`duration` is {self.duration:g} fs, {self.duration / self.frame_every:.3g} frames; expected at least "
                "40 frames, for error bars. Simulate longer, or lower `frame_every`."
            )
        return self

    @property
    def skipped_frames(self) -> int:
        """Frames of a trajectory that belong to equilibration."""
        return round(self.equilibration / (self.steps_per_frame * self.timestep))

    @property
    def steps_per_frame(self) -> int:
        return max(1, round(self.frame_every / self.timestep))

    def stage(self, condition: Condition) -> StageSettings:
        """The simulation at a condition, equilibration first, in the engine's terms."""
        n_frames = self.skipped_frames + round(self.duration / (self.steps_per_frame * self.timestep))
        common: dict[str, Any] = {
            "n_steps": n_frames * self.steps_per_frame,
            "timestep_fs": self.timestep,
            "initial_temperature_K": condition.temperature,
            "temperature_K": condition.temperature,
            "thermostat_damping_fs": 100.0,
            "trajectory_every": self.steps_per_frame,
            "thermo_every": max(1, round(5.0 / self.timestep)),
        }
        if condition.pressure is None:
            return StageSettings(kind="nvt", thermostat="bussi", **common)
        return StageSettings(
            kind="npt",
            pressure_bar=condition.pressure,
            barostat_damping_fs=1000.0,
            cell_change="isotropic",
            **common,
        )

    def nve_stage(self) -> StageSettings:
        """The simulation at constant energy that follows one of them."""
        n_steps = max(1, round(self.nve_duration / self.timestep))
        return StageSettings(
            kind="nve",
            n_steps=n_steps,
            timestep_fs=self.timestep,
            trajectory_every=max(1, round(_NVE_FRAME / self.timestep)),
            thermo_every=max(1, round(1.0 / self.timestep)),
        )
