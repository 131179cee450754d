"""Where the native library is; apart from native.py, which needs torch."""

from __future__ import annotations

import sys
from pathlib import Path


def library_path() -> Path:
    """Where the build puts the library: beside the package's code, in every kind of installation."""
    name = "libdpsim.dylib" if sys.platform == "darwin" else "libdpsim.so"
    return Path(__file__).resolve().parent.parent / "_lib" / name
