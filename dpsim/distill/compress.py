"""`compress`: the student of a model, its tables as coarse and as narrow as a tolerance on the forces allows.

Every error is measured: forces of the student against those of the teacher in float64, on real frames where there are
some. The step is refined until the table uses at most half of the tolerance; low-rank modes may use the rest.
Source: DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023), II.A.6.b (tabulation); the low-rank fold is derived in
dpsim/distill/tabulate.py.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from rich.console import Console

from dpsim.data.frame import Batch, Frame, Prediction
from dpsim.data.readers import open_dataset
from dpsim.distill.report import CompressionReport, Errors, PartSummary
from dpsim.distill.tabulate import Grid, Modes, Source, Tables, build_student, modes, sensitivities, sources
from dpsim.errors import ConfigError
from dpsim.models.checkpoint import load_trainable, save_model
from dpsim.models.config import Precision
from dpsim.models.energy_model import EnergyModel
from dpsim.models.nets import MLP
from dpsim.models.potential import DTYPES, Potential
from dpsim.models.student import Student
from dpsim.train.evaluate import spread_frames

Rank = Literal["full", "auto"] | int
DEFAULT_R_MIN = 0.5  # A, where no distance is known
MARGIN = 0.8  # tables begin at this fraction of the shortest distance known
FINEST = 100  # steps per coarsest step; finer ones would interpolate rounding errors
_MADE_UP_FRAMES, _MADE_UP_ATOMS, _MADE_UP_DENSITY = 6, 64, 0.05  # 1/A^3: half of water's


def compress(
    model: EnergyModel,
    frames: Sequence[Frame] | None = None,
    *,
    tolerance: float = 1e-5,
    rank: Rank = "full",
    r_min: float | None = None,
    precision: Precision = "float32",
) -> tuple[Student, CompressionReport]:
    """The student of a model and a report on it.

    Args:
        frames: where errors are measured: what the model is for. None: random ones are made up.
        tolerance: eV/A, the largest error of a force component in float64.
        rank: "full" tabulates every function of the embedding; "auto", as few modes of each pair of types as the
            tolerance allows, or all functions where modes would not be cheaper; a number, that many modes, whatever
            their error.
        r_min: A, where the tables begin; None: 0.8 of the shortest distance known.
        precision: what the student computes in unless asked otherwise.

    Raises: UnsupportedModelError for a model that cannot be tabulated; ConfigError for settings that cannot be met.
    """
    _check(tolerance, rank, precision)
    teacher = _in_float64(model)
    parts = sources(teacher)
    given = None if frames is None else [f.with_type_map(teacher.type_map) for f in frames]
    shortest, where = _shortest(teacher, given)
    begin = _begin(r_min, shortest, min(part.rcut for part in parts))
    bench = Bench(teacher, made_up_frames(teacher, shortest or begin / MARGIN) if given is None else given)

    every: list[Modes | None] = [None] * len(parts)
    tables, table_error = _refine(teacher, parts, Grid.coarsest(parts, begin), tolerance / 2, bench)
    errors = {"table": table_error}
    bases = every if rank == "full" else _low_rank(teacher, parts, tables, rank, tolerance, bench)
    student = build_student(teacher, parts, tables, bases, precision)
    if any(basis is not None for basis in bases):
        errors["low rank"] = bench.errors(build_student(teacher, parts, tables, bases, "float64"))
    errors["float32"] = bench.errors(build_student(teacher, parts, tables, bases, "float32"))

    provenance = model.metadata.get("provenance", {})
    name = provenance.get("name") or provenance.get("imported_from", {}).get("file") or "a model without a name"
    report = CompressionReport(
        teacher=name,
        teacher_sha256=str(model.metadata.get("sha256", "")),
        tolerance=tolerance,
        errors=errors,
        n_frames=len(bench.batches),
        made_up=given is None,
        unseen_pairs=bench.unseen_pairs(),
        force_rms_of_teacher=bench.force_rms,
        r_min=tables.grid.r_min,
        shortest=shortest,
        shortest_from=where,
        rcut=teacher.rcut,
        parts=[
            PartSummary(c.kind, c.rcut, c.step, c.n_intervals, c.width, None if b is None else c.width, c.n_features)
            for c, b in zip(student.config.parts, bases, strict=True)
        ],
        table_bytes=sum(8 * student.get_buffer(f"parts.{p}.table").numel() for p in range(len(parts))),
        neighbors=bench.neighbors(teacher.rcut),
        flops_teacher=_teacher_flops(teacher, parts, bench),
        flops_student=_student_flops(student, bench),
    )
    of_teacher = {"name": name, "sha256": report.teacher_sha256, "training": provenance.get("training")}
    kept = {key: value for key, value in provenance.items() if key != "training"}
    student.metadata = {"provenance": {**kept, "teacher": of_teacher, "compression": report.to_json()}}
    return student, report


class Bench:
    """Frames, and what the teacher says of them."""

    def __init__(self, teacher: EnergyModel, frames: Sequence[Frame]):
        if not frames:
            raise ConfigError("`frames` is empty; expected at least one configuration to measure errors on. Add some.")
        self.teacher = teacher
        self.batches = [Batch.from_frames([frame], teacher.rcut) for frame in frames]
        self.reference = self._predict(teacher)
        forces = torch.cat([p.forces for p in self.reference if p.forces is not None])
        self.force_rms = float(forces.pow(2).mean().sqrt())
        self.lengths = torch.cat([batch.edge_vectors().norm(dim=1) for batch in self.batches])
        self.n_atoms = len(forces)

    def _predict(self, model: Potential) -> list[Prediction]:
        return [model(batch) for batch in self.batches]

    def errors(self, student: Student) -> Errors:
        return Errors.between(self._predict(student), self.reference)

    def neighbors(self, rcut: float) -> float:
        """Neighbours of an atom within rcut, on average."""
        return float((self.lengths <= rcut).sum()) / self.n_atoms

    def unseen_pairs(self) -> list[str]:
        """Pairs of elements of which no two atoms are neighbours anywhere."""
        names = self.teacher.type_map
        n = len(names)
        seen = torch.zeros(n, n, dtype=torch.bool)
        for batch in self.batches:
            seen[batch.types[batch.center], batch.types[batch.neighbor]] = True
        return [f"{names[i]}-{names[j]}" for i in range(n) for j in range(i, n) if not seen[i, j]]


def compress_file(
    model: str | Path,
    output: str | Path,
    data: Sequence[str | Path] = (),
    max_frames: int = 20,
    console: Console | None = None,
    **settings: Any,
) -> CompressionReport:
    """Read a model (a file or a name, as `load_model` takes it), compress it, print the report, write the student.

    Args: data: sets to measure errors on, `max_frames` in all, evenly spread; settings: see `compress`.
    Raises: ModelFileError, UnsupportedModelError, DataError, ElementError, ConfigError; then nothing is written.
    """
    teacher = load_trainable(model)
    frames = None
    if data:
        systems = [system for path in data for system in open_dataset(path, teacher.type_map)]
        frames = [systems[s].frame(k) for s, k in spread_frames(systems, max_frames)]
    student, report = compress(teacher, frames, **settings)
    (console or Console()).print(report.to_table())
    save_model(output, student)
    return report


def _check(tolerance: float, rank: Rank, precision: str) -> None:
    if not (np.isfinite(tolerance) and tolerance > 0):
        raise ConfigError(f"`tolerance` is {tolerance}; expected a force error above 0 eV/A. The default is 1e-5.")
    if rank not in ("full", "auto") and not (isinstance(rank, int) and rank >= 1):
        raise ConfigError(f"`rank` is {rank!r}; expected full, auto, or a number from 1. The default is full.")
    if precision not in DTYPES:
        raise ConfigError(f"`precision` is {precision!r}; expected one of {', '.join(DTYPES)}. Correct it.")


def _in_float64(model: EnergyModel) -> EnergyModel:
    teacher = EnergyModel(model.config.model_copy(update={"precision": "float64"}))
    teacher.load_state_dict(model.state_dict())
    teacher.metadata = model.metadata
    return teacher.requires_grad_(False).eval()


def _shortest(teacher: EnergyModel, frames: Sequence[Frame] | None) -> tuple[float | None, str]:
    """The shortest distance that the model is known to have seen, or that the frames hold, and where from."""
    known: list[tuple[float, str]] = []
    if isinstance(teacher.config.core_distances, list):
        known += [(d, "of its training data") for row in teacher.config.core_distances for d in row if d > 0]
    imported = teacher.metadata.get("provenance", {}).get("imported_from") or {}
    if imported.get("min_nbor_dist"):
        known.append((float(imported["min_nbor_dist"]), "of its training data"))
    for frame in frames or []:
        r = Batch.from_frames([frame], teacher.rcut).edge_vectors().norm(dim=1)
        known += [(float(r.min()), "in the frames given")] if len(r) else []
    return min(known, default=(None, ""))


def _begin(r_min: float | None, shortest: float | None, rcut: float) -> float:
    if r_min is None:
        return min(DEFAULT_R_MIN if shortest is None else MARGIN * shortest, rcut / 2)
    if not 0 < r_min < rcut:
        raise ConfigError(f"`r_min` is {r_min}; expected a distance above 0 and below the cutoff, {rcut} A.")
    if shortest is not None and r_min > shortest:
        raise ConfigError(
            f"`r_min` is {r_min} A, but distances of {shortest:.3f} A are known; expected at most that: below r_min a "
            "student knows nothing. Leave r_min out, or lower it."
        )
    return r_min


def _refine(
    teacher: EnergyModel, parts: Sequence[Source], coarsest: Grid, tolerance: float, bench: Bench
) -> tuple[Tables, Errors]:
    """Tables on the coarsest grid whose largest force error is within the tolerance.

    Errors of forces fall like step^5: each failure tells about how fine the next grid has to be.
    """
    factor = 1
    while True:
        tables = Tables.of(parts, coarsest.refined(factor))
        errors = bench.errors(build_student(teacher, parts, tables, [None] * len(parts), "float64"))
        if errors.force_max <= tolerance:
            return tables, errors
        if factor == FINEST or not np.isfinite(errors.force_max):
            raise ConfigError(
                f"`tolerance` is {2 * tolerance:.1e} eV/A, half of it for the tables, but at the finest step, "
                f"{max(tables.grid.steps):.2g} A, forces are still wrong by {errors.force_max:.1e} eV/A; expected a "
                "tolerance above that. Raise it."
            )
        guess = ceil(0.9 * factor * (errors.force_max / tolerance) ** 0.2)
        factor = min(FINEST, max(factor + 1, min(guess, 4 * factor)))


def _low_rank(
    teacher: EnergyModel, parts: Sequence[Source], tables: Tables, rank: int | str, tolerance: float, bench: Bench
) -> list[Modes | None]:
    """The modes of each part: as many as asked for, or the fewest within the tolerance where that is cheaper.

    Parts are treated one after the other, each with an equal share of what the tables left of the tolerance.
    """
    full = build_student(teacher, parts, tables, [None] * len(parts), "float64")
    sensitivity = sensitivities(full, bench.batches)
    bases = [modes(part, tables.grid.r_min, s) for part, s in zip(parts, sensitivity, strict=True)]
    chosen: list[Modes | None] = [None] * len(parts)
    if isinstance(rank, int):
        return [basis.cut(rank) for basis in bases]
    for p, (part, basis) in enumerate(zip(parts, bases, strict=True)):
        limit = tolerance * (0.5 + 0.5 * (p + 1) / len(parts))

        def trial(k: int | None, p: int = p, basis: Modes = basis) -> Student:
            cut = [*chosen[:p], None if k is None else basis.cut(k), *chosen[p + 1 :]]
            return build_student(teacher, parts, tables, cut, "float64")

        cost = _student_flops(trial(None), bench)
        low, high = 0, bisect_left(range(part.width), cost, lo=1, key=lambda k: _student_flops(trial(k), bench))
        # Invariant: `low` modes are too few, `high` are enough or too expensive to matter.
        if high - 1 > low and bench.errors(trial(high - 1)).force_max <= limit:
            high -= 1
            while high - low > 1:
                k = (low + high) // 2
                low, high = (low, k) if bench.errors(trial(k)).force_max <= limit else (k, high)
            chosen[p] = basis.cut(high)
    return chosen


def _student_flops(student: Student, bench: Bench) -> int:
    """Products and sums of one force call, per atom, without the environment matrix (some 50 per neighbour)."""
    total = 2.0 * student.config.fitting[-1].n_out
    total += sum(4.0 * layer.n_in * layer.n_out for layer in student.config.fitting)  # energies, then gradients
    for part in student.config.parts:
        total += _contraction_flops(part.kind, part.width, bench.neighbors(part.rcut))
        total += 28.0 * part.width * bench.neighbors(part.rcut)  # G by Horner, later G and G' again
        total += 24.0 * part.n_features if part.kind == "angular" else 0.0
    return round(total)


def _teacher_flops(teacher: EnergyModel, parts: Sequence[Source], bench: Bench) -> int:
    """The same for the teacher, whose embedding net gives G and G' for each neighbour; activations are not counted."""
    layers = cast(MLP, teacher.fitting.nets[0]).tensors()
    total = 4.0 * sum(layer.weight.numel() for layer in layers)
    for part in parts:
        total += _contraction_flops(part.kind, part.width, bench.neighbors(part.rcut))
        total += 4.0 * part.net_products * bench.neighbors(part.rcut)
        total += 24.0 * part.width * part.axis
    return round(total)


def _contraction_flops(kind: str, width: int, neighbors: float) -> float:
    """a = sum R G, then u = G a-bar and h = G' (R a-bar): 18 per function and neighbour; radial: sum G, G' a-bar."""
    return (18.0 if kind == "angular" else 3.0) * width * neighbors


def made_up_frames(teacher: EnergyModel, closest: float) -> list[Frame]:
    """Random periodic configurations of the model's elements, atoms `closest` or their core distance apart at least.

    Atoms are added one by one where there is room; a cell that has none left starts again a little larger.
    """
    rng = np.random.default_rng(0)
    n_types = len(teacher.type_map)
    core = teacher.config.core_distances
    least = np.full((n_types, n_types), closest)
    if isinstance(core, list):
        least = np.maximum(least, np.array(core))
    n_atoms = max(_MADE_UP_ATOMS, 2 * n_types)
    frames = []
    for _ in range(_MADE_UP_FRAMES):
        types = rng.permutation(np.arange(n_atoms) % n_types)
        side = (n_atoms / _MADE_UP_DENSITY) ** (1 / 3)
        while (positions := _packed(rng, types, least, side)) is None:
            side *= 1.05
        frames.append(Frame(positions, types, teacher.type_map, side * np.eye(3), np.ones(3, dtype=bool)))
    return frames


def _packed(rng: np.random.Generator, types: np.ndarray, least: np.ndarray, side: float) -> np.ndarray | None:
    """Positions in a cubic cell at least `least` apart; None if there was no room for an atom in 200 trials."""
    positions = np.empty((0, 3))
    for t in types:
        for _ in range(200):
            new = rng.uniform(0, side, 3)
            d = positions - new
            d -= side * np.round(d / side)
            if (np.linalg.norm(d, axis=1) >= least[t, types[: len(positions)]]).all():
                positions = np.vstack([positions, new])
                break
        else:
            return None
    return positions
