"""Students of imported DeePMD-kit models give DeePMD-kit's numbers: padding, truncation, exclusions and all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dpsim.calculators.base import calculator_of
from dpsim.data.frame import Batch, Frame
from dpsim.distill.compress import compress
from dpsim.distill.tabulate import Grid, Tables, build_student, modes, sources
from dpsim.errors import UnsupportedModelError
from dpsim.models.deepmd.files import read_deepmd

FIXTURES = Path(__file__).parents[2].parent / "shared" / "reference" / "deepmd"
TABULATED = (
    *("se_e2_a", "se_e2_a_atomexcl", "se_e2_a_resnetdt_excl", "se_e2_a_selshort", "se_e2_a_twoside", "se_e2_r"),
    *("se_atten_l0_concat", "se_atten_l0_strip", "se_atten_v2"),
)
FRAMES = ("water192", "tri", "mol")

pytestmark = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"no DeePMD-kit reference models at {FIXTURES}")


def reference(name: str, frame: str, type_map: tuple[str, ...], rcut: float) -> tuple[Batch, dict[str, np.ndarray]]:
    with np.load(FIXTURES / name / "ref.npz") as z:
        data = {k.removeprefix(f"{frame}."): z[k] for k in z.files if k.startswith(f"{frame}.")}
    cell = data.get("cell", np.zeros((3, 3)))
    f = Frame(data["coord"], data["type"].astype(np.int64), type_map, cell, np.full(3, "cell" in data))
    return Batch.from_frames([f], rcut), data


def relative(value: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.abs(value.numpy() - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "rank"), [*((name, None) for name in TABULATED), ("se_e2_a", 24), ("se_e2_r", 24), ("se_atten_v2", 24)]
)
def test_students_of_imported_models(name: str, rank: int | None) -> None:
    """A fine table, whole or turned into as many modes as it has functions, is exact to 1e-10."""
    teacher = read_deepmd(FIXTURES / name / "model.dp").requires_grad_(False)
    parts = sources(teacher)
    tables = Tables.of(parts, Grid.coarsest(parts, 0.5).refined(6))
    alike = [torch.eye(part.width, dtype=torch.float64).repeat(part.n_types, 1, 1) for part in parts]
    bases = [
        None if rank is None else modes(part, tables.grid.r_min, s).cut(rank)
        for part, s in zip(parts, alike, strict=True)
    ]
    student = build_student(teacher, parts, tables, bases, "float64")
    for frame in FRAMES if rank is None else FRAMES[1:]:
        batch, expected = reference(name, frame, teacher.type_map, teacher.rcut)
        for p in (
            student(batch),
            calculator_of(student).compute(batch),
        ):  # PyTorch, and the kernels
            assert relative(p.energy[0], expected["energy"]) < 1e-12
            assert relative(p.atom_energy, expected["atom_energy"]) < 1e-11
            assert relative(p.forces, expected["force"]) < 1e-10
            assert relative(p.virial[0], expected["virial"]) < 1e-10
        assert student.below_range == 0


def test_attention_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="2 layers of attention"):
        compress(read_deepmd(FIXTURES / "se_atten_l2_concat" / "model.dp"))
