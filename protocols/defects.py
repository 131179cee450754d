"""Point defects: formation energies of vacancies and interstitials in growing supercells, and the vacancy's barrier.

    E_f = E(defect) - E(crystal) - sum_s dn_s mu_s         dn_s: atoms of element s added (+1) or removed (-1)
    E_f(N) = E_f + k/N                                     N: atoms of the supercell

mu_s is the energy per atom of the crystal of one element; of a compound it has to be given. The periodic images of a
defect act on each other through the strain around it, which falls with the volume of the cell: hence k/N. Quoted is the
largest supercell; its error is its distance to the extrapolated value, or to the size before where that is larger.
The barrier is that of a neighbour hopping into the vacancy: climbing nudged elastic band (G. Henkelman et al., J. Chem.
Phys. 113, 9901 (2000)) in the smallest supercell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from dpsim.analysis.report import Figure, Result, Section, Table
from dpsim.config import Energy, StrictModel
from dpsim.errors import ConfigError
from dpsim.protocols.context import AnalysisOutput
from dpsim.protocols.relaxations import Relaxed, Statics
from dpsim.protocols.static import Part, Static, atoms_section, result, structures_section
from dpsim.protocols.symmetry import crystal_symmetry

if TYPE_CHECKING:
    from ase import Atoms

_NAME = r"[A-Za-z][A-Za-z0-9_-]*"
_TOO_NEAR = 0.5  # A; an interstitial at the place of an atom
_FEW = 0.05  # eV; errors from the size of the supercell that are worth a warning


class Interstitial(StrictModel):
    """An atom more."""

    name: str = Field(pattern=f"^{_NAME}$", description="such as `octahedral`")
    element: str
    position: tuple[float, float, float] = Field(description="in lattice vectors of the structure")


class DefectsProtocol(Static):
    """What point defects need."""

    units: ClassVar = {
        rf"(vacancy|interstitial)\.{_NAME}(\.unrelaxed|\.extrapolated|\.migration)?": "eV",
        "a": "A",
    }
    protocol: Literal["defects"]
    sizes: tuple[PositiveInt, ...] = Field((2, 3), min_length=1, description="supercells: repeats of the structure")
    vacancies: bool = Field(True, description="one for each kind of site that symmetry distinguishes")
    interstitials: tuple[Interstitial, ...] = Field((), description="atoms to add")
    chemical_potentials: dict[str, Energy] = Field({}, description="of a compound, for each element")
    cell: Literal["fixed", "free"] = Field("fixed", description="of the defective supercell")
    migration: bool = Field(False, description="the barrier of a neighbour that hops into the vacancy")
    images: int = Field(5, ge=1, description="of the band, without its ends")

    @model_validator(mode="after")
    def _some_defect(self) -> DefectsProtocol:
        names = [defect.name for defect in self.interstitials]
        if not self.vacancies and not names:
            raise ValueError("`interstitials` is empty and `vacancies` false; expected a defect. Ask for one.")
        if len(set(names)) < len(names):
            raise ValueError(f"`interstitials` has the names {names}; expected different ones. Rename one.")
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"`sizes` is {self.sizes}; expected different numbers. Leave the second out.")
        return self

    def prepare(self, atoms: Atoms) -> None:
        elements = set(atoms.get_chemical_symbols())
        wanted = elements | {defect.element for defect in self.interstitials}
        missing = sorted(wanted - set(self.chemical_potentials))
        if len(wanted) > 1 and missing:
            raise ConfigError(
                f"`chemical_potentials` has none for {missing}; expected one for each element of a compound. Give the "
                "energy per atom that this model has for their reservoirs."
            )
        for defect in self.interstitials:
            trial = atoms.copy()
            trial.append(defect.element)
            trial.positions[-1] = np.array(defect.position) @ atoms.cell.array
            nearest = float(trial.get_distances(-1, range(len(atoms)), mic=True).min())
            if nearest < _TOO_NEAR:
                raise ConfigError(
                    f"interstitial `{defect.name}` is {nearest:.2f} A from an atom; expected more than {_TOO_NEAR} A. "
                    "Give its `position` in lattice vectors of the structure."
                )

    def parts(self, atoms: Atoms) -> list[Part]:
        n_defects = len(self.interstitials) + (len(vacancy_sites(atoms)) if self.vacancies else 0)
        found = [Part("crystal", len(atoms), 1)]
        for size in sorted(self.sizes):
            found.append(Part(f"defects, {size} x {size} x {size}", len(atoms) * size**3, n_defects))
        if self.vacancies and self.migration:
            n_atoms = len(atoms) * min(self.sizes) ** 3
            found.append(Part("migration", n_atoms, (self.images + 1) * len(vacancy_sites(atoms)) * 3))
        return found

    def work(self, statics: Statics, figures: Path) -> AnalysisOutput:
        crystal = statics.relax("crystal", statics.atoms, "free")
        mu = dict(self.chemical_potentials)
        symbols = set(crystal.atoms.get_chemical_symbols())
        if len(symbols) == 1:
            mu.setdefault(symbols.pop(), crystal.per_atom)
        series = [self._series(d, crystal, mu, statics) for d in self._defects(crystal.atoms)]
        output = AnalysisOutput()
        for one in series:
            output.results.extend(self._numbers(one))
            output.warnings.extend(_doubts(one))
        if self.vacancies and self.migration:
            output.results.extend(self._barriers(series, crystal, statics, figures, output))
        output.results.append(result(self, "a", "cell of the file, relaxed: a", float(crystal.atoms.cell.lengths()[0])))
        path = plot_convergence(figures / "defects.png", series)
        rows = [
            (one.defect.label, n, float(u), float(e), float(f))
            for one in series
            for n, u, e, f in zip(one.n_atoms, one.unrelaxed, one.relaxed, one.moved, strict=True)
        ]
        views = [
            section
            for one in series
            for section in atoms_section(
                f"Atoms, {one.defect.label}", one.largest, f"In {one.n_atoms[-1]} atoms, before and after relaxation."
            )
        ]
        header = ("defect", "atoms", "unrelaxed (eV)", "relaxed (eV)", "largest displacement (A)")
        caption = "Formation energy against the inverse size of the supercell, and the line through the points."
        output.sections.extend(
            [
                Section("Formation energies", figures=[Figure(path, caption)], table=Table(header, rows)),
                *views,
                structures_section(),
            ]
        )
        return output

    def _defects(self, crystal: Atoms) -> list[Defect]:
        sites = vacancy_sites(crystal).items() if self.vacancies else ()
        found = [Defect("vacancy", name, site=site) for name, site in sites]
        return found + [Defect("interstitial", i.name, i.element, i.position) for i in self.interstitials]

    def _series(self, defect: Defect, crystal: Relaxed, mu: dict[str, float], statics: Statics) -> Series:
        """The defect in each supercell."""
        n_atoms, unrelaxed, relaxed, moved = [], [], [], []
        for size in sorted(self.sizes):
            perfect = crystal.atoms.repeat(size)
            start = defect.make(crystal.atoms, perfect)
            change = defect.exchange(crystal.atoms, mu) + crystal.energy * size**3
            clamped = statics.single(f"{defect.key}.{size}.unrelaxed", start)
            final = statics.relax(f"{defect.key}.{size}", start, self.cell)
            n_atoms.append(len(perfect))
            unrelaxed.append(clamped.energy - change)
            relaxed.append(final.energy - change)
            shift = final.atoms.get_scaled_positions(wrap=False) - start.get_scaled_positions(wrap=False)
            moved.append(float(np.linalg.norm((shift - np.round(shift)) @ start.cell.array, axis=1).max()))
        return Series(defect, n_atoms, unrelaxed, relaxed, moved, {"unrelaxed": start, "relaxed": final.atoms})

    def _numbers(self, one: Series) -> list[Result]:
        name, label = f"{one.defect.kind}.{one.defect.name}", one.defect.label
        why = f"{one.n_atoms[-1]} atoms; unrelaxed {one.unrelaxed[-1]:.4g} eV."
        found = [
            result(self, name, f"{label}, formation energy", one.relaxed[-1], one.error, why),
            result(self, f"{name}.unrelaxed", f"{label}, unrelaxed", one.unrelaxed[-1]),
        ]
        if one.extrapolated is not None:
            text = "linear in 1/N"
            found.append(
                result(self, f"{name}.extrapolated", f"{label}, infinite supercell ({text})", one.extrapolated)
            )
        return found

    def _barriers(
        self, series: Sequence[Series], crystal: Relaxed, statics: Statics, figures: Path, output: AnalysisOutput
    ) -> list[Result]:
        """A neighbour of the same element hops into each vacancy."""
        from dpsim.protocols.migration import hop, plot_path

        found = []
        size = min(self.sizes)
        for one in (s for s in series if s.defect.kind == "vacancy"):
            band = hop(one.defect.key, one.defect.site, crystal.atoms.repeat(size), statics, self.images)
            if band is None:
                output.warnings.append(f"{one.defect.label}: no neighbour of the same element; no barrier.")
                continue
            name = f"vacancy.{one.defect.name}.migration"
            text = f"Climbing band of {self.images} images, {len(band.images[0].atoms)} atoms."
            found.append(result(self, name, f"{one.defect.label}, migration barrier", band.barrier, None, text))
            path = plot_path(figures / f"{one.defect.key}.migration.png", band)
            output.sections.append(Section(f"Migration, {one.defect.label}", figures=[Figure(path, text)]))
        return found


@dataclass(frozen=True)
class Defect:
    """A vacancy at a `site` of the structure, or an `element` at a `position` in its lattice vectors."""

    kind: Literal["vacancy", "interstitial"]
    name: str
    element: str = ""
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    site: int = 0

    @property
    def key(self) -> str:
        return f"{self.kind}.{self.name}"

    @property
    def label(self) -> str:
        return f"{self.name} {self.kind}"

    def make(self, crystal: Atoms, perfect: Atoms) -> Atoms:
        """In a supercell, whose first atoms are those of the structure."""
        atoms = perfect.copy()
        if self.kind == "vacancy":
            del atoms[self.site]
        else:
            atoms.append(self.element)
            atoms.positions[-1] = np.array(self.position) @ crystal.cell.array
        return atoms

    def exchange(self, crystal: Atoms, mu: dict[str, float]) -> float:
        """sum_s dn_s mu_s, eV."""
        return -mu[crystal.symbols[self.site]] if self.kind == "vacancy" else mu[self.element]


@dataclass(frozen=True)
class Series:
    """A defect in growing supercells: atoms, formation energies before and after relaxation, largest displacement.

    largest: the structure in the largest one, before and after.
    """

    defect: Defect
    n_atoms: list[int]
    unrelaxed: list[float]
    relaxed: list[float]
    moved: list[float]
    largest: dict[str, Atoms]

    @property
    def extrapolated(self) -> float | None:
        """E_f at 1/N = 0; None of one size."""
        if len(self.n_atoms) < 2:
            return None
        return float(np.polyfit(1.0 / np.array(self.n_atoms), self.relaxed, 1)[1])

    @property
    def error(self) -> float | None:
        """From the size of the supercell; None of one size."""
        if self.extrapolated is None:
            return None
        return max(abs(self.relaxed[-1] - self.extrapolated), abs(self.relaxed[-1] - self.relaxed[-2]))


def vacancy_sites(atoms: Atoms) -> dict[str, int]:
    """An atom of each kind of site: by its element, numbered (O1, O2) where there are several."""
    sites = sorted(set(crystal_symmetry(atoms).sites.tolist()))
    symbols = [atoms.symbols[site] for site in sites]
    names = [s if symbols.count(s) == 1 else f"{s}{symbols[: k + 1].count(s)}" for k, s in enumerate(symbols)]
    return dict(zip(names, sites, strict=True))


def _doubts(one: Series) -> list[str]:
    found = []
    if one.error is None:
        found.append(f"{one.defect.label}: one supercell says nothing of its own size. Give `sizes` two or more.")
    elif one.error > _FEW:
        found.append(f"{one.defect.label}: supercells differ by {one.error:.2g} eV. Take larger ones.")
    if one.relaxed[-1] > one.unrelaxed[-1] + 1e-6:
        found.append(f"{one.defect.label}: relaxation raised its energy; the forces are not those of the energy.")
    return found


def plot_convergence(path: Path, series: Sequence[Series]) -> Path:
    """Formation energies against 1/N."""
    from dpsim.analysis.figures import PALETTE, figure

    with figure(path) as (_, axes):
        ax = axes[0, 0]
        for k, one in enumerate(series):
            color, x = PALETTE[k % len(PALETTE)], 1000.0 / np.array(one.n_atoms)
            ax.plot(x, one.relaxed, "o", color=color, ms=6, mec="white", label=one.defect.label)
            ax.plot(x, one.unrelaxed, "x", color=color, ms=5, label="unrelaxed" if k == 0 else None)
            if one.extrapolated is not None:
                slope, end = np.polyfit(x, one.relaxed, 1)
                ax.plot([0.0, x.max()], [end, end + slope * x.max()], color=color, lw=1.0)
        ax.set_xlim(left=0.0)
        ax.set_xlabel("1000 / atoms")
        ax.set_ylabel("formation energy (eV)")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return path
