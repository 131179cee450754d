"""What a run shows while it trains: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from dpsim.train.lcurve import Row


class Reporter(Protocol):
    """What the trainer tells."""

    def start(self, step: int, steps: int) -> None: ...
    def advance(self, step: int) -> None: ...
    def row(self, row: Row) -> None: ...
    def say(self, text: str) -> None: ...
    def stop(self) -> None: ...


class Silent:
    """Shows nothing."""

    def start(self, step: int, steps: int) -> None: ...
    def advance(self, step: int) -> None: ...
    def row(self, row: Row) -> None: ...
    def say(self, text: str) -> None: ...
    def stop(self) -> None: ...


class PlainReporter:
    """One line per row of the learning curve: for logs and pipes."""

    HEADER = "     step         lr  E train  F train    E val    F val   ms/step   left"

    def __init__(self, console: Console | None = None):
        self._console = console or Console(highlight=False)
        self._steps = 0
        self._ms = math.nan

    def start(self, step: int, steps: int) -> None:
        self._steps = steps
        self.say("RMSE: E in meV/atom, F in meV/A")
        self.say(self.HEADER)

    def advance(self, step: int) -> None:
        pass

    def row(self, row: Row) -> None:
        self._ms = row.get("ms_per_step", self._ms)
        errors = "".join(f"{_number(row.get(name)):>9}" for name in _ERRORS)
        left = (self._steps - row["step"]) * self._ms / 1000
        self.say(f"{int(row['step']):>9} {row['learning_rate']:>10.3e}{errors} {self._ms:>9.1f} {_duration(left):>6}")
        if of_tasks := _validation_of_tasks(row):
            self.say(f"          E/F val: {of_tasks}")

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        pass


class LiveReporter(PlainReporter):
    """A bar with the latest errors and the time left, below the lines of the learning curve."""

    def __init__(self, console: Console | None = None):
        super().__init__(console)
        self._bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[errors]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
            refresh_per_second=2,
            speed_estimate_period=120,
        )
        self._shown = 0.0

    def start(self, step: int, steps: int) -> None:
        super().start(step, steps)
        self._task = self._bar.add_task("train", total=steps, completed=step, errors=Text(""))
        self._bar.start()

    def advance(self, step: int) -> None:
        now = time.monotonic()
        if now - self._shown > 0.5:
            self._shown = now
            self._bar.update(self._task, completed=step)

    def row(self, row: Row) -> None:
        super().row(row)
        names = ("E", "F", "E val", "F val")
        shown = [f"{n} {_number(row[k])}" for n, k in zip(names, _ERRORS, strict=True) if k in row]
        self._bar.update(self._task, completed=row["step"], errors=Text("  ".join(shown), style="cyan"))

    def stop(self) -> None:
        self._bar.stop()


_ERRORS = (
    "energy_rmse_meV_per_atom",
    "force_rmse_meV_per_A",
    "validation_energy_rmse_meV_per_atom",
    "validation_force_rmse_meV_per_A",
)


def _validation_of_tasks(row: Row) -> str:
    """The validation errors of each of several tasks, E/F; "" where there are none."""
    tasks = [key.removesuffix("/validation_loss") for key in row if key.endswith("/validation_loss")]
    errors = {t: "/".join(_number(row.get(f"{t}/{name}")) for name in _ERRORS[2:]) for t in tasks}
    return ", ".join(f"{task} {of_task}" for task, of_task in errors.items())


def default_reporter() -> Reporter:
    """A live bar on a terminal, else plain lines."""
    console = Console(highlight=False)
    return LiveReporter(console) if console.is_terminal else PlainReporter(console)


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return f"{hours}:{minutes % 60:02d}h" if hours else f"{minutes}:{int(seconds % 60):02d}m"
