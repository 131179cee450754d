"""What a benchmark worker and its driver say to each other: one JSON object per line, marked, over stdin and stdout.

Imported by workers of either environment, so it depends on the standard library only.
"""

import json
import platform
import sys
from pathlib import Path

MARK = "@@bench "


def say(message: dict) -> None:
    """Send one message to the driver; everything else a library prints is ignored by it."""
    print(MARK + json.dumps(message), flush=True)


def hear() -> dict:
    """The driver's next message; {"do": "quit"} at the end of input."""
    line = sys.stdin.readline()
    return json.loads(line) if line else {"do": "quit"}


def memory_MiB() -> dict[str, float]:
    """Present and peak resident memory of this process (Linux VmRSS, VmHWM: both start anew at exec)."""
    status = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Vm")
    )
    return {key: int(status[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM")}


def versions(*packages: str) -> dict[str, str]:
    """Versions of this interpreter and of the named distributions."""
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
