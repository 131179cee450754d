"""The engines by the names that protocols use."""

from __future__ import annotations

from importlib import import_module
from typing import Literal

from dpsim.engines.base import Engine

EngineName = Literal["ase", "lammps", "openmm", "ipi"]
_CLASSES: dict[EngineName, str] = {
    "ase": "AseEngine",
    "lammps": "LammpsEngine",
    "openmm": "OpenmmEngine",
    "ipi": "IpiEngine",
}


def make_engine(name: EngineName) -> Engine:
    """The engine of this name; its package is imported now. Raises MissingDependencyError naming what to install."""
    engine: Engine = getattr(import_module(f"dpsim.engines.{name}_engine"), _CLASSES[name])()
    return engine
