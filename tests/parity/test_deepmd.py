"""Imported DeePMD-kit models give DeePMD-kit's numbers: energy, atomic energies, forces, virial, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpsim.data.frame import Batch, Frame
from dpsim.errors import ModelFileError, UnsupportedModelError
from dpsim.models.checkpoint import load_model, save_model
from dpsim.models.deepmd_format import build_model, load_tree, read_deepmd
from dpsim.models.graph import Graph

FIXTURES = Path(__file__).parents[2].parent / "shared" / "reference" / "deepmd"
SUPPORTED = (
    *("se_e2_a", "se_e2_a_atomexcl", "se_e2_a_resnetdt_excl", "se_e2_a_selshort", "se_e2_a_twoside"),
    *("dpa1", "dpa1_econf", "se_atten_l0_concat", "se_atten_l0_strip", "se_atten_l2_concat"),
    *("se_atten_l2_nosmooth_twoside", "se_atten_l2_strip", "se_atten_v2", "se_e2_r"),
)
REFUSED = {kind: kind for kind in ("dipole", "dpa2", "dpa3", "linear", "polar", "se_e3", "zbl")} | {
    "fparam_aparam": "fparam",
    "hybrid": "se_e3",
    "pairtab": "linear",
}
FRAMES = ("water192", "tri", "mol")
# Attention without smooth weights sees the direction x / max(|x|, 1e-12) of x = w(r) edge_vec / r^2. In `water192` an
# edge 2e-5 A inside the cutoff has w = 1e-14, of which the reference's expanded polynomial keeps two digits, so the
# reference's own forces on the atoms of such edges depend on rounding.
ILL_CONDITIONED = ("dpa1", "dpa1_econf", "se_atten_l2_nosmooth_twoside")

needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"no DeePMD-kit reference models at {FIXTURES}")


def reference_frame(name: str, frame: str, type_map: tuple[str, ...]) -> tuple[Frame, dict[str, np.ndarray]]:
    """A frame of a fixture and what DeePMD-kit says of it."""
    with np.load(FIXTURES / name / "ref.npz") as z:
        data = {k.removeprefix(f"{frame}."): z[k] for k in z.files if k.startswith(f"{frame}.")}
    cell = data.get("cell")
    return (
        Frame(
            positions=data["coord"].astype(np.float64),
            types=data["type"].astype(np.int64),
            type_map=type_map,
            cell=np.zeros((3, 3)) if cell is None else cell,
            pbc=np.full(3, cell is not None),
        ),
        data,
    )


def relative(value: torch.Tensor, expected: np.ndarray, keep: np.ndarray | slice = slice(None)) -> float:
    """Largest deviation relative to the largest expected number."""
    return float(np.abs(np.atleast_1d(value.numpy() - expected))[keep].max() / np.abs(expected).max())


@needs_fixtures
@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("name", SUPPORTED)
def test_parity(name: str, frame: str) -> None:
    model = read_deepmd(FIXTURES / name / "model.dp")
    structure, expected = reference_frame(name, frame, model.type_map)
    batch = Batch.from_frames([structure], model.rcut)
    p = model(batch)
    assert relative(p.energy[0], expected["energy"]) < 1e-10
    assert relative(p.atom_energy, expected["atom_energy"]) < 1e-10
    if name in ILL_CONDITIONED and frame == "water192":
        length = batch.edge_vectors().norm(dim=1)
        near = batch.center[length > model.rcut - 1e-3].unique()
        well = np.setdiff1d(np.arange(structure.n_atoms), near)
        assert len(well) > 170
        assert relative(p.forces, expected["force"], well) < 1e-10
        assert relative(p.forces, expected["force"]) < 1e-6
        assert relative(p.virial[0], expected["virial"]) < 1e-6
    else:
        assert relative(p.forces, expected["force"]) < 1e-10
        assert relative(p.virial[0], expected["virial"]) < 1e-10


@needs_fixtures
@pytest.mark.parametrize("name", ["se_e2_a", "se_atten_l2_strip"])
def test_single_precision(name: str, tmp_path: Path) -> None:
    save_model(tmp_path / "m.dpsim", read_deepmd(FIXTURES / name / "model.dp"))
    model = load_model(tmp_path / "m.dpsim", precision="float32")
    structure, expected = reference_frame(name, "water192", model.type_map)
    p = model(Batch.from_frames([structure], model.rcut))
    assert relative(p.energy[0], expected["energy"]) < 1e-6
    assert relative(p.forces, expected["force"]) < 1e-5


@needs_fixtures
def test_round_trip_through_a_model_file(tmp_path: Path) -> None:
    model = read_deepmd(FIXTURES / "se_atten_v2" / "model.dp")
    save_model(tmp_path / "m.dpsim", model)
    again = load_model(tmp_path / "m.dpsim")
    structure, _ = reference_frame("se_atten_v2", "tri", model.type_map)
    batch = Batch.from_frames([structure], model.rcut)
    a, b = model(batch), again(batch)
    assert torch.equal(a.energy, b.energy)
    assert torch.equal(a.forces, b.forces)


def hybrid_of(*names: str, **changes: dict[str, Any]) -> dict[str, Any]:
    """The tree of a DeePMD-kit hybrid of the descriptors of some fixtures, with changes to them by name."""
    parts, dim = [], 0
    for name in names:
        tree = load_tree(FIXTURES / name / "model.dp")["model"]
        part = tree["descriptor"] | changes.get(name, {})
        variables, n = part["@variables"], np.sum(part["sel"])
        part["@variables"] = {k: np.repeat(variables[k][:, :1], n, axis=1) for k in ("davg", "dstd")}
        parts.append(part)
        dim += part["neuron"][-1] * part.get("axis_neuron", 1) + part.get("tebd_dim", 0)
    for net in tree["fitting"]["nets"]["networks"]:
        variables = net["layers"][0]["@variables"]
        variables["w"] = np.random.default_rng(1).normal(size=(dim, variables["w"].shape[1]))
    return tree | {"descriptor": {"type": "hybrid", "list": parts}}


def net_of_file(net: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """An embedding net of the widths 6, 12, 24 and tanh, x (n, 1) -> (n, 24)."""
    for k, layer in enumerate(net["layers"]):
        v = layer["@variables"]
        y = np.tanh(x @ v["w"] + v["b"])
        x = y + np.hstack([x, x]) if k else y
    return x


@needs_fixtures
@pytest.mark.parametrize("frame", ["tri", "mol"])
def test_hybrid_slot_by_slot(frame: str) -> None:
    """Descriptors of DeePMD-kit's hybrid, written out slot by slot: one list, of which each part takes its slots.

    The list is cut (40 of up to 90 neighbours), so are the parts' shares of it; one part has a shorter cutoff, davg is
    not 0, and pairs are excluded.
    """
    tree = hybrid_of(
        *("se_e2_a_selshort", "se_e2_r"),
        se_e2_a_selshort={"rcut": 4.0},
        se_e2_r={"sel": [20, 10], "exclude_types": [[0, 1]]},
    )
    model = build_model(tree)
    structure, _ = reference_frame("se_e2_r", frame, model.type_map)
    batch = Batch.from_frames([structure], model.rcut)
    graph, order = Graph.from_batch(batch, batch.edge_vectors(), 2)
    found = model.descriptor(graph).detach()[torch.argsort(order)]

    x, t, center, neighbor = (v.numpy() for v in (batch.edge_vectors(), batch.types, batch.center, batch.neighbor))
    n_listed = 20 + 20  # the larger sel of each type
    for i in range(batch.n_atoms):
        edges = np.flatnonzero(center == i)
        edges = edges[np.argsort(np.linalg.norm(x[edges], axis=1))][:n_listed]
        expected = []
        for part in tree["descriptor"]["list"]:
            v, radial = part["@variables"], part["type"] == "se_r"
            a = np.zeros((1 if radial else 4, part["neuron"][-1]))
            for tj, sel in enumerate(part["sel"]):
                d = x[edges[t[neighbor[edges]] == tj]][:sel]
                r = np.linalg.norm(d, axis=1, keepdims=True)
                u = np.clip((r - part["rcut_smth"]) / (part["rcut"] - part["rcut_smth"]), 0, 1)
                w = u**3 * (-6 * u**2 + 15 * u - 10) + 1
                rows = np.zeros((sel, 4))
                rows[: len(d)] = np.hstack([w / r, w * d / r**2])
                rows = (rows[:, : len(a)] - v["davg"][t[i], 0]) / v["dstd"][t[i], 0]
                if sorted([t[i], tj]) in part["exclude_types"]:
                    rows[: len(d)] = 0  # empty slots are of no type
                g = net_of_file(part["embeddings"]["networks"][tj], rows[:, :1])
                a += (np.ones_like(rows) / 5 if radial else rows).T @ g / sum(part["sel"])
            expected.append((a if radial else a.T @ a[:, : part["axis_neuron"]]).ravel())
        np.testing.assert_allclose(found[i], np.concatenate(expected), rtol=1e-10, atol=1e-13)


@needs_fixtures
def test_hybrids_with_dpa1() -> None:
    """Their list has room for the largest sum; where a dpa1 would see the types of atoms beyond its cutoff: refused."""
    long = build_model(hybrid_of("se_e2_r", "se_atten_l2_strip"))
    assert [part.n_listed for part in long.descriptor.members] == [144, 144]
    for changes in ({}, {"smooth_type_embedding": False}):
        short: dict[str, Any] = {"rcut": 4.0, **changes}
        with pytest.raises(UnsupportedModelError, match="dpa1 has a shorter cutoff"):
            build_model(hybrid_of("se_atten_l2_nosmooth_twoside", "se_e2_r", se_atten_l2_nosmooth_twoside=short))
    build_model(hybrid_of("se_atten_l2_strip", "se_e2_r", se_atten_l2_strip={"rcut": 4.0}))


@needs_fixtures
@pytest.mark.parametrize("name", REFUSED)
def test_other_kinds_are_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"the file holds .*{REFUSED[name]}"):
        read_deepmd(FIXTURES / name / "model.dp")


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        read_deepmd(tmp_path / "absent.dp")
    (tmp_path / "bad.dp").write_bytes(b"not HDF5")
    with pytest.raises(ModelFileError, match="not a readable"):
        read_deepmd(tmp_path / "bad.dp")
    (tmp_path / "model.pth").write_bytes(b"")
    with pytest.raises(ModelFileError, match="convert-backend"):
        read_deepmd(tmp_path / "model.pth")
    (tmp_path / "half.yaml").write_text("model: {type: standard, fitting: {type: ener}}")
    with pytest.raises(ModelFileError, match="not a complete"):
        read_deepmd(tmp_path / "half.yaml")
