"""What `dpsim train` reads: train.yaml as one strict configuration. Defaults live here only."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from dpsim.config import FilePath, Force, ModelName, StrictModel, Time
from dpsim.models.config import ModelConfig
from dpsim.models.multi_task import HeadName, Sharing

Fraction = Annotated[float, Field(ge=0, lt=1)]


class WeightedPath(StrictModel):
    """Data drawn with a weight: all systems at or below `path` together."""

    path: FilePath
    weight: NonNegativeFloat = Field(1.0, description="share of the draws, relative to the other entries")


class DataConfig(StrictModel):
    """Where the frames come from and how they make batches."""

    train: list[FilePath | WeightedPath] = Field(
        min_length=1, description="folders or files with training data; a relative path counts from this file's folder"
    )
    validation: list[FilePath] = Field([], description="data never trained on; decides which model is the best one")
    batch_size: PositiveInt | str = Field(
        "auto",
        description='frames per step, or "auto" / "auto:N": the fewest frames with at least N (32) atoms, "max:N": the '
        "most frames with at most N atoms",
    )
    probabilities: str | list[NonNegativeFloat] = Field(
        "prob_sys_size", description="how a system is drawn: prob_sys_size, prob_uniform, or one weight per system"
    )
    frames: PositiveInt | None = Field(
        None, description="train on this many frames only, drawn at random: fewer ones are among more; default: all"
    )
    frames_seed: NonNegativeInt = Field(0, description="of the random order that `frames` takes the first ones of")

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.weighted and self.probabilities != "prob_sys_size":
            raise ValueError(
                f"`probabilities` is {self.probabilities!r}; expected it absent where entries of `train` carry "
                "weights. Remove one of the two."
            )
        return self

    @property
    def weighted(self) -> bool:
        return any(isinstance(entry, WeightedPath) for entry in self.train)


class Prefactor(StrictModel):
    """A weight in the loss that moves from `start` to `limit` as the learning rate decays."""

    start: NonNegativeFloat
    limit: NonNegativeFloat


class LossConfig(StrictModel):
    """Weights and kind of the loss (dpsim/train/loss.py)."""

    kind: Literal["mse", "huber"] = "mse"
    energy: Prefactor = Prefactor(start=0.02, limit=1.0)
    forces: Prefactor = Prefactor(start=1000.0, limit=1.0)
    virial: Prefactor = Prefactor(start=0.02, limit=1.0)
    relative_energy: Prefactor = Field(
        Prefactor(start=0.0, limit=0.0), description="of energy differences between frames of one composition"
    )
    prefactored_forces: Prefactor = Field(
        Prefactor(start=0.0, limit=0.0), description="of forces weighted atom by atom, with `atom_pref` in the data"
    )
    relative_forces: Force | None = Field(
        None, description="errors of forces are divided by the length of the force plus this; default: they are not"
    )
    huber_delta: PositiveFloat = Field(0.01, description="where the Huber loss turns linear: eV/atom and eV/A")

    @model_validator(mode="after")
    def _check(self) -> LossConfig:
        if self.relative_forces is not None and (self.relative_forces <= 0 or self.kind == "huber"):
            raise ValueError(
                f"`relative_forces` is {self.relative_forces:g} eV/A with the {self.kind} loss; expected a force above "
                "0, and mse: a relative error has no eV/A for `huber_delta` to count. Change one of the two."
            )
        return self


class TaskConfig(DataConfig):
    """One of several data sets that a model learns from at once."""

    weight: PositiveFloat = Field(1.0, description="share of the draws, relative to the other tasks")
    loss: LossConfig | None = Field(None, description="default: the loss of the run")


class OptimizerConfig(StrictModel):
    """Adam, AdamW with decoupled weight decay, or SOAP: Adam in the eigenbasis of the gradient's covariance."""

    type: Literal["adam", "adamw", "soap"] = Field(
        "adam", description="soap costs more per step and needs several times fewer (dpsim/train/soap.py)"
    )
    betas: tuple[Fraction, Fraction] | None = Field(
        None, description="decay of the two moments; default 0.9, 0.999 for Adam and 0.95, 0.95 for SOAP"
    )
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    gradient_clip: PositiveFloat | None = Field(None, description="largest norm of the gradient; longer ones are cut")


class ScheduleConfig(StrictModel):
    """The learning rate (dpsim/train/schedule.py)."""

    kind: Literal["exponential", "cosine"] = "exponential"
    start_lr: PositiveFloat = 1e-3
    stop_lr: PositiveFloat = 1e-8
    decay_steps: PositiveInt | None = Field(
        None, description="exponential: length of a step of the staircase; default 5000 or 1/100 of the run"
    )
    smooth: bool = Field(False, description="exponential: without the staircase")
    warmup_steps: NonNegativeInt = Field(0, description="steps over which the rate rises linearly to start_lr")

    @model_validator(mode="after")
    def _check(self) -> ScheduleConfig:
        if self.stop_lr > self.start_lr:
            raise ValueError(
                f"`stop_lr` is {self.stop_lr:g}; expected at most `start_lr` = {self.start_lr:g}. Swap or lower it."
            )
        return self


class EmaConfig(StrictModel):
    """Exponential moving average of the weights: what is validated and saved as model, when on."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999


class ValidationConfig(StrictModel):
    """How often and on how many frames the model is judged while it trains."""

    every: PositiveInt = Field(1000, description="steps")
    frames: PositiveInt = Field(40, description="frames, evenly spread over the validation data")


class CheckpointConfig(StrictModel):
    """How often the whole state is saved."""

    every: PositiveInt = Field(1000, description="steps")


class ProvenanceConfig(StrictModel):
    """What the model file says of itself, beyond what is recorded anyway."""

    name: str = ""
    description: str = ""
    licence: str = ""
    citation: str = ""


class ReplayConfig(StrictModel):
    """Data of the pre-training that a fine-tuning run goes on learning, so that it does not forget them."""

    tasks: dict[HeadName, TaskConfig] = Field(min_length=1, description="by the name of the head that each belongs to")
    share: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="of the draws, of all these tasks together")
    name: HeadName = Field("downstream", description="of the head for the new data")


Guard = Literal["elements", "energies", "virials", "learning_rate"]


class InitConfig(StrictModel):
    """Fine-tuning: which trained model to start from, and what of it to keep."""

    model: ModelName = Field(description="file or file:head; the descriptor and its statistics are taken from it")
    head: Literal["keep", "fresh"] = Field("keep", description="the head's fitting net, or a new one of random weights")
    energy_bias: Literal["refit", "keep"] = Field(
        "refit", description="fitted to the new data: least squares of label minus prediction, or as it is in the file"
    )
    freeze: list[str] = Field(
        [], description="parts whose weights stay, by name: descriptor, fitting, descriptor.repinit, ..."
    )
    replay: ReplayConfig | None = Field(None, description="data of the pre-training to go on learning")
    override: list[Guard] = Field([], description="guards that warn only (dpsim/train/guards.py)")
    trial_steps: PositiveInt = Field(
        100, description="steps after the warm-up, after which the loss is compared with the start"
    )


class TrainConfig(StrictModel):
    """A training run."""

    model: ModelConfig = Field(cast(ModelConfig, None), description="may be left out with `init_from`: as in the file")
    data: DataConfig | None = Field(None, description="one set of data")
    tasks: dict[HeadName, TaskConfig] = Field({}, description="several sets, by name, each with a head of its own")
    heads: Sharing = Field(
        "separate", description="of tasks: a fitting net for each, or one (encoded) that gets the code of the task"
    )
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig | None = Field(None, description="average the weights; off by default")
    init_from: ModelName | InitConfig | None = Field(
        None,
        description="a .dpsim file, or one of DeePMD-kit's (.dp, .yaml, .json, .pt), with :head if there are several: "
        "start from its weights and statistics instead of the seed, or in the long form fine-tune it for other data",
    )
    steps: PositiveInt = Field(description="number of optimisation steps of the whole run")
    batches_per_step: PositiveInt | None = Field(
        None, description="batches whose mean gradient makes a step; default: one for each process of the run"
    )
    seed: NonNegativeInt = Field(0, description="of the initial weights and of the order of the data")
    log_every: PositiveInt = Field(100, description="steps between lines of lcurve.csv")
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    threads: PositiveInt | None = Field(None, description="CPU threads; default: torch's choice")
    device: str = Field("cpu", description='"cpu" or "cuda"')
    time_limit: Time | None = Field(None, description='stop with a checkpoint after this wall time, as in "7200 s"')
    explosion_factor: PositiveFloat = Field(
        1e4, description="stop where the loss of a step exceeds this many times the running median"
    )
    tensorboard: bool | None = Field(None, description="write events for TensorBoard; default: if it is installed")
    provenance: ProvenanceConfig = ProvenanceConfig()

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.schedule.warmup_steps >= self.steps:
            raise ValueError(
                f"`schedule.warmup_steps` is {self.schedule.warmup_steps}; expected less than `steps` = {self.steps}. "
                "Shorten the warm-up."
            )
        if (self.data is None) == (not self.tasks):
            raise ValueError("`data` and `tasks` are both or neither given; expected one. Give the data of the run.")
        if not self.model and self.init_from is None:
            raise ValueError("`model` is missing; expected a value. Add it, or `init_from`.")
        replay = self.init_from.replay if isinstance(self.init_from, InitConfig) else None
        if replay is not None and replay.name not in self.tasks and (self.data is None or replay.name in replay.tasks):
            raise ValueError(
                f"`init_from.replay` has the tasks {', '.join(replay.tasks)} beside {replay.name}; expected `data`, to "
                "learn under a name of its own. Correct the names."
            )
        if self.heads == "encoded" and not self.tasks:
            raise ValueError("`heads` is encoded without `tasks`; expected tasks to encode. Remove `heads`.")
        return self

    @property
    def sets(self) -> dict[str, DataConfig]:
        """The data by name of its task; "" is the one of `data`."""
        return {"": self.data} if self.data is not None else dict(self.tasks)
