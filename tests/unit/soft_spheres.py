"""A liquid that is fast enough to test statistics on: soft spheres, and copies of it that are wrong in known ways."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

CUTOFF = 4.8


class SoftSpheres(Calculator):
    """U = scale epsilon sum (1 - r/rc)^4 (1 + 4 r/rc), nearest images; forces times `force_scale` more, a lie."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, scale: float = 1.0, force_scale: float = 1.0, fails_after: int | None = None):
        super().__init__()
        self.epsilon, self.force_scale, self.fails_after = 2.0 * scale, force_scale, fails_after
        self.calls = 0

    def calculate(self, atoms: Atoms | None = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        self.calls += 1
        length = self.atoms.cell.lengths()
        d = self.atoms.positions[None] - self.atoms.positions[:, None]
        d -= length * np.round(d / length)
        r = np.sqrt((d * d).sum(-1))
        np.fill_diagonal(r, 2.0 * CUTOFF)
        x = np.minimum(r / CUTOFF, 1.0)
        energy = 0.5 * self.epsilon * float(np.sum((1 - x) ** 4 * (1 + 4 * x)))
        slope = -20.0 * self.epsilon * x * (1 - x) ** 3 / CUTOFF  # dU/dr of a pair
        gradient = (slope / r)[..., None] * d
        forces = gradient.sum(axis=1) * self.force_scale
        if self.fails_after is not None and self.calls > self.fails_after:
            forces[0] = np.nan
        stress = 0.5 * np.einsum("ija,ijb->ab", gradient, d) / self.atoms.get_volume()
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": forces,
            "stress": full_3x3_to_voigt_6_stress(stress),
        }


def soft_spheres(**settings: Any) -> SoftSpheres:
    """For `{python: "soft_spheres:soft_spheres"}`."""
    return SoftSpheres(**settings)


def liquid(n: int = 3, spacing: float = 3.3) -> Atoms:
    """n^3 argon atoms off a cubic grid."""
    grid = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1).reshape(-1, 3) * spacing
    grid = grid + np.random.default_rng(3).normal(0.0, 0.3, grid.shape)
    return Atoms(f"Ar{n**3}", positions=grid, cell=[n * spacing] * 3, pbc=True)
