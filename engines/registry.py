"""The engines by the names that protocols use."""

from __future__ import annotations

from importlib import import_module
from typing import Literal

from dpsim.engines.base import Engine
from dpsim.errors import ConfigError

EngineName = Literal["ase", "lammps", "openmm", "ipi"]
_CLASSES: dict[EngineName, str] = {
    "ase": "AseEngine",
    "lammps": "LammpsEngine",
    "openmm": "OpenmmEngine",
    "ipi": "IpiEngine",
}


def make_engine(name: EngineName, ranks: int = 1) -> Engine:
    """The engine of this name; its package is imported now. Raises MissingDependencyError naming what to install.

    ranks: MPI ranks of LAMMPS. Raises ConfigError for more than one of any other engine.
    """
    if ranks > 1 and name != "lammps":
        raise ConfigError(f"`ranks` is {ranks} with the engine {name}; expected 1, or `engine: lammps`. Leave it out.")
    made = getattr(import_module(f"dpsim.engines.{name}_engine"), _CLASSES[name])
    engine: Engine = made(ranks) if name == "lammps" else made()
    return engine
