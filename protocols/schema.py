"""What a protocol file may say: a model, a structure, the stages to simulate, and the analyses that judge them.

Durations are totals: running the same file again continues to the same total. `load_protocol` reads and checks a
file; `json_schema` describes it to editors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from dpsim.config import EnergyDrift, FilePath, Force, Length, Pressure, StrictModel, Temperature, Time, load_yaml
from dpsim.engines.base import StageSettings
from dpsim.engines.registry import EngineName

_WHOLE = 1e-6  # a duration may miss a whole number of steps by this fraction of a step


class Structure(StrictModel):
    """Where the atoms come from: a file (anything ASE reads) or a box of water."""

    file: FilePath | None = Field(None, description="structure file: extxyz, cif, POSCAR, pdb, ...")
    frame: int = Field(-1, description="which frame of the file; -1 is the last")
    water_box: PositiveInt | None = Field(None, description="instead of a file: this many water molecules in a cube")
    density: float = Field(0.997, gt=0.0, description="density of the water box, g/cm^3")
    repeat: tuple[PositiveInt, PositiveInt, PositiveInt] = Field((1, 1, 1), description="repeats along a, b, c")

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        """`structure: water.extxyz` is short for `structure: {file: water.extxyz}`."""
        return {"file": value} if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _one_source(self) -> Structure:
        if (self.file is None) == (self.water_box is None):
            raise ValueError("`structure` has both or neither of `file` and `water_box`; expected one. Give one.")
        return self


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
                _whole_number(value, self.timestep, name)
        return self

    @property
    def n_steps(self) -> int:
        """Total number of steps."""
        if self.steps is not None:
            return self.steps
        assert self.duration is not None  # checked when read
        return _whole_number(self.duration, self.timestep, "duration")

    def every(self, value: float | None, default_fs: float) -> int:
        """An output interval in steps."""
        if value is None:
            return max(1, round(default_fs / self.timestep))
        return _whole_number(value, self.timestep, "trajectory_every")

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


class NveCheck(StrictModel):
    """Is the total energy conserved? Judges the drift of an nve stage and, if it fails, finds what is at fault.

    The default threshold, 0.1 meV/atom/ps, heats a condensed phase (3 k_B per atom) by 0.4 K/ps: a thermostat with a
    relaxation time of 1 ps then settles 0.4 K off its target, 0.1 % at room temperature.
    """

    type: Literal["nve_check"]
    stage: str | None = Field(None, description="name of the nve stage; default: the last one")
    threshold: EnergyDrift = Field(0.1, gt=0.0, description="largest acceptable drift, in either direction")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="the whole confidence interval must be acceptable")
    timesteps: tuple[Annotated[Time, Field(gt=0.0)], ...] | None = Field(
        None,
        description="compared by short runs; default: half, one and two times the stage's time step; [] for none",
    )
    scan_duration: Time = Field(100.0, gt=0.0, description="length of each of these short runs")
    diagnosis: bool = Field(True, description="after a failure, find the cause by re-running from the same start")
    diagnosis_duration: Time = Field(1000.0, gt=0.0, description="longest re-run for the diagnosis")


class RdfCriteria(StrictModel):
    """What agreement with the reference means. Differences within their own error bars never fail."""

    r_factor: float = Field(0.1, gt=0.0, description="largest sum |g - g_ref| / sum |g_ref|")
    peak_position: Length = Field(0.05, gt=0.0, description="largest shift of the first peak")
    peak_height: float = Field(0.1, gt=0.0, description="largest relative difference of the first peak's height")


class RdfAnalysis(StrictModel):
    """Radial distribution functions with error bars, compared with a reference if there is one."""

    type: Literal["rdf"]
    stages: tuple[str, ...] | None = Field(None, description="names of stages; default: the last dynamics stage")
    pairs: Literal["all"] | tuple[str, ...] = Field("all", description='element pairs such as ["O-O", "O-H"]')
    r_max: Length | None = Field(None, gt=0.0, description="default: half the smallest height of the cell")
    bins: PositiveInt | None = Field(None, description="default: bins of 0.05 A")
    blocks: int = Field(10, ge=4, description="blocks of the trajectory for the error bars")
    skip: Time = Field(0.0, ge=0.0, description="time to leave out at the start of each stage")
    reference: FilePath | None = Field(None, description="npz or csv with r (A), gOO, gOH, ...")
    criteria: RdfCriteria = RdfCriteria()

    @field_validator("pairs")
    @classmethod
    def _are_pairs(cls, value: Any) -> Any:
        for pair in () if value == "all" else value:
            if not re.fullmatch(r"[A-Z][a-z]?-[A-Z][a-z]?", pair):
                raise ValueError(f"`pairs` has '{pair}'; expected two elements such as 'O-H'. Correct the pair.")
        return value


Analysis = Annotated[NveCheck | RdfAnalysis, Field(discriminator="type")]


class Protocol(StrictModel):
    """A simulation protocol: `dpsim run protocol.yaml`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="name of the run and of its directory")
    model: str = Field(
        "water-pbe0ts",
        description="name of a bundled model, or path of a file: .dpsim, or DeePMD-kit's .dp, .yaml, .json, .pt; "
        "of a checkpoint with several heads, path.pt:head",
    )
    structure: Structure
    engine: EngineName = Field("ase", description="the code that integrates the equations of motion")
    precision: Literal["float32", "float64"] | None = Field(None, description="default: the model's own")
    device: str = Field("cpu", description='"cpu", "cuda", "cuda:1", ...')
    fparam: tuple[float, ...] | None = Field(None, description="parameters of the frame, for a model that takes them")
    seed: int = Field(0, ge=0, description="the one seed of every random number; 0 is a seed like any other")
    checkpoint_seconds: float = Field(15.0, ge=0.0, description="wall time between checkpoints, s")
    stages: tuple[Stage, ...]
    analyses: tuple[Analysis, ...] = ()

    @field_validator("model")
    @classmethod
    def _beside_the_file(cls, value: str, info: ValidationInfo) -> str:
        """A model given as a path counts from the protocol's folder, as other files do."""
        folder = (info.context or {}).get("folder")
        is_path = value.endswith((".dpsim", ".dp", ".yaml", ".yml", ".json", ".pt")) or "/" in value
        return str((folder / Path(value).expanduser()).resolve()) if is_path and folder is not None else value

    @model_validator(mode="after")
    def _references_exist(self) -> Protocol:
        names = self.stage_names()
        if not names:
            raise ValueError("`stages` is empty; expected at least one stage. Add one, such as {type: nvt, ...}.")
        doubled = sorted({n for n in names if names.count(n) > 1})
        if doubled:
            raise ValueError(f"`stages` has {doubled} twice; expected different names. Give the stages a `name`.")
        for analysis in self.analyses:
            if isinstance(analysis, NveCheck):
                self._check_stages([analysis.stage] if analysis.stage else [], ("nve",), "nve_check.stage", names)
                if not any(s.type == "nve" for s in self.stages):
                    raise ValueError("`analyses` has an nve_check, but no stage is of type nve. Add such a stage.")
            else:
                self._check_stages(list(analysis.stages or ()), ("nve", "nvt", "npt"), "rdf.stages", names)
                if all(s.type == "minimise" for s in self.stages):
                    raise ValueError("`analyses` has an rdf, but no stage is dynamics. Add an nvt, npt or nve stage.")
        return self

    def _check_stages(self, wanted: list[str], types: tuple[str, ...], where: str, names: list[str]) -> None:
        fitting = [n for n, stage in zip(names, self.stages, strict=True) if stage.type in types]
        for name in wanted:
            if name not in fitting:
                raise ValueError(f"`{where}` is '{name}'; expected one of the stages {fitting}. Correct the name.")

    def stage_names(self) -> list[str]:
        """Names of the stages: given, or the type (numbered from the second of a type on: nvt, nvt2, ...)."""
        names: list[str] = []
        for stage in self.stages:
            before = sum(s.type == stage.type and s.name is None for s in self.stages[: len(names)])
            names.append(stage.name or (f"{stage.type}{before + 1}" if before else stage.type))
        return names


def load_protocol(path: str | Path) -> Protocol:
    """Read and check a protocol file. Raises ConfigError naming file, line, value and what was expected."""
    return load_yaml(path, Protocol)


def json_schema() -> dict[str, Any]:
    """JSON Schema of a protocol file, for editors."""
    return Protocol.model_json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}


def _whole_number(value: float, timestep: float, name: str) -> int:
    """value / timestep as a whole number of steps, at least one."""
    ratio = value / timestep
    steps = max(1, round(ratio))
    if abs(ratio - steps) > _WHOLE * max(1.0, ratio * 1e-3):
        raise ValueError(
            f"`{name}` is {value:g} fs, {ratio:g} time steps of {timestep:g} fs; expected a whole number of steps. "
            f"Write for example {steps * timestep:g} fs."
        )
    return steps
