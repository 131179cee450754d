"""What `dpsim train` reads: train.yaml as one strict configuration. Defaults live here only."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from dpsim.config import FilePath, StrictModel, Time
from dpsim.models.config import ModelConfig

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
        "auto", description='frames per step, or "auto" / "auto:N": the fewest frames with at least N (32) atoms'
    )
    probabilities: str | list[NonNegativeFloat] = Field(
        "prob_sys_size", description="how a system is drawn: prob_sys_size, prob_uniform, or one weight per system"
    )

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
    huber_delta: PositiveFloat = Field(0.01, description="where the Huber loss turns linear: eV/atom and eV/A")


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


class TrainConfig(StrictModel):
    """A training run."""

    model: ModelConfig
    data: DataConfig
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig | None = Field(None, description="average the weights; off by default")
    init_from: FilePath | None = Field(
        None,
        description="a .dpsim file, or one of DeePMD-kit's (.dp, .yaml, .json, .pt, .pt:head), of the same model: "
        "start from its weights and statistics instead of the seed",
    )
    steps: PositiveInt = Field(description="number of optimisation steps of the whole run")
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
        return self
