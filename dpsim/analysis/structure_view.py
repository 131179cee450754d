"""A structure, or a short trajectory, as the report shows it in three dimensions.

Bonds join atoms that are closer than 1.15 times the sum of their covalent radii (B. Cordero et al., Dalton Trans. 2832
(2008), as in ASE), metals excepted: they are found in the browser for each frame, with periodic images.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dpsim.errors import DataError

MAX_ATOMS = 30_000
_FRAMES = 30
_BYTES = 400_000  # for the positions of all frames
_BOND = 1.15
_BALL = 0.42  # radius of a ball in covalent radii
_NONMETALS = frozenset((1, 2, *range(5, 11), *range(14, 19), *range(33, 37), 52, 53, 54, 85, 86))


@dataclass(frozen=True)
class StructureView:
    """Atoms to look at.

    symbols: (n_atoms,); positions: (n_frames, n_atoms, 3) or (n_atoms, 3), A; cells: (n_frames, 3, 3) or (3, 3), A, or
    None; pbc: which directions repeat; labels: of the frames, e.g. "1.5 ps".
    """

    symbols: Sequence[str]
    positions: ArrayLike
    cells: ArrayLike | None = None
    pbc: tuple[bool, bool, bool] = (True, True, True)
    labels: Sequence[str] = field(default_factory=tuple)
    caption: str = ""


def view_of(atoms: Any, caption: str = "") -> StructureView:
    """One ASE Atoms."""
    cell = atoms.cell.array if atoms.cell.rank == 3 else None
    x, y, z = (bool(p) for p in atoms.pbc)
    return StructureView(atoms.get_chemical_symbols(), atoms.positions, cell, (x, y, z), caption=caption)


def frames_to_show(n_frames: int, n_atoms: int) -> list[int]:
    """Which of so many frames fit into a report: evenly spread, the last one always."""
    count = max(1, min(_FRAMES, n_frames, _BYTES // (8 * max(n_atoms, 1))))
    return sorted({round(k) for k in np.linspace(n_frames - 1, 0, count)}) if n_frames else []


def view_data(view: StructureView) -> dict[str, Any]:
    """The view as plain data for the page.

    Raises:
        DataError: shapes that do not belong together, more than MAX_ATOMS atoms, unknown elements.
    """
    r = np.asarray(view.positions, dtype=np.float64)
    r = r[None] if r.ndim == 2 else r
    if r.shape[1:] != (len(view.symbols), 3) or not 0 < r.shape[1] <= MAX_ATOMS or not np.isfinite(r).all():
        raise DataError(
            f"`positions` have the shape {r.shape} for {len(view.symbols)} symbols; expected finite ones, (n_frames, "
            f"n_atoms, 3), of at most {MAX_ATOMS} atoms. Leave the view out of the report, or show fewer."
        )
    cells = None if view.cells is None else np.broadcast_to(np.asarray(view.cells, dtype=np.float64), (len(r), 3, 3))
    labels = [*view.labels, *[""] * len(r)][: len(r)]
    species = list(dict.fromkeys(view.symbols))
    kinds = np.array([species.index(s) for s in view.symbols], dtype=np.uint8)
    return {
        "types": _base64(kinds),
        **_looks(species),
        "pbc": [bool(p) for p in view.pbc],
        "frames": [
            _frame(r[k], None if cells is None else cells[k], view.pbc, label) for k, label in enumerate(labels)
        ],
    }


def _frame(r: np.ndarray, cell: np.ndarray | None, pbc: Sequence[bool], label: str) -> dict[str, Any]:
    """Positions as integers between the lowest and the highest, wrapped into the cell."""
    whole = cell is not None and abs(np.linalg.det(cell)) > 1e-6
    if whole and cell is not None:
        fractions = r @ np.linalg.inv(cell)
        r = r - (np.floor(fractions) * np.asarray(pbc)) @ cell
    low, high = r.min(axis=0), r.max(axis=0)
    steps = np.round((r - low) / np.maximum(high - low, 1e-9) * 65535).astype("<u2")
    rows = [] if not whole or cell is None else np.round(cell, 5).tolist()
    return {
        "label": label,
        "low": np.round(low, 5).tolist(),
        "high": np.round(high, 5).tolist(),
        "r": _base64(steps),
        "cell": rows,
    }


def _looks(species: Sequence[str]) -> dict[str, Any]:
    """Colors (Jmol's) and sizes of the elements, and how long a bond of each pair may be."""
    from ase.data import atomic_numbers, covalent_radii
    from ase.data.colors import jmol_colors

    unknown = [s for s in species if s not in atomic_numbers]
    if unknown:
        raise DataError(f"`symbols` have {unknown}; expected chemical symbols. Name the elements.")
    numbers = [atomic_numbers[s] for s in species]
    radii = [float(covalent_radii[z]) for z in numbers]
    bonds = [
        [a, b, round(_BOND * (radii[a] + radii[b]), 3)]
        for a, za in enumerate(numbers)
        for b, zb in enumerate(numbers)
        if za in _NONMETALS or zb in _NONMETALS
    ]
    looks = [
        {"symbol": s, "color": "#" + "".join(f"{round(255 * x):02x}" for x in jmol_colors[z]), "radius": _ball(radius)}
        for s, z, radius in zip(species, numbers, radii, strict=True)
    ]
    return {"species": looks, "bonds": bonds}


def _ball(radius: float) -> float:
    return round(0.12 + _BALL * radius, 3)


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
