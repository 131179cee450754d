"""Compute rdf_aimd.csv and adf_aimd.csv, the references of water, from first-principles frames in the npy layout.

python examples/water/make_reference.py ../shared/data/water_pbe0ts

The frames are from ab initio MD of 64 H2O at the PBE0+TS level, 330 K (Zhang et al., PRL 120, 143001 (2018)); those
of train and test are used. Bins of 0.05 A and 2 degrees, as the analyses use; standard errors from 10 blocks.
"""

import sys
import tempfile
from pathlib import Path

from dpsim.analysis.angles import angle_distribution, column_name
from dpsim.analysis.curves import save_curves
from dpsim.analysis.rdf_reference import save_rdf
from dpsim.analysis.structure import rdf
from dpsim.protocols.data_stage import stage_of_data

SHELL = 3.4  # A: neighbours of an oxygen, up to about the first minimum of g_OO


def main(data: str) -> None:
    """Write the frames as a trajectory and analyse it like any other."""
    with tempfile.TemporaryDirectory() as folder:
        stage = stage_of_data(data, Path(folder))
        result = rdf((stage.topology, stage.trajectory))
        shells = ((0.0, SHELL), (0.0, SHELL))
        angles = angle_distribution((stage.topology, stage.trajectory), ("O", "O", "O"), shells)
    here = Path(__file__).parent
    print(result[0].n_frames, "frames ->", save_rdf(here / "rdf_aimd.csv", result))
    columns = [(column_name(angles), angles.curve)]
    print(result[0].n_frames, "frames ->", save_curves(here / "adf_aimd.csv", "angle_deg", columns))


if __name__ == "__main__":
    main(*sys.argv[1:])
