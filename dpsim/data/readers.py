"""Readers: `open_system` and `open_dataset` for the DeePMD npy layout, its HDF5 form, and extxyz.

DeePMD layout of one system (A, eV, eV/A; DeePMD-kit documentation, "System"):
    type.raw (n_atoms,)  type_map.raw (element names)  nopbc (empty file: no periodicity)
    set.*/coord.npy (n_frames, 3 n_atoms)  box.npy (n_frames, 9), rows are lattice vectors
    set.*/energy.npy (n_frames,)  force.npy (n_frames, 3 n_atoms)  virial.npy (n_frames, 9), -dE/d(strain)
    set.*/fparam.npy (n_frames, k)  aparam.npy (n_frames, k n_atoms): parameters, of any number k
    set.*/atom_pref.npy (n_frames, n_atoms): how much the force of each atom counts (`loss.prefactored_forces`)
    set.*/real_atom_types.npy (n_frames, n_atoms): "mixed_type", compositions differ between frames; -1 is padding.
The HDF5 form holds the same names as groups and datasets. Names of DeePMD stay in this file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpsim.data.frame import Frame
from dpsim.data.stores import ArraySource, Hdf5Store, NpyStore, Store
from dpsim.data.system import System
from dpsim.errors import DataError

HDF5_SUFFIXES = (".h5", ".hdf5")
XYZ_SUFFIXES = (".xyz", ".extxyz")

# our label -> DeePMD's file, and its numbers per atom (True) or per frame
_LABEL_FILES = {
    "energy": ("energy", 1, False),
    "forces": ("force", 3, True),
    "virial": ("virial", 9, False),
    "atom_pref": ("atom_pref", 1, True),
}


def open_system(path: str | Path, type_map: Sequence[str] | None = None) -> System:
    """Open one system: a DeePMD folder, `file.hdf5` or `file.hdf5#/group`, or an .xyz / .extxyz file.

    Args: type_map: names of the types, needed only where the data do not carry them (no type_map.raw).
    Raises: DataError if there is nothing to read there, or more than one system.
    """
    file, group = _split_group(path)
    if file.suffix.lower() in XYZ_SUFFIXES:
        from dpsim.data.extxyz import ExtxyzSystem

        return ExtxyzSystem(_existing(file))
    if file.suffix.lower() in HDF5_SUFFIXES:
        groups = Hdf5Store.groups(_existing(file)) if group is None else [group]
        if len(groups) != 1:
            raise DataError(
                f"`{file}` holds {len(groups)} systems{_listing(groups)}; expected one. "
                f"Name one as {file}#/group, or open all of them with open_dataset."
            )
        return DeepmdSystem(Hdf5Store(_existing(file), groups[0]), type_map)
    if (_existing(file) / "type.raw").is_file():
        return DeepmdSystem(NpyStore(file), type_map)
    raise DataError(
        f"`{file}` is not a system; expected a folder with type.raw and set.*, an .hdf5 or an .extxyz file. "
        "If it is a folder of several systems, open it with open_dataset."
    )


def open_dataset(path: str | Path, type_map: Sequence[str] | None = None) -> list[System]:
    """All systems at or below a path, sorted by path. Raises DataError if there are none."""
    file, group = _split_group(path)
    if file.suffix.lower() in HDF5_SUFFIXES:
        groups = Hdf5Store.groups(_existing(file), group or "/")
        found: list[str | Path] = [f"{file}#{name}" for name in groups]
    elif _existing(file).is_dir():
        suffixes = HDF5_SUFFIXES + XYZ_SUFFIXES
        inside = [p for p in sorted(file.rglob("*")) if p.name == "type.raw" or p.suffix.lower() in suffixes]
        found = []
        for p in inside:
            if p.name == "type.raw":
                found.append(p.parent)
            elif p.suffix.lower() in HDF5_SUFFIXES:
                found += [f"{p}#{name}" for name in Hdf5Store.groups(p)]
            else:
                found.append(p)
    else:
        found = [file]
    if not found:
        raise DataError(
            f"`{path}` holds no data; expected folders with type.raw and set.*, .hdf5 or .extxyz files below it. "
            "Check the path."
        )
    return [open_system(p, type_map) for p in found]


class DeepmdSystem(System):
    """One system in DeePMD's layout, from folders (NpyStore) or HDF5 (Hdf5Store). Nothing is read before it is used."""

    def __init__(self, store: Store, type_map: Sequence[str] | None = None):
        self.path, self.name, self._store = Path(str(store)), store.name, store
        self._types = store.integers("type.raw")
        self.n_atoms = len(self._types)
        self.type_map = self._read_type_map(type_map)
        self._periodic = not store.exists("nopbc")
        self._sets = store.sets()
        if not self._sets:
            raise DataError(
                f"`{store}` has no set.* folder; expected set.000/coord.npy and so on. "
                "If it has coord.raw and box.raw only, convert them, e.g. with dpdata."
            )
        self._coord = [self._required_array(s, "coord", 3, True) for s in self._sets]
        self._start = np.cumsum([0] + [a.shape[0] for a in self._coord])
        self._box = [self._required_array(s, "box", 9, False) for s in self._sets] if self._periodic else []
        self._real = [self._array(s, "real_atom_types", 1, True) for s in self._sets]
        self._labels = {label: [self._array(s, *spec) for s in self._sets] for label, spec in _LABEL_FILES.items()}
        self._fparam = [self._parameters(s, "fparam", 1) for s in self._sets]
        self._aparam = [self._parameters(s, "aparam", self.n_atoms) for s in self._sets]
        if all(real is None for real in self._real):
            self._check_types(self._types, "type.raw")

    def __len__(self) -> int:
        return int(self._start[-1])

    def has(self, label: str) -> bool:
        return any(a is not None for a in self._labels.get(label, []))

    def elements(self) -> set[str]:
        rows = [self._types] if any(real is None for real in self._real) else []
        rows += [real.row(k) for real in self._real if real is not None for k in range(real.shape[0])]
        return {self.type_map[int(t)] for t in np.unique(np.concatenate(rows)) if t >= 0}

    def digest(self) -> str:
        digest = hashlib.sha256()
        self._store.hash_into(digest)
        return digest.hexdigest()

    def frame(self, k: int) -> Frame:
        self._check_index(k)
        s = int(np.searchsorted(self._start, k, side="right")) - 1
        row = k - int(self._start[s])
        source = f"{self.path}/{self._sets[s]} frame {row}"
        types = self._types
        if (real := self._real[s]) is not None:
            types = real.row(row).astype(np.int64)
            self._check_types(types, f"{self._sets[s]}/real_atom_types.npy frame {row}")
        keep = types >= 0  # types below zero are DeePMD's padding
        positions = self._coord[s].row(row).reshape(-1, 3)[keep].astype(np.float64)
        cell = self._box[s].row(row).reshape(3, 3).astype(np.float64) if self._periodic else np.zeros((3, 3))
        energy, forces, virial, atom_pref = (_row(self._labels[name][s], row) for name in _LABEL_FILES)
        fparam, aparam = (_row(arrays[s], row) for arrays in (self._fparam, self._aparam))
        return Frame(
            positions=positions,
            types=types[keep],
            type_map=self.type_map,
            cell=cell,
            pbc=np.full(3, self._periodic),
            energy=None if energy is None else float(energy[0]),
            forces=None if forces is None else forces.reshape(-1, 3)[keep],
            virial=None if virial is None else virial.reshape(3, 3),
            source=source,
            fparam=fparam,
            aparam=None if aparam is None else aparam.reshape(self.n_atoms, -1)[keep],
            atom_pref=None if atom_pref is None else atom_pref[keep],
        )

    def _parameters(self, set_name: str, name: str, rows: int) -> ArraySource | None:
        """fparam or aparam of a set, or None: any number of them for each of `rows`."""
        if not self._store.has_array(set_name, name):
            return None
        shape = self._store.array(set_name, name).shape
        width = int(np.prod(shape[1:]))
        if rows and width % rows:
            raise DataError(
                f"`{self.path}/{set_name}/{name}.npy` has shape {shape}; expected a multiple of {rows} numbers in each "
                "row, as many for every atom of type.raw. Write it again."
            )
        return self._array(set_name, name, width, False)

    def _array(self, set_name: str, name: str, per: int, per_atom: bool) -> ArraySource | None:
        """Array `name` of a set or None, its shape checked: (n_frames, per * n_atoms) or (n_frames, per)."""
        if not self._store.has_array(set_name, name):
            return None
        array = self._store.array(set_name, name)
        n_frames = self._frames_in(set_name) if name != "coord" else array.shape[0] if array.shape else -1
        width = per * self.n_atoms if per_atom else per
        if not array.shape or array.shape[0] != n_frames or int(np.prod(array.shape[1:])) != width:
            raise DataError(
                f"`{self.path}/{set_name}/{name}.npy` has shape {array.shape}; expected ({n_frames}, {width}): "
                f"{n_frames} frames (from coord.npy) and {self.n_atoms} atoms (from type.raw). "
                "Write it again, or correct type.raw."
            )
        return array

    def _required_array(self, set_name: str, name: str, per: int, per_atom: bool) -> ArraySource:
        array = self._array(set_name, name, per, per_atom)
        if array is None:
            hint = " (or an empty file `nopbc` beside type.raw, if nothing is periodic)" if name == "box" else ""
            raise DataError(f"`{self.path}/{set_name}/{name}.npy` is missing; expected an array. Add it{hint}.")
        return array

    def _frames_in(self, set_name: str) -> int:
        k = self._sets.index(set_name)
        return int(self._start[k + 1] - self._start[k])

    def _read_type_map(self, given: Sequence[str] | None) -> tuple[str, ...]:
        if self._store.exists("type_map.raw"):
            return tuple(self._store.words("type_map.raw"))
        if given is None:
            raise DataError(
                f"`{self.path}/type_map.raw` is missing; expected the element name of each type, one per line. "
                "Add it, or give `type_map`."
            )
        return tuple(given)

    def _check_types(self, types: np.ndarray, where: str) -> None:
        bad = np.flatnonzero(types >= len(self.type_map))
        if len(bad):
            raise DataError(
                f"`{self.path}/{where}` has type {types[bad[0]]} (atom {bad[0]}); expected 0 to "
                f"{len(self.type_map) - 1}, for type_map {list(self.type_map)}. Correct type.raw or type_map.raw."
            )


def _row(array: ArraySource | None, row: int) -> np.ndarray | None:
    return None if array is None else array.row(row).astype(np.float64).reshape(-1)


def _split_group(path: str | Path) -> tuple[Path, str | None]:
    """'file.hdf5#/group' -> (file, group)."""
    file, mark, group = str(path).partition("#")
    return Path(file), ("/" + group.strip("/") if mark else None)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"`{path}` does not exist; expected a folder or file with data. Check the path.")
    return path


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f" ({shown}{', ...' if len(names) > 5 else ''})" if names else ""
