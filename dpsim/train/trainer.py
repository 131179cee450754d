"""The trainer: ONE loop of batch -> energy, forces, virial -> loss -> gradient -> optimiser step.

Every step is a function of its number and the state (dpsim/train/state.py), so a run that was killed continues bit by
bit. In the run's folder: train.yaml (what was asked), lcurve.csv, checkpoint/, model-last.dpsim, model-best.dpsim.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from dpsim.config import dump_yaml
from dpsim.data.frame import Batch
from dpsim.data.statistics import Statistics
from dpsim.models.checkpoint import save_model
from dpsim.models.container import atomic_write
from dpsim.models.energy_model import EnergyModel
from dpsim.models.local_frame_config import LocalFrameConfig
from dpsim.train.config import TrainConfig
from dpsim.train.evaluate import Validator
from dpsim.train.failure import training_error
from dpsim.train.lcurve import LearningCurve, Row
from dpsim.train.loss import loss, prefactors, wanted
from dpsim.train.optimizer import build_optimizer
from dpsim.train.progress import Reporter, default_reporter
from dpsim.train.rundir import RunDirectory, StopFlag, check_same_run
from dpsim.train.schedule import decay, learning_rate
from dpsim.train.setup import Data, build_model, build_sampler, open_data
from dpsim.train.state import Checkpoints, Ema, Progress

_MEDIAN_STEPS = 20  # steps before an explosion can be told from the start of training


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: steps done, whether all of them, why it stopped, and the last validation (meV/atom, meV/A)."""

    step: int
    finished: bool
    reason: str
    metrics: dict[str, float]
    model: Path
    best_model: Path | None


def train(
    config: TrainConfig, directory: str | Path, resume: bool = False, reporter: Reporter | None = None
) -> TrainResult:
    """Train a model in a folder; with `resume`, continue the run in it bit by bit.

    Raises: ConfigError, DataError for what cannot be used; TrainingError if the folder holds a run already, or if the
    loss explodes or is not a number (the frames are named and written to failure.extxyz).
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with RunDirectory(Path(directory), resume) as folder:
        return Trainer(config, folder.path, resume, reporter or default_reporter()).run()


class Trainer:
    """A training run in one folder."""

    def __init__(self, config: TrainConfig, directory: Path, resume: bool, reporter: Reporter):
        self.config, self.directory, self.reporter = config, directory, reporter
        self._began = time.monotonic()
        self.checkpoints = Checkpoints(directory)
        self.data = open_data(config.data, config.model.type_map)
        self.progress = Progress()
        if resume and self.checkpoints.exist():
            snapshot = self.checkpoints.load()
            check_same_run(snapshot.config, config, directory)
            self.model = snapshot.build_model().to(config.device)
            self._prepare()
            snapshot.restore(self.model, self.optimizer, self.ema)
            self.progress = snapshot.progress
            reporter.say(f"resuming at step {self.progress.step} of {config.steps}")
        else:
            model, stats = build_model(config, self.data)
            self.model = model.to(config.device)
            self._prepare()
            atomic_write(directory / "train.yaml", dump_yaml(config).encode())
            reporter.say(_opening(self.data, self.model, stats))
        self._elapsed_before = self.progress.elapsed_s

    def _prepare(self) -> None:
        """What is built the same way for a new run and a resumed one."""
        config = self.config
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(config.optimizer, self.model)
        self.ema = Ema(self.model, config.ema.decay) if config.ema else None
        self.sampler = build_sampler(config, self.data)
        n, systems = config.validation.frames, self.data.validation
        self.validator = Validator(systems, n, config.loss) if systems else None
        self._data_provenance = self.data.provenance()

    def run(self) -> TrainResult:
        """Train to the last step, a signal, or the time limit."""
        progress, steps = self.progress, self.config.steps
        with ExitStack() as stack:
            self.lcurve = stack.enter_context(LearningCurve(self.directory, progress.step, self.config.tensorboard))
            stop = stack.enter_context(StopFlag(self.config.time_limit))
            batches = stack.enter_context(closing(cast("Generator[Batch]", self.sampler.prefetch(progress.step))))
            if progress.step == 0:
                self._save()
            self.reporter.start(progress.step, steps)
            stack.callback(self.reporter.stop)
            self._window_began = time.monotonic()
            while progress.step < steps and not stop.reason:
                self.step(next(batches))
                self.reporter.advance(progress.step)
                self._after_step(last=progress.step == steps or bool(stop.reason))
        return self._result(stop.reason)

    def step(self, batch: Batch) -> float:
        """One optimisation step on a batch; returns its loss. Raises TrainingError before any harm is done."""
        config, step = self.config, self.progress.step
        batch = batch.to(config.device) if config.device != "cpu" else batch
        weights = prefactors(config.loss, decay(config.schedule, step, config.steps))
        forces, virial = wanted(batch, weights)
        prediction = self.model(batch, forces=forces, virial=virial, create_graph=True)
        result = loss(prediction, batch, weights, config.loss.kind, config.loss.huber_delta)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(result.total, inputs=self.parameters)
        norm = self._gradient_norm()
        value = float(result.total.detach())
        if reason := self._trouble(value, norm):
            raise training_error(reason, step + 1, batch, result.per_frame, self.directory, self.model.type_map)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.schedule, step, config.steps)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()
        self.progress.add(value, result.errors)
        self._last_norm = norm
        return value

    def _gradient_norm(self) -> float:
        """Norm of the gradient over all parameters; clips it if so configured."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
        clip = self.config.optimizer.gradient_clip
        if clip is not None and norm > clip:
            torch._foreach_mul_(gradients, clip / norm)
        return norm

    def _trouble(self, value: float, norm: float) -> str:
        """Why training has to stop here, or ''."""
        if not math.isfinite(value):
            return f"`loss` is {value}; expected a finite number,"
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm}; expected a finite number,"
        recent, factor = self.progress.recent_losses, self.config.explosion_factor
        if len(recent) >= _MEDIAN_STEPS and value > factor * (median := statistics.median(recent)) > 0:
            return f"`loss` is {value:.4g}; expected at most {factor:g} times the running median {median:.4g},"
        return ""

    def _after_step(self, last: bool) -> None:
        """Validate, log and save, as far as it is time to."""
        step, config = self.progress.step, self.config
        validate = self.validator is not None and (step % config.validation.every == 0 or step == config.steps)
        if validate or step % config.log_every == 0 or step == config.steps:
            row = self._row()
            if validate:
                row |= self._validate()
            self.lcurve.add(row)
            self.reporter.row(row)
            self.progress.clear_window()
            self._window_began = time.monotonic()
        if last or step % config.checkpoint.every == 0:
            self._save()

    def _row(self) -> Row:
        progress, config = self.progress, self.config
        n = progress.window_steps
        energy, forces, virial = (1000 * x for x in progress.window.rmse())
        return {
            "step": progress.step,
            "learning_rate": learning_rate(config.schedule, progress.step - 1, config.steps),
            "loss": progress.window_loss / n,
            "energy_rmse_meV_per_atom": energy,
            "force_rmse_meV_per_A": forces,
            "virial_rmse_meV_per_atom": virial,
            "gradient_norm": self._last_norm,
            "ms_per_step": 1000 * (time.monotonic() - self._window_began) / n,
            "elapsed_s": self._elapsed(),
        }

    def _validate(self) -> Row:
        """Errors on the validation frames; keeps the model if it is the best so far."""
        if self.validator is None:
            return {}
        with ExitStack() as stack:
            if self.ema is not None:
                stack.enter_context(self.ema.applied())
            score, errors = self.validator(self.model)
            energy, forces, virial = (1000 * x for x in errors.rmse())
            row = {
                "validation_loss": score,
                "validation_energy_rmse_meV_per_atom": energy,
                "validation_force_rmse_meV_per_A": forces,
                "validation_virial_rmse_meV_per_atom": virial,
            }
            self.progress.metrics = {k: v for k, v in row.items() if math.isfinite(v)}
            best = self.progress.best_score
            if math.isfinite(score) and (best is None or score < best):
                self.progress.best_score, self.progress.best_step = score, self.progress.step
                save_model(self.directory / "model-best.dpsim", self.model, self._provenance())
        return row

    def _save(self) -> None:
        """Checkpoint and model-last.dpsim."""
        self.lcurve.sync()
        self.progress.elapsed_s = self._elapsed()
        self.checkpoints.save(self.config.model_dump(mode="json"), self.model, self.optimizer, self.ema, self.progress)
        weights = self.ema.weights if self.ema is not None else None
        save_model(self.directory / "model-last.dpsim", self.model, self._provenance(), weights)

    def _provenance(self) -> dict[str, Any]:
        return {
            **self.config.provenance.model_dump(mode="json"),
            "data": self._data_provenance,
            "training": {
                "step": self.progress.step,
                "steps": self.config.steps,
                "seed": self.config.seed,
                "validation_frames": len(self.validator.picks) if self.validator else 0,
                "metrics": self.progress.metrics,
                "loss": self.config.loss.model_dump(mode="json"),
                "schedule": self.config.schedule.model_dump(mode="json"),
            },
        }

    def _elapsed(self) -> float:
        return self._elapsed_before + time.monotonic() - self._began

    def _result(self, reason: str) -> TrainResult:
        best = self.directory / "model-best.dpsim"
        step, steps = self.progress.step, self.config.steps
        finished = step >= steps
        self.reporter.say(
            f"finished: {steps} steps"
            if finished
            else f"stopped at step {step} of {steps} ({reason}); continue with --resume"
        )
        return TrainResult(
            step=step,
            finished=finished,
            reason="" if finished else reason,
            metrics=dict(self.progress.metrics),
            model=self.directory / "model-last.dpsim",
            best_model=best if best.is_file() else None,
        )


def _opening(data: Data, model: EnergyModel, stats: Sequence[Statistics]) -> str:
    """What a new run starts from, in a few lines."""
    n = sum(p.numel() for p in model.parameters())
    descriptor = model.config.descriptor
    cutoffs = ", ".join(f"cutoff {e.rcut:g} A with sel {e.sel}" for e in descriptor.environments)
    if isinstance(descriptor, LocalFrameConfig):  # its slots do cut
        warnings = [f"\nwarning: {model.config.caveat}"]
    else:
        pairs = zip(descriptor.environments, stats, strict=True)
        warnings = [_beyond_sel(e.sel, model.type_map, s) for e, s in pairs]
    return (
        f"data: {data.n_train} training frames in {len(data.train)} systems, {data.n_validation} for validation; "
        f"nearest two atoms {min(s.min_distance for s in stats):.3g} A\n"
        f"model: {descriptor.type} ({cutoffs}), elements {', '.join(model.type_map)}, {n:,} parameters, "
        + model.config.precision
        + "".join(warnings)
    )


def _beyond_sel(sel: list[int] | int | str, type_map: Sequence[str], stats: Statistics) -> str:
    """A warning if atoms of the data have more neighbours than `sel`: it normalises sums, and cuts nothing."""
    if isinstance(sel, list):
        pairs = zip(type_map, sel, stats.max_neighbors.tolist(), strict=True)
        over = [f"{found} {element} (sel {n})" for element, n, found in pairs if found > n]
    else:
        over = [f"{stats.max_neighbors_total} (sel {sel})"] if stats.max_neighbors_total > int(sel) else []
    if not over:
        return ""
    return (
        f"\nwarning: atoms have up to {', '.join(over)} neighbours; all of them count, and `sel` is only the "
        "normaliser here, but other codes would cut them. Raise `sel`, or set it to auto."
    )
