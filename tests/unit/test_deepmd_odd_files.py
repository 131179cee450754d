"""dpsim/models/deepmd: what is odd in a file is refused by name, and nothing in it runs."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

from deepmd_for_tests import checkpoint, make
from dpsim.errors import DpsimError, ModelFileError, UnsupportedModelError
from dpsim.models.checkpoint import read_header
from dpsim.models.deepmd.files import build_model, model_tree, read_deepmd, write_deepmd
from dpsim.models.deepmd.tree import load_tree, save_tree


class Bomb:
    """Would make a file if it were unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("way", ["torch", "pickle", "beside"])
def test_nothing_is_executed(way: str, tmp_path: Path) -> None:
    path, made = tmp_path / "c.pt", tmp_path / "made"
    good = checkpoint({"Default": make()}, single=True)
    match way:
        case "torch":
            torch.save({**good, "optimizer": Bomb(made)}, path)
        case "pickle":
            path.write_bytes(pickle.dumps({**good, "optimizer": Bomb(made)}, protocol=2))
        case "beside":
            good["model"]["_extra_state"]["train_infos"] = Bomb(made)
            torch.save(good, path)
    with pytest.raises(ModelFileError, match="they could run code"):
        read_deepmd(path)
    assert not made.exists()


@pytest.mark.parametrize("name", ["m.dp", "m.yaml", "m.json", "c.pt"])
def test_truncated_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith(".pt"):
        torch.save(checkpoint({"Default": make()}, single=True), path)
    else:
        write_deepmd(tmp_path / "m.yaml", make())
        tree = load_tree(tmp_path / "m.yaml")
        if name.endswith(".json"):
            path.write_text(json.dumps(yaml.safe_load((tmp_path / "m.yaml").read_text())))
        else:
            save_tree(path, tree)
    content = path.read_bytes()
    for fraction in (0.0, 0.01, 0.1, 0.5, 0.9):
        path.write_bytes(content[: int(fraction * len(content))])
        with pytest.raises(ModelFileError):
            read_deepmd(path)
        with contextlib.suppress(ModelFileError):
            assert "refused" in read_header(path)


def test_data_outside_the_file_is_not_read(tmp_path: Path) -> None:
    write_deepmd(tmp_path / "m.dp", make())
    write_deepmd(tmp_path / "other.dp", make())
    with h5py.File(tmp_path / "m.dp", "a") as file:
        del file["variable_0000"]
        file["variable_0000"] = h5py.ExternalLink("other.dp", "/variable_0000")
    with pytest.raises(ModelFileError, match="not in the file itself"):
        read_deepmd(tmp_path / "m.dp")
    with h5py.File(tmp_path / "m.dp", "a") as file:
        del file["variable_0000"]
        file.create_dataset("variable_0000", shape=(1 << 40,), chunks=(1 << 20,), dtype="f8", compression="gzip")
    with pytest.raises(ModelFileError, match="not in the file itself"):
        read_deepmd(tmp_path / "m.dp")


def set_in(tree: Any, path: str, value: Any) -> None:
    *outer, last = path.split(".")
    for name in outer:
        tree = tree[int(name)] if isinstance(tree, list) else tree[name]
    if value is None:
        del tree[last]
    else:
        tree[last] = value


W = "descriptor.embeddings.networks.1.layers.1.@variables.w"
ODD: dict[str, tuple[str, Any, str]] = {
    "missing": (W, None, rf"`{W}` is missing in the file; expected an array of shape \(4, 8\)"),
    "shape": (W, np.zeros((4, 7)), r"`.*layers.1.@variables.w` is of shape \(4, 7\); expected \(4, 8\)"),
    "extra": ("fitting.@variables.scale", np.zeros(3), "`fitting.@variables.scale` is an array .* expected none"),
    "nan": (W, np.full((4, 8), np.nan), f"`{W}` holds NaN"),
    "text": (W, np.full((4, 8), "a"), f"`{W}` is <U1; expected numbers"),
    "bias": ("@variables.out_bias", np.zeros((1, 3, 1)), r"`@variables.out_bias` is of shape \(1, 3, 1\)"),
    "slots": (
        "descriptor.@variables.davg",
        np.arange(2 * 22 * 4.0).reshape(2, 22, 4),
        "davg or dstd that differ between the slots",
    ),
    "activation": ("descriptor.activation_function", "swish", "the activation function 'swish'"),
    "near activation": ("fitting.activation_function", "tahn", "activation function 'tahn'.* Did you mean `tanh`"),
    "layer": (
        "descriptor.embeddings.networks.0.layers.0.activation_function",
        "relu",
        r"`.*layers.0.activation_function` is 'relu'; expected 'tanh'",
    ),
    "resnet": ("descriptor.embeddings.networks.0.layers.1.resnet", False, "`.*resnet` is False; expected True"),
    "cutoff": ("descriptor.rcut", 5.0, "`rcut` is 5.0 in a descriptor and 6.0 in its environment matrix"),
    "switch": ("descriptor.rcut_smth", 7.0, "`rcut_smth` is 7.0"),
    "type map": ("type_map", ["He", "Ne", "Ar"], "`sel` is .*expected one number for each"),
    "doubled": ("type_map", ["He", "He"], "expected every element once"),
    "sel": ("descriptor.sel", [10], "expected one number for each"),
    "axis": ("descriptor.axis_neuron", 9, "axis_neuron"),
    "type": ("descriptor.type", "loc_frame", "the descriptor 'loc_frame'"),
    "dpa4": ("descriptor.type", "dpa4", "the descriptor 'dpa4'"),
    "no type": ("descriptor.type", None, "'type' is missing"),
    "dipole": ("fitting.type", "dipole", "a 'dipole' fitting"),
    "spin": ("descriptor.spin", {"use_spin": [True]}, "a spin model"),
    "model": ("type", "polar", "a model of type 'polar'"),
    "compressed": ("descriptor.@version", 3, "format version 3"),
    "atom_ener": ("fitting.atom_ener", [1.0, None], "energies of atoms in vacuum"),
    "precision": ("descriptor.precision", "float8", "precision 'float8'"),
    "node": ("descriptor", [1, 2], "not a complete DeePMD-kit model: odd"),
    "huge": ("descriptor.neuron", [1 << 20, 1 << 20], "is of shape"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_files(case: str) -> None:
    tree = model_tree(make())["model"]
    path, value, message = ODD[case]
    set_in(tree, path, value)
    with pytest.raises((ModelFileError, UnsupportedModelError), match=message):
        build_model(tree)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, k: s.pop(k), r"`descriptor.*1.matrix` is missing in the file; expected an array of shape \(4, 8\)"),
        (lambda s, k: s.update({k: s[k][:3]}), "is not what it is a copy of"),
        (lambda s, k: s.update({k[:-6] + "extra": s[k]}), "`descriptor.*1.extra` is an array .* expected none"),
        (lambda s, k: s.update({"model.water.loss": s[k]}), "`model.water.loss` belongs to none of the heads"),
        (lambda s, k: s.update({k.replace("Default", "other"): s[k]}), "belongs to none of the heads Default"),
        (lambda s, k: s.update({"model.Default.atomic_model.descriptor.compress_info.0": s[k]}), "a compressed model"),
        (lambda s, k: s.pop("_extra_state"), "holds no model_params"),
        (lambda s, k: s.update(_extra_state={"model_params": {"model_dict": {}}}), "holds no heads"),
        (lambda s, k: s["_extra_state"]["model_params"].update(spin={"use_spin": [True]}), "a spin model"),
        (lambda s, k: s["_extra_state"]["model_params"].pop("descriptor"), "'descriptor' is missing"),
        (lambda s, k: s["_extra_state"]["model_params"].update(bridging_method="ZBL"), "bridging_method 'ZBL'"),
        (lambda s, k: s["_extra_state"]["model_params"]["descriptor"].update(type="dpa4"), "the descriptor 'dpa4'"),
        (lambda s, k: s["_extra_state"]["model_params"]["descriptor"].update(neuron=[4, 9]), "is of shape"),
    ],
)
def test_odd_checkpoints(change: Callable[[dict[str, Any], str], Any], message: str, tmp_path: Path) -> None:
    content = checkpoint({"Default": make()}, single=True)
    change(content["model"], "model.Default.atomic_model.descriptor.sea.filter_layers.networks.1.layers.1.matrix")
    for key in list(content["model"]):  # but not only in the copies
        if "._networks." in key and key.replace("._networks.", ".networks.") not in content["model"]:
            del content["model"][key]
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises((ModelFileError, UnsupportedModelError), match=message):
        read_deepmd(tmp_path / "c.pt")


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"absent.pt` does not exist"):
        read_deepmd(tmp_path / "absent.pt")
    torch.save([1, 2, 3], tmp_path / "list.pt")
    with pytest.raises(ModelFileError, match="not a training checkpoint"):
        read_deepmd(tmp_path / "list.pt")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "frozen.pt")
    with pytest.raises(ModelFileError, match="convert-backend"):
        read_deepmd(tmp_path / "frozen.pt")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ModelFileError, match="holds no tree"):
        read_deepmd(tmp_path / "list.yaml")
    (tmp_path / "loop.yaml").write_text("model: &a\n  b: *a\n")
    with pytest.raises(ModelFileError):
        read_deepmd(tmp_path / "loop.yaml")
    (tmp_path / "code.yaml").write_text(f"!!python/object/apply:os.mkdir ['{tmp_path}/made']")
    with pytest.raises(ModelFileError, match="not a readable"):
        read_deepmd(tmp_path / "code.yaml")
    assert not (tmp_path / "made").exists()


def test_errors_are_of_dpsim() -> None:
    assert issubclass(ModelFileError, DpsimError) and "dpsim.models.deepmd.files" in sys.modules
