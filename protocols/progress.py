"""What a person sees while a protocol runs: a live display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dpsim.engines.base import Progress
from dpsim.files import atomic_write

_PLAIN_SECONDS = 10.0
_LOOK_SECONDS = 1.0  # between looks at runs in other processes
_ROWS = 12  # of them are shown
PROGRESS, LOG = "progress.json", "log.txt"


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

    def show_runs(self, runs: Mapping[str, Progress]) -> None:
        """Update the display with runs that go on at the same time, by their names."""
        if self._live is not None:
            self._live.update(_runs_table(runs))
        elif runs and time.monotonic() - self._last_plain >= _PLAIN_SECONDS:
            for name, progress in runs.items():
                self.console.print(f"{name}  {describe(progress)}", markup=False, soft_wrap=True)
            self._last_plain = time.monotonic()


class ProgressFile(ProgressDisplay):
    """For a run in a folder that is watched from elsewhere: progress.json while it runs; what it says in log.txt."""

    def __init__(self, folder: Path):
        super().__init__(Console(quiet=True))
        self.folder = folder
        self._last = 0.0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        (self.folder / PROGRESS).unlink(missing_ok=True)

    def say(self, text: str) -> None:
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def show(self, progress: Progress) -> None:
        if time.monotonic() - self._last < _LOOK_SECONDS:
            return
        atomic_write(self.folder / PROGRESS, json.dumps(asdict(progress)).encode())
        self._last = time.monotonic()


@contextlib.contextmanager
def watching(folders: Mapping[str, Path], display: ProgressDisplay) -> Iterator[None]:
    """Show, meanwhile, what runs say of themselves in these folders (`ProgressFile`)."""
    ended, began = threading.Event(), time.time()

    def look() -> None:
        while not ended.wait(_LOOK_SECONDS):
            found = {name: _read_progress(folder / PROGRESS, began) for name, folder in folders.items()}
            display.show_runs({name: progress for name, progress in found.items() if progress is not None})

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _read_progress(path: Path, since: float) -> Progress | None:
    """What a run has said since a time; None if nothing."""
    try:
        return Progress(**json.loads(path.read_bytes())) if path.stat().st_mtime >= since else None
    except (OSError, ValueError, TypeError):
        return None


def describe(progress: Progress) -> str:
    """One line: stage, step, time, temperature, energy, drift of what is conserved, speed, time left."""
    done = f"{progress.stage}: step {progress.step}/{progress.n_steps}"
    energy = f"E {progress.total_energy_eV:.4f} eV"
    left = f"{duration(progress.seconds_left)} left"
    if progress.kind == "minimise":
        return f"{done}  {energy}  largest force {progress.max_force_eV_per_A or 0.0:.3f} eV/A"
    speed = f"{progress.ns_per_day:.3g} ns/day"
    numbers = [f"{progress.time_ps:.3f} ps", f"T {progress.temperature_K:.1f} K", energy, _drift(progress), speed, left]
    return "  ".join([done, *filter(None, numbers)])


def _drift(progress: Progress) -> str:
    drift = progress.drift_meV_per_atom_ps
    return "" if drift is None else f"drift {drift:+.2g} meV/atom/ps"


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
            _drift(progress),
            f"{progress.ns_per_day:.3g} ns/day",
        )
    outer = Table.grid()
    outer.add_row(table)
    outer.add_row(numbers)
    return outer


def _runs_table(runs: Mapping[str, Progress]) -> Table:
    """A line for each run."""
    table = Table.grid(padding=(0, 2))
    for name, p in list(runs.items())[:_ROWS]:
        bar = ProgressBar(total=p.n_steps, completed=p.step, width=16)
        numbers = f"T {p.temperature_K:.1f} K", f"{p.ns_per_day:.3g} ns/day", f"{duration(p.seconds_left)} left"
        table.add_row(Text(name, style="bold"), p.stage, bar, *numbers)
    if len(runs) > _ROWS:
        table.add_row(f"and {len(runs) - _ROWS} more")
    return table
