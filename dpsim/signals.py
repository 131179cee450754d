"""SIGINT (Ctrl-C) and SIGTERM (of `kill` and Slurm) end work at the next good moment, or wherever it is."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGINT or SIGTERM asked to stop; a second one interrupts at once."""
    asked: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    with handling(remember):
        yield lambda: bool(asked)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """SIGINT and SIGTERM both raise KeyboardInterrupt, wherever the program is; so do the errors that follow of it."""
    asked: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    try:
        with handling(interrupt):
            yield
    except Exception as error:
        if asked:  # of processes that were interrupted with this one
            raise KeyboardInterrupt from error
        raise


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call `handler(number, frame)` at SIGINT and SIGTERM; those of before come back at the end."""
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handler)
    except ValueError:  # not in the main thread: whoever runs us there stops us in another way
        pass
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
