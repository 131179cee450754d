"""dpsim/models/deepmd: what is written is read again to the bit; what a file cannot hold is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from deepmd_for_tests import DESCRIPTORS, checkpoint, checkpoint_of_heads, make, same_numbers
from dpsim.errors import ModelFileError, UnsupportedModelError
from dpsim.models.checkpoint import load_model, read_header, save_model
from dpsim.models.config import ModelConfig
from dpsim.models.deepmd.files import build_model, model_tree, read_deepmd, write_deepmd
from dpsim.models.deepmd.tree import load_tree
from dpsim.models.energy_model import EnergyModel

LOCAL_FRAME = {"type": "loc_frame", "sel_a": [4, 4], "sel_r": [4, 4]}


def without_conventions(config: ModelConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json", exclude={"deepmd_conventions"})
    if values["fitting"]["type_wise"] is None:
        values["fitting"]["type_wise"] = not config.descriptor.embeds_types
    return values


# There and back.


@pytest.mark.parametrize("suffix", [".dp", ".yaml"])
@pytest.mark.parametrize("kind", DESCRIPTORS)
def test_round_trip(kind: str, suffix: str, tmp_path: Path) -> None:
    model = make(kind, pair_exclude_types=[[1, 1]] if kind == "dpa1" else [])
    write_deepmd(tmp_path / f"m{suffix}", model)
    again = read_deepmd(tmp_path / f"m{suffix}")
    assert without_conventions(again.config) == without_conventions(model.config)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    if kind in ("se_e2_r", "hybrid"):  # their constant is in the first bias, their files hold one column of dstd
        same_numbers(again, model, 1e-13)
    else:
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
        same_numbers(again, model, 1e-15)
    write_deepmd(tmp_path / f"again{suffix}", again)
    once_more = read_deepmd(tmp_path / f"again{suffix}").state_dict()
    assert all(torch.equal(theirs[k], once_more[k]) for k in theirs)


def test_single_precision_and_what_else_a_file_holds(tmp_path: Path) -> None:
    model = make(precision="float32", atom_exclude_types=[1])
    model.metadata = {"provenance": {"imported_from": {"min_nbor_dist": 0.75}}}
    write_deepmd(tmp_path / "m.dp", model)
    tree = load_tree(tmp_path / "m.dp")
    net = tree["model"]["descriptor"]["embeddings"]["networks"][0]["layers"][0]
    assert net["@variables"]["w"].dtype == np.float32
    again = read_deepmd(tmp_path / "m.dp")
    assert again.config.precision == "float32"
    assert again.config.atom_exclude_types == [1]
    assert again.metadata["provenance"]["imported_from"]["min_nbor_dist"] == 0.75
    same_numbers(again, model)


def test_json_is_the_same_tree(tmp_path: Path) -> None:
    model = make()
    write_deepmd(tmp_path / "m.yaml", model)
    (tmp_path / "m.json").write_text(json.dumps(yaml.safe_load((tmp_path / "m.yaml").read_text())))
    same_numbers(read_deepmd(tmp_path / "m.json"), model, 1e-15)
    (tmp_path / "paddle.json").write_text(json.dumps({"base_code": {"magic": "pir"}, "program": {}}))
    with pytest.raises(ModelFileError, match="a program for Paddle"):
        read_deepmd(tmp_path / "paddle.json")


@pytest.mark.parametrize("suffix", [".dp", ".yaml"])
def test_a_file_is_written_in_one_step(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"m{suffix}"
    write_deepmd(path, make())
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_deepmd(path, make("one side"))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="core_distances"):
        write_deepmd(tmp_path / "m.dp", make(core_distances=[[1.0, 1.0], [1.0, 1.0]]))
    with pytest.raises(UnsupportedModelError, match="is a student"):
        write_deepmd(tmp_path / "m.dp", load_model("water-pbe0ts-student"))
    with pytest.raises(UnsupportedModelError, match="type_one_side"):
        write_deepmd(tmp_path / "m.dp", make(descriptor={**DESCRIPTORS["se_e2_r"], "type_one_side": False}))
    with pytest.raises(UnsupportedModelError, match="first layer of the fitting net"):
        write_deepmd(tmp_path / "m.dp", make("se_e2_r", fitting={"neuron": [8]}))
    with pytest.raises(UnsupportedModelError, match="order"):
        write_deepmd(tmp_path / "m.dp", make(descriptor={**DESCRIPTORS["dpa3"], "order": 3, "d_sel": 20}))
    with pytest.raises(UnsupportedModelError, match="descriptor 'loc_frame'.* cannot hold"):
        write_deepmd(tmp_path / "m.dp", make(descriptor=LOCAL_FRAME))
    with pytest.raises(ModelFileError, match=r"expected \.dp or \.yaml"):
        write_deepmd(tmp_path / "m.pth", make())
    assert not list(tmp_path.iterdir())


# Training checkpoints.


@pytest.mark.parametrize("kind", DESCRIPTORS)
def test_checkpoints(kind: str, tmp_path: Path) -> None:
    model = read_deepmd_of(make(kind))
    torch.save(checkpoint({"Default": model}, single=True), tmp_path / "c.pt")
    again = read_deepmd(tmp_path / "c.pt")
    assert without_conventions(again.config) == without_conventions(model.config)
    assert all(torch.equal(x, again.state_dict()[k]) for k, x in model.state_dict().items())
    about = again.metadata["provenance"]["imported_from"]
    assert about == {"file": "c.pt", "software": "deepmd-kit", "min_nbor_dist": 0.75, "step": 10}


def read_deepmd_of(model: EnergyModel) -> EnergyModel:
    """The model as read from a portable file of it."""
    return build_model(model_tree(model)["model"])


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    return checkpoint_of_heads(tmp_path)


def test_heads(heads: Path) -> None:
    same_numbers(read_deepmd(heads, head="water"), make(), 1e-15)
    same_numbers(load_model(f"{heads}:ice"), make("dpa1"), 1e-15)
    assert load_model(heads, head="ice").metadata["provenance"]["imported_from"]["head"] == "ice"
    with pytest.raises(ModelFileError, match="has 2 heads; expected the name of one of them: water, ice"):
        load_model(heads)
    with pytest.raises(ModelFileError, match="expected one of water, ice. Did you mean `water`"):
        load_model(heads, head="wafer")
    with pytest.raises(ModelFileError, match="expected one of the two"):
        load_model(f"{heads}:ice", head="water")
    shown = read_header(heads)["heads"]
    assert list(shown) == ["water", "ice"]
    weights = sum(p.numel() for p in make("dpa1").parameters())
    about = {"type_map": ["He", "Ne"], "trained_on": ["He"], "descriptor": "dpa1"}
    assert shown["ice"] == about | {"parameters": weights}
    config = read_header(f"{heads}:ice")["config"]
    assert ModelConfig.model_validate(config) == read_deepmd(heads, "ice").config


def test_a_file_of_one_model_has_no_heads(tmp_path: Path) -> None:
    write_deepmd(tmp_path / "m.dp", make())
    save_model(tmp_path / "m.dpsim", make())
    for path in tmp_path.iterdir():
        with pytest.raises(ModelFileError, match="holds one model; expected none"):
            load_model(path, head="water")
