"""What `dpsim distill` reads: distill.yaml as one strict configuration. Defaults live here only.

teacher  labels frames; student  learns from them; explore  makes frames; select  keeps those worth a label;
rounds, converged, budget  say when it ends; compress, accept  what is done with the last student.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from dpsim.config import FilePath, Force, Length, ModelName, StrictModel, Temperature, Time
from dpsim.distill.accept_config import AcceptConfig, Condition
from dpsim.engines.registry import EngineName
from dpsim.errors import did_you_mean
from dpsim.models.config import ModelConfig, Precision
from dpsim.protocols.schema import Structure
from dpsim.train.config import (
    CheckpointConfig,
    EmaConfig,
    LossConfig,
    OptimizerConfig,
    ProvenanceConfig,
    ScheduleConfig,
    ValidationConfig,
)
from dpsim.workers import WorkersConfig

Fraction = Annotated[float, Field(ge=0, le=1)]
Driver = Literal["teacher", "student", "perturb", "given"]


class PythonTeacher(StrictModel):
    """Any ASE calculator: `{python: "ase.calculators.emt:EMT"}` calls EMT() for one."""

    python: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$", description='"package.module:factory", called with kwargs'
    )
    kwargs: dict[str, Any] = Field({}, description="arguments of the factory")
    folder: FilePath = Field(
        Path(), validate_default=True, description="where modules may lie that are not installed; default: this file's"
    )


class OfflineFormat(StrictModel):
    """How frames are handed out for labels and taken back (dpsim/distill/offline.py)."""

    format: str = Field("extxyz", description="of each frame's input besides extxyz: one that ASE writes, e.g. vasp")
    options: dict[str, Any] = Field({}, description="arguments of ase.io.write for that format")
    template: FilePath | None = Field(None, description="folder whose files are put beside each input")
    results: tuple[str, ...] = Field(
        ("*.extxyz", "OUTCAR", "*.pwo", "*.out"),
        min_length=1,
        description="names of results in a frame's folder: extxyz, or an output that ASE reads",
    )
    enough: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="go on as soon as this fraction of the frames has results; the rest is set aside"
    )

    @field_validator("format")
    @classmethod
    def _is_written(cls, value: str) -> str:
        from ase.io.formats import ioformats

        known = [name for name, form in ioformats.items() if form.can_write]
        if value not in known:
            hint = did_you_mean(value, known)
            raise ValueError(f"`format` is {value!r}; expected one that ASE writes, e.g. vasp or espresso-in.{hint}")
        return value

    @field_validator("template")
    @classmethod
    def _is_folder(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError(f"`template` is {value}, which is no folder; expected one with files. Correct the path.")
        return value


class OfflineTeacher(StrictModel):
    """Frames are written out, dpsim stops, somebody labels them, the same command goes on: `{offline: {}}`."""

    offline: OfflineFormat


class StudentTraining(StrictModel):
    """How the student is trained in every round; as in train.yaml where not said otherwise."""

    steps: PositiveInt = Field(description="steps of the first training")
    later_steps: PositiveInt | None = Field(None, description="of every later round; default: as many")
    final_steps: PositiveInt | None = Field(
        None, description="of one more training on all data once the rounds are over; default: none"
    )
    warm_start: bool = Field(True, description="every training begins with the weights of the one before")
    later_lr: PositiveFloat | None = Field(None, description="start_lr of a warm start; default: a fifth of start_lr")
    batch_size: PositiveInt | str = "auto"
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig | None = None
    held_out: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="fraction of the labelled frames kept for validation"
    )
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every: PositiveInt = 100
    threads: PositiveInt | None = Field(None, description="CPU threads; default: torch's choice")
    device: str = Field("cpu", description='"cpu" or "cuda"')


class StudentSettings(StrictModel):
    """The model that learns."""

    model: ModelConfig
    train: StudentTraining
    init_from: ModelName | None = Field(None, description="a model of the same configuration to begin with")
    provenance: ProvenanceConfig = Field(ProvenanceConfig(), description="for the model card: name, licence, ...")


class ExploreConfig(StrictModel):
    """Molecular dynamics at the conditions of the intended use; several walkers at each."""

    engine: EngineName = Field("ase", description="the code that integrates the equations of motion")
    driver: Literal["student", "teacher"] = Field("student", description="whose forces move the atoms")
    first_driver: Driver | None = Field(
        None,
        description="in the first round; given: no dynamics, frames of `given`; perturb: none either, the structures "
        "with random displacements and strains. Default: given if there is any; else student if there is one or data "
        "to train it on; else teacher, or perturb where it is offline",
    )
    given: list[FilePath] = Field(
        [],
        description="sets of frames from which the first round takes its own, for the teacher to label; their "
        "labels are not used",
    )
    displacement: Length = Field(0.1, ge=0.0, description="perturb: standard deviation of each coordinate")
    strain: NonNegativeFloat = Field(0.02, description="perturb: standard deviation of each strain of a periodic cell")
    structures: list[Structure] = Field(min_length=1, description="where walkers start, in turn")
    conditions: list[Condition] = Field(min_length=1)
    walkers: PositiveInt = Field(2, description="at each condition, in each round")
    duration: Time | list[Time] = Field(description="of a walker; a list: one for each round, the last one stays")
    timestep: Time = Field(0.5, gt=0.0)
    skip: Time = Field(0.0, ge=0.0, description="no frames before this time")
    frames: PositiveInt = Field(50, description="of each walker, evenly spread over the rest: those that are judged")
    thermostat: Literal["bussi", "langevin"] = "bussi"
    damping: Time = Field(100.0, gt=0.0, description="relaxation time of the thermostat")
    pressure_damping: Time = Field(1000.0, gt=0.0, description="relaxation time of the barostat")
    max_temperature: Temperature | None = Field(
        None, gt=0.0, description="above it a walker has exploded; default: five times its condition's"
    )
    compressed: bool = Field(True, description="the student drives as tables, which is faster, if `compress` is given")
    device: str = Field("cpu", description="where the student drives and is judged")

    @field_validator("conditions")
    @classmethod
    def _once(cls, value: list[Condition]) -> list[Condition]:
        names = [c.name for c in value]
        if len(set(names)) < len(names):
            raise ValueError(f"`conditions` are {names}; expected each of them once. Raise `walkers` for more.")
        return value

    @model_validator(mode="after")
    def _check(self) -> ExploreConfig:
        if not (isinstance(self.duration, float) or self.duration):
            raise ValueError("`duration` is an empty list; expected at least one time. Write for example [1 ps, 5 ps].")
        for duration in [self.duration] if isinstance(self.duration, float) else self.duration:
            if (duration - self.skip) / self.timestep < self.frames - 1e-6:
                raise ValueError(
                    f"`frames` is {self.frames}, but {duration:g} fs less {self.skip:g} fs of `skip` are "
                    f"{max(0.0, duration - self.skip) / self.timestep:g} steps; expected no more frames than steps. "
                    "Ask for fewer, or for a longer `duration`."
                )
        return self

    def duration_of(self, round_: int) -> float:
        """fs."""
        if isinstance(self.duration, float):
            return self.duration
        return self.duration[min(round_, len(self.duration) - 1)]


class SelectConfig(StrictModel):
    """Which frames are worth a label: those the student gets wrong by more than the first trust level, less than the
    second, and that differ from one another.
    """

    trust: tuple[Force, Force] = Field(
        description="below the first level a frame is accurate, above the second it has failed, between them it is a "
        "candidate"
    )
    measure: Literal["max", "rms"] = Field(
        "max", description="of a frame's atoms: the largest error of a force, or the root of the mean of its square"
    )
    max_frames: PositiveInt = Field(100, description="at most this many are labelled in a round")
    min_distance: NonNegativeFloat = Field(
        0.0,
        description="frames nearer than this to a chosen one, or to one of an earlier round, are left out; in units of "
        "the spread of atoms' environments (dpsim/distill/fingerprint.py)",
    )

    @field_validator("trust")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        low, high = value
        if not 0 <= low < high:
            way = "the wrong way round; swap them" if low > high else "the same or negative; set them apart"
            raise ValueError(
                f"`trust` is [{low:g} eV/A, {high:g} eV/A]; expected the lower level first, then a higher one. They "
                f"are {way}."
            )
        return value


class Convergence(StrictModel):
    """When the rounds are over before they are used up."""

    accurate: Fraction = Field(0.95, description="of the frames at every condition lie below the first trust level")
    rounds: PositiveInt = Field(1, description="in so many rounds in a row")
    change: Fraction = Field(0.02, description="or: the fraction rose by no more than this ...")
    stable_rounds: PositiveInt | None = Field(None, description="... over so many rounds; default: never stop for it")


class Budget(StrictModel):
    """What may be spent at most; the loop ends with the student it has then."""

    labels: PositiveInt | None = Field(None, description="frames given to the teacher for labels, in all")
    time: Time | None = Field(None, gt=0.0, description='wall time of all runs together, as in "86400 s"')


class CompressConfig(StrictModel):
    """How the last student is tabulated, as `dpsim compress` does."""

    tolerance: PositiveFloat = Field(1e-5, description="largest error of a force component, eV/A")
    rank: Literal["full", "auto"] | PositiveInt = "full"
    frames: PositiveInt = Field(20, description="labelled frames on which errors are measured")
    precision: Precision = "float32"


class DistillConfig(StrictModel):
    """A distillation, or concurrent learning: `dpsim distill distill.yaml`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="of the run, its folder and its model")
    teacher: ModelName | PythonTeacher | OfflineTeacher = Field(
        description='who labels: a model ("file.dpsim", "file.dpsim:head", "file.pt:head", a bundled name), '
        '{python: "package.module:factory", kwargs: {...}} for an ASE calculator, or {offline: {}}'
    )
    teacher_device: str = Field("cpu", description='of a model as teacher: "cpu", "cuda"')
    selector: Literal["teacher", "committee"] = Field(
        "teacher",
        description="what judges a frame: the student's error against the teacher, or how far several students "
        "disagree (concurrent learning: labels only for what is chosen)",
    )
    committee: Annotated[int, Field(ge=2)] = Field(4, description="students of a committee, alike but for the seed")
    student: StudentSettings
    data: list[FilePath] = Field([], description="labelled sets to begin with, of the teacher's level of theory")
    validation: list[FilePath] = Field([], description="labelled sets never trained on; besides `held_out`")
    explore: ExploreConfig
    select: SelectConfig
    rounds: PositiveInt = Field(10, description="at most")
    converged: Convergence = Convergence()
    budget: Budget = Budget()
    compress: CompressConfig | None = Field(CompressConfig(), description="null: leave the student as it is")
    accept: AcceptConfig | None = Field(None, description="the test at the end; null: none")
    workers: WorkersConfig = Field(WorkersConfig(), description="where walkers and labelling run")
    seed: NonNegativeInt = Field(0, description="the one seed of every random number")

    @model_validator(mode="after")
    def _check(self) -> DistillConfig:
        offline = isinstance(self.teacher, OfflineTeacher)
        if offline and self.selector == "teacher":
            raise ValueError(
                "`selector` is teacher and the teacher is offline; expected committee: an offline teacher would label "
                "every explored frame. Write `selector: committee`."
            )
        if offline and "teacher" in (self.explore.driver, self.explore.first_driver):
            raise ValueError("`driver` is teacher, which is offline; expected student. Write `driver: student`.")
        if offline and self.accept is not None:
            raise ValueError(
                "`accept` is given, but the teacher is offline; expected one to simulate with. Leave it out."
            )
        if self.selector == "committee" and self.student.init_from is not None:
            raise ValueError(
                "`student.init_from` is given with `selector: committee`; expected none: students that begin alike do "
                "not disagree where they should. Leave it out."
            )
        if self.explore.first_driver == "given" and not self.explore.given:
            raise ValueError("`explore.first_driver` is given, but `explore.given` is empty; expected sets. Name some.")
        if self.explore.first_driver == "student" and not self.has_first_student:
            raise ValueError(
                "`explore.first_driver` is student, but there is none yet; expected `student.init_from`, or `data` to "
                "train it on. Give one of them, or let the teacher drive."
            )
        return self

    @property
    def has_first_student(self) -> bool:
        """Whether there is a student, or data to train one on, before anything is explored."""
        return bool(self.data) or self.student.init_from is not None

    def driver(self, round_: int) -> Driver:
        """Whose forces move the atoms in a round (from 0)."""
        if round_ > 0:
            return self.explore.driver
        if self.explore.first_driver is not None:
            return self.explore.first_driver
        if self.explore.given:
            return "given"
        return self.explore.driver if self.has_first_student else self.driver_without_student

    @property
    def driver_without_student(self) -> Driver:
        """Who drives where there is no student, or none that stays at its conditions."""
        return "perturb" if isinstance(self.teacher, OfflineTeacher) else "teacher"
