"""Neighbour lists: `neighbor_list` (vesin), the O(N^2) reference it is tested against, and the Verlet-skin list.

Edges are directed pairs i -> j with the cell shift S: edge_vec = r_j - r_i + S.cell (rows of cell: lattice vectors).
"""

from __future__ import annotations

from itertools import product

import numpy as np

from dpsim.errors import DataError

Edges = tuple[np.ndarray, np.ndarray, np.ndarray]  # i (n_edges,), j (n_edges,), S (n_edges, 3), int64

_MAX_COORDINATE = 1e8  # A; beyond it float64 keeps less than 1e-8 A and cell shifts leave 32-bit integers
_MAX_CUTOFFS = 1e4  # longest open direction in cutoffs; vesin's cell list divides by zero at about 1e5


def neighbor_list(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> Edges:
    """All directed pairs with |r_j - r_i + S.cell| <= cutoff, sorted by centre i, in a reproducible order.

    Args: positions (n_atoms, 3) A, unwrapped allowed; cell (3, 3) A rows, any cell, smaller than the cutoff too; rows
    of directions that are not periodic may be zero; pbc (3,) bool; cutoff A.
    Returns: i, j (n_edges,) int64 and S (n_edges, 3) int64. Self-images are included, i = j with S = 0 is not.
    Raises: DataError if a position is not finite, or a periodic cell is degenerate.
    """
    from vesin import NeighborList

    positions = np.ascontiguousarray(positions, dtype=np.float64)
    cell = np.ascontiguousarray(cell, dtype=np.float64)
    pbc = np.asarray(pbc, dtype=bool)
    _check(positions, cell, pbc)
    reach = float(np.nextafter(cutoff, np.inf))  # vesin looks for distances below its cutoff
    if not pbc.all() and len(positions):  # atoms that flew away: larger bins, and distances are cut below
        reach = max(reach, float(np.ptp(positions, axis=0).max()) / _MAX_CUTOFFS)
    finder = NeighborList(cutoff=reach, full_list=True, n_threads=1)  # one thread: the order never changes
    pairs, shift = finder.compute(positions, cell, pbc, quantities="PS", copy=False)
    order = _stable_order(pairs[:, 0], len(positions))
    i, j = (pairs[:, k].take(order).view(np.int64) for k in (0, 1))
    shift = shift.take(order, axis=0).astype(np.int64)
    if reach > 1.000001 * cutoff:
        near = np.linalg.norm(positions[j] - positions[i] + shift @ cell, axis=1) <= cutoff
        i, j, shift = i[near], j[near], shift[near]
    return i, j, shift


def neighbor_list_reference(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> Edges:
    """The same as `neighbor_list`, by trying every pair in every image that can be near. O(N^2), for tests.

    Along a lattice vector a_k the planes of the lattice are 1 / |b_k| apart (b_k: the reciprocal vector), so images
    up to ceil((cutoff + extent of the atoms across those planes) |b_k|) suffice.
    """
    positions, cell = np.asarray(positions, dtype=np.float64), np.asarray(cell, dtype=np.float64)
    pbc = np.asarray(pbc, dtype=bool)
    reciprocal = np.linalg.inv(_completed(cell, pbc))  # columns b_k
    spread = np.ptp(positions @ reciprocal, axis=0) if len(positions) else np.zeros(3)
    reach = np.ceil(cutoff * np.linalg.norm(reciprocal, axis=0) + spread).astype(int)
    found = []
    for s in product(*(range(-n, n + 1) if periodic else (0,) for n, periodic in zip(reach, pbc, strict=True))):
        vector = positions[None, :] - positions[:, None] + np.array(s) @ cell
        near = np.linalg.norm(vector, axis=2) <= cutoff
        if not any(s):
            np.fill_diagonal(near, False)
        i, j = np.nonzero(near)
        found.append(np.column_stack([i, j, np.tile(np.array(s, dtype=np.int64), (len(i), 1))]))
    table = np.concatenate(found) if len(positions) else np.zeros((0, 5), dtype=np.int64)
    table = table[np.argsort(table[:, 0], kind="stable")].astype(np.int64)
    return table[:, 0], table[:, 1], table[:, 2:]


class VerletList:
    """Pairs within cutoff + skin, found once and given again until a pair could have come within the cutoff unseen.

    With x0, h0 the positions and cell when the list was built and x, h now, let A = h0^-1 h be the map that carries
    the old cell into the new one (A = 1 for a constant cell). Every pair now within the cutoff is in the list if

        (cutoff + 2 u) / sigma_min(A) <= cutoff + skin,   u = max_i |x_i - x0_i A - t|,

    for any common translation t, because |d0| <= |d0 A| / sigma_min(A). For a constant cell: u <= skin / 2.
    An atom that the engine wrapped into the cell by lattice vectors has not moved: the shifts S are corrected instead.

    Args: cutoff A; skin A, >= 0. Attributes: n_rebuilds, n_updates.
    """

    def __init__(self, cutoff: float, skin: float):
        if not (np.isfinite(cutoff) and cutoff > 0 and np.isfinite(skin) and skin >= 0):
            raise DataError(f"`cutoff, skin` are {cutoff}, {skin}; expected cutoff > 0 and skin >= 0. Correct them.")
        self.cutoff, self.skin = float(cutoff), float(skin)
        self.n_rebuilds = self.n_updates = 0
        self._positions: np.ndarray | None = None
        self._cell = self._pbc = self._images = np.zeros(0)
        self._built: Edges
        self._edges: Edges

    def update(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> Edges:
        """Candidate edges i, j, S: all within the cutoff, none twice; those beyond it are the caller's to cut.

        The very same arrays come back as long as nothing about them changed. Arguments as for `neighbor_list`.
        """
        self.n_updates += 1
        positions = np.array(positions, dtype=np.float64)
        cell, pbc = np.array(cell, dtype=np.float64), np.array(pbc, dtype=bool)
        images = self._images_if_valid(positions, cell, pbc)
        if images is None:
            self._built = self._edges = neighbor_list(positions, cell, pbc, self.cutoff + self.skin)
            self._positions, self._cell, self._pbc = positions, cell, pbc
            self._images = np.zeros(positions.shape, dtype=np.int64)
            self.n_rebuilds += 1
        elif not np.array_equal(images, self._images):
            i, j, shift = self._built  # r_j gained n_j.cell, so S loses it: the same vector r_j - r_i + S.cell
            self._edges = (i.view(), j.view(), shift - images[j] + images[i])
            self._images = images
        return self._edges

    def _images_if_valid(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray | None:
        """Lattice vectors (n_atoms, 3) by which atoms were wrapped since the list was built; None: build it anew."""
        old = self._positions
        if old is None or old.shape != positions.shape or len(old) == 0 or not np.array_equal(pbc, self._pbc):
            return None
        shrink = 1.0
        if not np.array_equal(cell, self._cell):
            before, now = _completed(self._cell, pbc), _completed(cell, pbc)
            if abs(np.linalg.det(before)) < 1e-12 or abs(np.linalg.det(now)) < 1e-12:
                return None
            deformation = np.linalg.solve(before, now)
            shrink = float(np.linalg.svd(deformation, compute_uv=False)[-1])
            old = old @ deformation
        moved = positions - old
        images = np.zeros(positions.shape, dtype=np.int64)
        if pbc.any() and np.abs(moved).max() > 0.5 * self.skin:
            fractional = np.linalg.solve(_completed(cell, pbc).T, moved.T).T
            if not np.isfinite(fractional).all() or np.abs(fractional).max() > 1e9:
                return None
            images = np.rint(np.where(pbc, fractional, 0.0)).astype(np.int64)
            moved = moved - images @ cell
        moved -= moved.mean(axis=0)
        largest = float(np.sqrt(np.einsum("ik,ik->i", moved, moved).max()))
        enough = (self.cutoff + 2.0 * largest) <= (self.cutoff + self.skin) * shrink  # False for NaN
        return images if enough else None


def _stable_order(center: np.ndarray, n_atoms: int) -> np.ndarray:
    """argsort(center, kind="stable") in time linear in its length: NumPy sorts 16-bit integers by radix."""
    order = np.argsort(center.astype(np.uint16), kind="stable")
    for digit in range(16, max(n_atoms - 1, 1).bit_length(), 16):
        order = order[np.argsort((center[order] >> np.uint64(digit)).astype(np.uint16), kind="stable")]
    return order


def _completed(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The cell with the rows of open directions replaced by unit vectors orthogonal to the periodic ones."""
    if pbc.all():
        return cell
    periodic = cell[pbc]
    completed = cell.copy()
    _, _, basis = np.linalg.svd(periodic) if len(periodic) else (None, None, np.eye(3))
    completed[~pbc] = basis[len(periodic) :]
    return completed


def _check(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
    """Refuse what no list can be made of. NaN fails the comparisons below, so it is caught with the rest."""
    if positions.ndim != 2 or positions.shape[1] != 3 or cell.shape != (3, 3) or pbc.shape != (3,):
        raise DataError(
            f"`positions, cell, pbc` have shapes {positions.shape}, {cell.shape}, {pbc.shape}; "
            "expected (n_atoms, 3), (3, 3), (3,). Reshape them."
        )
    if positions.size and not np.abs(positions).max() < _MAX_COORDINATE:
        atom = int(np.flatnonzero(~(np.abs(positions).max(axis=1) < _MAX_COORDINATE))[0])
        raise DataError(
            f"`positions` of atom {atom} is {positions[atom].tolist()} A; expected finite numbers below "
            f"{_MAX_COORDINATE:.0e} A. If this happened during dynamics the forces or the time step are wrong."
        )
    if pbc.any():
        vectors = cell[pbc]
        size = float(np.prod(np.linalg.norm(vectors, axis=1)))
        spanned = float(np.sqrt(max(np.linalg.det(vectors @ vectors.T), 0.0))) if np.isfinite(size) else 0.0
        if not spanned > 1e-6 * size:
            raise DataError(
                f"`cell` is {cell.tolist()} with pbc {pbc.tolist()}; expected periodic vectors that are finite and "
                "linearly independent. Correct the cell, or switch pbc off along the directions without a vector."
            )
