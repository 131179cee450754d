"""Make water.extxyz: 64 molecules equilibrated at 330 K with the bundled model.

python examples/water/make_start.py ../shared/data/water_pbe0ts/test [ps]

The run starts from a first-principles frame: the model saw liquid water only, and a lattice of molecules relaxes
through structures far from it, where the model's energies mean nothing.
"""

import sys
import tempfile
from pathlib import Path

from ase import Atoms
from ase.io import write

from dpsim.config import validate
from dpsim.data.readers import open_dataset
from dpsim.engines.ase_engine import atoms_from_state
from dpsim.engines.output import RESTART, load_checkpoint
from dpsim.protocols.runner import run_protocol
from dpsim.protocols.schema import Protocol


def main(data: str, duration_ps: str = "10") -> None:
    """Run a protocol and keep its last state."""
    frame = open_dataset(data)[0].frame(0)
    with tempfile.TemporaryDirectory() as folder:
        start, run = Path(folder) / "aimd.extxyz", Path(folder) / "run"
        write(start, Atoms(frame.symbols, positions=frame.positions, cell=frame.cell, pbc=frame.pbc))
        nvt = {
            "type": "nvt", "temperature": "330 K", "initial_temperature": "330 K", "damping": "100 fs",
            "duration": f"{duration_ps} ps", "max_temperature": "1000 K",
        }  # fmt: skip
        outcome = run_protocol(
            validate(
                {
                    "name": "water-start",
                    "model": "water-pbe0ts-student",
                    "structure": str(start),
                    "seed": 3,
                    "stages": [nvt],
                },
                Protocol,
            ),
            run,
        )
        saved = load_checkpoint(run / "stages" / "01_nvt" / RESTART)
        if outcome.stopped or saved is None:
            return
    atoms = atoms_from_state(saved.state)
    atoms.wrap()
    write(Path(__file__).parent / "water.extxyz", atoms)


if __name__ == "__main__":
    main(*sys.argv[1:])
