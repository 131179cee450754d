"""How much memory this process has needed at most: resident memory, or that of torch on a GPU."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_memory(device: str = "cpu") -> float:
    """Bytes needed at most so far."""
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.max_memory_allocated(device))
    if _STATUS.is_file():  # Linux' getrusage counts what was before exec, too
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def reset_peak_memory(device: str = "cpu") -> float:
    """Let the peak start anew where that is possible. Returns bytes in use."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return float(torch.cuda.memory_allocated(device))
    if not _STATUS.is_file():
        return peak_memory(device)
    with contextlib.suppress(OSError):  # not allowed in some containers: the peak then counts what loading needed
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> float:
    return 1024.0 * int(_STATUS.read_text().partition(f"{key}:")[2].split()[0])
