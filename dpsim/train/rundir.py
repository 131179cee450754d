"""The folder of a run, held by one process at a time; what may differ on resuming; and how a run is told to stop."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any

from dpsim.errors import ConfigError, TrainingError
from dpsim.signals import handling
from dpsim.train.config import TrainConfig

# Keys free to differ between a run and its continuation: they change nothing in the weights, `threads` but rounding.
FREE = {"log_every", "validation", "checkpoint", "threads", "time_limit", "tensorboard", "provenance"}


class RunDirectory:
    """Creates and locks the folder. Raises TrainingError if it holds a run already (and `resume` is off)."""

    def __init__(self, path: Path, resume: bool):
        self.path, self.resume = path, resume
        self._lock: IO[str] | None = None

    def __enter__(self) -> RunDirectory:
        if self.path.exists() and not self.path.is_dir():
            raise TrainingError(f"`{self.path}` is a file; expected a folder for the run. Choose another name.")
        if not self.resume and any((self.path / name).exists() for name in ("checkpoint", "lcurve.csv")):
            raise TrainingError(
                f"`{self.path}` already holds a run; expected a new or empty folder. "
                "Continue that run with --resume, or choose another folder."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / ".lock", "w", encoding="utf-8")  # held until __exit__
        if not _lock(self._lock):
            self._lock.close()
            raise TrainingError(f"`{self.path}` is in use by a running training. Stop it first, or wait for it.")
        for folder in (self.path, self.path / "checkpoint"):
            for left_over in folder.glob(".*.tmp"):
                left_over.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()


def _lock(file: IO[str]) -> bool:
    """Take the lock of an open file, which the system frees when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # not on this system: no protection
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def asked_to_stop(time_limit: float | None) -> Iterator[Callable[[], str]]:
    """A function that says why to stop after the present step: SIGINT, SIGTERM, or the time limit (fs); "": go on.

    A second SIGINT interrupts at once, a second SIGTERM does not.
    """
    asked: list[str] = []
    deadline = math.inf if time_limit is None else time.monotonic() + time_limit * 1e-15

    def remember(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(signal.Signals(number).name)

    def reason() -> str:
        return asked[-1] if asked else "time_limit" if time.monotonic() > deadline else ""

    with handling(remember):
        yield reason


def with_batches(config: TrainConfig, world: int, saved: Mapping[str, Any]) -> TrainConfig:
    """A configuration with its number of batches per step: as given, as in the run it continues, or one per process.

    Raises: ConfigError if processes would have nothing to do.
    """
    n = config.batches_per_step or (saved.get("batches_per_step") if saved else world if world > 1 else None)
    if (n or 1) < world:
        raise ConfigError(
            f"`batches_per_step` is {n or 1}; expected at least {world}, one for each process. "
            "Raise it in a new run, or start fewer processes."
        )
    return config.model_copy(update={"batches_per_step": n})


def check_same_run(saved: Mapping[str, Any], config: TrainConfig, directory: Path) -> None:
    """Raise ConfigError if a run is resumed with a configuration that would have made other weights."""
    as_now = TrainConfig.model_validate(saved)  # with the defaults of what is newer than the run
    old, new = (_flat(c.model_dump(mode="json")) for c in (as_now, config))
    different = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k) and k.split(".")[0] not in FREE]
    if different:
        key = different[0]
        raise ConfigError(
            f"`{key}` is {new.get(key)!r}; expected {old.get(key)!r}, as in the run in {directory}"
            + (f" ({len(different) - 1} more keys differ: {', '.join(different[1:4])})" if len(different) > 1 else "")
            + ". Resume with the run's own configuration, or start a new run in another folder."
        )


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, Mapping):
        return {prefix: data}
    return {k: v for key, value in data.items() for k, v in _flat(value, f"{prefix}.{key}".lstrip(".")).items()}
