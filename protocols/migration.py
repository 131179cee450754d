"""The hop of a neighbour into a vacancy: minimum-energy path by the climbing nudged elastic band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpsim.protocols.relaxations import Relaxed, Statics

if TYPE_CHECKING:
    from ase import Atoms

_FORCE = 0.02  # eV/A; at a saddle the error of the energy is of second order in it
_SPRING = 0.5  # eV/A^2; with the improved tangent its value hardly matters


@dataclass(frozen=True)
class Band:
    """A path between two minima."""

    images: Sequence[Relaxed]

    @property
    def energies(self) -> NDArray[np.float64]:
        """Above the first image, eV."""
        return np.array([image.energy for image in self.images]) - self.images[0].energy

    @property
    def barrier(self) -> float:
        """eV."""
        return float(self.energies.max())

    @property
    def distances(self) -> NDArray[np.float64]:
        """Length of the path up to each image, A."""
        from ase.geometry import find_mic

        steps = [0.0]
        for one, other in zip(self.images[:-1], self.images[1:], strict=True):
            vectors, _ = find_mic(other.atoms.positions - one.atoms.positions, one.atoms.cell, one.atoms.pbc)
            steps.append(float(np.linalg.norm(vectors)))
        return np.cumsum(steps)


def hop(key: str, site: int, perfect: Atoms, statics: Statics, n_images: int) -> Band | None:
    """The path of the nearest atom of the same element into the vacancy at `site`; None where there is none.

    Both ends are relaxed, then the images between them, the highest climbing.
    """
    from ase.mep import NEB

    same = [k for k in range(len(perfect)) if k != site and perfect.numbers[k] == perfect.numbers[site]]
    if not same:
        return None
    vector = perfect.get_distances(site, same, mic=True, vector=True)
    nearest = int(np.argmin(np.linalg.norm(vector, axis=1)))
    first, last = perfect.copy(), perfect.copy()
    last.positions[same[nearest]] -= vector[nearest]
    del first[site], last[site]
    ends = [statics.relax(f"{key}.path.{name}", atoms) for name, atoms in (("first", first), ("last", last))]
    images = [ends[0].atoms.copy() for _ in range(n_images + 1)] + [ends[1].atoms.copy()]
    NEB(images, method="improvedtangent").interpolate(mic=True)

    def make(moved: list[Atoms]) -> int:
        band = NEB(moved, k=_SPRING, climb=True, method="improvedtangent", allow_shared_calculator=True)
        return statics.optimise(f"{key}.path", band, _FORCE)

    return Band(statics.path(f"{key}.path", images, make))


def plot_path(path: Path, band: Band) -> Path:
    """Energy along the path."""
    from dpsim.analysis.figures import BLUE, figure

    with figure(path) as (_, axes):
        ax = axes[0, 0]
        ax.plot(band.distances, band.energies, "o-", color=BLUE, ms=6, mec="white")
        ax.axhline(0.0, color="black", lw=0.7)
        ax.set_xlabel("length of the path (Å)")
        ax.set_ylabel("energy (eV)")
    return path
