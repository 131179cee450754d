"""Elastic constants: what symmetry leaves, exact fits of a linear crystal, Lennard-Jones against pair sums."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

from dpsim.analysis.elasticity import (
    averages,
    fit_energies,
    fit_stresses,
    stiffness_eigenvalues,
    strain_directions,
    strain_matrix,
    symmetric_basis,
)
from dpsim.errors import ConfigError
from dpsim.protocols.symmetry import crystal_symmetry
from statics_for_tests import CRYSTALS, config, lj_energy, run_static

CUBIC = [np.diag(s)[list(p)] for p in permutations(range(3)) for s in product((1.0, -1.0), repeat=3)]
SIZES = (0.005, 0.01)


def rotation(axis: int, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    r = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    r[i, i] = r[j, j] = c
    r[i, j], r[j, i] = -s, s
    return r


def group(*generators: np.ndarray) -> np.ndarray:
    """All products of the generators."""
    found = [np.eye(3)]
    for one in found:
        for g in generators:
            if not any(np.allclose(one @ g, other) for other in found):
                found.append(one @ g)
    return np.array(found)


@pytest.mark.parametrize(
    ("rotations", "names"),
    [
        (CUBIC, "C11 C12 C44"),
        (group(rotation(2, 60), rotation(0, 180)), "C11 C12 C13 C33 C44"),
        (group(rotation(2, 90), rotation(0, 180)), "C11 C12 C13 C33 C44 C66"),
        (group(rotation(2, 120), rotation(0, 180)), "C11 C12 C13 C33 C44 C14"),
        (group(rotation(2, 180), rotation(0, 180)), "C11 C12 C13 C22 C23 C33 C44 C55 C66"),
        (group(rotation(1, 180)), "C11 C12 C13 C22 C23 C33 C44 C55 C66 C15 C25 C35 C46"),
    ],
    ids=["cubic", "hexagonal", "tetragonal", "trigonal", "orthorhombic", "monoclinic"],
)
def test_independent_constants(rotations: np.ndarray, names: str) -> None:
    """The textbook's numbers for each crystal system (Nye); each tensor is invariant; the strains determine all."""
    found, basis = symmetric_basis(rotations)
    assert found == names.split()
    if "hexagonal" in names or len(found) == 5:
        np.testing.assert_allclose(basis[:, 5, 5], [0.5, -0.5, 0, 0, 0], atol=1e-12)  # C66 = (C11 - C12)/2
    directions = strain_directions(basis)
    design = np.einsum("mi,kij,mj->mk", directions, basis, directions)
    assert np.linalg.matrix_rank(design) == len(found)


def test_triclinic_has_21() -> None:
    names, basis = symmetric_basis([np.eye(3)])
    assert len(names) == 21 and len(strain_directions(basis)) == 21


def test_fits_of_a_linear_crystal_are_exact() -> None:
    """s = C e, E = V e.C.e/2 with a random C of a trigonal crystal; a cubic term is removed by extrapolation."""
    names, basis = symmetric_basis(group(rotation(2, 120), rotation(0, 180)))
    values = np.array([1.0, 0.4, 0.3, 1.2, 0.35, 0.1])
    c = np.einsum("k,kij->ij", values, basis)
    directions = strain_directions(basis)
    strains = [[[s * h * d for s in (1, -1)] for h in SIZES] for d in directions]
    cubic = 5.0
    stresses = {m: np.array([[c @ e + cubic * e**3 for e in pair] for pair in one]) for m, one in enumerate(strains)}
    energies = {m: np.array([[-3.0 + 50.0 * e @ c @ e for e in pair] for pair in one]) for m, one in enumerate(strains)}
    by_stress = fit_stresses(names, basis, directions, SIZES, stresses)
    np.testing.assert_allclose(by_stress.values, values, atol=1e-9)
    np.testing.assert_allclose(by_stress.tensor, c, atol=1e-9)
    assert np.all(by_stress.strain_errors < 1e-3) and by_stress.strain_errors.max() > 1e-5
    by_energy = fit_energies(names, basis, directions, SIZES, energies, -3.0, 100.0)
    np.testing.assert_allclose(by_energy.values, values, atol=1e-9)


def test_averages_and_eigenvalues_of_a_cubic_crystal() -> None:
    """Against the formulas for cubic crystals (Hill 1952)."""
    c11, c12, c44 = 172.0, 115.0, 90.0
    _, basis = symmetric_basis(CUBIC)
    tensor = np.einsum("k,kij->ij", [c11, c12, c44], basis)
    mean = averages(tensor)
    assert mean.bulk_voigt == pytest.approx((c11 + 2 * c12) / 3)
    assert mean.bulk_reuss == pytest.approx((c11 + 2 * c12) / 3)
    assert mean.shear_voigt == pytest.approx((c11 - c12 + 3 * c44) / 5)
    assert mean.shear_reuss == pytest.approx(5 * (c11 - c12) * c44 / (4 * c44 + 3 * (c11 - c12)))
    assert 2 * mean.shear * (1 + mean.poisson) == pytest.approx(mean.young)
    np.testing.assert_allclose(
        stiffness_eigenvalues(tensor), sorted([c11 + 2 * c12, c11 - c12, c11 - c12, 2 * c44, 2 * c44, 2 * c44])
    )


def test_point_group_is_cartesian() -> None:
    """Orthogonal matrices, 48 of fcc in its primitive and its cubic cell, and the same constants."""
    for name in ("cu", "cu1"):
        found = crystal_symmetry(CRYSTALS[name])
        assert len(found.rotations) == 48
        np.testing.assert_allclose(found.rotations @ found.rotations.transpose(0, 2, 1), [np.eye(3)] * 48, atol=1e-12)
        assert symmetric_basis(found.rotations)[0] == ["C11", "C12", "C44"]


def test_strain_matrix_halves_the_shear() -> None:
    np.testing.assert_allclose(strain_matrix([1, 2, 3, 4, 5, 6]), [[1, 3, 2.5], [3, 2, 2], [2.5, 2, 3]])


def test_lennard_jones_against_pair_sums(tmp_path: Path) -> None:
    """C11, C12 = C44 (Cauchy), the bulk modulus, and stability."""
    _, found = run_static(tmp_path, "elastic", "lj", force="1e-5 eV/A", strains=[0.001, 0.002])
    exact = lj_energy()
    assert exact.c12_GPa == pytest.approx(exact.c44_GPa, rel=1e-12)
    for name, value in (("C11", exact.c11_GPa), ("C12", exact.c12_GPa), ("C44", exact.c44_GPa)):
        for prefix in ("", "clamped.", "energy."):
            assert found[f"{prefix}{name}"].value == pytest.approx(value, rel=2e-3)
    assert found["bulk_modulus"].value == pytest.approx(exact.bulk_GPa, rel=2e-3)
    assert found["smallest_eigenvalue"].verdict == "PASS"


def test_an_unstable_crystal_fails(tmp_path: Path) -> None:
    """Body-centred copper in EMT: C11 < C12."""
    outcome, found = run_static(tmp_path, "elastic", "bcc", strains=[0.002])
    assert found["smallest_eigenvalue"].value < 0.0
    assert outcome.verdict == "FAIL"


def test_strains_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="between 0 and 0.05"):
        config(tmp_path, "elastic", "lj", strains=[0.1])
