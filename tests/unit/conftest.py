"""Shared by the unit tests: a small exact data set, and a model and a run small enough for milliseconds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import slurm_for_tests


def lennard_jones(positions: np.ndarray, cell: np.ndarray, epsilon: float = 0.05, sigma: float = 1.6) -> Any:
    """Energy, forces, virial of a periodic Lennard-Jones cluster, nearest images only: an exact little world."""
    d = positions[None] - positions[:, None]  # d[i, j] = r_j - r_i
    d -= np.round(d @ np.linalg.inv(cell)) @ cell
    r2 = (d**2).sum(-1)
    np.fill_diagonal(r2, np.inf)
    x = sigma**6 / r2**3
    energy = 0.5 * (4 * epsilon * (x * x - x)).sum()
    dedr_over_r = 4 * epsilon * (-12 * x * x + 6 * x) / r2  # per pair
    forces = (dedr_over_r[..., None] * d).sum(1)
    virial = -0.5 * np.einsum("ij,ija,ijb->ab", dedr_over_r, d, d)
    return energy, forces, virial


def write_system(folder: Path, n_frames: int, seed: int, virial: bool = True) -> Path:
    """A system in DeePMD's layout: 6 atoms of He and Ne in a box, jittered off a grid."""
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * 6.0
    grid = np.array([[x, y, z] for x in (1.0, 4.0) for y in (1.0, 4.0) for z in (1.0, 4.0)])[:6]
    coords, energies, forces, virials = [], [], [], []
    for _ in range(n_frames):
        positions = grid + rng.uniform(-0.4, 0.4, grid.shape)
        e, f, w = lennard_jones(positions, cell)
        coords.append(positions.ravel())
        energies.append(e - 5.0 * 6)
        forces.append(f.ravel())
        virials.append(w.ravel())
    (folder / "set.000").mkdir(parents=True)
    (folder / "type.raw").write_text("0\n0\n0\n1\n1\n1\n")
    (folder / "type_map.raw").write_text("He\nNe\n")
    arrays = {"coord": coords, "energy": energies, "force": forces, "box": [cell.ravel()] * n_frames}
    if virial:
        arrays["virial"] = virials
    for name, value in arrays.items():
        np.save(folder / "set.000" / f"{name}.npy", np.array(value, dtype=np.float64))
    return folder


@pytest.fixture(scope="session")
def make_system() -> Callable[..., Path]:
    """`write_system`, for tests that need other data than `lj_data`."""
    return write_system


@pytest.fixture(scope="session")
def lj_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/a, train/b (12 and 8 frames) and validation/a (5 frames) of He and Ne."""
    root = tmp_path_factory.mktemp("lj")
    write_system(root / "train" / "a", 12, seed=1)
    write_system(root / "train" / "b", 8, seed=2)
    write_system(root / "validation" / "a", 5, seed=3)
    return root


@pytest.fixture
def train_settings(lj_data: Path) -> dict[str, Any]:
    """Plain data of a tiny TrainConfig: some milliseconds a step."""
    return {
        "model": {
            "type_map": ["He", "Ne"],
            "descriptor": {"type": "se_e2_a", "rcut": 4.0, "rcut_smth": 0.5, "neuron": [4, 8], "axis_neuron": 2},
            "fitting": {"neuron": [8, 8]},
        },
        "data": {"train": [str(lj_data / "train")], "validation": [str(lj_data / "validation")], "batch_size": 2},
        "steps": 60,
        "log_every": 7,
        "validation": {"every": 20, "frames": 4},
        "checkpoint": {"every": 11},
        "threads": 1,
        "tensorboard": False,
        "seed": 5,
    }


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Slurm of one machine; gives its folder."""
    folder = tmp_path / "slurm-of-tests"
    folder.mkdir()
    slurm_for_tests.install(folder)
    monkeypatch.setenv("SLURM_FAKE", str(folder))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    yield folder
    for job in slurm_for_tests.jobs(folder):
        if slurm_for_tests.alive(job):
            os.killpg(job, signal.SIGKILL)
