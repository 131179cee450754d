"""The student's training in a round: what `dpsim train` is told, made of distill.yaml and of the frames so far."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpsim.distill.config import DistillConfig
from dpsim.errors import ConfigError
from dpsim.models.checkpoint import read_header
from dpsim.models.config import ModelConfig
from dpsim.train.config import DataConfig, TrainConfig

_LATER_LR = 0.2  # of the first learning rate
_MEMBER = 1000  # seeds of the members of a committee are so far apart


def training_config(
    config: DistillConfig, round_: int, member: int, start: Path | None, labelled: Sequence[Path], final: bool = False
) -> TrainConfig:
    """The training of one student in a round.

    Args: start: the model it begins with, None: with its seed; labelled: folders with train.extxyz and
    validation.extxyz, those of all rounds so far.
    Raises: ConfigError where there is nothing to learn from.
    """
    settings = config.student.train
    files = {name: _not_empty(labelled, f"{name}.extxyz") for name in ("train", "validation")}
    if not (config.data or files["train"]):
        raise ConfigError("there is no labelled frame yet; expected some to train on. See what became of the rounds.")
    steps = settings.final_steps if final else settings.later_steps if start is not None else None
    schedule = settings.schedule
    if start is not None:
        lr = settings.later_lr or _LATER_LR * schedule.start_lr
        schedule = schedule.model_copy(update={"start_lr": max(lr, schedule.stop_lr)})
    return TrainConfig(
        model=config.student.model if start is None else _model_of(start),
        data=DataConfig(
            train=[*config.data, *files["train"]],
            validation=[*config.validation, *files["validation"]],
            batch_size=settings.batch_size,
        ),
        init_from=None if start is None else str(start),
        steps=steps or settings.steps,
        seed=config.seed + _MEMBER * member + round_,
        loss=settings.loss,
        optimizer=settings.optimizer,
        schedule=schedule,
        ema=settings.ema,
        validation=settings.validation,
        checkpoint=settings.checkpoint,
        log_every=settings.log_every,
        threads=settings.threads,
        device=settings.device,
        tensorboard=False,
        provenance=config.student.provenance.model_copy(update={"name": config.student.provenance.name or config.name}),
    )


def _not_empty(folders: Sequence[Path], name: str) -> list[Path]:
    return [file for folder in folders if (file := folder / name).is_file() and file.stat().st_size > 0]


def _model_of(path: Path) -> ModelConfig:
    """A trained model's own configuration: what was `auto` at first stays what it became."""
    return ModelConfig.model_validate(read_header(path)["config"])
