"""Elastic constants from stresses and energies of strained crystals, reduced by symmetry.

Voigt order xx yy zz yz xz xy; strains e = (exx, eyy, ezz, 2eyz, 2exz, 2exy). Of a cell strained by +-h d, where d is a
direction in the space of strains,

    (s(h d) - s(-h d)) / 2h             = C d   + O(h^2)       stress fit, six equations for each direction
    (E(h d) + E(-h d) - 2 E(0)) / V h^2 = d.C.d + O(h^2)       energy fit, one

The rotations R of the crystal's point group leave C_ijkl = R_ia R_jb R_kc R_ld C_abcd unchanged, so C = sum_k c_k B_k
with the few constants c_k that the group allows (3 of a cubic crystal, 21 of a triclinic one). They are named after
the element they are equal to: C11, C12, C44, ... Several sizes h give c(h) = c + c' h^2, extrapolated to h = 0.

Stability: C positive definite (F. Mouhat, F.-X. Coudert, Phys. Rev. B 90, 224104 (2014)).
Averages: Voigt, Reuss and their mean, R. Hill, Proc. Phys. Soc. A 65, 349 (1952). Stresses, C: eV/A^3 unless said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpsim.errors import DataError

Array = NDArray[np.float64]
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
# Elements in the order in which names are preferred: C11 C12 C13 C22 C23 C33 C44 C55 C66, then the others.
_ELEMENTS = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2), (3, 3), (4, 4), (5, 5)]
_ELEMENTS += [(i, j) for i in range(6) for j in range(max(i, 3), 6) if i != j]


def strain_matrix(voigt: ArrayLike) -> Array:
    """The symmetric (3, 3) strain of six Voigt components."""
    e = np.asarray(voigt, dtype=np.float64)
    return np.array([[e[0], e[5] / 2, e[4] / 2], [e[5] / 2, e[1], e[3] / 2], [e[4] / 2, e[3] / 2, e[2]]])


def symmetric_basis(rotations: ArrayLike) -> tuple[list[str], Array]:
    """Names of the independent constants, and the tensors B (k, 6, 6) that they multiply.

    Args: rotations (n, 3, 3): the Cartesian point group, all of it.
    """
    r = np.asarray(rotations, dtype=np.float64)
    rows = []
    for i, j in _ELEMENTS:
        unit = np.zeros((6, 6))
        unit[i, j] = unit[j, i] = 1.0
        c = _to_tensor(unit)
        for _ in range(4):  # turn one index after the other: the first becomes the last
            c = np.einsum("nia,n...a->n...i", r, np.moveaxis(c if c.ndim == 5 else np.stack([c] * len(r)), 1, -1))
        mean = _to_voigt(c.mean(axis=0))
        rows.append([mean[element] for element in _ELEMENTS])
    reduced, pivots = _row_echelon(np.array(rows))
    names = [f"C{_ELEMENTS[p][0] + 1}{_ELEMENTS[p][1] + 1}" for p in pivots]
    basis = np.zeros((len(pivots), 6, 6))
    for tensor, row in zip(basis, reduced, strict=True):
        for (i, j), value in zip(_ELEMENTS, row, strict=True):
            tensor[i, j] = tensor[j, i] = value
    return names, basis


def strain_directions(basis: Array) -> Array:
    """The fewest of the directions e_i, e_i + e_j (in this order) that determine all constants, (m, 6), by energies."""
    singles = list(np.eye(6))
    pairs = [singles[i] + singles[j] for i in range(6) for j in range(i + 1, 6)]
    chosen: list[Array] = []
    rank = 0
    for d in singles + pairs:
        grown = np.linalg.matrix_rank(_energy_design([*chosen, d], basis), tol=1e-8)
        if grown > rank:
            chosen.append(d)
            rank = grown
    return np.array(chosen)


@dataclass(frozen=True)
class ElasticFit:
    """Elastic constants: names, values and errors (k,), tensor (6, 6), what each strain size gave (n_sizes, k)."""

    names: tuple[str, ...]
    values: Array
    fit_errors: Array
    strain_errors: Array
    tensor: Array
    of_size: Array

    @property
    def errors(self) -> Array:
        """Of the residuals of the fit, and of the size of the strain: what the extrapolation changed."""
        return np.hypot(self.fit_errors, self.strain_errors)


def fit_stresses(
    names: Sequence[str], basis: Array, directions: Array, sizes: Sequence[float], stresses: Mapping[int, Array]
) -> ElasticFit:
    """Constants from stresses.

    Args:
        names, basis: of `symmetric_basis`.
        directions (m, 6), sizes (n,): the strains +- size * direction.
        stresses: of each direction, by its index, (n, 2, 6): of +size and of -size, tension positive.
    """
    design = np.concatenate([np.einsum("kij,j->ik", basis, d) for d in directions])
    slopes = [
        np.concatenate([(stresses[m][n, 0] - stresses[m][n, 1]) / (2.0 * h) for m in range(len(directions))])
        for n, h in enumerate(sizes)
    ]
    return _fit(names, basis, design, slopes, sizes)


def fit_energies(
    names: Sequence[str], basis: Array, directions: Array, sizes: Sequence[float], energies: Mapping[int, Array],
    unstrained: float, volume: float,
) -> ElasticFit:  # fmt: skip
    """Constants from energies: as `fit_stresses`; energies (n, 2), eV, and that of the unstrained cell of `volume`."""
    design = _energy_design(list(directions), basis)
    curvatures = [
        np.array([(energies[m][n].sum() - 2.0 * unstrained) / (volume * h**2) for m in range(len(directions))])
        for n, h in enumerate(sizes)
    ]
    return _fit(names, basis, design, curvatures, sizes)


def _fit(
    names: Sequence[str], basis: Array, design: Array, targets: Sequence[Array], sizes: Sequence[float]
) -> ElasticFit:
    if np.linalg.matrix_rank(design, tol=1e-8) < len(names):
        raise DataError(f"the strains determine fewer than the {len(names)} constants. Add directions.")
    of_size = np.array([np.linalg.lstsq(design, t, rcond=None)[0] for t in targets])
    smallest = int(np.argmin(sizes))
    left = targets[smallest] - design @ of_size[smallest]
    free = len(left) - len(names)
    variance = float(left @ left) / free if free > 0 else 0.0
    fit_errors = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    h2 = np.square(np.asarray(sizes, dtype=np.float64))
    values = np.polynomial.polynomial.polyfit(h2, of_size, 1)[0] if len(sizes) > 1 else of_size[0]
    strain_errors = np.abs(values - of_size[smallest]) if len(sizes) > 1 else np.zeros(len(names))
    return ElasticFit(tuple(names), values, fit_errors, strain_errors, np.einsum("k,kij->ij", values, basis), of_size)


def stiffness_eigenvalues(tensor: Array) -> Array:
    """Eigenvalues of C in an orthonormal basis of strains (shear components times sqrt 2), ascending, (6,)."""
    weight = np.array([1.0, 1.0, 1.0, *[np.sqrt(2.0)] * 3])
    return np.asarray(np.linalg.eigvalsh(tensor * np.outer(weight, weight)), dtype=np.float64)


@dataclass(frozen=True)
class Averages:
    """Of a polycrystal: bulk and shear modulus by Voigt (upper bound), Reuss (lower) and Hill (their mean)."""

    bulk_voigt: float
    bulk_reuss: float
    shear_voigt: float
    shear_reuss: float

    @property
    def bulk(self) -> float:
        return 0.5 * (self.bulk_voigt + self.bulk_reuss)

    @property
    def shear(self) -> float:
        return 0.5 * (self.shear_voigt + self.shear_reuss)

    @property
    def young(self) -> float:
        """E = 9 B G/(3B + G)."""
        return 9.0 * self.bulk * self.shear / (3.0 * self.bulk + self.shear)

    @property
    def poisson(self) -> float:
        """nu = (3B - 2G)/(6B + 2G)."""
        return (3.0 * self.bulk - 2.0 * self.shear) / (6.0 * self.bulk + 2.0 * self.shear)


def averages(tensor: Array) -> Averages:
    """Voigt-Reuss-Hill, from C and S = C^-1:

    9 B_V = C11 + C22 + C33 + 2(C12 + C23 + C13),       15 G_V = C11 + C22 + C33 - (C12 + C23 + C13)
        + 3(C44 + C55 + C66),       1/B_R and 15/G_R likewise of S, the latter with factors 4, -4 and 3.
    """
    compliance = np.asarray(np.linalg.inv(tensor), dtype=np.float64)

    def parts(m: Array) -> tuple[float, float, float]:
        return float(np.trace(m[:3, :3])), float(m[0, 1] + m[1, 2] + m[0, 2]), float(np.trace(m[3:, 3:]))

    (a, b, g), (sa, sb, sg) = parts(tensor), parts(compliance)
    return Averages((a + 2 * b) / 9, 1 / (sa + 2 * sb), (a - b + 3 * g) / 15, 15 / (4 * sa - 4 * sb + 3 * sg))


def _energy_design(directions: Sequence[Array], basis: Array) -> Array:
    return np.array([np.einsum("i,kij,j->k", d, basis, d) for d in directions])


def _to_tensor(voigt: Array) -> Array:
    """(6, 6) -> (3, 3, 3, 3)"""
    c = np.empty((3, 3, 3, 3))
    for a, (i, j) in enumerate(VOIGT):
        for b, (k, m) in enumerate(VOIGT):
            c[i, j, k, m] = c[j, i, k, m] = c[i, j, m, k] = c[j, i, m, k] = voigt[a, b]
    return c


def _to_voigt(tensor: Array) -> Array:
    """(3, 3, 3, 3) -> (6, 6)"""
    return np.array([[tensor[i, j, k, m] for k, m in VOIGT] for i, j in VOIGT])


def _row_echelon(matrix: Array, tolerance: float = 1e-8) -> tuple[Array, list[int]]:
    """The reduced row echelon form without its zero rows, and the columns of its pivots."""
    m = matrix.copy()
    pivots: list[int] = []
    for column in range(m.shape[1]):
        row = len(pivots)
        if row == len(m):
            break
        best = row + int(np.argmax(np.abs(m[row:, column])))
        if abs(m[best, column]) < tolerance:
            m[row:, column] = 0.0
            continue
        m[[row, best]] = m[[best, row]]
        m[row] /= m[row, column]
        others = np.arange(len(m)) != row
        m[others] -= np.outer(m[others, column], m[row])
        pivots.append(column)
    return np.where(np.abs(m[: len(pivots)]) < tolerance, 0.0, m[: len(pivots)]), pivots
