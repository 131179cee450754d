"""Compute rdf_aimd.csv, the reference of the main job, from first-principles frames in the DeePMD npy layout.

python examples/water/make_reference.py ../shared/data/water_pbe0ts

The frames are from ab initio MD of 64 H2O at the PBE0+TS level, 330 K (Zhang et al., PRL 120, 143001 (2018)); those
of train and test are used. Bins of 0.05 A, as the analysis uses; standard errors from 10 blocks.
"""

import sys
import tempfile
from pathlib import Path

from dpsim.analysis.rdf_reference import save_rdf
from dpsim.analysis.structure import rdf
from dpsim.data.readers import open_dataset
from dpsim.trajectory import TrajectoryWriter, write_topology


def main(data: str) -> None:
    """Write the frames as a trajectory and analyse it like any other."""
    frames = [system.frame(k) for system in open_dataset(data) for k in range(len(system))]
    with tempfile.TemporaryDirectory() as folder:
        topology = write_topology(Path(folder) / "aimd.pdb", frames[0].symbols, frames[0].positions, frames[0].cell)
        trajectory = Path(folder) / "aimd.trr"
        with TrajectoryWriter(trajectory, frames[0].n_atoms) as writer:
            for step, frame in enumerate(frames):
                writer.append(step, 0.001 * step, frame.positions, frame.cell)
        result = rdf((topology, trajectory))
    print(len(frames), "frames ->", save_rdf(Path(__file__).parent / "rdf_aimd.csv", result))


if __name__ == "__main__":
    main(*sys.argv[1:])
