"""dpsim/models/deepmd: what is written is read again to the bit; what is odd is refused by name, and nothing runs."""

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
from ase import Atoms
from typer.testing import CliRunner

from dpsim import DPCalculator, cli
from dpsim.config import validate
from dpsim.data.frame import Batch, Frame
from dpsim.errors import ConfigError, DpsimError, ElementError, ModelFileError, UnsupportedModelError
from dpsim.models.checkpoint import convert_model, load_model, read_header, save_model
from dpsim.models.config import ModelConfig
from dpsim.models.deepmd import binding
from dpsim.models.deepmd.files import build_model, model_tree, read_deepmd, write_deepmd
from dpsim.models.deepmd.model import kind_of, kind_of_model
from dpsim.models.deepmd.tree import load_tree, save_tree
from dpsim.models.energy_model import EnergyModel
from dpsim.train.config import TrainConfig
from dpsim.train.trainer import train

NET = {"neuron": [4, 8]}
AXIS = {**NET, "axis_neuron": 2}
SHORT = {"rcut": 3.0, "rcut_smth": 1.0}
REPFLOW = {"n_dim": 8, "e_dim": 6, "a_dim": 4, "nlayers": 2, "e_rcut": 4.0, "e_rcut_smth": 3.0, "e_sel": 20}
DESCRIPTORS: dict[str, dict[str, Any]] = {
    "se_e2_a": {"type": "se_e2_a", "sel": [10, 12], **AXIS, "resnet_dt": True, "exclude_types": [[0, 0]]},
    "one side": {"type": "se_e2_a", "sel": [10, 12], **AXIS, "type_one_side": True, "activation": "gelu"},
    "se_e2_r": {"type": "se_e2_r", "sel": [10, 12], **NET, "type_one_side": True},
    "dpa1": {"type": "dpa1", "sel": 20, **AXIS, "attn": 4, "temperature": 0.4, "use_tebd_bias": True, "tebd_dim": 3},
    "strip": {"type": "dpa1", "sel": 20, **AXIS, "attn_layer": 0, "tebd_input_mode": "strip", "type_one_side": False},
    "econf": {"type": "dpa1", "sel": 20, **AXIS, "attn_layer": 1, "attn": 4, "use_econf_tebd": True, "ln_eps": 1e-3},
    "se_e3": {"type": "se_e3", "sel": [10, 12], **NET, **SHORT},
    "se_e3_tebd": {"type": "se_e3_tebd", "sel": 20, **NET, **SHORT, "tebd_dim": 4},
    "dpa2": {
        "type": "dpa2",
        "repinit": {"sel": 20, **AXIS, "tebd_dim": 4},
        "three_body": {"sel": 20, "neuron": [2, 4]},
        "repformer": {"sel": 20, "nlayers": 2, "g1_dim": 8, "g2_dim": 4, "attn1_hidden": 4, "attn2_hidden": 4},
    },
    "dpa3": {"type": "dpa3", **REPFLOW, "a_rcut": 3.0, "a_rcut_smth": 2.0, "a_sel": 20},
}
LOCAL_FRAME = {"type": "loc_frame", "sel_a": [4, 4], "sel_r": [4, 4]}
DESCRIPTORS["hybrid"] = {"type": "hybrid", "list": [DESCRIPTORS[k] for k in ("se_e2_a", "strip", "se_e2_r")]}


def make(kind: str = "se_e2_a", **settings: Any) -> EnergyModel:
    config = {"type_map": ["He", "Ne"], "descriptor": DESCRIPTORS[kind], "fitting": {"neuron": [9]}, **settings}
    model = EnergyModel(ModelConfig.model_validate({"precision": "float64", **config}), seed=3)
    model.energy_bias.copy_(torch.tensor([-1.5, 2.25]))
    for member in model.descriptor.members:
        member.dstd.copy_(member.dstd * torch.tensor([[0.5, 0.25, 0.25, 0.25], [0.75, 0.5, 0.5, 0.5]]))
    return model.eval()


def batch(rcut: float = 6.0) -> Batch:
    positions = np.random.default_rng(0).uniform(0, 4, (5, 3))
    frame = Frame(positions, np.array([0, 1, 1, 0, 1]), ("He", "Ne"), np.eye(3) * 9, np.ones(3, dtype=bool))
    return Batch.from_frames([frame], rcut)


def same_numbers(a: Any, b: Any, tolerance: float = 0.0) -> None:
    x, y = a(batch(a.rcut)), b(batch(b.rcut))
    for name in ("energy", "atom_energy", "forces", "virial"):
        torch.testing.assert_close(getattr(x, name), getattr(y, name), rtol=tolerance, atol=tolerance)


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


def checkpoint(models: dict[str, EnergyModel], single: bool = False) -> dict[str, Any]:
    """What DeePMD-kit's trainer writes, with its copies and its empty tables."""
    state: dict[str, Any] = {}
    params: dict[str, Any] = {}
    for head, model in models.items():
        kind = kind_of(kind_of_model(model))
        params[head] = kind.to_input(model) | {"info": {"observed_type": ["He"]}, "data_stat_nbatch": 10}
        prefix = f"model.{head}.atomic_model."
        for leaf in binding.leaves(kind.bindings(model)):
            value = leaf.value.write(leaf.value.tensor.detach()).contiguous().clone()
            state[prefix + leaf.key] = value
            if ".networks." in leaf.key:
                state[prefix + leaf.key.replace(".networks.", "._networks.")] = value
        state[f"{prefix}descriptor.compress_info.0"] = torch.zeros(0)
        state[f"model.{head}.min_nbor_dist"] = torch.tensor(0.75)
    model_params = next(iter(params.values())) if single else {"shared_dict": {}, "model_dict": params}
    state["_extra_state"] = {"model_params": model_params, "train_infos": {"lr": 1e-3, "step": 9}}
    return {"model": state, "optimizer": {"state": {}}}


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
    torch.save(checkpoint({"water": make(), "ice": make("dpa1")}), tmp_path / "heads.pt")
    return tmp_path / "heads.pt"


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


# What is odd.


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


# Everywhere a model is asked for.


@pytest.fixture
def atoms() -> Atoms:
    positions = np.random.default_rng(0).uniform(0, 4, (5, 3))
    return Atoms("HeNe2HeNe", positions, cell=[9, 9, 9], pbc=True)


def test_calculators(atoms: Atoms, heads: Path, tmp_path: Path) -> None:
    model = make()
    write_deepmd(tmp_path / "m.dp", model)
    energy = float(model(batch()).energy)
    for calculator in (
        DPCalculator(tmp_path / "m.dp"),
        DPCalculator(heads, head="water"),
        DPCalculator(f"{heads}:water"),
    ):
        assert calculator.get_potential_energy(atoms) == pytest.approx(energy, abs=1e-12)
    assert DPCalculator(heads, head="water").parameters["model"] == f"{heads}:water"
    single = DPCalculator(tmp_path / "m.dp", precision="float32")
    assert single.model.dtype == torch.float32
    assert single.get_potential_energy(atoms) == pytest.approx(energy, abs=1e-4)
    with pytest.raises(ElementError, match="Ar"):
        DPCalculator(tmp_path / "m.dp").get_potential_energy(Atoms("Ar"))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, list(arguments))


def test_commands(heads: Path, tmp_path: Path, lj_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "written to m.dpsim" in run("convert", str(heads), "--head", "ice", "-o", "m.dpsim").output
    same_numbers(load_model("m.dpsim"), make("dpa1"), 1e-15)
    assert load_model("m.dpsim").metadata["provenance"]["imported_from"]["head"] == "ice"
    save_model("native.dpsim", make())
    said = run("convert", "native.dpsim", "-o", "m.dp").output
    assert "written to m.dp" in said and "the same numbers as long as no atom has more" in said
    assert "same numbers" not in run("convert", "m.dp", "-o", "m.yaml").output
    same_numbers(load_model("m.yaml"), make(), 1e-15)
    with pytest.raises(ModelFileError, match=r"expected a name that ends in \.dpsim, \.dp"):
        convert_model("m.dp", "m.pth")
    for name in ("m.dp", f"{heads}:ice"):
        assert "config.descriptor.type" in run("show", name).output
        assert "RMSE" in run("test", name, str(lj_data), "--frames", "1").output
    assert json.loads(run("show", str(heads), "--json").output)["heads"]["ice"]["descriptor"] == "dpa1"


def test_protocols_run_them(heads: Path, atoms: Atoms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dpsim.protocols.registry import run_file

    atoms.write(tmp_path / "atoms.xyz")
    protocol = {
        "name": "short",
        "model": "heads.pt:ice",
        "structure": {"file": "atoms.xyz"},
        "stages": [{"type": "nve", "timestep": "0.1 fs", "duration": "0.3 fs", "initial_temperature": "1 K"}],
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(protocol))
    monkeypatch.chdir(tmp_path)
    outcome = run_file("p.yaml", tmp_path / "out")
    assert not outcome.stopped
    facts = (tmp_path / "out" / "results.json").read_text()
    assert "heads.pt" in facts and '"ice"' in facts


@pytest.mark.parametrize("kind", ["se_e2_a", "se_e2_r"])
def test_fine_tuning(kind: str, tmp_path: Path, train_settings: dict[str, Any]) -> None:
    first = make(kind)
    write_deepmd(tmp_path / "m.dp", first)
    imported = load_model(tmp_path / "m.dp")
    settings = {
        **train_settings,
        "steps": 1,
        "init_from": str(tmp_path / "m.dp"),
        "schedule": {"start_lr": 1e-12, "stop_lr": 1e-12},
    }
    for conventions in (False, True):  # of the model that is trained
        settings["model"] = imported.config.model_dump(mode="json") | {"deepmd_conventions": conventions}
        result = train(validate(settings, TrainConfig), tmp_path / str(conventions))
        same_numbers(load_model(result.model), first, 1e-9)
    for member in imported.descriptor.members:
        member.davg.fill_(0.1)
    write_deepmd(tmp_path / "m.dp", imported)
    settings["model"]["deepmd_conventions"] = False
    with pytest.raises(ConfigError, match="davg != 0.*Write `deepmd_conventions: true`"):
        train(validate(settings, TrainConfig), tmp_path / "third")


def test_errors_are_of_dpsim() -> None:
    assert issubclass(ModelFileError, DpsimError) and "dpsim.models.deepmd.files" in sys.modules
