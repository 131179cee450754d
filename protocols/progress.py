"""What a person sees while a protocol runs: a live display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dpsim.engines.base import Progress

_PLAIN_SECONDS = 10.0


class ProgressDisplay:
    """`show` is an engine's monitor; `say` prints a line above the display."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._last_plain = 0.0
        self._last_stage = ""

    def __enter__(self) -> ProgressDisplay:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    def show(self, progress: Progress) -> None:
        """Update the display."""
        if self._live is not None:
            self._live.update(_panel(progress))
            return
        now = time.monotonic()
        due = now - self._last_plain >= _PLAIN_SECONDS
        if due or progress.step >= progress.n_steps or progress.stage != self._last_stage:
            self.console.print(describe(progress), markup=False, soft_wrap=True)
            self._last_plain, self._last_stage = now, progress.stage


def describe(progress: Progress) -> str:
    """One line: stage, step, time, temperature, energy, speed, time left."""
    done = f"{progress.stage}: step {progress.step}/{progress.n_steps}"
    energy = f"E {progress.total_energy_eV:.4f} eV"
    left = f"{duration(progress.seconds_left)} left"
    if progress.kind == "minimise":
        return f"{done}  {energy}  largest force {progress.max_force_eV_per_A or 0.0:.3f} eV/A"
    speed = f"{progress.ns_per_day:.3g} ns/day"
    return f"{done}  {progress.time_ps:.3f} ps  T {progress.temperature_K:.1f} K  {energy}  {speed}  {left}"


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _panel(progress: Progress) -> Table:
    """A bar and the numbers under it."""
    table = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=progress.n_steps, completed=progress.step, width=36)
    steps = f"{progress.step}/{progress.n_steps}"
    table.add_row(Text(progress.stage, style="bold"), bar, steps, f"{duration(progress.seconds_left)} left")
    numbers = Table.grid(padding=(0, 2))
    if progress.kind == "minimise":
        numbers.add_row(
            f"E {progress.total_energy_eV:.4f} eV", f"max force {progress.max_force_eV_per_A or 0.0:.3f} eV/A"
        )
    else:
        numbers.add_row(
            f"{progress.time_ps:.3f} ps",
            f"T {progress.temperature_K:.1f} K",
            f"E {progress.total_energy_eV:.4f} eV",
            f"{progress.ns_per_day:.3g} ns/day",
        )
    outer = Table.grid()
    outer.add_row(table)
    outer.add_row(numbers)
    return outer
