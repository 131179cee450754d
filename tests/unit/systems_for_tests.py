"""Small systems written to disk in DeePMD's layouts, for the tests of readers, sampler and statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SHARED_DATA = Path(__file__).parents[2] / ".." / "shared" / "data"


def random_arrays(n_frames=5, n_atoms=4, seed=0):
    """coord, box, energy, force, virial of a periodic system on a jittered grid, so that atoms stay apart."""
    generator = np.random.default_rng(seed)
    side = int(np.ceil(n_atoms ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)[:n_atoms] * 2.5
    coord = grid + generator.uniform(-0.3, 0.3, (n_frames, n_atoms, 3))
    box = np.tile((np.eye(3) * (2.5 * side + 1) + np.tril(np.full((3, 3), 0.4), -1)).reshape(1, 9), (n_frames, 1))
    return {
        "coord": coord.reshape(n_frames, -1),
        "box": box,
        "energy": generator.normal(-100, 1, n_frames),
        "force": generator.normal(0, 1, (n_frames, 3 * n_atoms)),
        "virial": generator.normal(0, 1, (n_frames, 9)),
    }


def write_npy(folder, arrays, types=(0, 1, 1, 0), type_map=("O", "H"), sets=1, nopbc=False):
    """Write one system as DeePMD folders, its frames cut into `sets` sets. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "type.raw").write_text("\n".join(map(str, types)) + "\n")
    if type_map is not None:
        (folder / "type_map.raw").write_text("\n".join(type_map) + "\n")
    if nopbc:
        (folder / "nopbc").touch()
    for name, array in arrays.items():
        for k, part in enumerate(np.array_split(array, sets)):
            (folder / f"set.{k:03d}").mkdir(exist_ok=True)
            np.save(folder / f"set.{k:03d}" / f"{name}.npy", part)
    return folder


def write_hdf5(file, group, arrays, types=(0, 1, 1, 0), type_map=("O", "H"), nopbc=False):
    """Write one system as a group of an HDF5 file, as DeePMD-kit and dpdata do."""
    import h5py

    with h5py.File(file, "a") as h5:
        g = h5.require_group(group)
        g["type.raw"] = np.array(types)
        g["type_map.raw"] = np.array(type_map, dtype=h5py.string_dtype())
        if nopbc:
            g["nopbc"] = True
        for name, array in arrays.items():
            g[f"set.000/{name}.npy"] = array
    return file
