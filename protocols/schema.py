"""What every protocol file says, `ProtocolHead`, and what one of molecular dynamics says, `Protocol`.

Molecular dynamics is what `dpsim run` does where the file has no key `protocol`, and what sweeps are made of. The other
protocols are listed in `dpsim/protocols/registry.py`, which also reads the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from dpsim.config import FilePath, Force, ModelName, StrictModel, Time
from dpsim.engines.registry import EngineName
from dpsim.protocols.analyses import Analysis
from dpsim.protocols.stages import DynamicsStage, Stage, whole_number


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


class Harvest(StrictModel):
    """Keep structures about which the models disagree: enough to be worth a label, not so much as to be nonsense."""

    trust: tuple[Annotated[Force, Field(ge=0.0)], Force] = Field(
        description="kept are structures with trust[0] <= max_devi_f < trust[1]"
    )
    max_frames: PositiveInt = Field(100, description="of each stage, the first that fit")

    @model_validator(mode="after")
    def _in_order(self) -> Harvest:
        low, high = self.trust
        if not low < high:
            raise ValueError(
                f"`trust` is {low:g}, {high:g} eV/A; expected the lower level first. Swap them, or raise the upper."
            )
        return self


class Deviation(StrictModel):
    """Evaluate a committee along the dynamics: how far do its models disagree?"""

    models: tuple[ModelName, ...] = Field((), description="more models: with `model` they are the committee")
    every: Time = Field(10.0, gt=0.0, description="time between two evaluations")
    stop_above: Force | None = Field(None, gt=0.0, description="a larger max_devi_f ends the stage and the run")
    harvest: Harvest | None = Field(None, description="keep structures between two levels")

    @field_validator("models", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return _names(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _stops_above_the_harvest(self) -> Deviation:
        if self.harvest is not None and self.stop_above is not None and self.stop_above <= self.harvest.trust[0]:
            raise ValueError(
                f"`stop_above` is {self.stop_above:g} eV/A, and harvest.trust begins at {self.harvest.trust[0]:g}; "
                "expected more, or nothing could be harvested. Raise it."
            )
        return self


class ProtocolHead(StrictModel):
    """What every protocol has: a name, a model, a structure, and who calculates."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="name of the run and of its directory")
    model: ModelName | tuple[ModelName, ...] = Field(
        "water-pbe0ts",
        description="name of a bundled model, or path of a file: .dpsim, or DeePMD-kit's .dp, .yaml, .json, .pt; "
        "of a checkpoint with several heads, path.pt:head. A list is a committee: its mean moves the atoms",
    )
    structure: Structure
    engine: EngineName = Field("ase", description="the code that integrates the equations of motion")
    ranks: PositiveInt = Field(1, description="MPI ranks of `engine: lammps`, which share the box of a student")
    precision: Literal["float32", "float64"] | None = Field(None, description="default: the model's own")
    device: str = Field("cpu", description='"cpu", "cuda", "cuda:1", ...')
    fparam: tuple[float, ...] | None = Field(None, description="parameters of the frame, for a model that takes them")
    seed: int = Field(0, ge=0, description="the one seed of every random number; 0 is a seed like any other")
    checkpoint_seconds: float = Field(15.0, ge=0.0, description="wall time between checkpoints, s")

    @field_validator("model", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        """`a.dpsim, b.dpsim` is short for a list; a list of one is that one."""
        names = _names(value) if isinstance(value, str) else value
        return names[0] if isinstance(names, list | tuple) and len(names) == 1 else names

    @model_validator(mode="after")
    def _ranks_are_of_lammps(self) -> ProtocolHead:
        if self.ranks > 1 and self.engine != "lammps":
            raise ValueError(
                f"`ranks` is {self.ranks} with `engine: {self.engine}`; expected 1, or `engine: lammps`. Leave it out."
            )
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """Those that move the atoms: one, or the members of a committee."""
        return (self.model,) if isinstance(self.model, str) else self.model


_LABEL = r"^[A-Za-z0-9][\w-]*$"


class ComparedModels(ProtocolHead):
    """A protocol that does the same with other models beside `model`."""

    label: str = Field("model", pattern=_LABEL, description="what `model` is called in the results")
    compare: dict[Annotated[str, Field(pattern=_LABEL)], ModelName] = Field(
        {}, description="other models by their labels, {teacher: water-pbe0ts}"
    )

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if self.label in self.compare:
            raise ValueError(f"`compare` has {self.label}, as `model` is called; expected another. Change `label`.")
        return self

    @property
    def labelled(self) -> dict[str, Self]:
        """The same with each of the models as `model`, by their labels; the one in question first."""
        return {self.label: self} | {
            label: self.model_copy(update={"model": model}) for label, model in self.compare.items()
        }


class Protocol(ProtocolHead):
    """Molecular dynamics: stages one after the other, and analyses that judge them."""

    protocol: Literal["md"] = Field("md", description="what the file is: molecular dynamics where nothing is said")
    deviation: Deviation | None = Field(None, description="log how far a committee disagrees, harvest, stop")
    stages: tuple[Stage, ...]
    analyses: tuple[Analysis, ...] = ()

    @property
    def committee(self) -> tuple[str, ...]:
        """Those whose deviation is logged; () for none."""
        return () if self.deviation is None else (*self.models, *self.deviation.models)

    @model_validator(mode="after")
    def _committee_is_one(self) -> Protocol:
        doubled = sorted({m for m in self.committee or self.models if (self.committee or self.models).count(m) > 1})
        if doubled:
            raise ValueError(f"the models {doubled} are named twice; expected different ones. Leave the second out.")
        if self.deviation is None:
            return self
        if len(self.committee) < 2:
            raise ValueError(
                "`deviation.models` is empty, and `model` is one model; expected others to compare it with. Add them."
            )
        for stage in self.stages:
            if isinstance(stage, DynamicsStage):
                whole_number(self.deviation.every, stage.timestep, "deviation.every")
        return self

    @model_validator(mode="after")
    def _references_exist(self) -> Protocol:
        names = self.stage_names()
        if not names:
            raise ValueError("`stages` is empty; expected at least one stage. Add one, such as {type: nvt, ...}.")
        doubled = sorted({n for n in names if names.count(n) > 1})
        if doubled:
            raise ValueError(f"`stages` has {doubled} twice; expected different names. Give the stages a `name`.")
        for analysis in self.analyses:
            types = analysis.stage_types
            fitting = [n for n, stage in zip(names, self.stages, strict=True) if stage.type in types]
            if not fitting:
                raise ValueError(
                    f"`analyses` has {analysis.type}, but no stage is of type {' or '.join(types)}; expected one. "
                    "Add such a stage."
                )
            for name in analysis.named_stages():
                if name not in fitting:
                    raise ValueError(
                        f"`{analysis.type}` has the stage '{name}'; expected one of the stages {fitting}. Correct the "
                        "name."
                    )
        return self

    def stage_names(self) -> list[str]:
        """Names of the stages: given, or the type (numbered from the second of a type on: nvt, nvt2, ...)."""
        names: list[str] = []
        for stage in self.stages:
            before = sum(s.type == stage.type and s.name is None for s in self.stages[: len(names)])
            names.append(stage.name or (f"{stage.type}{before + 1}" if before else stage.type))
        return names


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
