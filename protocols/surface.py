"""Surface energies of lattice planes from slabs of growing thickness, and the gamma line: the energy of a slip.

    E(n) = n e + 2 A gamma            energies of slabs of n layers: a line, slope e, and gamma from its intercept
    gamma(u) = [E(u) - E(0)]/A        of a crystal in which each cell is shifted against the next by u in the plane

The line needs no energy of the bulk (V. Fiorentini, M. Methfessel, J. Phys.: Condens. Matter 8, 6525 (1996)); its slope
is compared with it. A slab of a compound may have two different sides: gamma is then their mean. In the cell with the
fault atoms relax along the normal only. Stacking faults: V. Vitek, Phil. Mag. 18, 773 (1968).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, field_validator, model_validator

from dpsim.analysis.report import Curve, Figure, Result, Section, Table
from dpsim.config import Length, StrictModel
from dpsim.errors import ConfigError
from dpsim.protocols.context import AnalysisOutput
from dpsim.protocols.relaxations import Relaxed, Statics
from dpsim.protocols.static import Part, Static, atoms_section, result, structures_section
from dpsim.units import factor

if TYPE_CHECKING:
    from ase import Atoms

    from dpsim.protocols.slabs import Layer

Miller = tuple[int, int, int]
_J_PER_M2 = float(factor("eV/A^2", "J/m^2"))
_SLOPE_MEV = 5.0  # per atom; a larger difference of the slope to the bulk is worth a warning
_MEV = 1000.0


class GammaLine(StrictModel):
    """A slip of one half of the crystal over the other."""

    plane: Miller = Field(description="Miller indices of the plane, in lattice vectors of the structure")
    direction: tuple[float, float, float] = Field(
        description="the whole shift, in lattice vectors of the structure: [0.1667, 0.1667, -0.3333] for fcc's partial"
    )
    points: int = Field(11, ge=3, description="shifts from none to the whole")
    layers: int = Field(6, ge=2, description="of the cell; the fault repeats after them")


class SurfaceProtocol(Static):
    """What surface energies need."""

    units: ClassVar = {
        r"surface\.[\d-]+(\.unrelaxed)?": "J/m^2",
        r"gamma\.(unstable|end)": "J/m^2",
        "a": "A",
    }
    protocol: Literal["surface"]
    planes: tuple[Miller, ...] = Field((), description="Miller indices, in lattice vectors of the structure")
    layers: tuple[PositiveInt, ...] = Field((4, 6, 8), min_length=2, description="thicknesses of the slabs")
    vacuum: Length = Field(12.0, gt=0.0, description="between a slab and its image; more than the model's cutoff")
    gamma_line: GammaLine | None = Field(None, description="the energy of a slip")

    @field_validator("planes")
    @classmethod
    def _are_planes(cls, planes: tuple[Miller, ...]) -> tuple[Miller, ...]:
        if (0, 0, 0) in planes or len(set(planes)) < len(planes):
            raise ValueError(f"`planes` is {planes}; expected different planes, none of them 0 0 0. Correct them.")
        return planes

    @model_validator(mode="after")
    def _something(self) -> SurfaceProtocol:
        if not self.planes and self.gamma_line is None:
            raise ValueError("`planes` is empty and there is no `gamma_line`; expected one of them. Add planes.")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"`layers` is {self.layers}; expected different numbers. Leave the second out.")
        return self

    def prepare(self, atoms: Atoms) -> None:
        from dpsim.protocols.slabs import layer

        for plane in self.planes:
            layer(atoms, plane)
        if (line := self.gamma_line) is not None:
            cut = layer(atoms, line.plane)
            out = float(np.array(line.direction) @ atoms.cell.array @ cut.normal)
            if abs(out) > 0.01:
                raise ConfigError(
                    f"`gamma_line.direction` {line.direction} leaves the plane {line.plane} by {out:.2g} A; expected "
                    "h u + k v + l w = 0. Correct one of them."
                )

    def parts(self, atoms: Atoms) -> list[Part]:
        from dpsim.protocols.slabs import layer

        found = [Part("crystal", len(atoms), 1)]
        for plane in self.planes:
            n_atoms = round(float(np.mean(self.layers))) * len(layer(atoms, plane).atoms)
            found.append(Part(f"slabs {name_of(plane)}", n_atoms, len(self.layers)))
        if (line := self.gamma_line) is not None:
            n_atoms = line.layers * len(layer(atoms, line.plane).atoms)
            found.append(Part("gamma line", n_atoms, line.points))
        return found

    def work(self, statics: Statics, figures: Path) -> AnalysisOutput:
        from dpsim.protocols.slabs import layer

        crystal = statics.relax("crystal", statics.atoms, "free")
        output = AnalysisOutput()
        slabs = [self._slabs(plane, layer(crystal.atoms, plane), statics) for plane in self.planes]
        for one in slabs:
            output.results.extend(self._numbers(one))
            output.warnings.extend(_doubts(one, crystal))
        if slabs:
            path = plot_slabs(figures / "surface.png", slabs)
            caption = "What the line through the energies leaves, against the thickness: in J/m^2 of each side."
            header = ("plane", "layers", "atoms", "unrelaxed (eV)", "relaxed (eV)")
            output.sections.append(
                Section(
                    "Surfaces", figures=[Figure(path, caption)], table=Table(header, [r for s in slabs for r in s.rows])
                )
            )
        for one in slabs:
            frames = {"unrelaxed": one.unrelaxed[-1].atoms, "relaxed": one.relaxed[-1].atoms}
            output.sections.extend(atoms_section(f"Atoms, ({one.name})", frames, f"Slab of {one.layers[-1]} layers."))
        if self.gamma_line is not None:
            self._gamma(self.gamma_line, crystal, statics, figures, output)
        output.results.append(result(self, "a", "cell of the file, relaxed: a", float(crystal.atoms.cell.lengths()[0])))
        output.sections.append(structures_section())
        return output

    def _slabs(self, plane: Miller, cut: Layer, statics: Statics) -> Slabs:
        """All thicknesses of a plane."""
        unrelaxed, relaxed = [], []
        for n in sorted(self.layers):
            atoms = cut.slab(n, self.vacuum)
            unrelaxed.append(statics.single(f"surface.{name_of(plane)}.{n}.unrelaxed", atoms))
            relaxed.append(statics.relax(f"surface.{name_of(plane)}.{n}", atoms))
        return Slabs(name_of(plane), cut.area, tuple(sorted(self.layers)), unrelaxed, relaxed)

    def _numbers(self, one: Slabs) -> list[Result]:
        gamma, error, slope = one.fit(one.relaxed)
        plain, plain_error, _ = one.fit(one.unrelaxed)
        why = f"Slope of the line: {slope:.5f} eV/atom. Unrelaxed {plain:.4g} J/m^2."
        return [
            result(self, f"surface.{one.name}", f"surface energy ({one.name})", gamma, error, why),
            result(
                self, f"surface.{one.name}.unrelaxed", f"surface energy ({one.name}), unrelaxed", plain, plain_error
            ),
        ]

    def _gamma(
        self, line: GammaLine, crystal: Relaxed, statics: Statics, figures: Path, output: AnalysisOutput
    ) -> None:
        """The slip, point by point."""
        from dpsim.protocols.slabs import layer

        cut = layer(crystal.atoms, line.plane)
        whole = np.array(line.direction) @ crystal.atoms.cell.array
        whole -= (whole @ cut.normal) * cut.normal
        shares = np.linspace(0.0, 1.0, line.points)
        slipped = [
            statics.relax(f"gamma.{k:02d}", cut.stack(line.layers, share * whole), along=cut.normal.tolist())
            for k, share in enumerate(shares)
        ]
        energies = np.array([one.energy for one in slipped])
        gamma = _J_PER_M2 * (energies - energies[0]) / cut.area
        highest = int(np.argmax(gamma))
        at, top = _top(shares, gamma)
        output.results.append(
            result(self, "gamma.unstable", "highest energy of the slip", top, abs(top - gamma[highest]),
                   f"At {at:.2f} of the shift; a parabola through the highest points.")
        )  # fmt: skip
        output.results.append(result(self, "gamma.end", "energy after the whole shift", float(gamma[-1])))
        path = plot_gamma(figures / "gamma.png", shares, gamma, (at, top))
        text = (
            f"Plane {line.plane}, shift {line.direction}; {line.layers} layers, {len(cut.atoms) * line.layers} atoms."
        )
        output.sections.append(Section("Gamma line", text, figures=[Figure(path, "Energy of the slip per area.")]))
        output.curves.append(
            Curve("gamma", f"Gamma line {line.plane}", "share of the shift", "energy (J/m²)", shares, gamma)
        )
        frames = {f"{share:.2f} of the shift": one.atoms for share, one in zip(shares, slipped, strict=True)}
        output.sections.extend(atoms_section("Atoms, gamma line", frames, "The cell with the fault, relaxed."))


@dataclass(frozen=True)
class Slabs:
    """Slabs of one plane."""

    name: str
    area: float  # A^2
    layers: Sequence[int]
    unrelaxed: Sequence[Relaxed]
    relaxed: Sequence[Relaxed]

    def fit(self, slabs: Sequence[Relaxed]) -> tuple[float, float, float]:
        """gamma and its error (J/m^2), and the slope (eV/atom) of the line E against the number of atoms.

        The error is the larger one of that of the fit and of what the thinnest slab changes: gamma without it.
        """
        n = np.array([len(slab.atoms) for slab in slabs], dtype=np.float64)
        e = np.array([slab.energy for slab in slabs])
        scale = _J_PER_M2 / (2.0 * self.area)
        slope, intercept = np.polyfit(n, e, 1)
        error = 0.0
        if len(n) > 2:
            left = e - (slope * n + intercept)
            spread = np.sqrt(left @ left / (len(n) - 2))
            error = spread * np.sqrt(1.0 / len(n) + n.mean() ** 2 / np.sum((n - n.mean()) ** 2))
            error = max(error, abs(np.polyfit(n[1:], e[1:], 1)[1] - intercept))
        return float(scale * intercept), float(scale * error), float(slope)

    def residuals(self, slabs: Sequence[Relaxed]) -> NDArray[np.float64]:
        """What the line leaves, J/m^2 of each side."""
        n = np.array([len(slab.atoms) for slab in slabs], dtype=np.float64)
        e = np.array([slab.energy for slab in slabs])
        return _J_PER_M2 / (2.0 * self.area) * (e - np.polyval(np.polyfit(n, e, 1), n))

    @property
    def rows(self) -> list[tuple[str, int, int, float, float]]:
        """For the table of the report."""
        return [
            (self.name, n, len(r.atoms), u.energy, r.energy)
            for n, u, r in zip(self.layers, self.unrelaxed, self.relaxed, strict=True)
        ]


def name_of(plane: Miller) -> str:
    """110; with signs or two digits 1-10."""
    return "".join(str(i) for i in plane) if all(0 <= i < 10 for i in plane) else "-".join(str(i) for i in plane)


def _top(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Where and how high: a parabola through the highest point and its neighbours; at an end, that point."""
    k = int(np.argmax(y))
    if k in (0, len(y) - 1):
        return float(x[k]), float(y[k])
    a, b, c = np.polyfit(x[k - 1 : k + 2] - x[k], y[k - 1 : k + 2], 2)
    return float(x[k] - b / (2.0 * a)), float(c - b * b / (4.0 * a))


def _doubts(one: Slabs, crystal: Relaxed) -> list[str]:
    """A slope that is not the energy of the crystal: slabs too thin, or another structure than at the start."""
    gamma, error, slope = one.fit(one.relaxed)
    off = _MEV * (slope - crystal.per_atom)
    found = []
    if abs(off) > _SLOPE_MEV:
        found.append(
            f"({one.name}): a layer more costs {off:+.2g} meV/atom beside the crystal: the slabs are too thin, or they "
            "relaxed to another structure. Look at them; take more `layers`."
        )
    if len(one.layers) < 3:
        found.append(f"({one.name}): two thicknesses give a line without an error. Take three or more.")
    elif error > 0.05 * abs(gamma):
        found.append(f"({one.name}): not converged with thickness, ± {error:.2g} J/m^2. Take more `layers`.")
    return found


def plot_slabs(path: Path, slabs: Sequence[Slabs]) -> Path:
    """Residuals of the lines."""
    from dpsim.analysis.figures import PALETTE, figure

    with figure(path) as (_, axes):
        ax = axes[0, 0]
        for k, one in enumerate(slabs):
            gamma, _, _ = one.fit(one.relaxed)
            color = PALETTE[k % len(PALETTE)]
            left = one.residuals(one.relaxed)
            ax.plot(one.layers, left, "o-", color=color, ms=6, mec="white", label=f"({one.name}), {gamma:.3g} J/m²")
        ax.axhline(0.0, color="black", lw=0.7)
        ax.set_xticks(sorted({n for one in slabs for n in one.layers}))
        ax.set_xlabel("layers")
        ax.set_ylabel("energy − line (J/m²)")
        ax.legend(loc="best")
    return path


def plot_gamma(
    path: Path, shares: NDArray[np.float64], gamma: NDArray[np.float64], unstable: tuple[float, float]
) -> Path:
    """Energy of the slip; its highest point, and what is left after the whole shift."""
    from scipy.interpolate import CubicSpline

    from dpsim.analysis.figures import BLUE, GREEN, RED, figure

    fine = np.linspace(shares[0], shares[-1], 201)
    with figure(path) as (_, axes):
        ax = axes[0, 0]
        ax.plot(fine, CubicSpline(shares, gamma)(fine), color=BLUE, lw=1.2, label="spline")
        ax.plot(shares, gamma, "o", color=BLUE, ms=6, mec="white", label="computed")
        at, top = unstable
        ax.plot([at], [top], "D", color=RED, ms=7, mec="white", label=f"unstable: {top:.3g} J/m²")
        ax.plot(
            [shares[-1]], [gamma[-1]], "s", color=GREEN, ms=7, mec="white", label=f"at the end: {gamma[-1]:.3g} J/m²"
        )
        ax.axhline(0.0, color="black", lw=0.7)
        ax.legend(loc="best")
        ax.set_xlabel("share of the shift")
        ax.set_ylabel("energy (J/m²)")
    return path
