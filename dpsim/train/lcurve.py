"""The learning curve: lcurve.csv, one line per `log_every` steps and per validation, and TensorBoard events."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from dpsim.errors import MissingDependencyError
from dpsim.files import atomic_write
from dpsim.train.loss import SquaredErrors

COLUMNS = (
    "step",
    "learning_rate",
    "loss",
    "energy_rmse_meV_per_atom",
    "force_rmse_meV_per_A",
    "virial_rmse_meV_per_atom",
    "gradient_norm",
    "validation_loss",
    "validation_energy_rmse_meV_per_atom",
    "validation_force_rmse_meV_per_A",
    "validation_virial_rmse_meV_per_atom",
    "ms_per_step",
    "elapsed_s",
)
Row = dict[str, float]


def columns_of(tasks: Sequence[str]) -> tuple[str, ...]:
    """The columns of a run: of several tasks, also those of each, as in `water/force_rmse_meV_per_A`."""
    own = [name for name in COLUMNS if "rmse" in name or name == "validation_loss"]
    return (*COLUMNS, *(f"{task}/{name}" for task in tasks if task for name in own))


def rmse_columns(errors: SquaredErrors, prefix: str = "") -> Row:
    """The RMSE of energy, forces and virial (meV/atom, meV/A, meV/atom) as columns with a prefix to their names."""
    names = ("energy_rmse_meV_per_atom", "force_rmse_meV_per_A", "virial_rmse_meV_per_atom")
    return {f"{prefix}{name}": 1000 * x for name, x in zip(names, errors.rmse(), strict=True)}


class LearningCurve:
    """Appends rows to a CSV file. Rows later than `start_step` (of a run that was killed) are removed first."""

    def __init__(
        self,
        directory: Path,
        start_step: int,
        tensorboard: bool | None = None,
        columns: Sequence[str] = COLUMNS,
    ):
        self.path, self.columns = directory / "lcurve.csv", tuple(columns)
        rows = [row for row in read_lcurve(self.path) if row["step"] <= start_step] if self.path.is_file() else []
        atomic_write(self.path, (",".join(self.columns) + "\n" + "".join(map(self._line, rows))).encode())
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        self._events = _event_writer(directory / "tensorboard", start_step, tensorboard)

    def __enter__(self) -> LearningCurve:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()

    def add(self, row: Row) -> None:
        """Append one row; columns it lacks stay empty."""
        self._file.write(self._line(row))
        self._file.flush()
        if self._events is not None:
            for name in self.columns[1:]:
                if name in row and math.isfinite(row[name]):
                    self._events.add_scalar(name, row[name], int(row["step"]))

    def sync(self) -> None:
        """Have the rows on disk, before a checkpoint says that these steps are done."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.flush()

    def _line(self, row: Row) -> str:
        cells = [row.get(name, math.nan) for name in self.columns]
        texts = ["" if not math.isfinite(v) else repr(int(v)) if k == 0 else f"{v:.8g}" for k, v in enumerate(cells)]
        return ",".join(texts) + "\n"


def read_lcurve(path: str | Path) -> list[Row]:
    """The rows of an lcurve.csv; empty cells are left out, an unfinished last line is dropped."""
    text = Path(path).read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    rows = []
    for cells in csv.DictReader(io.StringIO(whole)):
        rows.append({name: float(value) for name, value in cells.items() if name and value})
    return [row for row in rows if "step" in row]


def _event_writer(folder: Path, start_step: int, wanted: bool | None) -> Any:
    """TensorBoard's writer, or None if it is not wanted, or not installed and not asked for."""
    if wanted is False:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        if wanted:
            raise MissingDependencyError("tensorboard", "tensorboard", "Writing events for TensorBoard") from None
        return None
    return SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)
