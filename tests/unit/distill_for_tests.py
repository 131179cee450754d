"""A distillation small enough for tests: argon, a pair potential as teacher, a student that learns next to nothing."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ase.io import write
from rich.console import Console

from dpsim.config import validate
from dpsim.distill import pages
from dpsim.distill.config import DistillConfig
from dpsim.distill.loop import distill
from dpsim.distill.progress import Display
from dpsim.distill.run import DistillOutcome
from pair_calculators import PairCalculator, argon

CALCULATORS = Path(__file__).parents[1] / "engines"

TOY: dict[str, Any] = {
    "name": "toy",
    "teacher": {"python": "pair_calculators:PairCalculator", "folder": str(CALCULATORS)},
    "student": {
        "model": {
            "type_map": ["Ar"],
            "descriptor": {"type": "se_e2_a", "rcut": 6.0, "rcut_smth": 3.0, "neuron": [2, 4], "axis_neuron": 2},
            "fitting": {"neuron": [4]},
        },
        "train": {"steps": 8, "later_steps": 4, "held_out": 0.25, "log_every": 4, "checkpoint": {"every": 3}},
    },
    "explore": {
        "structures": [{"file": "argon.extxyz"}],
        "conditions": [{"temperature": "40 K"}],
        "walkers": 2,
        "duration": "20 fs",
        "timestep": "2 fs",
        "frames": 3,
    },
    "select": {"trust": ["1e-6 eV/A", "10 eV/A"], "max_frames": 4},
    "rounds": 2,
    "compress": None,
}


def changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested data with some of it replaced: {"select.max_frames": 2}."""
    data = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, last = path.split(".")
        inner = data
        for key in parents:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return data


def toy(folder: Path, **changes: Any) -> DistillConfig:
    """The configuration, its structure in `folder`; changes as select__max_frames=2."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "argon.extxyz", argon())
    data = changed(TOY, {key.replace("__", "."): value for key, value in changes.items()})
    data["student"]["model"]["descriptor"].setdefault("sel", "auto")
    return validate(data, DistillConfig, folder=folder)


def run(folder: Path, figures: bool = False, **changes: Any) -> DistillOutcome:
    """Run it in folder/run; without figures, which take longer than all the rest."""
    with ExitStack() as stack:
        if not figures:
            stack.enter_context(patch.object(pages, "rounds_sections", lambda *_: []))
        return distill(toy(folder, **changes), folder / "run", Display(Console(quiet=True)))


class NanCalculator(PairCalculator):
    """NaN forces on structures whose first atom is to the right of where it belongs."""

    def spoil(self, forces: Any) -> Any:
        assert self.atoms is not None
        if self.atoms.positions[0, 0] > argon().positions[0, 0] + 1e-3:
            forces[3] = float("nan")
        return forces


class NeverCalculator(PairCalculator):
    """Works once, on the structure that a run begins with; fails on all others."""

    def spoil(self, forces: Any) -> Any:
        assert self.atoms is not None
        if abs(self.atoms.positions - argon().positions).max() > 1e-6:
            raise RuntimeError("out of order")
        return forces
