"""What `dpsim compress` found out: errors of a student against its teacher, sizes, costs. As text and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from dpsim.data.frame import Prediction


@dataclass(frozen=True)
class Errors:
    """Deviations from the teacher in float64 over all frames: eV/A, eV/atom."""

    force_max: float
    force_rms: float
    energy_max: float
    virial_max: float

    @classmethod
    def between(cls, student: Sequence[Prediction], teacher: Sequence[Prediction]) -> Errors:
        """Largest force component and its rms; largest energy and virial component per atom of any frame."""
        force, energy, virial = [], [0.0], [0.0]
        for s, t in zip(student, teacher, strict=True):
            assert s.forces is not None and t.forces is not None and s.virial is not None and t.virial is not None
            n = len(t.atom_energy)
            force.append((s.forces - t.forces).abs().numpy().ravel())
            energy.append(float((s.energy - t.energy).abs().max()) / n)
            virial.append(float((s.virial - t.virial).abs().max()) / n)
        deviations = np.concatenate(force)
        rms = float(np.sqrt(np.mean(deviations**2)))
        return cls(float(deviations.max()), rms, max(energy), max(virial))


@dataclass(frozen=True)
class PartSummary:
    """One part of a student. rank: functions per pair of types of a low-rank part; None: all of them."""

    kind: str
    rcut: float
    step: float
    n_intervals: int
    width: int
    rank: int | None
    n_features: int


@dataclass(frozen=True)
class CompressionReport:
    """How a student was made, and what that costs and saves. Errors are against the teacher in float64.

    errors: of the table alone ("table"), with the modes chosen ("low rank"), and of that computing in "float32".
    frames: where the errors are from; made_up: no data were given. shortest: A, the shortest distance known, and
    `shortest_from` where from. flops_*: per atom and force call, products and sums of tables, contraction and nets.
    """

    teacher: str
    teacher_sha256: str
    tolerance: float
    errors: dict[str, Errors]
    n_frames: int
    made_up: bool
    unseen_pairs: list[str]
    force_rms_of_teacher: float
    r_min: float
    shortest: float | None
    shortest_from: str
    rcut: float
    parts: list[PartSummary]
    table_bytes: int
    neighbors: float
    flops_teacher: int
    flops_student: int

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the student's provenance."""
        return asdict(self)

    def to_table(self) -> Table:
        """For the terminal."""
        table = Table(title=f"Student of {self.teacher}", title_justify="left", show_header=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, text in self._rows():
            table.add_row(name, text)
        return table

    def _rows(self) -> list[tuple[str, str]]:
        frames = f"{self.n_frames} frames" + (" made up at random: give data with --data" if self.made_up else "")
        rows = [("compared on", f"{frames}; rms force of the teacher {self.force_rms_of_teacher:.3g} eV/Å")]
        for stage, e in self.errors.items():
            above = f" (above the tolerance, {self.tolerance:.1e})" if e.force_max > self.tolerance else ""
            rows.append(
                (
                    f"error, {stage}",
                    f"force {e.force_max:.1e} at most, {e.force_rms:.1e} rms eV/Å; "
                    f"energy {e.energy_max:.1e}, virial {e.virial_max:.1e} eV/atom"
                    + (above if stage == "low rank" else ""),
                )
            )
        if self.unseen_pairs:
            rows.append(("not compared", f"{', '.join(self.unseen_pairs)}: no such neighbours in the frames"))
        for p in self.parts:
            rank = "all" if p.rank is None else f"{p.rank} modes"
            rows.append(
                (
                    f"table, {p.kind}",
                    f"{rank} of {p.width if p.rank is None else 'the'} functions, "
                    f"{p.n_intervals} intervals of {p.step:.4g} Å to {p.rcut:g} Å, {p.n_features} features",
                )
            )
        known = f"shortest distance known: {self.shortest:.3f} Å, {self.shortest_from}" if self.shortest else "a guess"
        rows += [
            ("range", f"{self.r_min:.4g} to {self.rcut:g} Å ({known}); below, parabolas, and the pairs are counted"),
            ("size", f"{self.table_bytes / 1e6:.2f} MB of tables in float64"),
            (
                "cost",
                f"{self.flops_student / 1e3:.0f} kFLOP per atom, teacher {self.flops_teacher / 1e3:.0f} "
                f"({self.neighbors:.0f} neighbours)",
            ),
        ]
        return rows
