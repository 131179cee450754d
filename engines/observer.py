"""What watches a stage while it runs, in every engine: it sees the state every so many steps, and may end the stage.

An observer changes no number of the dynamics. It is called at step 0 and at every multiple of `every`, once for each
step of the trajectory: after a kill the stage goes on from its checkpoint, and so does an observer that says what is
to be kept with it (`Recorder`). Its files are then what they would have been without the kill, byte by byte.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from dpsim.engines.base import State

Record = dict[str, Any]


class Observer(Protocol):
    """Is shown the state every `every` steps."""

    every: int

    def observe(self, step: int, state: State) -> str | None:
        """The state after `step` steps, in arrays of its own. Returns why the stage is to end here, None to go on."""


@runtime_checkable
class Recorder(Protocol):
    """An observer that remembers or writes. One that is none begins anew whenever a stage goes on.

    name: under which its record is kept with the checkpoints; unique in a stage.
    """

    name: str

    def open(self, directory: Path, record: Record | None) -> None:
        """A stage begins in `directory`, or, with the `record` of its checkpoint, goes on: forget what came later."""

    def record(self) -> Record:
        """Plain data to keep with a checkpoint of now (lengths of files, counters); all written is on the disk."""

    def close(self) -> None:
        """The stage is left, finished or not."""
