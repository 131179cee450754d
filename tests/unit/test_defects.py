"""Defects and surfaces: Lennard-Jones and EMT values, and the geometry of cuts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import bcc110, bulk, fcc110, fcc111

from dpsim.analysis.report import read_results_json
from dpsim.errors import ConfigError
from dpsim.protocols.defects import vacancy_sites
from dpsim.protocols.slabs import layer
from statics_for_tests import CRYSTALS, calculator_for, config, lj_energy, run_static

_J_PER_M2 = 16.021766


def test_vacancy_of_pair_potential(tmp_path: Path) -> None:
    """Unrelaxed, a vacancy of pairs costs minus the energy of an atom (twice half its bonds, less one): exactly -E."""
    _, found = run_static(tmp_path, "defects", "lj", sizes=[4, 5], force="0.003 eV/A")
    assert found["vacancy.Ar.unrelaxed"].value == pytest.approx(-lj_energy().energy, rel=1e-4)
    assert 0.9 < found["vacancy.Ar"].value / -lj_energy().energy < 1.0
    assert found["vacancy.Ar"].error < 1e-3


@pytest.mark.slow
def test_copper(tmp_path: Path) -> None:
    """EMT: vacancy near 1.2 eV less relaxation, an octahedral interstitial above it, and a barrier."""
    _, found = run_static(
        tmp_path, "defects", "cu", sizes=[2], force="0.01 eV/A", migration=True, images=3,
        interstitials=[{"name": "octahedral", "element": "Cu", "position": [0.5, 0.5, 0.5]}],
    )  # fmt: skip
    assert 0.9 < found["vacancy.Cu"].value < found["vacancy.Cu.unrelaxed"].value < 1.5
    assert found["interstitial.octahedral"].value > 2.0
    assert 0.3 < found["vacancy.Cu.migration"].value < 1.2


def test_sites() -> None:
    assert vacancy_sites(CRYSTALS["cu"]) == {"Cu": 0}
    salt = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    assert set(vacancy_sites(salt)) == {"Na", "Cl"}


def test_defects_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is 0.00 A from an atom"):
        one = config(
            tmp_path, "defects", "cu", interstitials=[{"name": "i", "element": "Cu", "position": [0.5, 0.5, 0.0]}]
        )
        one.prepare(CRYSTALS["cu"])
    with pytest.raises(ConfigError, match="`chemical_potentials` has none for"):
        config(tmp_path, "defects", "cu").prepare(bulk("NaCl", "rocksalt", a=5.6))


@pytest.mark.parametrize(
    ("crystal", "plane", "area", "spacing", "n_atoms"),
    [
        (bulk("Cu", cubic=True, a=4.0), (1, 1, 1), 4.0 * np.sqrt(3.0), 4.0 / np.sqrt(3.0), 1),
        (bulk("Cu", cubic=True, a=4.0), (1, 0, 0), 8.0, 2.0, 1),
        (bulk("Cu", cubic=True, a=4.0), (1, 1, 0), 8.0 * np.sqrt(2.0), np.sqrt(2.0), 1),
        (bulk("Cu", cubic=True, a=4.0), (3, 1, 1), 16.0 / (4.0 / np.sqrt(11.0)), 4.0 / np.sqrt(11.0), 1),
        (bulk("W", cubic=True, a=3.0), (1, 1, 0), 4.5 * np.sqrt(2.0), 3.0 / np.sqrt(2.0), 1),
        (bulk("W", cubic=True, a=3.0), (1, 0, 0), 9.0, 1.5, 1),
        (bulk("Si", cubic=True, a=5.4), (1, 1, 1), 5.4**2 * np.sqrt(3.0) / 4, 5.4 / np.sqrt(3.0), 2),
        (bulk("Ti", a=2.95, c=4.68), (0, 0, 1), 2.95**2 * np.sqrt(3.0) / 2, 4.68, 2),
    ],
)
def test_layers(crystal: object, plane: tuple[int, int, int], area: float, spacing: float, n_atoms: int) -> None:
    """Area, spacing and atoms of the smallest layer; a stack of layers is the crystal."""
    found = layer(crystal, plane)
    assert (found.area, found.spacing) == (pytest.approx(area), pytest.approx(spacing))
    assert len(found.atoms) == n_atoms
    stack = found.stack(3)
    assert stack.get_volume() / len(stack) == pytest.approx(crystal.get_volume() / len(crystal))
    nearest = np.sort(stack.repeat(3).get_all_distances(mic=True)[0])[1]
    assert nearest == pytest.approx(np.sort(crystal.repeat(3).get_all_distances(mic=True)[0])[1])


def test_silicon_is_cut_between_double_layers() -> None:
    """(111): the cut crosses one bond per atom, not three."""
    found = layer(bulk("Si", cubic=True, a=5.4), (1, 1, 1))
    height = found.atoms.positions @ found.normal
    assert np.ptp(height) == pytest.approx(5.4 / np.sqrt(3.0) / 4.0)
    assert height.min() > 0.0 and height.max() < found.spacing


def test_slabs_are_those_of_ase() -> None:
    """The same energies as ASE's builders give."""
    for plane, build, name in (((1, 1, 1), fcc111, "cu"), ((1, 1, 0), fcc110, "cu"), ((1, 1, 0), bcc110, "bcc")):
        crystal = CRYSTALS[name]
        ours = layer(crystal, plane).slab(5, 12.0)
        theirs = build("Cu", (1, 1, 5), a=crystal.cell[0, 0], vacuum=6.0, periodic=True)
        energies = []
        for slab in (ours, theirs):
            slab.calc = calculator_for(config_of_copper, None)
            energies.append(slab.get_potential_energy() / len(slab))
        assert energies[0] == pytest.approx(energies[1], abs=1e-9)


class config_of_copper:
    """What `calculator_for` looks at."""

    class structure:
        file = "cu.extxyz"


def test_surface_of_pair_potential(tmp_path: Path) -> None:
    """Unrelaxed (100): minus half the bonds through the plane, by a lattice sum, per area; the fault repeats at a
    lattice vector."""
    _, found = run_static(
        tmp_path, "surface", "lj", planes=[[0, 0, 1]], layers=[4, 5, 6], force="0.002 eV/A",
        gamma_line={"plane": [0, 0, 1], "direction": [1, 0, 0], "points": 3, "layers": 4},
    )  # fmt: skip
    (plane,) = (n for n in found if n.startswith("surface.") and not n.endswith("unrelaxed"))
    assert 0.0 < found[plane].value < found[f"{plane}.unrelaxed"].value
    assert found["gamma.end"].value == pytest.approx(0.0, abs=1e-6)
    assert found["gamma.unstable"].value > 0.0
    (curve,) = read_results_json(tmp_path / "run" / "results.json")["curves"]
    assert curve.name == "gamma" and list(curve.x) == [0.0, 0.5, 1.0]
    assert max(curve.y) == pytest.approx(found["gamma.unstable"].value, rel=0.05)
    report = (tmp_path / "run" / "report.html").read_text()
    assert "of the file" in report and "0.50 of the shift" in report


def test_surface_refused(tmp_path: Path) -> None:
    line = {"plane": [1, 1, 1], "direction": [1, 0, 0]}
    with pytest.raises(ConfigError, match="leaves the plane"):
        config(tmp_path, "surface", "cu", gamma_line=line).prepare(CRYSTALS["cu"])
    with pytest.raises(ConfigError, match="`planes` is empty and there is no `gamma_line`"):
        config(tmp_path, "surface", "cu")
