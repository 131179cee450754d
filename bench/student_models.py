"""What student.py measures: the same weights in DeePMD-kit and as students of dpsim, and boxes of water."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from models import SE_E2_A, Model, peer_input

CELLS = {192: 1, 1536: 2, 5184: 3, 12288: 4, 41472: 6, 98304: 8, 331776: 12, 786432: 16, 1119744: 18}  # per edge
STUDENTS = {"dpsim, full rank": "full", "dpsim, rank by tolerance": "auto", "dpsim, 16 modes": 16}
PEERS = {
    "DeePMD-kit TensorFlow, C library": ("deepmd-library", "compressed.pb"),
    "DeePMD-kit TensorFlow, Python": ("deepmd-python", "compressed.pb"),
    "DeePMD-kit PyTorch, C library": ("deepmd-library", "compressed.pth"),
    "DeePMD-kit PyTorch, Python": ("deepmd-python", "compressed.pth"),
}


def make_peers(args: argparse.Namespace) -> None:
    """model.pth, model.dp, compressed.pth and compressed.pb in --work, those that are not there yet."""

    def dp(*command: str, makes: str) -> None:
        if not (args.work / makes).exists():
            print(f"dp {' '.join(command)}", flush=True)
            with (args.work / f"{makes}.log").open("w") as log:
                subprocess.run(
                    [str(Path(args.peer_python).parent / "dp"), *command],
                    check=True, cwd=args.work, stdout=log, stderr=log, env=peer_environment(),
                )  # fmt: skip

    spec = peer_input(Model(SE_E2_A), args.data)
    spec["training"] |= {"numb_steps": args.train_steps, "save_freq": args.train_steps}
    spec["learning_rate"] |= {"stop_lr": 1e-5, "decay_steps": max(1, args.train_steps // 20)}
    (args.work / "input.json").write_text(json.dumps(spec, indent=1))
    dp("--pt", "train", "input.json", makes="checkpoint")
    dp("--pt", "freeze", "-o", "model.pth", makes="model.pth")
    dp("convert-backend", "model.pth", "model.dp", makes="model.dp")
    dp("--pt", "compress", "-i", "model.pth", "-o", "compressed.pth", makes="compressed.pth")
    if not (args.work / "bare.dp").exists():
        for_tensorflow(args.work / "model.dp", args.work / "bare.dp")
    dp("convert-backend", "bare.dp", "model.pb", makes="model.pb")
    dp("--tf", "compress", "-i", "model.pb", "-o", "compressed.pb", "-t", "input.json", makes="compressed.pb")


def for_tensorflow(source: Path, target: Path) -> None:
    """A copy of a portable model that DeePMD-kit's `compress` can bring through TensorFlow unchanged.

    Without the shortest distance it reads input.json and the data again, instead of stopping at the training script of
    converted models, which lacks a learning rate. The elements' energies become the fitting's: it drops the model's.
    """
    import h5py

    shutil.copyfile(source, target)
    with h5py.File(target, "r+") as file:
        tree = json.loads(file.attrs["json"])
        del tree["@variables"]["min_nbor_dist"]
        of_model = file[tree["model"]["@variables"]["out_bias"]]
        of_fitting = file[tree["model"]["fitting"]["@variables"]["bias_atom_e"]]
        of_fitting[...] += of_model[0]
        of_model[...] = 0
        file.attrs["json"] = json.dumps(tree)


def peer_environment() -> dict[str, str]:
    return {
        **os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": "", "NUM_WORKERS": "0", "OMP_NUM_THREADS": "1",
        "DP_INTRA_OP_PARALLELISM_THREADS": "1", "DP_INTER_OP_PARALLELISM_THREADS": "1",
    }  # fmt: skip


def make_students(args: argparse.Namespace) -> dict[str, Any]:
    """The students of the model, made anew by this version of dpsim: what their reports say."""
    from dpsim.distill.compress import compress_file

    found = {}
    for name, rank in STUDENTS.items():
        report = compress_file(
            args.work / "model.dp", args.work / f"student-{rank}.dpsim", [args.data],
            max_frames=2 if args.quick else 10, rank=rank,
        )  # fmt: skip
        found[name] = report.to_json()
    return found


def native_description() -> str:
    """The native library in use, or why there is none."""
    from dpsim.kernels import native

    found = native.capabilities()
    return found.problem or f"libdpsim {found.version}, {found.isa}, OpenMP {'on' if found.openmp else 'off'}"


def structure(data: Path, frame: int, cells: int, path: Path) -> Path:
    """A file of types, positions and cell: one frame of the data, repeated along each edge."""
    positions = np.load(data / "set.000/coord.npy")[frame].reshape(-1, 3).astype(float)
    cell = np.load(data / "set.000/box.npy")[frame].reshape(3, 3).astype(float)
    positions -= np.floor(positions @ np.linalg.inv(cell)) @ cell
    shifts = np.stack(np.meshgrid(*3 * [np.arange(cells)], indexing="ij"), -1).reshape(-1, 3) @ cell
    types = np.loadtxt(data / "type.raw", dtype=np.int64)
    every = (shifts[:, None] + positions[None]).reshape(-1, 3)
    np.savez(path, types=np.tile(types, len(shifts)), positions=every, cell=cells * cell)
    return path


def reference(model: Path, files: list[Path]) -> list[tuple[float, np.ndarray]]:
    """Energy and forces of the uncompressed model in float64 on structures: dpsim's PyTorch path."""
    import torch

    from dpsim.data.frame import Batch, Frame
    from dpsim.models.deepmd.files import read_deepmd
    from dpsim.models.energy_model import EnergyModel

    imported = read_deepmd(model)
    teacher = EnergyModel(imported.config.model_copy(update={"precision": "float64"}))
    teacher.load_state_dict(imported.state_dict())
    found = []
    for file in files:
        s = np.load(file)
        frame = Frame(s["positions"], s["types"], tuple(teacher.type_map), s["cell"], np.ones(3, dtype=bool))
        prediction = teacher.eval()(Batch.from_frames([frame], teacher.rcut))
        assert prediction.forces is not None
        found.append((float(prediction.energy.detach().to(torch.float64)), prediction.forces.detach().numpy()))
    return found
