"""The physics suite over students: a tabulated model obeys what its teacher obeys."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import numpy as np
import pytest
import torch
from model_suite import TYPE_MAP, PhysicsOfAModel, build, energy, frame, predict

from dpsim.data.frame import Frame
from dpsim.distill.tabulate import Grid, Tables, build_student, modes, sources
from dpsim.models.descriptor_config import Dpa1Config, HybridConfig, SeE2aConfig, SeE2rConfig
from dpsim.models.energy_model import EnergyModel
from dpsim.models.student import Student

SMALL: dict[str, object] = {"rcut": 4.0, "rcut_smth": 1.0, "neuron": [5, 10]}
SE_E2_A = SeE2aConfig(**SMALL, axis_neuron=3, sel=[20, 20, 20])
SE_E2_R = SeE2rConfig(rcut=3.0, rcut_smth=0.5, neuron=[4, 8], sel=[20, 20, 20])
STUDENTS = {
    "se_e2_a": SE_E2_A,
    "low_rank": SE_E2_A,
    "one_side_excluded": SeE2aConfig(
        **SMALL, axis_neuron=3, sel=[20, 20, 20], type_one_side=True, activation="gelu", exclude_types=[(0, 1)]
    ),
    "dpa1_concat": Dpa1Config(**SMALL, axis_neuron=3, sel=60, attn_layer=0, tebd_dim=4),
    "dpa1_strip": Dpa1Config(
        **SMALL, axis_neuron=3, sel=60, attn_layer=0, tebd_dim=4, tebd_input_mode="strip", type_one_side=False
    ),
    "se_e2_r": SE_E2_R,
    "hybrid_low_rank": HybridConfig(list=[SE_E2_A, SE_E2_R]),
}


@cache
def teacher_and_student(name: str) -> tuple[EnergyModel, Student]:
    teacher = build(STUDENTS[name]).requires_grad_(False)
    parts = sources(teacher)
    tables = Tables.of(parts, Grid.coarsest(parts, 0.7).refined(4))
    rank = 6 if "low_rank" in name else None
    alike = [torch.eye(part.width, dtype=torch.float64).repeat(part.n_types, 1, 1) for part in parts]
    bases = [
        None if rank is None else modes(part, tables.grid.r_min, s).cut(rank)
        for part, s in zip(parts, alike, strict=True)
    ]
    return teacher, build_student(teacher, parts, tables, bases, "float64")


@pytest.mark.parametrize("name", STUDENTS)
class TestStudents(PhysicsOfAModel):
    descriptors: ClassVar = STUDENTS
    test_training_gradient_is_that_of_plain_autograd = None  # a student has no parameters

    @pytest.fixture
    def model(self, name: str) -> Student:
        return teacher_and_student(name)[1].set_second_order(False)  # one test switches it on

    def test_single_precision(self, model: Student, name: str) -> None:
        single = Student(model.config.model_copy(update={"precision": "float32"}))
        single.load_state_dict(model.state_dict())
        d, s = predict(model, frame()), predict(single, frame())
        assert float(s.energy[0]) == pytest.approx(float(d.energy[0]), abs=2e-5)
        np.testing.assert_allclose(s.forces, d.forces, atol=2e-5 * float(d.forces.abs().max() + 1))

    def test_the_teacher_agrees(self, model: Student, name: str) -> None:
        """To the error of the interpolation, or of the modes left out."""
        t, s = predict(teacher_and_student(name)[0], frame()), predict(model, frame())
        tolerance = (1e-2 if "low_rank" in name else 1e-5) * float(t.forces.abs().max())
        np.testing.assert_allclose(s.forces, t.forces, atol=tolerance)
        np.testing.assert_allclose(s.energy, t.energy, atol=tolerance)

    def test_twice_differentiable_where_the_table_begins(self, model: Student) -> None:
        """Energy, force and the force's slope go on smoothly below r_min, where pairs are counted."""

        def pair(r: float) -> Frame:
            return Frame(
                np.array([[0.0, 0, 0], [r, 0, 0]]), np.array([1, 2]), TYPE_MAP, np.zeros((3, 3)), np.zeros(3, bool)
            )

        r, h = model.config.r_min, 1e-4
        above, below = (predict(model, pair(r + x)) for x in (h, -h))
        assert model.below_range == 2
        slope = float(above.forces[1, 0] - below.forces[1, 0]) / (2 * h)
        for a, b in ((r, r + 2 * h), (r - 2 * h, r)):  # one-sided
            one_sided = float(predict(model, pair(b)).forces[1, 0] - predict(model, pair(a)).forces[1, 0]) / (2 * h)
            assert one_sided == pytest.approx(slope, rel=5e-3, abs=1e-3)
        assert energy(model, pair(r + h)) - energy(model, pair(r - h)) == pytest.approx(
            -2 * h * float(predict(model, pair(r)).forces[1, 0]), rel=1e-4, abs=1e-9
        )
        predict(model, pair(r + h))
        assert model.below_range == 0
