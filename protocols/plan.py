"""What a protocol will do and what that costs, known before it is begun: `dpsim run FILE --dry-run`.

The time of a step is measured, by a few steps in the engine itself; the size of the files follows from the intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Group
from rich.table import Table


@dataclass(frozen=True)
class Step:
    """A part of the work: what, of how many atoms and steps, the wall time (s; None: unknown) and the files (bytes)."""

    what: str
    n_atoms: int
    n_steps: int
    seconds: float | None
    n_bytes: float
    simulated_ps: float = 0.0
    done: int = 0  # steps that are already on the disk


@dataclass(frozen=True)
class Plan:
    """The parts, how many of them are worked on at the same time, and what else there is to say."""

    title: str
    steps: Sequence[Step]
    n_at_once: int = 1
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def seconds(self) -> float | None:
        """Wall time, s: that of all parts shared among the workers, and at least that of the longest."""
        times = [step.seconds for step in self.steps]
        known = [t for t in times if t is not None]
        if len(known) < len(times) or not known:
            return None
        return max(sum(known) / min(self.n_at_once, len(known)), *known)

    @property
    def n_bytes(self) -> float:
        """Of all files."""
        return sum(step.n_bytes for step in self.steps)
