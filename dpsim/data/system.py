"""`System`: a series of frames on disk, read one at a time. The readers implement it; the sampler consumes it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path

from dpsim.data.frame import Frame

LABELS = ("energy", "forces", "virial", "atom_pref")


class System(ABC):
    """A series of frames that share one type_map. Frames are built when asked for, never kept: any size trains.

    path: the file or folder; name: short, for tables; type_map: element names; n_atoms: the largest frame's.
    """

    path: Path
    name: str
    type_map: tuple[str, ...]
    n_atoms: int

    @abstractmethod
    def __len__(self) -> int:
        """Number of frames."""

    @abstractmethod
    def frame(self, k: int) -> Frame:
        """Frame k (0 <= k < len), labels in eV, eV/A, eV. Raises IndexError, and DataError if it cannot be read."""

    @abstractmethod
    def has(self, label: str) -> bool:
        """Whether any frame carries this label, one of LABELS."""

    def elements(self) -> set[str]:
        """The elements that occur in its frames; a subclass whose type_map may name more says which."""
        return set(self.type_map)

    @abstractmethod
    def digest(self) -> str:
        """sha256 (hex) of everything read from disk, for provenance."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} frames, {self.n_atoms} atoms)"

    def _check_index(self, k: int) -> None:
        if not 0 <= k < len(self):
            raise IndexError(f"frame {k} of {self.path}, which has {len(self)} frames (0 to {len(self) - 1})")


def hash_file(digest: hashlib._Hash, path: Path) -> None:
    """Feed a file to a hash in pieces of 1 MiB, so that its size does not matter."""
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
