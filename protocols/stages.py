"""The stages of a simulation, as a protocol file says them: minimise, nvt, npt, nve.

Durations are totals: running the same file again continues to the same total.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from dpsim.config import Force, Pressure, StrictModel, Temperature, Time
from dpsim.engines.base import StageSettings

_WHOLE = 1e-6  # a duration may miss a whole number of steps by this fraction of a step


class StageBase(StrictModel):
    """What every stage has."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="default: its type")


class MinimiseStage(StageBase):
    """Move the atoms downhill (FIRE) until every force is below `force`, at most `steps` steps; the cell is fixed."""

    type: Literal["minimise"]
    force: Force = Field(0.05, gt=0.0, description="done when no atom feels more than this")
    steps: PositiveInt = Field(500, description="at most this many steps")

    def settings(self) -> StageSettings:
        """In the engine's terms."""
        return StageSettings(
            kind="minimise", n_steps=self.steps, force_eV_per_A=self.force, thermo_every=1, trajectory_every=10
        )


class DynamicsStage(StageBase):
    """What every molecular dynamics stage has."""

    timestep: Time = Field(0.5, gt=0.0, description="0.5 fs suits liquids with hydrogen")
    duration: Time | None = Field(None, gt=0.0, description="total simulated time of the stage")
    steps: PositiveInt | None = Field(None, description="instead of `duration`: total number of steps")
    initial_temperature: Temperature | None = Field(
        None, gt=0.0, description="draw new velocities at this temperature; default: keep those of the stage before"
    )
    trajectory_every: Time | None = Field(None, gt=0.0, description="time between frames; default about 20 fs")
    thermo_every: Time | None = Field(None, gt=0.0, description="time between rows of thermo.csv; default about 5 fs")
    max_temperature: Temperature = Field(10000.0, gt=0.0, description="stop as exploded above this temperature")

    @model_validator(mode="after")
    def _whole_steps(self) -> DynamicsStage:
        if (self.duration is None) == (self.steps is None):
            raise ValueError("`duration` and `steps` are both or neither given; expected one. Give one of them.")
        for name in ("duration", "trajectory_every", "thermo_every"):
            value = getattr(self, name)
            if value is not None:
                whole_number(value, self.timestep, name)
        return self

    @property
    def n_steps(self) -> int:
        """Total number of steps."""
        if self.steps is not None:
            return self.steps
        assert self.duration is not None  # checked when read
        return whole_number(self.duration, self.timestep, "duration")

    def every(self, value: float | None, default_fs: float) -> int:
        """An output interval in steps."""
        if value is None:
            return max(1, round(default_fs / self.timestep))
        return whole_number(value, self.timestep, "trajectory_every")

    def _common(self) -> dict[str, Any]:
        return {
            "n_steps": self.n_steps,
            "timestep_fs": self.timestep,
            "initial_temperature_K": self.initial_temperature,
            "trajectory_every": self.every(self.trajectory_every, 20.0),
            "thermo_every": self.every(self.thermo_every, 5.0),
            "max_temperature_K": self.max_temperature,
        }


class NveStage(DynamicsStage):
    """Newton's dynamics at constant energy (velocity Verlet)."""

    type: Literal["nve"]
    thermo_every: Time | None = Field(None, gt=0.0, description="time between rows of thermo.csv; default about 1 fs")

    def settings(self) -> StageSettings:
        """In the engine's terms."""
        common = self._common() | {"thermo_every": self.every(self.thermo_every, 1.0)}
        return StageSettings(kind="nve", **common)


class NvtStage(DynamicsStage):
    """Constant temperature: `bussi` (velocity rescaling, keeps diffusion) or `langevin` (BAOAB, couples every atom)."""

    type: Literal["nvt"]
    temperature: Temperature = Field(gt=0.0)
    thermostat: Literal["bussi", "langevin"] = Field("bussi", description="velocity rescaling or Langevin dynamics")
    damping: Time = Field(100.0, gt=0.0, description="relaxation time of the thermostat")

    def settings(self) -> StageSettings:
        """In the engine's terms."""
        return StageSettings(
            kind="nvt",
            temperature_K=self.temperature,
            thermostat=self.thermostat,
            thermostat_damping_fs=self.damping,
            **self._common(),
        )


class NptStage(DynamicsStage):
    """Constant temperature and pressure (Martyna-Tobias-Klein with Nose-Hoover chains); needs a periodic cell."""

    type: Literal["npt"]
    temperature: Temperature = Field(gt=0.0)
    pressure: Pressure = Field(1.0, description="external pressure")
    cell: Literal["isotropic", "anisotropic", "triclinic"] = Field(
        "isotropic", description="what may change: the volume; the three lengths; lengths and angles"
    )
    damping: Time = Field(100.0, gt=0.0, description="relaxation time of the thermostat")
    pressure_damping: Time = Field(1000.0, gt=0.0, description="relaxation time of the barostat")

    def settings(self) -> StageSettings:
        """In the engine's terms."""
        return StageSettings(
            kind="npt",
            temperature_K=self.temperature,
            thermostat_damping_fs=self.damping,
            pressure_bar=self.pressure,
            barostat_damping_fs=self.pressure_damping,
            cell_change=self.cell,
            **self._common(),
        )


Stage = Annotated[MinimiseStage | NvtStage | NptStage | NveStage, Field(discriminator="type")]


def whole_number(value: float, timestep: float, name: str) -> int:
    """value / timestep as a whole number of steps, at least one. Raises ValueError."""
    ratio = value / timestep
    steps = max(1, round(ratio))
    if abs(ratio - steps) > _WHOLE * max(1.0, ratio * 1e-3):
        raise ValueError(
            f"`{name}` is {value:g} fs, {ratio:g} time steps of {timestep:g} fs; expected a whole number of steps. "
            f"Write for example {steps * timestep:g} fs."
        )
    return steps
