"""Functions that units of work run in the tests of the workers: processes import them from here."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from dpsim.errors import DataError


def note(folder: Path) -> int:
    """Count the calls for this folder, over all processes."""
    with open(folder / "calls", "a") as file:
        file.write(f"{os.getpid()}\n")
    return len((folder / "calls").read_text().splitlines())


def about() -> dict[str, Any]:
    return {"pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}


def square(folder: Path, x: float) -> dict[str, Any]:
    note(folder)
    return about() | {"square": x * x}


def moody(folder: Path, mood: str) -> dict[str, Any]:
    """Where it ran, or it fails, is killed, or dies the first time only, as `mood` says."""
    calls = note(folder)
    if mood == "fails":
        raise DataError("`mood` is fails; expected fine. Cheer up.")
    if mood == "breaks":
        return str(1 / 0)
    if mood == "killed" or (mood == "killed once" and calls == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if mood == "exits":
        raise SystemExit(3)
    if mood == "unspeakable":
        return {"what": object()}
    return about()


def sleep(folder: Path, seconds: float) -> str:
    note(folder)
    time.sleep(seconds)
    (folder / "woke").touch()
    return "slept"
