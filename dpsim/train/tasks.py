"""What a run learns from: one task, or several that are drawn by their weights; and which batches make a step.

Draws are numbered through the whole run: step s takes draws s n ... s n + n - 1, and rank r of w those with
number mod w = r. A draw is a task and the next batch of that task, a pure function of (seed, number). So n draws on one
rank are the same as on several, and resuming needs no random state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dpsim.data.frame import Batch
from dpsim.data.sampler import TASK_STREAM, BatchSampler, Draws
from dpsim.models.energy_model import EnergyModel
from dpsim.train.config import LossConfig
from dpsim.train.evaluate import Validator
from dpsim.train.lcurve import Row, rmse_columns
from dpsim.train.loss import SquaredErrors
from dpsim.train.ranks import Ranks


@dataclass(frozen=True)
class Task:
    """A data set to learn and the model of it, which may share weights with others. `name` is "" of the only one."""

    name: str
    model: EnergyModel
    sampler: BatchSampler
    validator: Validator | None
    loss: LossConfig
    weight: float = 1.0


class TaskBatches:
    """The batches of a step on one rank. Args: n: batches per step, on all ranks together."""

    def __init__(self, tasks: Sequence[Task], seed: int, n: int = 1, ranks: Ranks | None = None):
        self.tasks, self.n, self.ranks = list(tasks), n, ranks or Ranks()
        self._draws = Draws([t.weight for t in tasks], seed, TASK_STREAM)

    def at(self, step: int) -> list[tuple[Task, Batch]]:
        """The batches of `step`, with their tasks: a pure function of (seed, step)."""
        mine = [k for k in range(step * self.n, (step + 1) * self.n) if k % self.ranks.world == self.ranks.rank]
        return [(task, task.sampler.batch(number)) for task, number in map(self.draw, mine)]

    def draw(self, number: int) -> tuple[Task, int]:
        """The task of a draw, and which of that task's batches it is."""
        if len(self.tasks) == 1:
            return self.tasks[0], number
        index, before = self._draws.at(number)
        return self.tasks[index], before


def validation_row(tasks: Sequence[Task]) -> Row:
    """What a validation says: `validation_loss`, the mean over the tasks by their weights, errors of all frames
    together, and of several tasks also those of each. Tasks without validation data do not count."""
    score, weight, errors, of_each = 0.0, 0.0, SquaredErrors(), Row()
    for task in tasks:
        if task.validator is None:
            continue
        loss, errors_of_task = task.validator(task.model)
        score, weight = score + task.weight * loss, weight + task.weight
        errors += errors_of_task
        if task.name:
            of_each[f"{task.name}/validation_loss"] = loss
            of_each |= rmse_columns(errors_of_task, f"{task.name}/validation_")
    return {"validation_loss": score / weight, **rmse_columns(errors, "validation_"), **of_each}
