"""The state of a run, and the checkpoint that holds all of it: a kill at any moment loses steps, never the run.

Everything else a step depends on is a function of the step's number (batch, learning rate, prefactors) and of the
configuration, so weights + average + optimiser moments + these numbers continue a run bit by bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpsim.errors import ModelFileError, TrainingError
from dpsim.models import container
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel
from dpsim.models.multi_task import MultiTaskConfig, MultiTaskModel, Trainable
from dpsim.train.loss import SquaredErrors

FORMAT_VERSION = 1
RECENT = 100  # steps whose losses make the running median


@dataclass
class Progress:
    """Plain numbers of a run. `step` steps are done; the window is what came since the last line of lcurve.csv."""

    step: int = 0
    elapsed_s: float = 0.0
    best_score: float | None = None
    best_step: int | None = None
    window: SquaredErrors = field(default_factory=SquaredErrors)
    window_loss: float = 0.0
    window_steps: int = 0
    recent_losses: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)  # the last validation
    task_windows: dict[str, SquaredErrors] = field(default_factory=dict)  # of several tasks
    fine_tuning: dict[str, Any] = field(default_factory=dict)  # how the run began, where from a trained model

    def add(self, loss: float, errors: Mapping[str, SquaredErrors]) -> None:
        """Count one step in, with its errors by task."""
        for task, of_task in errors.items():
            self.window += of_task
            if task:
                self.task_windows.setdefault(task, SquaredErrors())
                self.task_windows[task] += of_task
        self.window_loss += loss
        self.window_steps += 1
        self.recent_losses = [*self.recent_losses[-(RECENT - 1) :], loss]
        self.step += 1

    def clear_window(self) -> None:
        self.window, self.window_loss, self.window_steps, self.task_windows = SquaredErrors(), 0.0, 0, {}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Progress:
        windows = {task: SquaredErrors(**errors) for task, errors in data.get("task_windows", {}).items()}
        return cls(**{**data, "window": SquaredErrors(**data["window"]), "task_windows": windows})


class Ema:
    """Exponential moving average of the weights: e <- d e + (1 - d) w after every step."""

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._model = model

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's present weights."""
        torch._foreach_lerp_(list(self.weights.values()), list(self._model.parameters()), 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, p in self._model.named_parameters():
            p.data, self.weights[name] = self.weights[name], p.data


def optimizer_tensors(model: Trainable, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments and step counts of an optimiser, by name of the parameter and of the quantity."""
    return {
        f"{name}|{key}": value
        for name, p in model.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(model: Trainable, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    parameters = dict(model.named_parameters())
    for full, value in tensors.items():
        name, _, key = full.rpartition("|")
        if name not in parameters:
            raise ModelFileError(f"checkpoint: optimiser state of `{name}`, which is no parameter of the model.")
        optimizer.state[parameters[name]][key] = value.clone()


class Checkpoints:
    """checkpoint/last.ckpt and the one before it, checkpoint/previous.ckpt."""

    def __init__(self, directory: Path):
        self.folder = directory / "checkpoint"
        self.last, self.previous = self.folder / "last.ckpt", self.folder / "previous.ckpt"

    def exist(self) -> bool:
        return self.last.is_file() or self.previous.is_file()

    def save(
        self,
        config: Mapping[str, Any],
        model: Trainable,
        optimizer: torch.optim.Optimizer,
        ema: Ema | None,
        progress: Progress,
    ) -> None:
        """Write the whole state; at every moment at least one whole checkpoint exists."""
        tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
        tensors |= {f"optimizer/{k}": v for k, v in optimizer_tensors(model, optimizer).items()}
        if ema is not None:
            tensors |= {f"ema/{k}": v for k, v in ema.weights.items()}
        header = {
            "format_version": FORMAT_VERSION,
            "config": dict(config),
            "model_config": model.config.model_dump(mode="json"),
            "progress": asdict(progress),
        }
        new = self.folder / "new.ckpt"
        container.write(new, tensors, header)
        if self.last.is_file():
            os.replace(self.last, self.previous)
        os.replace(new, self.last)

    def load(self) -> Snapshot:
        """The last checkpoint that is whole. Raises TrainingError if there is none."""
        reasons = []
        for path in (self.last, self.previous):
            if not path.is_file():
                continue
            try:
                return Snapshot(path, *container.read(path, "checkpoint"))
            except ModelFileError as error:
                reasons.append(str(error))
        raise TrainingError(
            f"`{self.folder}` holds no whole checkpoint; expected last.ckpt or previous.ckpt. "
            f"{' '.join(reasons)} Start a new run in another folder."
        )


class Snapshot:
    """A checkpoint read from disk."""

    def __init__(self, path: Path, header: dict[str, Any], tensors: dict[str, Tensor]):
        if header.get("format_version") != FORMAT_VERSION:
            raise TrainingError(
                f"`{path}` has format_version {header.get('format_version')!r}; expected {FORMAT_VERSION}. "
                "Resume with the version of dpsim that wrote it."
            )
        self.path = path
        self.config: dict[str, Any] = header["config"]
        self.model_config: dict[str, Any] = header["model_config"]
        self.progress = Progress.from_plain(header["progress"])
        self._tensors = tensors

    def _part(self, name: str) -> dict[str, Tensor]:
        prefix = f"{name}/"
        return {k.removeprefix(prefix): v for k, v in self._tensors.items() if k.startswith(prefix)}

    def build_model(self) -> Trainable:
        """The model as it was."""
        model: Trainable
        if "heads" in self.model_config:
            model = MultiTaskModel(MultiTaskConfig.model_validate(self.model_config))
        else:
            model = EnergyModel(ModelConfig.model_validate(self.model_config))
        weights = self._part("model")
        container.check_tensors(weights, model.state_dict(), self.path)
        model.load_state_dict(weights)
        return model

    def restore(self, model: Trainable, optimizer: torch.optim.Optimizer, ema: Ema | None) -> None:
        """Put the optimiser and the average back as they were; `model` is already."""
        restore_optimizer(model, optimizer, self._part("optimizer"))
        if ema is not None:
            container.check_tensors(self._part("ema"), ema.weights, self.path)
            for name, value in self._part("ema").items():
                ema.weights[name].copy_(value)
