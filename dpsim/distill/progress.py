"""What a person sees while a distillation runs: bars in a terminal, lines elsewhere, and a row for every round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dpsim.train.progress import LiveReporter, PlainReporter, Reporter, Silent

if TYPE_CHECKING:
    from dpsim.distill.run import RoundRecord


class Display:
    """Prints to a console; a quiet one prints nothing."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self, name: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar over `total` pieces of work; what it yields counts one more."""
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=36),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        if not self.console.is_terminal:
            self.say(f"{name}: {total} {'piece' if total == 1 else 'pieces'} of work")
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(name, total=total)
            yield lambda: progress.advance(task)

    def reporter(self) -> Reporter:
        """What shows a training."""
        if self.console.quiet:
            return Silent()
        return LiveReporter(self.console) if self.console.is_terminal else PlainReporter(self.console)

    def counts(self, record: RoundRecord) -> None:
        """What became of the frames of a round, condition by condition."""
        for name, c in record.counts.items():
            what = (
                f"{c.accurate} accurate, {c.candidate} candidates, {c.failed} failed" if record.judged else "unjudged"
            )
            what += "".join(f", {n} {word}" for n, word in ((c.missing, "missing"), (c.set_aside, "set aside")) if n)
            what += f" ({100 * c.fraction_accurate:.1f} % accurate)" if record.judged else ""
            self.say(f"round {record.number} at {name}: {what}; {c.chosen} chosen")
