"""dpsim/distill: what a compression measures, chooses, reports and refuses; the file of a student."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from dpsim.data.frame import Batch, Frame
from dpsim.distill.compress import Bench, compress, compress_file, made_up_frames
from dpsim.distill.tabulate import Grid, Tables, build_student, sources, with_derivatives
from dpsim.errors import ConfigError, ModelFileError, UnsupportedModelError
from dpsim.models import container
from dpsim.models.checkpoint import load_model, load_trainable, read_header, save_model
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel
from dpsim.models.student import Student, polynomials

SE_E2_A = {"type": "se_e2_a", "rcut": 4.0, "rcut_smth": 1.0, "sel": [16, 16], "neuron": [4, 8], "axis_neuron": 3}
DPA1 = {"type": "dpa1", "rcut": 4.0, "rcut_smth": 1.0, "sel": 32, "neuron": [8, 8], "axis_neuron": 2, "attn_layer": 0}
SE_E2_R = {"type": "se_e2_r", "rcut": 3.5, "sel": [2, 4], "neuron": [4, 8], "exclude_types": [(0, 1)]}


def make(descriptor: dict[str, Any] | None = None, hidden: tuple[int, ...] = (12,), **settings: Any) -> EnergyModel:
    config = ModelConfig.model_validate(
        {
            "type_map": ["He", "Ne"],
            "descriptor": descriptor or SE_E2_A,
            "fitting": {"neuron": list(hidden)},
            "precision": "float64",
            **settings,
        }
    )
    model = EnergyModel(config, seed=3)
    with torch.no_grad():
        for part in model.descriptor.members:
            part.dstd.fill_(0.2)
            part.davg[:, 0] = 0.1 * model.config.deepmd_conventions
        for net in model.fitting.nets:
            net[-1].weight.mul_(5)
    return model


def frames(n: int = 2, closest: float = 1.0) -> list[Frame]:
    return made_up_frames(make(), closest)[:n]


@pytest.fixture(scope="module")
def student() -> Student:
    return compress(make(), frames(), tolerance=1e-3, r_min=0.8)[0]


# ---- tables


def test_derivatives_are_exact() -> None:
    r = torch.linspace(0.5, 3, 7, dtype=torch.float64)
    table = with_derivatives(lambda r: torch.stack([r**3, torch.tanh(r)], 1), r)
    t = torch.tanh(r)
    expected = [[r**3, t], [3 * r**2, 1 - t**2], [6 * r, -2 * t * (1 - t**2)]]
    torch.testing.assert_close(table, torch.stack([torch.stack(row, 1) for row in expected], 1))


def test_polynomials_take_values_and_derivatives_at_both_ends() -> None:
    generator, h = torch.Generator().manual_seed(0), 0.3
    nodes = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    c = polynomials(nodes, h)[1:]  # (intervals, 6, width)
    k = torch.arange(6, dtype=torch.float64)[:, None]
    one = torch.stack([c.sum(1), (k * c).sum(1) / h, (k * (k - 1) * c).sum(1) / h**2], 1)
    zero = torch.stack([c[:, 0], c[:, 1] / h, 2 * c[:, 2] / h**2], 1)
    torch.testing.assert_close(one, nodes[1:])
    torch.testing.assert_close(zero, nodes[:-1])


@pytest.mark.parametrize(
    ("cutoffs", "r_min"),
    [([(6.0, 0.5)], 0.71), ([(6.0, 5.8)], 0.71), ([(6.0, 2.0), (4.0, 1.5)], 0.7), ([(5.0, 1.3)], 1)],
)
def test_grids_have_nodes_where_the_switch_begins(cutoffs: list[tuple[float, float]], r_min: float) -> None:
    descriptors = [SE_E2_A | {"rcut": rcut, "rcut_smth": smooth} for rcut, smooth in cutoffs]
    parts = sources(make({"type": "hybrid", "list": descriptors}).requires_grad_(False))
    for refinement in (1, 3):
        grid = Grid.coarsest(parts, r_min).refined(refinement)
        assert r_min - 0.1 < grid.r_min <= r_min
        for p, (rcut, smooth) in enumerate(cutoffs):
            nodes = grid.nodes(p, rcut)
            assert nodes[-1] == rcut and float(nodes.diff().max()) < 0.1 / refinement + 1e-9
            assert smooth < r_min or float((nodes - smooth).abs().min()) < 1e-9


@pytest.mark.parametrize(
    "model",
    [
        make(hidden=(24,)),  # as wide as the descriptor: a residual in the first layer
        make(DPA1, hidden=(24, 24)),
        make(DPA1 | {"tebd_input_mode": "strip", "type_one_side": False}),
        make(SE_E2_A | {"rcut_smth": 3.5}, pair_exclude_types=[(0, 1)], atom_exclude_types=[1]),
        make(core_distances=[[1.5, 1.2], [1.2, 1.3]]),
        make(SE_E2_A | {"exclude_types": [(1, 1)], "env_protection": 0.1}),
        make({"type": "se_e2_r", "rcut": 4.0, "sel": [16, 16], "neuron": [4, 12], "exclude_types": [(0, 0)]}),
        make(DPA1 | {"sel": 5, "exclude_types": [(0, 1)]}, deepmd_conventions=True),
        make({"type": "hybrid", "list": [SE_E2_A | {"sel": [3, 2]}, SE_E2_R]}, deepmd_conventions=True),
    ],
)
@pytest.mark.parametrize("rank", ["full", 8])
def test_a_fine_table_is_the_teacher(model: EnergyModel, rank: Any) -> None:
    """Whatever is folded into the first layer: 8 modes of 8 functions are all of them."""
    student, report = compress(model, frames(1, 1.1), tolerance=1e-7, rank=rank, precision="float64")
    assert report.errors["table"].force_max < 0.5e-7
    assert report.force_rms_of_teacher > 1e-3
    if rank == 8 and model.descriptor.members[0].neuron == 8:
        assert report.errors["low rank"].force_max < 1e-7
        assert student.config.parts[0].width == 8
    assert report.errors["float32"].force_max < 1e-5 * (1 + report.force_rms_of_teacher)


# ---- what is chosen


def test_the_step_follows_the_tolerance() -> None:
    steps = []
    for tolerance in (1e-3, 1e-9):
        report = compress(make(), frames(), tolerance=tolerance)[1]
        assert report.errors["table"].force_max <= tolerance / 2
        steps.append(report.parts[0].step)
    assert steps[1] < steps[0] <= 0.1


def test_auto_takes_few_modes_where_that_is_cheaper_and_enough() -> None:
    wide = make(SE_E2_A | {"neuron": [4, 40], "axis_neuron": 10}, hidden=(10,))
    student, report = compress(wide, frames(), tolerance=1e-3, rank="auto")
    rank = report.parts[0].rank
    assert rank is not None and rank < 40
    assert report.errors["low rank"].force_max <= 1e-3
    assert student.config.parts[0].channel_offset == [0, rank]
    full = compress(wide, frames(), tolerance=1e-3)[1]
    assert report.flops_student < full.flops_student
    assert compress(make(), frames(), tolerance=1e-9, rank="auto")[1].parts[0].rank is None


def test_where_tables_begin() -> None:
    shortest = min(float(Batch.from_frames([f], 4.0).edge_vectors().norm(dim=1).min()) for f in frames())
    assert compress(make(), frames(), tolerance=1e-2)[1].shortest == pytest.approx(shortest)
    r_min = [
        compress(model, given, tolerance=1e-2)[1].r_min
        for model, given in ((make(), None), (make(core_distances=[[1.2, 1.1], [1.1, 2.0]]), None), (make(), frames()))
    ]
    for value, expected in zip(r_min, (0.5, 0.8 * 1.1, 0.8 * shortest), strict=True):
        assert expected - 0.1 < value <= expected
    with pytest.raises(ConfigError, match="`r_min` is 1.9 A, but distances"):
        compress(make(), frames(), r_min=1.9)
    with pytest.raises(ConfigError, match="`r_min` is 7"):
        compress(make(), frames(), r_min=7)


def test_made_up_frames_keep_their_distance() -> None:
    core = [[1.5, 1.2], [1.2, 2.0]]
    for frame in made_up_frames(make(core_distances=core), 1.1):
        batch = Batch.from_frames([frame], 4.0)
        least = np.array(core)[batch.types[batch.center], batch.types[batch.neighbor]]
        assert (batch.edge_vectors().norm(dim=1).numpy() >= least).all()
        assert set(frame.types) == {0, 1}


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": 0.0}, "`tolerance` is 0.0"),
        ({"tolerance": float("nan")}, "`tolerance` is nan"),
        ({"tolerance": 1e-16}, "at the finest step"),
        ({"rank": 0}, "`rank` is 0"),
        ({"rank": "half"}, "`rank` is 'half'"),
        ({"precision": "float16"}, "`precision` is 'float16'"),
    ],
)
def test_settings_that_cannot_be_met(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compress(make(), frames(1), **settings)


def test_no_frames() -> None:
    with pytest.raises(ConfigError, match="`frames` is empty"):
        compress(make(), [])


def test_models_that_no_table_can_hold() -> None:
    with pytest.raises(UnsupportedModelError, match="1 layers of attention"):
        compress(make(DPA1 | {"attn_layer": 1, "attn": 4}), frames(1))
    oblique = make()
    oblique.descriptor.members[0].dstd[0, 3] = 0.3
    with pytest.raises(UnsupportedModelError, match="invariant under rotation"):
        compress(oblique, frames(1))


# ---- report and file


def test_report_is_text_and_plain_data() -> None:
    student, report = compress(make(), None, tolerance=1e-2)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report.to_table())
    text = console.export_text()
    assert "made up at random" in text and "kFLOP" in text and "float32" in text
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["made_up"] and data["parts"][0]["width"] == 8
    assert student.metadata["provenance"]["compression"] == report.to_json()
    lonely = Frame(np.zeros((1, 3)), np.zeros(1, int), ("He", "Ne"), np.zeros((3, 3)), np.zeros(3, bool))
    assert Bench(make(), [lonely, *frames(1)]).unseen_pairs() == []
    assert Bench(make(), [lonely]).unseen_pairs() == ["He-He", "He-Ne", "Ne-Ne"]


def test_a_student_file_is_read_back_exactly(student: Student, tmp_path: Path) -> None:
    save_model(tmp_path / "s.dpsim", student)
    header = read_header(tmp_path / "s.dpsim")
    assert (header["kind"], header["rcut"], header["precision"]) == ("student", 4.0, "float32")
    assert "n_listed" not in header["config"]["parts"][0]
    loaded = load_model(tmp_path / "s.dpsim")
    assert isinstance(loaded, Student) and loaded.config == student.config and loaded.dtype == torch.float32
    batch = Batch.from_frames(frames(), 4.0)
    assert torch.equal(loaded(batch).forces, student(batch).forces)
    save_model(tmp_path / "again.dpsim", loaded)
    assert (tmp_path / "again.dpsim").read_bytes() == (tmp_path / "s.dpsim").read_bytes()
    assert load_model(tmp_path / "s.dpsim", precision="float64").dtype == torch.float64
    with pytest.raises(ModelFileError, match="is a student already"):
        load_trainable(tmp_path / "s.dpsim")


def forge(student: Student, path: Path, change: dict[str, Any], **tensors: torch.Tensor) -> Path:
    """A file with a changed config and a right checksum. Keys of `change`: dotted paths."""
    save_model(path, student)
    header, old = container.read(path)
    header.pop("sha256")
    for key, value in change.items():
        *folders, last = key.split(".")
        place: Any = header
        for name in folders:
            place = place[int(name) if name.isdecimal() else name]
        place[last] = value
    container.write(path, {**old, **tensors}, header)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "teacher"}, "kind 'teacher'"),
        ({"kind": ["student"]}, "kind"),
        ({"kind": "model"}, "config"),
        ({"config.r_min": 0.5}, "expected to end at"),
        ({"config.r_min": -0.8}, "r_min"),
        ({"config.parts": []}, "parts"),
        ({"config.parts.0.channel_offset": [0, 1]}, "channel_offset"),
        ({"config.parts.0.channel_offset": [0]}, "channel_offset"),
        ({"config.parts.0.axis": 9}, "axis"),
        ({"config.parts.0.kind": "radial"}, "axis"),
        ({"config.parts.0.n_intervals": 10**18}, "n_intervals"),
        ({"config.parts.0.slots": "shared"}, "sel"),
        ({"config.parts.0.excluded": [[0, 2]]}, "excluded types"),
        ({"config.parts.0.evil": 1}, "evil"),
        ({"config.fitting.0.n_in": 22}, "n_in"),
        ({"config.fitting.0.residual": 1}, "residual"),
        ({"config.core_distances": [[1.0]]}, "core_distances"),
        ({"config.type_map": ["He", "He"], "type_map": ["He", "He"]}, "every element once"),
        ({"config.parts.0.n_intervals": 1_000_000, "config.parts.0.step": 3.2e-6}, "r_min|shape|steps"),
        ({"precision": "float64"}, "contradicts"),
    ],
)
def test_hostile_students_are_refused(student: Student, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        load_model(forge(student, tmp_path / "x.dpsim", change))


def test_wrong_tensors_of_a_student_are_refused(student: Student, tmp_path: Path) -> None:
    table = student.get_buffer("parts.0.table")
    for bad in (table[..., :-1].contiguous(), table.float(), torch.full_like(table, float("nan"))):
        with pytest.raises(ModelFileError, match=r"parts\.0\.table"):
            load_model(forge(student, tmp_path / "x.dpsim", {}, **{"parts.0.table": bad}))


def test_compress_file(tmp_path: Path) -> None:
    save_model(tmp_path / "m.dpsim", make(), {"name": "noble", "training": {"step": 5}})
    quiet = Console(quiet=True)
    compress_file(tmp_path / "m.dpsim", tmp_path / "s.dpsim", tolerance=1e-2, console=quiet)
    provenance = read_header(tmp_path / "s.dpsim")["provenance"]
    assert provenance["teacher"]["name"] == "noble" and provenance["teacher"]["training"] == {"step": 5}
    assert len(provenance["teacher"]["sha256"]) == 64 and "training" not in provenance
    with pytest.raises(ModelFileError, match="is a student already.*`noble`"):
        compress_file(tmp_path / "s.dpsim", tmp_path / "t.dpsim", console=quiet)
    with pytest.raises(ConfigError):
        compress_file(tmp_path / "m.dpsim", tmp_path / "t.dpsim", tolerance=-1, console=quiet)
    assert not (tmp_path / "t.dpsim").exists()


def test_the_bundled_model_can_be_compressed() -> None:
    teacher = load_trainable("water-pbe0ts", precision="float64").requires_grad_(False)
    parts = sources(teacher)
    student = build_student(teacher, parts, Tables.of(parts, Grid.coarsest(parts, 0.7).refined(4)), [None], "float64")
    errors = Bench(teacher, made_up_frames(teacher, 0.9)[:1]).errors(student)
    assert errors.force_max < 1e-4
