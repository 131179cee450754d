"""Make water.extxyz: 64 molecules on a lattice, relaxed and equilibrated at 330 K with the bundled model.

python examples/water/make_start.py [ps]
"""

import sys
from pathlib import Path

from ase.io import write

from dpsim.config import validate
from dpsim.engines.ase_engine import atoms_from_state
from dpsim.engines.output import RESTART, load_checkpoint
from dpsim.protocols.runner import run_protocol
from dpsim.protocols.schema import Protocol

VOLUME_PER_WATER_A3 = 30.11405593  # of the AIMD reference
DENSITY = 18.015 * 1.66053906660 / VOLUME_PER_WATER_A3


def main(duration_ps: str = "10") -> None:
    """Run a protocol and keep its last state."""
    here = Path(__file__).parent
    run = here / "start"
    nvt = {"type": "nvt", "temperature": "330 K", "damping": "50 fs", "duration": f"{duration_ps} ps"}
    protocol = validate(
        {
            "name": "water-start",
            "structure": {"water_box": 64, "density": DENSITY},
            "stages": [{"type": "minimise", "force": "0.5 eV/A", "steps": 200}, nvt],
        },
        Protocol,
    )
    outcome = run_protocol(protocol, run)
    saved = load_checkpoint(run / "stages" / "02_nvt" / RESTART)
    if outcome.stopped or saved is None:
        return
    atoms = atoms_from_state(saved.state)
    molecules = atoms.positions.reshape(-1, 3, 3)
    molecules -= (molecules[:, :1] @ atoms.cell.reciprocal().T // 1.0) @ atoms.cell.array  # whole molecules, wrapped
    atoms.positions = molecules.reshape(-1, 3)
    write(here / "water.extxyz", atoms)


if __name__ == "__main__":
    main(*sys.argv[1:])
