"""Choose the close contacts that train.yaml trains on beside the PBE0+TS data: forces of PBE water, without energies.

python examples/water/train/make_contacts.py ../shared/data/water_pbe_dipole/train contacts

320 frames of ab initio MD at 330 K hardly show what happens when molecules come closer than they do at equilibrium;
a model trained on them alone is accurate and yet lets hydrogen atoms of two molecules fall together within picoseconds.
The frames chosen here (Zhang et al., JCP 156, 124107 (2022), sampled by active learning) hold an H...H contact between
molecules below 1.72 A, an H...O one below 1.38 A, or O...O below 2.36 A. Repulsion at such distances depends little on
the functional; energies, which do, are left out.
"""

import sys
from pathlib import Path

import numpy as np

from dpsim.data.frame import Frame
from dpsim.data.readers import open_dataset
from dpsim.neighbors import neighbor_list

HH, HO, OO = 1.72, 1.38, 2.36  # A


def has_contact(frame: Frame) -> bool:
    """Whether two molecules are closer than the limits. A molecule's own H...H and O-H are the nearest ones."""
    i, j, shift = neighbor_list(frame.positions, frame.cell, frame.pbc, 2.5)
    distance = np.linalg.norm(frame.positions[j] - frame.positions[i] + shift @ frame.cell, axis=1)
    element = np.array(frame.symbols)

    def nth(center: str, neighbor: str, n: int) -> float:
        """The smallest n-th nearest distance from `center` atoms to `neighbor` atoms."""
        chosen = (element[i] == center) & (element[j] == neighbor)
        rows = [np.sort(distance[chosen & (i == k)]) for k in np.unique(i[chosen])]
        return min((row[n] for row in rows if len(row) > n), default=np.inf)

    return nth("H", "H", 1) < HH or nth("H", "O", 1) < HO or nth("O", "O", 0) < OO


def main(data: str, output: str) -> None:
    """Write the chosen frames of every system in DeePMD's npy layout."""
    total = 0
    for system in open_dataset(data):
        frames = [f for f in (system.frame(k) for k in range(len(system))) if has_contact(f)]
        if not frames:
            continue
        total += len(frames)
        folder = Path(output) / system.path.name
        (folder / "set.000").mkdir(parents=True)
        (folder / "type.raw").write_text("".join(f"{t}\n" for t in frames[0].types))
        (folder / "type_map.raw").write_text("".join(f"{s}\n" for s in frames[0].type_map))
        for name, values in (
            ("coord", [f.positions.ravel() for f in frames]),
            ("box", [f.cell.ravel() for f in frames]),
            ("force", [np.ravel(f.forces) for f in frames]),
        ):
            np.save(folder / "set.000" / f"{name}.npy", np.array(values))
    print(total, "frames ->", output)


if __name__ == "__main__":
    main(*sys.argv[1:])
