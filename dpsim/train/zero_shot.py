"""What a fine-tuned model could do before, and can do after: its errors on frames that stay the same.

The frames are those of the validation data, or without any an even spread of the training data. The start is judged on
training frames with the prefactors of the first step: what the first steps are to lower, they must not raise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpsim.data.system import System
from dpsim.train.config import InitConfig, LossConfig, Prefactor, TrainConfig
from dpsim.train.evaluate import Validator
from dpsim.train.guards import Guards, StartLoss, check_start
from dpsim.train.lcurve import Row, rmse_columns
from dpsim.train.loss import Prefactors
from dpsim.train.progress import Reporter
from dpsim.train.tasks import Task

_TRIAL_FRAMES = 16
_LABELS = {
    "energy_rmse_meV_per_atom": ("energy", "meV/atom"),
    "force_rmse_meV_per_A": ("forces", "meV/A"),
    "virial_rmse_meV_per_atom": ("virial", "meV/atom"),
}


class BeforeAfter:
    """Measures the tasks that are new to a model, before its first step and after its last one.

    Args: init: the `init_from` of the run; train: training systems of each task; new: names of the tasks that are new.
    """

    def __init__(
        self,
        init: InitConfig,
        config: TrainConfig,
        tasks: Sequence[Task],
        train: Mapping[str, Sequence[System]],
        new: Sequence[str],
    ):
        self.config, self.guards = config, Guards(init.override)
        self.trial_step = min(config.steps, config.schedule.warmup_steps + init.trial_steps)
        self.tasks = {t.name: t for t in tasks if t.name in new}
        self._trials = {n: Validator(train[n], _TRIAL_FRAMES, t.loss) for n, t in self.tasks.items()}
        self._measured = {
            n: t.validator or Validator(train[n], config.validation.frames, t.loss) for n, t in self.tasks.items()
        }
        validated = all(t.validator is not None for t in self.tasks.values())
        n_frames = sum(len(v.picks) for v in self._measured.values())
        self.frames = f"{n_frames} {'validation' if validated else 'training'} frames"

    def begin(self, record: dict[str, Any], reporter: Reporter) -> None:
        """Tell the zero-shot errors, and add them and the loss of the trial to the record."""
        errors = self.errors()
        record |= {"frames": self.frames, "zero_shot": _plain(errors), "trial_loss": list(self._trial())}
        for name, row in errors.items():
            told = [f"{of} {row[key]:.4g} {unit}" for key, (of, unit) in _LABELS.items() if key in row]
            reporter.say(f"zero-shot{_of(name)}: {', '.join(told)}, on {self.frames}")

    def check(self, step: int, record: dict[str, Any], reporter: Reporter) -> None:
        """At the step of the trial compare the loss with that of the start. Raises TrainingError if that is lost."""
        if step == self.trial_step:
            rate = self.config.schedule.start_lr
            found = check_start(StartLoss(*record["trial_loss"]), self._trial(), step, rate)
            if told := self.guards.judge("learning_rate", found):
                reporter.say(told)

    def errors(self) -> dict[str, Row]:
        """RMSE of each new task, of the quantities that have labels: energy, force and virial, as in lcurve.csv."""
        rows = {n: rmse_columns(validator(self.tasks[n].model)[1]) for n, validator in self._measured.items()}
        return {name: {key: x for key, x in row.items() if math.isfinite(x)} for name, row in rows.items()}

    def note(self, record: dict[str, Any], validation: Row) -> None:
        """Add the errors of a validation to the record, for the model that is saved then."""
        after = {}
        for name in self.tasks:
            prefix = f"{name}/validation_" if name else "validation_"
            found = {key: validation.get(prefix + key, math.nan) for key in _LABELS}
            after[name] = {key: x for key, x in found.items() if math.isfinite(x)}
        record["after"] = _plain(after)

    def end(self, record: dict[str, Any], reporter: Reporter) -> None:
        """Tell the errors after training beside those before."""
        after = record.get("after") or _plain(self.errors())
        for name in self.tasks:
            row, before = (rows[name] if name else rows for rows in (after, record["zero_shot"]))
            told = [f"{of} {before[k]:.4g} -> {row[k]:.4g} {unit}" for k, (of, unit) in _LABELS.items() if k in row]
            reporter.say(f"fine-tuned{_of(name)}: {', '.join(told)}, on {self.frames}")

    def _trial(self) -> StartLoss:
        """The mean loss of the new tasks on their trial frames."""
        of_tasks = [
            [trial.with_loss(config)(self.tasks[name].model)[0] for config in (as_at_first(trial.config), trial.config)]
            for name, trial in self._trials.items()
        ]
        return StartLoss(*(sum(values) / len(values) for values in zip(*of_tasks, strict=True)))


def _plain(rows: dict[str, Row]) -> dict[str, Any]:
    """By task; of the only one, its row itself."""
    return dict(rows.get("", rows))


def _of(name: str) -> str:
    return f" ({name})" if name else ""


def as_at_first(config: LossConfig) -> LossConfig:
    """The loss with the prefactors of the first step throughout."""
    starts = {name: getattr(config, name).start for name in Prefactors._fields}
    return config.model_copy(update={name: Prefactor(start=p, limit=p) for name, p in starts.items()})


def before_after(
    config: TrainConfig, tasks: Sequence[Task], train: Mapping[str, Sequence[System]], record: Mapping[str, Any]
) -> BeforeAfter | None:
    """For a run that fine-tunes, whose record says which tasks are new; None for any other."""
    init = config.init_from
    return BeforeAfter(init, config, tasks, train, record["new"]) if isinstance(init, InitConfig) else None
