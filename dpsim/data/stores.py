"""Where DeePMD's arrays lie: `NpyStore` (folders of .npy) and `Hdf5Store` (one HDF5 file).

Both give one frame's row at a time, so that memory holds the frames in use and never the set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dpsim.data.system import hash_file
from dpsim.errors import DataError, MissingDependencyError


class ArraySource(Protocol):
    """An array on disk: its shape, and one row of it as a NumPy array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def row(self, k: int) -> np.ndarray:
        """Row k, flat."""
        ...


class Store(Protocol):
    """The files of one DeePMD system, wherever they lie: `words` and `integers` read a .raw file, `array` an .npy."""

    name: str

    def exists(self, name: str) -> bool: ...

    def words(self, name: str) -> list[str]: ...

    def integers(self, name: str) -> np.ndarray: ...

    def sets(self) -> list[str]: ...

    def has_array(self, set_name: str, name: str) -> bool: ...

    def array(self, set_name: str, name: str) -> ArraySource: ...

    def hash_into(self, digest: hashlib._Hash) -> None: ...


class NpyArray:
    """One .npy file, closed between reads: thousands of files stay within the handle limit."""

    def __init__(self, path: Path):
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(
                f"`{path}` cannot be read ({error}); expected a .npy file of numbers. Write it again."
            ) from error
        if not isinstance(mapped, np.memmap) or mapped.dtype.kind not in "fiu":
            raise DataError(f"`{path}` holds {mapped.dtype}; expected numbers. Write it again as float64 or float32.")
        self.shape = mapped.shape
        self._path, self._dtype = path, mapped.dtype
        self._offset = int(mapped.offset)
        self._order: Any = "F" if mapped.flags.f_contiguous and not mapped.flags.c_contiguous else "C"

    def row(self, k: int) -> np.ndarray:
        if self._order == "C":  # read the one row only: mapping it would take ten times as long
            width = int(np.prod(self.shape[1:], dtype=np.int64))
            offset = self._offset + k * width * self._dtype.itemsize
            return np.fromfile(self._path, self._dtype, width, offset=offset)
        return np.array(np.memmap(self._path, self._dtype, "r", self._offset, self.shape, "F")[k]).reshape(-1)


class NpyStore:
    """A folder with type.raw and set.*."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.name = "/".join(part for part in folder.resolve().parts[-3:] if part != folder.anchor).strip("/")

    def __str__(self) -> str:
        return str(self._folder)

    def exists(self, name: str) -> bool:
        return (self._folder / name).exists()

    def words(self, name: str) -> list[str]:
        return (self._folder / name).read_text(encoding="utf-8").split()

    def integers(self, name: str) -> np.ndarray:
        return _to_integers(self.words(name), f"{self._folder}/{name}")

    def sets(self) -> list[str]:
        return sorted(p.name for p in self._folder.glob("set.*") if p.is_dir())

    def has_array(self, set_name: str, name: str) -> bool:
        return (self._folder / set_name / f"{name}.npy").is_file()

    def array(self, set_name: str, name: str) -> NpyArray:
        return NpyArray(self._folder / set_name / f"{name}.npy")

    def hash_into(self, digest: hashlib._Hash) -> None:
        for path in sorted(self._files()):
            digest.update(path.relative_to(self._folder).as_posix().encode() + b"\0")
            hash_file(digest, path)

    def _files(self) -> Iterator[Path]:
        yield from (p for p in self._folder.glob("*") if p.name in ("type.raw", "type_map.raw", "nopbc"))
        yield from self._folder.glob("set.*/*.npy")


class Hdf5Array:
    """One dataset of an HDF5 file; h5py reads the row from disk."""

    def __init__(self, dataset: Any, where: str):
        if dataset.dtype.kind not in "fiu":
            raise DataError(f"`{where}` holds {dataset.dtype}; expected numbers. Write it again as float64 or float32.")
        self.shape: tuple[int, ...] = tuple(dataset.shape)
        self._dataset = dataset

    def row(self, k: int) -> np.ndarray:
        return np.asarray(self._dataset[k]).reshape(-1)


class Hdf5Store:
    """A group of an HDF5 file with datasets named as the folder's files: type.raw, set.000/coord.npy."""

    def __init__(self, file: Path, group: str = "/"):
        self._file, self._group_name = file, group
        self._h5 = _open_hdf5(file)
        if group not in self._h5 or "type.raw" not in self._h5[group]:
            known = self.groups(file)[:8]
            raise DataError(
                f"`{file}#{group}` is not a system; expected a group with type.raw and set.*. "
                f"Systems in this file: {known}."
            )
        self._group = self._h5[group]
        self.name = f"{file.name}#{group}"

    def __str__(self) -> str:
        return f"{self._file}#{self._group_name}"

    @staticmethod
    def groups(file: Path, below: str = "/") -> list[str]:
        """Names of the groups that hold a type.raw, at or below a group, sorted."""
        with _open_hdf5(file) as h5:
            if below not in h5:
                raise DataError(f"`{file}#{below}` does not exist; the file has {sorted(h5)}. Check the group's name.")
            found: list[str] = []
            h5[below].visit(lambda name: found.append(name) if name.split("/")[-1] == "type.raw" else None)
        base = below.rstrip("/")
        return sorted((f"{base}/{name}".rpartition("/")[0] or "/") for name in found)

    def exists(self, name: str) -> bool:
        return name in self._group

    def words(self, name: str) -> list[str]:
        values = np.atleast_1d(self._group[name][()])
        return [w for v in values.reshape(-1) for w in (v.decode() if isinstance(v, bytes) else str(v)).split()]

    def integers(self, name: str) -> np.ndarray:
        return _to_integers(self.words(name), f"{self}/{name}")

    def sets(self) -> list[str]:
        return sorted(name for name in self._group if name.startswith("set."))

    def has_array(self, set_name: str, name: str) -> bool:
        return f"{name}.npy" in self._group[set_name]

    def array(self, set_name: str, name: str) -> Hdf5Array:
        return Hdf5Array(self._group[set_name][f"{name}.npy"], f"{self}/{set_name}/{name}.npy")

    def hash_into(self, digest: hashlib._Hash) -> None:
        for word in ("type.raw", "type_map.raw", "nopbc"):
            if self.exists(word):
                digest.update(f"{word}\0{self._group[word][()]!r}".encode())
        for set_name in self.sets():
            for name in sorted(self._group[set_name]):
                dataset = self._group[set_name][name]
                digest.update(f"{set_name}/{name}\0{dataset.shape}{dataset.dtype}".encode())
                for k in range(dataset.shape[0] if dataset.shape else 0):
                    digest.update(np.ascontiguousarray(dataset[k]).tobytes())


def _open_hdf5(file: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError("h5py", "hdf5", "Reading HDF5 data") from error
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise DataError(f"`{file}` cannot be read as HDF5 ({error}). Check that the file is whole.") from error


def _to_integers(words: list[str], where: str) -> np.ndarray:
    try:
        return np.array([int(float(w)) if "." in w else int(w) for w in words], dtype=np.int64)
    except ValueError as error:
        raise DataError(
            f"`{where}` is not a list of integers ({error}); expected one type per atom. Correct it."
        ) from error
