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
from dpsim.models.deepmd.files import build_model, read_deepmd, write_deepmd
from dpsim.models.deepmd.tree import load_tree
from dpsim.models.graph import Graph

FIXTURES = Path(__file__).parents[2].parent / "shared" / "reference" / "deepmd"
SUPPORTED = (
    *("se_e2_a", "se_e2_a_atomexcl", "se_e2_a_resnetdt_excl", "se_e2_a_selshort", "se_e2_a_twoside"),
    *("dpa1", "dpa1_econf", "se_atten_l0_concat", "se_atten_l0_strip", "se_atten_l2_concat"),
    *("se_atten_l2_nosmooth_twoside", "se_atten_l2_strip", "se_atten_v2", "se_e2_r"),
    *("dpa2", "dpa2_strip", "se_e3", "se_e3_tebd", "hybrid"),
    *("fparam_aparam", "fparam_aparam_dpa1", "zbl", "pairtab", "linear"),
    *("dpa3", "dpa3_classdefault", "dpa3_dynamic", "dpa3_noangle", "dpa3_tebdbias_concat"),
)
REFUSED = {"dipole": "dipole", "polar": "polar", "dpa3_chgspin": "charge and spin"}
FRAMES = ("water192", "tri", "mol")
# Attention without smooth weights sees the direction x / max(|x|, 1e-12) of x = w(r) edge_vec / r^2. In `water192` an
# edge 2e-5 A inside the cutoff has w = 1e-14, of which the reference's expanded polynomial keeps two digits, so the
# reference's own forces on the atoms of such edges depend on rounding.
ILL_CONDITIONED = ("dpa1", "dpa1_econf", "se_atten_l2_nosmooth_twoside")

needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"no DeePMD-kit reference models at {FIXTURES}")


def reference_frame(
    name: str, frame: str, type_map: tuple[str, ...], file: str = "ref.npz"
) -> tuple[Frame, dict[str, np.ndarray]]:
    """A frame of a fixture and what DeePMD-kit says of it."""
    with np.load(FIXTURES / name / file) as z:
        data = {k.removeprefix(f"{frame}."): z[k] for k in z.files if k.startswith(f"{frame}.")}
    cell = data.get("cell")
    return (
        Frame(
            positions=data["coord"].astype(np.float64),
            types=data["type"].astype(np.int64),
            type_map=type_map,
            cell=np.zeros((3, 3)) if cell is None else cell,
            pbc=np.full(3, cell is not None),
            fparam=data.get("fparam"),
            aparam=data.get("aparam"),
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
@pytest.mark.parametrize("name", ["se_e2_a", "se_atten_l2_strip", "dpa2", "dpa2_strip", "dpa3", "hybrid"])
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


def as_written(node: Any) -> Any:
    """A tree without what one and the same model may say differently."""
    if isinstance(node, dict):
        same = {k: as_written(v) for k, v in node.items() if k not in ("set_davg_zero", "ln_eps", "rmax", "vdata")}
        if "activation_function" in same and str(same["activation_function"]).lower() == "linear":
            same["activation_function"] = "none"
        if same.get("type") == "linear":  # what DeePMD-kit 3.2 writes and cannot read
            same["type"] = "linear_ener"
        if same.get("type") == "se_atten_v2":
            same |= {"type": "dpa1", "tebd_input_mode": "strip", "smooth_type_embedding": True}
        return same
    return [as_written(v) for v in node] if isinstance(node, list) else node


def assert_same_tree(ours: Any, theirs: Any, besides: tuple[str, ...], path: str = "model") -> None:
    """Equal keys, settings and arrays, but for the values of arrays with one of `besides` in their path."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), path
        for key in ours:
            assert_same_tree(ours[key], theirs[key], besides, f"{path}.{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), path
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same_tree(a, b, besides, f"{path}.{k}")
    elif isinstance(theirs, np.ndarray):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), path
        if not any(part in path for part in besides):
            np.testing.assert_array_equal(ours, theirs, err_msg=path)
    else:
        assert ours == theirs, path


@needs_fixtures
@pytest.mark.parametrize("name", SUPPORTED)
def test_written_as_deepmd_kit_writes(name: str, tmp_path: Path) -> None:
    """Settings and arrays of an exported model are those of DeePMD-kit's own file; read again it is the same model."""
    model = read_deepmd(FIXTURES / name / "model.dp")
    write_deepmd(tmp_path / "m.dp", model)
    ours, theirs = (load_tree(path)["model"] for path in (tmp_path / "m.dp", FIXTURES / name / "model.dp"))
    besides = ("out_bias", "bias_atom_e")  # of which the sum counts
    if name in ("se_e3", "hybrid"):  # nets of the types (b, a), of which only (a, b) are read
        besides += (".networks.1.layers",)
    assert_same_tree(as_written(ours), as_written(theirs), besides)
    again = read_deepmd(tmp_path / "m.dp")
    assert again.config == model.config
    assert all(torch.equal(x, again.state_dict()[k]) for k, x in model.state_dict().items())


@needs_fixtures
@pytest.mark.parametrize("head", ["wa", "wb", "wc"])
def test_heads_of_a_training_checkpoint(head: str) -> None:
    folder = FIXTURES / "multitask_dpa3"
    model, portable = read_deepmd(folder / "model.ckpt.pt", head), read_deepmd(folder / f"model_{head}.dp")
    assert model.config == portable.config
    assert all(torch.equal(x, portable.state_dict()[k]) for k, x in model.state_dict().items())
    for frame in FRAMES:
        structure, expected = reference_frame("multitask_dpa3", frame, model.type_map, f"ref_{head}.npz")
        p = model(Batch.from_frames([structure], model.rcut))
        assert relative(p.energy[0], expected["energy"]) < 1e-10
        assert relative(p.atom_energy, expected["atom_energy"]) < 1e-10
        assert relative(p.forces, expected["force"]) < 1e-10
        assert relative(p.virial[0], expected["virial"]) < 1e-10


def hybrid_of(*names: str, **changes: dict[str, Any]) -> dict[str, Any]:
    """The tree of a DeePMD-kit hybrid of the descriptors of some fixtures, with changes to them by name."""
    parts, dim = [], 0
    for name in names:
        tree = load_tree(FIXTURES / name / "model.dp")["model"]
        part = tree["descriptor"] | {"env_mat": {}} | changes.get(name, {})
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
