"""Tests compute on one thread unless they say otherwise: what they compute is small, and on a busy machine threads that
wait for each other take ten times as long as one.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
