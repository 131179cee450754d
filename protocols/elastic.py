"""The elastic tensor: a relaxed crystal is strained along the few directions that its symmetry leaves independent.

Each strained cell is computed as strained (clamped ions) and with relaxed atoms; stresses and energies give the
constants (equations: `dpsim/analysis/elasticity.py`). Quoted are relaxed ions by stresses. The error is that of the
fit's residuals, of the size of the strain (what extrapolation to zero changed) and half the difference to the energies.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from dpsim.analysis.elasticity import (
    Averages,
    ElasticFit,
    averages,
    fit_energies,
    fit_stresses,
    stiffness_eigenvalues,
    strain_directions,
    strain_matrix,
    symmetric_basis,
)
from dpsim.analysis.report import Figure, Result, Section, Table
from dpsim.protocols.context import AnalysisOutput
from dpsim.protocols.relaxations import Relaxed, Statics
from dpsim.protocols.static import GPA, Part, Static, result, structures_section
from dpsim.protocols.symmetry import crystal_symmetry

if TYPE_CHECKING:
    from ase import Atoms

_RESIDUAL_STRESS_GPA = 0.1


class ElasticProtocol(Static):
    """What an elastic tensor needs."""

    units: ClassVar = {
        r"(clamped\.|energy\.)?C[1-6][1-6]": "GPa",
        r"bulk_modulus|shear_modulus|young_modulus|smallest_eigenvalue": "GPa",
        r"poisson_ratio|anisotropy": "",
        r"a|b|c": "A",
    }
    protocol: Literal["elastic"]
    relax_cell: bool = Field(True, description="begin with the cell at zero stress; false: with that of the file")
    strains: tuple[float, ...] = Field(
        (0.005, 0.01), min_length=1, description="sizes; each is applied with both signs, the results extrapolated to 0"
    )
    stable: bool | None = Field(True, description="whether the crystal should be stable; null for no verdict")

    @field_validator("strains")
    @classmethod
    def _small(cls, sizes: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0.0 < size <= 0.05 for size in sizes) or len(set(sizes)) < len(sizes):
            raise ValueError(f"`strains` is {sizes}; expected different sizes between 0 and 0.05. Correct them.")
        return sizes

    def parts(self, atoms: Atoms) -> list[Part]:
        _, basis = symmetric_basis(crystal_symmetry(atoms).rotations)
        n = 2 * len(self.strains) * len(strain_directions(basis))
        return [Part("relax", len(atoms), 1), Part("clamped", len(atoms), n, False), Part("relaxed", len(atoms), n)]

    def work(self, statics: Statics, figures: Path) -> AnalysisOutput:
        start = statics.relax("relaxed", statics.atoms, "free" if self.relax_cell else "fixed")
        crystal = crystal_symmetry(start.atoms)
        names, basis = symmetric_basis(crystal.rotations)
        found = self._tensors(start, names, basis, statics)
        output = AnalysisOutput()
        residual = GPA * float(np.max(np.abs(start.stress)))
        if residual > _RESIDUAL_STRESS_GPA:
            output.warnings.append(
                f"The unstrained cell is under {residual:.2g} GPa: these constants relate stress to strain of a loaded "
                "crystal, in which stresses and energies differ. Set relax_cell: true."
            )
        lengths = start.atoms.cell.lengths()
        output.results.extend(self._constants(found))
        output.results.extend(self._moduli(found))
        output.results.append(result(self, "a", "cell of the file, relaxed: a", float(lengths[0])))
        path = plot_constants(figures / "elastic.png", found, self.strains)
        text = (
            f"Space group {crystal.name}: {len(names)} independent constants from {len(found.directions)} directions "
            f"of strain with sizes {', '.join(f'{s:g}' for s in self.strains)}. Axes: the Cartesian ones of the file."
        )
        caption = "Constants at each size of strain (points), and extrapolated to zero (line)."
        tensor = GPA * found.relaxed.tensor
        rows: list[list[str | float]] = [[f"{i + 1}", *row.round(3).tolist()] for i, row in enumerate(tensor)]
        output.sections.extend(
            [
                Section("Elastic tensor (GPa)", text, [Figure(path, caption)], Table(("", *"123456"), rows)),
                self._stability(found),
                structures_section(),
            ]
        )
        return output

    def _tensors(self, start: Relaxed, names: list[str], basis: NDArray[np.float64], statics: Statics) -> Tensors:
        """Strain, compute, fit."""
        directions = strain_directions(basis)
        stresses: dict[str, dict[int, NDArray[np.float64]]] = {"clamped": {}, "relaxed": {}}
        energies: dict[int, NDArray[np.float64]] = {}
        for m, direction in enumerate(directions):
            cells = [[self._strained(start, m, h, s, direction, statics) for s in (1, -1)] for h in self.strains]
            for k, kind in enumerate(stresses):
                stresses[kind][m] = np.array([[pair[k].stress for pair in size] for size in cells])
            energies[m] = np.array([[pair[1].energy for pair in size] for size in cells])
        clamped, relaxed = (fit_stresses(names, basis, directions, self.strains, s) for s in stresses.values())
        volume = start.atoms.get_volume()
        by_energy = fit_energies(names, basis, directions, self.strains, energies, start.energy, volume)
        return Tensors(clamped, relaxed, by_energy, directions, basis)

    def _strained(
        self, start: Relaxed, m: int, size: float, sign: int, direction: NDArray[np.float64], statics: Statics
    ) -> tuple[Relaxed, Relaxed]:
        """Clamped and relaxed atoms in the cell of (1 + strain)."""
        atoms = start.atoms.copy()
        atoms.set_cell(atoms.cell @ (np.eye(3) + strain_matrix(sign * size * direction)), scale_atoms=True)
        key = f"strain.{m}.{sign * size:+g}"
        return statics.single(f"{key}.clamped", atoms), statics.relax(key, atoms)

    def _constants(self, found: Tensors) -> list[Result]:
        """Every independent constant: relaxed, clamped, by energies."""
        relaxed = found.relaxed
        results = []
        for k, name in enumerate(relaxed.names):
            by_energy = float(found.energy.values[k])
            why = (
                f"From the size of the strain ± {GPA * relaxed.strain_errors[k]:.2g}, from the fit ± "
                f"{GPA * relaxed.fit_errors[k]:.2g}; energies give {GPA * by_energy:.4g}, clamped ions "
                f"{GPA * found.clamped.values[k]:.4g}."
            )
            value, error = GPA * float(relaxed.values[k]), GPA * float(found.errors[k])
            results.append(result(self, name, f"{name}", value, error, why))
        for label, kind, fit in (("clamped ions", "clamped", found.clamped), ("by energies", "energy", found.energy)):
            for name, value, error in zip(fit.names, fit.values, fit.errors, strict=True):
                results.append(
                    result(self, f"{kind}.{name}", f"{name}, {label}", GPA * float(value), GPA * float(error))
                )
        return results

    def _moduli(self, found: Tensors) -> list[Result]:
        """Averages with errors by first order, and stability."""
        mean = averages(found.relaxed.tensor)
        lowest = GPA * float(stiffness_eigenvalues(found.relaxed.tensor)[0])
        slopes = []  # of bulk, shear, Young, Poisson, eigenvalue by each constant
        for k, value in enumerate(found.relaxed.values):
            step = 1e-4 * max(abs(value), 1e-3)
            change = np.zeros(len(found.relaxed.values))
            change[k] = step
            moved = found.relaxed.tensor + np.einsum("k,kij->ij", change, found.basis)
            other = averages(moved)
            eigenvalue = GPA * float(stiffness_eigenvalues(moved)[0])
            slopes.append(np.subtract(_of(other, eigenvalue), _of(mean, lowest)) / step)
        errors = np.sqrt(np.square(np.array(slopes).T * found.errors).sum(axis=1))
        names = ("bulk_modulus", "shear_modulus", "young_modulus", "poisson_ratio")
        labels = ("bulk modulus (Hill)", "shear modulus (Hill)", "Young's modulus (Hill)", "Poisson's ratio (Hill)")
        values = _of(mean, lowest)
        bounds = f"Voigt {GPA * mean.shear_voigt:.4g}, Reuss {GPA * mean.shear_reuss:.4g}."
        results = [
            result(self, name, label, float(value), float(error), bounds if name == "shear_modulus" else "")
            for name, label, value, error in zip(names, labels, values, errors, strict=False)
        ]
        universal = 5 * mean.shear_voigt / mean.shear_reuss + mean.bulk_voigt / mean.bulk_reuss - 6
        results.append(result(self, "anisotropy", "universal anisotropy index", universal))
        return [*results, self._is_stable(lowest, float(errors[4]))]

    def _is_stable(self, lowest: float, error: float) -> Result:
        """Born's criterion as a result."""
        why = "Born: the crystal is stable if all eigenvalues of the stiffness are positive."
        plain = result(self, "smallest_eigenvalue", "smallest eigenvalue of the stiffness", lowest, error, why)
        if self.stable is None or plain.verdict != "INFO":
            return plain
        verdict: Literal["PASS", "FAIL", "UNDECIDED"] = "PASS" if (lowest > 0.0) == self.stable else "FAIL"
        verdict = "UNDECIDED" if abs(lowest) < 2.0 * error else verdict
        threshold = "> 0" if self.stable else "≤ 0"
        return Result(plain.name, plain.label, lowest, error, plain.unit, threshold, verdict, why)

    def _stability(self, found: Tensors) -> Section:
        values = GPA * stiffness_eigenvalues(found.relaxed.tensor)
        text = (
            "A crystal resists every small strain if its stiffness, as a matrix over orthonormal strains, has positive "
            "eigenvalues only (Mouhat and Coudert, Phys. Rev. B 90, 224104 (2014)). Its eigenvalues, GPa: "
            + ", ".join(f"{x:.4g}" for x in values)
            + "."
        )
        return Section("Stability", text)


def _of(mean: Averages, eigenvalue: float) -> list[float]:
    return [GPA * mean.bulk, GPA * mean.shear, GPA * mean.young, mean.poisson, eigenvalue]


@dataclass(frozen=True)
class Tensors:
    """The three fits, and the directions of strain."""

    clamped: ElasticFit
    relaxed: ElasticFit
    energy: ElasticFit
    directions: NDArray[np.float64]
    basis: NDArray[np.float64]

    @property
    def errors(self) -> NDArray[np.float64]:
        """Of the constants quoted, eV/A^3."""
        half = 0.5 * np.abs(self.energy.values - self.relaxed.values)
        return np.sqrt(self.relaxed.errors**2 + half**2)


def plot_constants(path: Path, found: Tensors, sizes: tuple[float, ...]) -> Path:
    """Constants against the size of strain."""
    from dpsim.analysis.figures import PALETTE, figure

    h = np.array(sizes)
    grid = np.linspace(0.0, 1.1 * h.max(), 50)
    with figure(path, height=3.8) as (_, axes):
        ax = axes[0, 0]
        for k, name in enumerate(found.relaxed.names):
            color = PALETTE[k % len(PALETTE)]
            for fit, marker, style, kind in ((found.relaxed, "o", "-", ""), (found.energy, "s", ":", ", energies")):
                shown = GPA * fit.of_size[:, k]
                ax.plot(h, shown, marker, color=color, ms=5, mfc=color if marker == "o" else "none",
                        label=f"{name}{kind}" if len(found.relaxed.names) <= 6 else None)  # fmt: skip
                slope = (fit.of_size[np.argmax(h), k] - fit.values[k]) / h.max() ** 2
                ax.plot(grid, GPA * (fit.values[k] + slope * grid**2), style, color=color, lw=1.0)
        ax.set_xlim(left=0.0)
        ax.set_xlabel("size of the strain")
        ax.set_ylabel("elastic constant (GPa)")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return path
