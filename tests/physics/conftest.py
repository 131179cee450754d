"""Lets the physics tests import their shared suite, `model_suite`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
