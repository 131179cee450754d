"""The trainer: ONE loop of batch -> energy, forces, virial -> loss -> gradient -> optimiser step.

Every step is a function of its number and the state (dpsim/train/state.py), so a run that was killed continues bit by
bit. In the run's folder: train.yaml (what was asked), lcurve.csv, checkpoint/, model-last.dpsim, model-best.dpsim.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from dpsim.config import dump_yaml
from dpsim.data.frame import Batch
from dpsim.data.sampler import prefetch
from dpsim.errors import TrainingError
from dpsim.files import atomic_write
from dpsim.models.checkpoint import save_model
from dpsim.models.multi_task import Trainable
from dpsim.train.config import InitConfig, TrainConfig
from dpsim.train.failure import training_error
from dpsim.train.finetune import complete, freeze
from dpsim.train.lcurve import LearningCurve, Row, columns_of, rmse_columns
from dpsim.train.loss import Loss, SquaredErrors, loss, prefactors, wanted
from dpsim.train.opening import opening, provenance
from dpsim.train.optimizer import build_optimizer
from dpsim.train.progress import Reporter, Silent, default_reporter
from dpsim.train.ranks import Ranks
from dpsim.train.rundir import RunDirectory, asked_to_stop, check_same_run, with_batches
from dpsim.train.schedule import decay, learning_rate
from dpsim.train.setup import build_fine_tuned, build_model, build_tasks, open_data
from dpsim.train.state import Checkpoints, Ema, Progress
from dpsim.train.tasks import Task, TaskBatches, validation_row
from dpsim.train.zero_shot import before_after

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
    ranks = Ranks.of_run(config.device)
    with ExitStack() as stack:
        if ranks.main:
            stack.enter_context(RunDirectory(Path(directory), resume))
        stack.enter_context(ranks)
        reporter = (reporter or default_reporter()) if ranks.main else Silent()
        return Trainer(config, Path(directory), resume, reporter, ranks).run()


class Trainer:
    """A training run in one folder."""

    def __init__(
        self, config: TrainConfig, directory: Path, resume: bool, reporter: Reporter, ranks: Ranks | None = None
    ):
        self.directory, self.reporter, self.ranks = directory, reporter, ranks or Ranks()
        self._began = time.monotonic()
        self.checkpoints = Checkpoints(directory)
        snapshot = self.checkpoints.load() if resume and self.checkpoints.exist() else None
        saved = snapshot.config if snapshot else {}
        self.config = config = with_batches(complete(config, saved), self.ranks.world, saved)
        self.data = open_data(config)
        self.progress = Progress()
        if snapshot is not None:
            check_same_run(snapshot.config, config, directory)
            self._prepare(snapshot.build_model())
            snapshot.restore(self.model, self.optimizer, self.ema)
            self.progress = snapshot.progress
            reporter.say(f"resuming at step {self.progress.step} of {config.steps}")
        else:
            if isinstance(config.init_from, InitConfig):
                model, stats, self.progress.fine_tuning = build_fine_tuned(config, self.data, reporter.say)
            else:
                model, stats = build_model(config, self.data)
            self._prepare(model)
            if self.ranks.main:
                atomic_write(directory / "train.yaml", dump_yaml(config).encode())
            reporter.say(opening(self.data, self.model, stats))
        self.ranks.copy_from_main(self.model)
        train = {name: of_task.train for name, of_task in self.data.items()}
        self.before_after = before_after(config, self.tasks, train, self.progress.fine_tuning)
        self._elapsed_before = self.progress.elapsed_s

    def _prepare(self, model: Trainable) -> None:
        """What is built the same way for a new run and a resumed one."""
        config = self.config
        self.model = model.to(self.ranks.device)
        if isinstance(config.init_from, InitConfig):
            freeze(self.model, config.init_from.freeze)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(config.optimizer, self.model)
        self.ema = Ema(self.model, config.ema.decay) if config.ema else None
        self.tasks = build_tasks(config, self.data, self.model)
        self.batches = TaskBatches(self.tasks, config.seed, config.batches_per_step or 1, self.ranks)
        self._facts = provenance(config, self.data) if self.ranks.main else {}

    def run(self) -> TrainResult:
        """Train to the last step, a signal, or the time limit."""
        progress, steps = self.progress, self.config.steps
        reason = ""
        with ExitStack() as stack:
            if self.ranks.main:
                columns = columns_of([t.name for t in self.tasks])
                curve = LearningCurve(self.directory, progress.step, self.config.tensorboard, columns)
                self.lcurve = stack.enter_context(curve)
            why_stop = stack.enter_context(asked_to_stop(self.config.time_limit))
            batches = stack.enter_context(closing(prefetch(self.batches.at, progress.step)))
            if progress.step == 0 and self.ranks.main:
                self._begin()
            self.reporter.start(progress.step, steps)
            stack.callback(self.reporter.stop)
            self._window_began = time.monotonic()
            while progress.step < steps and not reason:
                self.step(next(batches))
                self.reporter.advance(progress.step)
                reason = self.ranks.agree(why_stop())
                if self.ranks.main:
                    self._after_step(last=progress.step == steps or bool(reason))
        return self._result(reason)

    def _begin(self) -> None:
        """Save the model as it is before the first step; of a trained one, see first what it can do."""
        if self.before_after is not None:
            self.before_after.begin(self.progress.fine_tuning, self.reporter)
            if any(task.validator is not None for task in self.tasks):
                self._validate()
        self._save()

    def step(self, draws: Sequence[tuple[Task, Batch]]) -> float:
        """One optimisation step on the mean gradient of some batches, and of those that other ranks have.

        Returns: the mean loss of all. Raises: TrainingError before any harm is done.
        """
        config, step = self.config, self.progress.step
        self.optimizer.zero_grad(set_to_none=True)  # what no batch reaches, such as heads not drawn, is left alone
        results = [(task, batch, self._backward(task, batch)) for task, batch in draws]
        self.ranks.sum_gradients(self.parameters)
        value, errors = self._totals(results)
        norm = self._gradient_norm()
        if reason := self._trouble(value, norm):
            raise self._failure(reason, results)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.schedule, step, config.steps)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()
        self.progress.add(value, errors)
        self._last_norm = norm
        return value

    def _backward(self, task: Task, batch: Batch) -> Loss:
        """The loss of a batch; its share of the step's gradient is added to that of the parameters."""
        config = self.config
        batch = batch.to(self.ranks.device) if self.ranks.device.type != "cpu" else batch
        weights = prefactors(task.loss, decay(config.schedule, self.progress.step, config.steps))
        forces, virial = wanted(batch, weights)
        prediction = task.model(batch, forces=forces, virial=virial, create_graph=True)
        result = loss(prediction, batch, weights, task.loss.kind, task.loss.huber_delta, task.loss.relative_forces)
        torch.autograd.backward(result.total / self.batches.n, inputs=self.parameters)
        return result._replace(total=result.total.detach())

    def _totals(self, results: Sequence[tuple[Task, Batch, Loss]]) -> tuple[float, dict[str, SquaredErrors]]:
        """Mean loss of a step and its errors by task, of all ranks."""
        errors = {task.name: SquaredErrors() for task in self.tasks}
        for task, _, result in results:
            errors[task.name] += result.errors
        numbers = [float(sum(r.total for *_, r in results)), *(x for e in errors.values() for x in astuple(e))]
        total, *sums = self.ranks.sum(torch.tensor(numbers, dtype=torch.float64, device=self.ranks.device)).tolist()
        n = len(sums) // len(errors)
        found = {name: SquaredErrors(*sums[k * n : (k + 1) * n]) for k, name in enumerate(errors)}
        return total / self.batches.n, found

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

    def _failure(self, reason: str, results: Sequence[tuple[Task, Batch, Loss]]) -> TrainingError:
        """The error to raise; the rank that has the worst batch writes its frames."""
        step = self.progress.step + 1
        losses = [x if math.isfinite(x := float(result.total)) else math.inf for *_, result in results]
        if not self.ranks.has_largest(max(losses)):
            return TrainingError(f"{reason} at step {step}, in a batch of another process. See its message.")
        task, batch, result = results[losses.index(max(losses))]
        return training_error(reason, step, batch, result.per_frame, self.directory, task.model.type_map)

    def _after_step(self, last: bool) -> None:
        """Validate, log and save, as far as it is time to."""
        step, config = self.progress.step, self.config
        can = any(task.validator is not None for task in self.tasks)
        validate = can and (step % config.validation.every == 0 or step == config.steps)
        if validate or step % config.log_every == 0 or step == config.steps:
            row = self._row()
            if validate:
                row |= self._validate()
            self.lcurve.add(row)
            self.reporter.row(row)
            self.progress.clear_window()
            self._window_began = time.monotonic()
        if self.before_after is not None:
            self.before_after.check(step, self.progress.fine_tuning, self.reporter)
        if last or step % config.checkpoint.every == 0:
            self._save()

    def _row(self) -> Row:
        progress, config = self.progress, self.config
        n = progress.window_steps
        row = {
            "step": progress.step,
            "learning_rate": learning_rate(config.schedule, progress.step - 1, config.steps),
            "loss": progress.window_loss / n,
            **rmse_columns(progress.window),
            "gradient_norm": self._last_norm,
            "ms_per_step": 1000 * (time.monotonic() - self._window_began) / n,
            "elapsed_s": self._elapsed(),
        }
        for name, errors in progress.task_windows.items():
            row |= rmse_columns(errors, f"{name}/")
        return row

    def _validate(self) -> Row:
        """Errors on the validation frames; keeps the model if it is the best so far."""
        with ExitStack() as stack:
            if self.ema is not None:
                stack.enter_context(self.ema.applied())
            row = validation_row(self.tasks)
            score, best = row["validation_loss"], self.progress.best_score
            self.progress.metrics = {k: v for k, v in row.items() if math.isfinite(v)}
            if self.before_after is not None:
                self.before_after.note(self.progress.fine_tuning, row)
            if math.isfinite(score) and (best is None or score < best):
                self.progress.best_score, self.progress.best_step = score, self.progress.step
                save_model(self.directory / "model-best.dpsim", self.model, self._provenance())
        return row

    def _save(self) -> None:
        """model-last.dpsim, then the checkpoint: whoever finds a checkpoint of the last step has its model too."""
        self.lcurve.sync()
        self.progress.elapsed_s = self._elapsed()
        weights = self.ema.weights if self.ema is not None else None
        save_model(self.directory / "model-last.dpsim", self.model, self._provenance(), weights)
        self.checkpoints.save(self.config.model_dump(mode="json"), self.model, self.optimizer, self.ema, self.progress)

    def _provenance(self) -> dict[str, Any]:
        now = {
            "step": self.progress.step,
            "metrics": self.progress.metrics,
            "validation_frames": sum(len(t.validator.picks) for t in self.tasks if t.validator),
        }
        record = {"fine_tuning": self.progress.fine_tuning} if self.progress.fine_tuning else {}
        return {**self._facts, "training": {**self._facts["training"], **now}, **record}

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
        if finished and self.before_after is not None and self.ranks.main:
            self.before_after.end(self.progress.fine_tuning, self.reporter)
        return TrainResult(
            step=step,
            finished=finished,
            reason="" if finished else reason,
            metrics=dict(self.progress.metrics),
            model=self.directory / "model-last.dpsim",
            best_model=best if best.is_file() else None,
        )
