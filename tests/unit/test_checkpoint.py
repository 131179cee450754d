"""dpsim/models/checkpoint.py: what is saved is loaded, and nothing else is."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from dpsim.data.frame import Batch, Frame
from dpsim.errors import ConfigError, ModelFileError
from dpsim.models import checkpoint, container
from dpsim.models.checkpoint import load_model, read_header, save_model
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel

DESCRIPTORS: list[dict[str, Any]] = [
    {"type": "se_e2_a", "sel": [8, 8], "neuron": [4, 8], "axis_neuron": 2},
    {"type": "dpa1", "sel": 16, "neuron": [4, 8], "axis_neuron": 2, "attn": 8, "attn_layer": 1},
    {"type": "hybrid", "list": [{"type": "se_e2_r", "sel": [8, 8], "rcut": 4.0, "neuron": [4, 8]}]},
]


def make(descriptor: dict[str, Any] | None = None, precision: str = "float64") -> EnergyModel:
    config = ModelConfig.model_validate(
        {
            "type_map": ["He", "Ne"],
            "descriptor": descriptor or DESCRIPTORS[0],
            "fitting": {"neuron": [8]},
            "precision": precision,
        }
    )
    model = EnergyModel(config, seed=3)
    model.energy_bias.copy_(torch.tensor([-1.5, 2.25]))
    return model


def batch() -> Batch:
    positions = np.random.default_rng(0).uniform(0, 4, (5, 3))
    types = np.array([0, 1, 1, 0, 1])
    frame = Frame(positions, types, ("He", "Ne"), np.eye(3) * 9, np.ones(3, dtype=bool))
    return Batch.from_frames([frame], 6.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.dpsim"
    save_model(path, make(), {"name": "test", "data": [{"sha256": "00"}], "nan": float("nan"), "path": Path("x")})
    return path


@pytest.mark.parametrize("descriptor", DESCRIPTORS, ids=lambda d: str(d["type"]))
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_round_trip_is_exact(tmp_path: Path, descriptor: dict[str, Any], precision: str) -> None:
    model = make(descriptor, precision)
    save_model(tmp_path / "m.dpsim", model)
    loaded = load_model(tmp_path / "m.dpsim")
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    a, b = model(batch()), loaded(batch())
    assert torch.equal(a.energy, b.energy) and torch.equal(a.forces, b.forces)


def test_header_says_what_the_model_is(file: Path) -> None:
    header = read_header(file)
    assert header["format_version"] == 1
    assert header["type_map"] == ["He", "Ne"]
    assert (header["rcut"], header["precision"]) == (6.0, "float64")
    assert header["units"]["energy"] == "eV"
    assert header["provenance"] == {"name": "test", "data": [{"sha256": "00"}], "nan": None, "path": "x"}
    assert load_model(file).metadata == header
    with open(file, "rb") as f:  # plain safetensors: anybody's reader shows it
        assert "energy_bias" in load(f.read())


def test_saving_a_loaded_model_keeps_its_provenance(file: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "again.dpsim", load_model(file))
    assert (tmp_path / "again.dpsim").read_bytes() == file.read_bytes()


def test_other_precision_on_request(file: Path) -> None:
    model = load_model(file, precision="float32")
    assert model.dtype == torch.float32
    assert next(model.parameters()).dtype == torch.float32
    assert model.energy_bias.dtype == torch.float64
    with pytest.raises(ConfigError, match="precision"):
        load_model(file, precision="float16")  # type: ignore[arg-type]


def test_bundled_models_go_by_name(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "BUNDLED", tmp_path / "bundled")
    (tmp_path / "bundled").mkdir()
    os.replace(file, tmp_path / "bundled" / "water.dpsim")
    assert load_model("water").type_map == ("He", "Ne")
    with pytest.raises(ModelFileError, match="Did you mean `water`"):
        load_model("watr")
    with pytest.raises(ModelFileError, match="folder"):
        load_model(tmp_path)


def test_every_truncation_is_refused(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    bad = tmp_path / "bad.dpsim"
    for n in [0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1]:
        bad.write_bytes(content[:n])
        with pytest.raises(ModelFileError):
            load_model(bad)
        with pytest.raises(ModelFileError):
            read_header(bad)
    bad.write_bytes(content + b"\0")
    with pytest.raises(ModelFileError):
        load_model(bad)


def test_every_flipped_bit_is_refused(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    bad = tmp_path / "bad.dpsim"
    rng = np.random.default_rng(1)
    for position in [0, 3, 7, 8, 20, *rng.integers(8, len(content), 150)]:
        changed = bytearray(content)
        changed[position] ^= 1 << int(rng.integers(8))
        bad.write_bytes(changed)
        with pytest.raises(ModelFileError):
            load_model(bad)
            pytest.fail(f"bit flip at {position} was not noticed: {content[position - 20 : position + 20]!r}")


class Bomb:
    def __reduce__(self) -> Any:
        return (os.system, ("touch /tmp/dpsim_was_hacked",))


@pytest.mark.parametrize(
    "content",
    [
        b"not a model at all, just text",
        pickle.dumps(Bomb()),
        b"PK\x03\x04" + b"\0" * 100,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        save({"a": torch.zeros(2)}),
        save({"a": torch.zeros(2)}, {"dpsim": "[]"}),
        save({"a": torch.zeros(2)}, {"dpsim": "{}"}),
        save({"a": torch.zeros(2)}, {"dpsim": "{broken"}),
    ],
)
def test_foreign_and_hostile_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.dpsim"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"x\.dpsim"):
        load_model(path)
    assert not Path("/tmp/dpsim_was_hacked").exists()


def forge(file: Path, header: dict[str, Any] | None = None, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """A file with changed content and a right checksum: what an attacker, or a bug, could write."""
    old_header, old_tensors = container.read(file)
    old_header.pop("sha256")
    path = file.with_name("forged.dpsim")
    container.write(path, {**old_tensors, **(tensors or {})}, {**old_header, **(header or {})})
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format_version": 99}, "format_version 99"),
        ({"format_version": "1"}, "format_version '1'"),
        ({"format_version": 0}, "format_version 0"),
        ({"config": {"type_map": ["He"], "evil": "!!python"}}, "config"),
        ({"config": None}, "no config"),
        ({"type_map": ["He", "Xe"]}, "contradicts"),
        ({"precision": "float32"}, "contradicts"),
    ],
)
def test_forged_headers_are_refused(file: Path, header: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        load_model(forge(file, header))


def test_a_config_that_asks_for_too_much_costs_nothing(file: Path) -> None:
    config = json.loads(json.dumps(read_header(file)["config"]))
    config["fitting"]["neuron"] = [10**7] * 4
    with pytest.raises(ModelFileError):
        load_model(forge(file, {"config": config}))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"more": torch.zeros(1)}, "unexpected"),
        ({"energy_bias": torch.zeros(3, dtype=torch.float64)}, "shape"),
        ({"energy_bias": torch.zeros(2, dtype=torch.float32)}, "float32"),
        ({"energy_bias": torch.tensor([0.0, float("nan")], dtype=torch.float64)}, "NaN"),
    ],
)
def test_wrong_tensors_are_refused(file: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        load_model(forge(file, tensors=tensors))


def test_a_model_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    model = make()
    model.energy_bias[0] = float("inf")
    with pytest.raises(ModelFileError, match="energy_bias"):
        save_model(tmp_path / "x.dpsim", model)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(file, make(), {"name": "new"})
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]
