"""An observer that writes down what it sees, counts, and may end the stage."""

from __future__ import annotations

from pathlib import Path

from dpsim.engines.base import State
from dpsim.engines.observer import Record
from dpsim.engines.output import Log

DIARY = "diary.txt"


class Diary:
    """A line for every look: how many there were, the step, and the state in full precision."""

    name = "diary"

    def __init__(self, every: int = 4, end_at: int | None = None):
        self.every, self.end_at = every, end_at
        self.count = 0
        self.seen: list[tuple[int, State]] = []

    def open(self, directory: Path, record: Record | None) -> None:
        self.count = 0 if record is None else record["count"]
        self._log = Log(directory / DIARY, None if record is None else record["length"], "count,step,sums\n")

    def observe(self, step: int, state: State) -> str | None:
        self.count += 1
        self.seen.append((step, state))
        sums = [float((values * values).sum()) for values in (state.positions, state.momenta, state.cell)]
        self._log.write(f"{self.count},{step},{sums!r}\n")
        return f"the diary is full at step {step}" if step == self.end_at else None

    def record(self) -> Record:
        return {"length": self._log.sync(), "count": self.count}

    def close(self) -> None:
        self._log.close()
