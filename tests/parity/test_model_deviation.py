"""`dpsim deviation` gives DeePMD-kit's numbers: its models, its data layout, absolute, relative, and against labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from test_deepmd import FIXTURES, needs_fixtures

from dpsim.protocols.deviation_file import deviation_file

REFERENCE = json.loads(Path(__file__).with_name("model_deviation.json").read_text())


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two frames: the triclinic one of the fixtures, the second time displaced; with random labels."""
    with np.load(FIXTURES / "se_e2_a" / "ref.npz") as z:
        coord, cell, types = z["tri.coord"], z["tri.cell"], z["tri.type"]
    random = np.random.default_rng(6)
    folder = tmp_path_factory.mktemp("system")
    frames = folder / "set.000"
    frames.mkdir()
    coords = [coord + random.normal(0, 0.1 * k, (8, 3)) for k in range(2)]
    np.save(frames / "coord.npy", np.stack(coords).reshape(2, -1))
    np.save(frames / "box.npy", np.stack([cell] * 2).reshape(2, 9))
    np.save(frames / "force.npy", random.normal(0, 1, (2, 8, 3)).reshape(2, -1))
    np.save(frames / "virial.npy", random.normal(0, 1, (2, 9)))
    np.save(frames / "energy.npy", np.array([-1.0, 2.0]))
    np.savetxt(folder / "type.raw", types, fmt="%d")
    (folder / "type_map.raw").write_text("O\nH\n")
    return folder


@needs_fixtures
@pytest.mark.parametrize("kind", ["absolute", "relative", "error", "relative error"])
def test_the_numbers_are_those_of_dp_model_devi(kind: str, system: Path, tmp_path: Path) -> None:
    models = [FIXTURES / name / "model.dp" for name in REFERENCE["models"]]
    relative, relative_v = (0.5, 0.2) if "relative" in kind else (None, None)
    found = deviation_file(
        models, system, tmp_path / "dev.csv", relative=relative, relative_v=relative_v, label="error" in kind
    )
    np.testing.assert_allclose(found.values, REFERENCE[kind], rtol=1e-10)
    with open(tmp_path / "dev.csv", newline="") as file:
        header, *rows = csv.reader(file)
    names = [name.replace("devi", "error") if "error" in kind else name for name in REFERENCE["columns"]]
    assert header[0] == "frame"
    assert all(h.startswith(f"{name}_") for h, name in zip(header[1:], names, strict=True))
    np.testing.assert_array_equal(np.array(rows, dtype=float)[:, 1:], found.values)
