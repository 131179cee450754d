"""Models in files of DeePMD-kit, everywhere a model is asked for: calculators, commands, protocols, training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from typer.testing import CliRunner

from deepmd_for_tests import batch, checkpoint_of_heads, make, same_numbers
from dpsim import DPCalculator, cli
from dpsim.config import validate
from dpsim.errors import ConfigError, ElementError, ModelFileError
from dpsim.models.checkpoint import convert_model, load_model, save_model
from dpsim.models.deepmd.files import write_deepmd
from dpsim.train.config import TrainConfig
from dpsim.train.trainer import train


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    return checkpoint_of_heads(tmp_path)


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
