"""Lets the parity tests import what they share with scripts that run in DeePMD-kit."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
