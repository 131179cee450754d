"""How this process asks the system for memory."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>


def keep_freed_memory() -> bool:
    """Keep freed arrays for the next step. Whether this C library can be told so (glibc).

    A step of dynamics or training allocates the same large arrays as the one before. By default glibc gives each back
    to the system and gets it again as pages that are cleared one by one: up to a fifth of the time of a step of a large
    model. It changes the whole process, so programs call it (the command line does), and libraries do not.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
