"""The equation of state: E(V) of one crystal or several phases, fitted, with the pressures where phases change.

Each phase is relaxed; then cells of other volumes are made of it, `static` as scaled, and relaxed: atoms and shape at
constant volume. Fits: `dpsim/analysis/eos.py`; quoted is Birch-Murnaghan of the relaxed points. The error of a
parameter is that of the fit's residuals and half the difference to Vinet, added in squares: where the two forms
disagree, the range or the number of points does not determine the parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from dpsim.analysis.eos import EquationOfState, fit_eos, transition_pressures
from dpsim.analysis.report import Figure, Result, Section, Table
from dpsim.errors import DataError
from dpsim.protocols.context import AnalysisOutput
from dpsim.protocols.relaxations import Relaxed, Statics
from dpsim.protocols.schema import Structure
from dpsim.protocols.static import GPA, Part, Static, result, structures_section

if TYPE_CHECKING:
    from ase import Atoms

_PHASE = r"([A-Za-z][\w-]*\.)?"
_MEV = 1000.0
_LENGTHS = ("a", "b", "c")
_SAME = 1e-3  # relative; lengths that differ by less are one lattice constant


class EosProtocol(Static):
    """What an equation of state needs."""

    units: ClassVar = {
        rf"{_PHASE}(static\.|vinet\.)?V0": "A^3/atom",
        rf"{_PHASE}(static\.|vinet\.)?B0": "GPa",
        rf"{_PHASE}(static\.|vinet\.)?B0_prime": "",
        rf"{_PHASE}E0": "eV/atom",
        rf"{_PHASE}(a|b|c)": "A",
        r"[A-Za-z][\w-]*\.energy_difference": "meV/atom",
        r"transition\.[\w-]+\.[\w-]+": "GPa",
    }
    protocol: Literal["eos"]
    phase: str = Field("main", pattern=r"^[A-Za-z][\w-]*$", description="name of the phase that `structure` is")
    phases: dict[str, Structure] = Field({}, description="other phases to compare it with, by their names")
    strain: float = Field(0.06, gt=0.0, le=0.3, description="volumes from V0 (1 - strain) to V0 (1 + strain)")
    points: int = Field(9, ge=6, description="number of volumes")

    @model_validator(mode="after")
    def _names_differ(self) -> EosProtocol:
        taken = {self.phase, "static", "vinet", "transition"} & set(self.phases)
        if taken:
            raise ValueError(f"`phases` has {sorted(taken)}, which means something else; expected other names. Rename.")
        return self

    def parts(self, atoms: Atoms) -> list[Part]:
        found = []
        for name, phase in self._structures(atoms).items():
            found += [
                Part(f"{name}: relax", len(phase), 1),
                Part(f"{name}: volumes, static", len(phase), self.points, relaxed=False),
                Part(f"{name}: volumes, relaxed", len(phase), self.points),
            ]
        return found

    def prepare(self, atoms: Atoms) -> None:
        self._structures(atoms)

    def _structures(self, atoms: Atoms) -> dict[str, Atoms]:
        from dpsim.protocols.structures import load_structure

        return {self.phase: atoms, **{name: load_structure(s, self.seed) for name, s in self.phases.items()}}

    def work(self, statics: Statics, figures: Path) -> AnalysisOutput:
        curves = [self._curve(name, atoms, statics) for name, atoms in self._structures(statics.atoms).items()]
        output = AnalysisOutput()
        for curve in curves:
            output.results.extend(self._numbers(curve))
            output.warnings.extend(_doubts(curve))
        lowest = min(curves, key=lambda c: c.relaxed.parameters[0])
        output.results.extend(self._transitions(curves))
        path = plot_eos(figures / "eos.png", curves)
        caption = "Energies of the relaxed cells, and their fits. Lower panel: what the fits leave."
        text = f"{len(curves)} phases; of the lowest energy is {lowest.name}." if len(curves) > 1 else ""
        table = Table(
            ("phase", "volume (A^3/atom)", "static (meV/atom)", "relaxed (meV/atom)", "pressure (GPa)"),
            [row for curve in curves for row in curve.rows()],
        )
        output.sections.extend(
            [Section("Equation of state", text, figures=[Figure(path, caption)], table=table), structures_section()]
        )
        return output

    def _curve(self, name: str, atoms: Atoms, statics: Statics) -> Curve:
        """All structures of a phase, and the fits."""
        start = statics.relax(f"{name}/relaxed", atoms, "free")
        volume = start.atoms.get_volume() / len(atoms)
        volumes = volume * np.linspace(1.0 - self.strain, 1.0 + self.strain, self.points)
        static, relaxed = [], []
        for k, v in enumerate(volumes):
            scaled = start.atoms.copy()
            scaled.set_cell(scaled.cell * (v / volume) ** (1.0 / 3.0), scale_atoms=True)
            static.append(statics.single(f"{name}/static.{k:02d}", scaled))
            relaxed.append(statics.relax(f"{name}/volume.{k:02d}", scaled, "shape"))
        try:
            return Curve.of(name, start, volumes, static, relaxed)
        except DataError as error:
            raise DataError(f"phase {name}: {error}") from error

    def _numbers(self, curve: Curve) -> list[Result]:
        """V0, B0, B0', E0, and the lattice constants."""
        prefix = "" if curve.name == self.phase else f"{curve.name}."
        who = "" if len(self.phases) == 0 else f"{curve.name}: "
        found = []
        rows = (("V0", "equilibrium volume", 1, 1.0), ("B0", "bulk modulus", 2, GPA),
                ("B0_prime", "pressure derivative of the bulk modulus", 3, 1.0))  # fmt: skip
        for key, label, k, scale in rows:
            value, vinet = scale * curve.relaxed.parameters[k], scale * curve.vinet.parameters[k]
            error = float(np.hypot(scale * curve.relaxed.errors[k], 0.5 * (value - vinet)))
            why = f"Birch-Murnaghan; Vinet gives {vinet:.6g}."
            found.append(result(self, f"{prefix}{key}", f"{who}{label}", value, error, why))
            found.append(
                result(self, f"{prefix}vinet.{key}", f"{who}{label}, Vinet", vinet, scale * curve.vinet.errors[k])
            )
            static = scale * curve.static.parameters[k]
            found.append(
                result(self, f"{prefix}static.{key}", f"{who}{label}, static", static, scale * curve.static.errors[k])
            )
        found.append(result(self, f"{prefix}E0", f"{who}energy", curve.relaxed.parameters[0]))
        shown: list[float] = []
        for axis, length in zip(_LENGTHS, curve.start.atoms.cell.lengths(), strict=True):
            if all(abs(length - other) > _SAME * other for other in shown):
                found.append(result(self, f"{prefix}{axis}", f"{who}cell of the file, relaxed: {axis}", float(length)))
                shown.append(float(length))
        return found

    def _transitions(self, curves: list[Curve]) -> list[Result]:
        """Differences in energy to the phase `structure`, and pressures of equal enthalpy."""
        found = []
        for curve in curves[1:]:
            difference = _MEV * (curve.relaxed.parameters[0] - curves[0].relaxed.parameters[0])
            error = _MEV * float(np.hypot(curve.relaxed.errors[0], curves[0].relaxed.errors[0]))
            label = f"{curve.name}: energy above {curves[0].name}"
            found.append(result(self, f"{curve.name}.energy_difference", label, difference, error))
        for one, other in combinations(curves, 2):
            crossings = transition_pressures(one.relaxed, other.relaxed)
            for k, (p, error) in enumerate(crossings):
                name = f"transition.{one.name}.{other.name}{'' if k == 0 else f'-{k + 1}'}"
                label = f"pressure at which {one.name} and {other.name} have one enthalpy"
                found.append(result(self, name, label, GPA * p, GPA * error))
        return found


@dataclass(frozen=True)
class Curve:
    """A phase: its relaxed cell, the volumes (A^3/atom), energies (eV/atom), and fits."""

    name: str
    start: Relaxed
    volumes: NDArray[np.float64]
    static_energies: NDArray[np.float64]
    energies: NDArray[np.float64]
    pressures: NDArray[np.float64]  # GPa, from the stress
    static: EquationOfState
    relaxed: EquationOfState
    vinet: EquationOfState

    @classmethod
    def of(
        cls, name: str, start: Relaxed, volumes: NDArray[np.float64], static: list[Relaxed], relaxed: list[Relaxed]
    ) -> Curve:
        """With the fits. Raises DataError where there is no minimum within the volumes."""
        scaled, energies = np.array([s.per_atom for s in static]), np.array([r.per_atom for r in relaxed])
        pressures = np.array([-GPA * r.stress[:3].mean() for r in relaxed])
        fits = fit_eos(volumes, scaled), fit_eos(volumes, energies), fit_eos(volumes, energies, "vinet")
        return cls(name, start, volumes, scaled, energies, pressures, *fits)

    def rows(self) -> list[tuple[str, float, float, float, float]]:
        """For the table of the report; energies above the minimum."""
        e0 = self.relaxed.parameters[0]
        return [
            (self.name, float(v), float(_MEV * (s - e0)), float(_MEV * (e - e0)), float(p))
            for v, s, e, p in zip(self.volumes, self.static_energies, self.energies, self.pressures, strict=True)
        ]


def _doubts(curve: Curve) -> list[str]:
    """What speaks against trusting a fit: residuals as large as the signal; a pressure that is not -dE/dV."""
    found = []
    left, depth = _MEV * curve.relaxed.rms, _MEV * float(np.ptp(curve.energies))
    if left > 0.01 * depth:
        found.append(
            f"{curve.name}: the fit leaves {left:.2g} meV/atom rms of a curve {depth:.2g} meV/atom deep: E(V) is not "
            "smooth, or the phase changes on the way. Look at the figure; take a smaller `strain`."
        )
    wanted = GPA * curve.relaxed.pressure(curve.volumes)
    scale = float(np.ptp(wanted))
    worst = float(np.max(np.abs(wanted - curve.pressures)))
    if worst > 0.03 * scale:
        found.append(
            f"{curve.name}: the stress and -dE/dV differ by up to {worst:.2g} GPa of {scale:.3g} GPa: the fit does not "
            "follow the model, or the stress is not the derivative of the energy."
        )
    return found


def plot_eos(path: Path, curves: list[Curve]) -> Path:
    """E(V) of all phases with their fits, and residuals."""
    from dpsim.analysis.figures import PALETTE, figure

    bottom = min(curve.relaxed.parameters[0] for curve in curves)
    with figure(path, 2, 1, height=4.6, sharex=True) as (_, axes):
        upper, lower = axes[:, 0]
        for k, curve in enumerate(curves):
            color = PALETTE[k % len(PALETTE)]
            grid = np.linspace(curve.volumes.min(), curve.volumes.max(), 200)
            upper.plot(grid, _MEV * (curve.relaxed.energy(grid) - bottom), color=color, label=f"{curve.name}, fit")
            upper.plot(curve.volumes, _MEV * (curve.energies - bottom), "o", color=color, ms=5, mec="white")
            moved = np.max(np.abs(curve.static_energies - curve.energies)) > 1e-6
            if moved:
                upper.plot(
                    curve.volumes, _MEV * (curve.static_energies - bottom), "x", color=color, ms=5, label="static"
                )
            for style, fit, label in (("o", curve.relaxed, "Birch-Murnaghan"), ("s", curve.vinet, "Vinet")):
                left = _MEV * (curve.energies - fit.energy(curve.volumes))
                fill = color if style == "o" else "none"
                lower.plot(curve.volumes, left, style, ls="-", lw=0.8, ms=4, mfc=fill, color=color,
                           label=label if k == 0 else None)  # fmt: skip
        lower.axhline(0.0, color="black", lw=0.7)
        upper.set_ylabel("energy (meV/atom)")
        lower.set_ylabel("energy − fit (meV/atom)")
        lower.set_xlabel("volume (Å³/atom)")
        upper.legend(loc="upper center", ncols=max(1, len(curves)))
        lower.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, borderaxespad=0.0)
    return path
