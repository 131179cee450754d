"""dpsim: from first-principles data to a trained Deep Potential, molecular dynamics, and a verdict.

    from dpsim import DPCalculator, load_model
    atoms.calc = DPCalculator("water-pbe0ts")

Everything else is a room of its own: data, models, train, calculators, engines, protocols, analysis, kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpsim.calculators.ase_calculator import DPCalculator
    from dpsim.models.checkpoint import load_model, save_model
    from dpsim.models.deepmd.files import read_deepmd

__all__ = ["DPCalculator", "load_model", "read_deepmd", "save_model"]

_HOMES = {
    "DPCalculator": "dpsim.calculators.ase_calculator",
    "load_model": "dpsim.models.checkpoint",
    "read_deepmd": "dpsim.models.deepmd.files",
    "save_model": "dpsim.models.checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import dpsim` alone loads neither torch nor ase."""
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dpsim' has no attribute {name!r}")
