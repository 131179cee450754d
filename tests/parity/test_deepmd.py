"""Imported DeePMD-kit models give DeePMD-kit's numbers: energy, atomic energies, forces, virial, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dpsim.data.frame import Batch, Frame
from dpsim.errors import ModelFileError, UnsupportedModelError
from dpsim.models.checkpoint import load_model, save_model
from dpsim.models.deepmd_format import read_deepmd

FIXTURES = Path(__file__).parents[2].parent / "shared" / "reference" / "deepmd"
SUPPORTED = (
    *("se_e2_a", "se_e2_a_atomexcl", "se_e2_a_resnetdt_excl", "se_e2_a_selshort", "se_e2_a_twoside"),
    *("dpa1", "dpa1_econf", "se_atten_l0_concat", "se_atten_l0_strip", "se_atten_l2_concat"),
    *("se_atten_l2_nosmooth_twoside", "se_atten_l2_strip", "se_atten_v2"),
)
REFUSED = ("dipole", "dpa2", "dpa3", "fparam_aparam", "hybrid", "linear", "pairtab", "polar", "se_e2_r", "se_e3", "zbl")
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


@needs_fixtures
@pytest.mark.parametrize("name", REFUSED)
def test_other_kinds_are_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="the file holds"):
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
