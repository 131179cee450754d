"""What the units of an acceptance test do (dpsim/distill/accept_work.py hands them out): simulate, compare, evaluate.

Every function here gets plain data and a folder and returns plain data, so that any process can do it, and do it again
after a kill.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dpsim.distill.config import PythonTeacher
from dpsim.distill.label import teacher_calculator
from dpsim.engines.base import RunControl, StageResult, StageSettings
from dpsim.engines.output import TRAJECTORY
from dpsim.engines.registry import make_engine
from dpsim.errors import ConfigError
from dpsim.protocols.schema import Structure
from dpsim.protocols.structures import load_structure
from dpsim.trajectory import count_frames, read_frame

FRAMES = "frames.npz"
_RELAX = StageSettings(kind="minimise", n_steps=500, force_eV_per_A=1.0)  # no step where forces are below that


def ase_calculator(source: Any, precision: Any, device: str) -> Any:
    """A contender's ASE calculator, from plain data."""
    if isinstance(source, str):
        from dpsim.calculators.ase_calculator import DPCalculator

        return DPCalculator(source, precision=precision, device=device)
    return teacher_calculator(PythonTeacher.model_validate(source), device)


def simulate(
    folder: Path,
    *,
    name: str,
    source: Any,
    identity: str,
    engine: str,
    precision: str | None,
    device: str,
    seed: int,
    structure: dict[str, Any],
    stage: dict[str, Any],
    nve: dict[str, Any] | None,
) -> dict[str, Any]:
    """Relax forces above 1 eV/A, then dynamics at a condition, then at constant energy if asked for.

    Returns: {"failure": why it ended early, or "", "wall_seconds": of the dynamics at a condition, "n_steps": of it}.
    """
    from dpsim.engines.ase_engine import state_from_atoms

    runner = make_engine(engine)  # type: ignore[arg-type]  # checked as part of the configuration
    state = state_from_atoms(load_structure(Structure.model_validate(structure), seed))
    calculator = ase_calculator(source, precision, device)
    settings = StageSettings(**stage)
    parts = {"relax": _RELAX} if "minimise" in runner.kinds else {}
    parts |= {"md": settings, **({f"nve_after_{settings.n_steps}": StageSettings(**nve)} if nve else {})}
    control = RunControl(seed, name, identity={"engine": engine, "model": identity, "precision": precision})
    done: dict[str, StageResult] = {}
    for part, of_part in parts.items():
        path = folder / part
        path.mkdir(parents=True, exist_ok=True)
        try:
            result = runner.run_stage(state, calculator, of_part, path, replace(control, name=f"{name} {part}"))
        except Exception as error:  # of the dynamics, or of a calculator that is not ours
            if _is_trouble(error) or not _has_frames(path):
                raise
            return {"failure": f"{part.partition('_')[0]}: {error or type(error).__name__}"}
        done[part], state = result, result.state
    return {"failure": "", "wall_seconds": done["md"].wall_seconds, "n_steps": done["md"].step}


def _is_trouble(error: Exception) -> bool:
    """Whether it says nothing of the model: a mistake in the settings, memory or disk that is full."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or isinstance(error, ConfigError | MemoryError)


def _has_frames(folder: Path) -> bool:
    return (folder / TRAJECTORY).is_file() and count_frames(folder / TRAJECTORY) > 0


def compare_frames(
    folder: Path,
    *,
    trajectory: str,
    structure: dict[str, Any],
    seed: int,
    indices: list[int],
    teacher: Any,
    student: Any,
    precision: str | None,
    device: str,
) -> dict[str, Any]:
    """What both say of frames of a trajectory; forces are left in frames.npz for figures.

    Returns: per frame `n_atoms`, `energy` (student minus teacher, eV/atom), `force_mse` ((eV/A)^2), `force_square` (of
    the teacher), and `virial_mse` ((eV/atom)^2) where both have a stress.
    """
    atoms = load_structure(Structure.model_validate(structure), seed)
    frames = []
    for index in indices:
        seen = read_frame(trajectory, index)
        frame = atoms.copy()
        frame.set_cell(seen.cell if atoms.cell.rank == 3 else atoms.cell)
        frame.positions = seen.positions
        frames.append(frame)
    labels = [evaluate(frames, ase_calculator(source, precision, device)) for source in (teacher, student)]
    good = [(a["forces"], b["forces"]) for a, b in zip(*labels, strict=True) if a and b]
    forces = [np.concatenate([pair[k] for pair in good] or [np.zeros((0, 3))]).astype(np.float32) for k in (0, 1)]
    np.savez(folder / FRAMES, teacher=forces[0], student=forces[1])
    return differences(*labels)


def compare_data(
    folder: Path, *, path: str, n_frames: int, source: Any, precision: str | None, device: str
) -> dict[str, Any]:
    """What a contender says of labelled frames, as `compare_frames` with the labels in the teacher's place."""
    from ase import Atoms

    from dpsim.data.readers import open_dataset
    from dpsim.train.evaluate import spread_frames

    systems = open_dataset(path)
    labels, frames = [], []
    for s, k in spread_frames(systems, n_frames):
        frame = systems[s].frame(k)
        frames.append(Atoms(frame.symbols, positions=frame.positions, cell=frame.cell, pbc=frame.pbc))
        labels.append({"energy": frame.energy, "forces": frame.forces, "virial": frame.virial})
    return differences(labels, evaluate(frames, ase_calculator(source, precision, device)))


def evaluate(frames: Sequence[Any], calculator: Any) -> list[dict[str, Any]]:
    """Energy (eV), forces (eV/A) and virial (eV, None where there is no stress) of each; {} of those that fail."""
    has_stress = "stress" in getattr(calculator, "implemented_properties", ())
    labels: list[dict[str, Any]] = []
    for frame in frames:
        frame.calc = calculator
        try:
            energy, forces = float(frame.get_potential_energy()), np.array(frame.get_forces())
            stress = frame.get_stress(voigt=False) if has_stress and frame.cell.rank == 3 else None
        except Exception as error:  # of a calculator that need not be ours
            if _is_trouble(error):
                raise
            energy, forces, stress = math.nan, np.zeros(0), None
        frame.calc = None
        virial = None if stress is None else -frame.get_volume() * stress
        finite = math.isfinite(energy) and np.isfinite(forces).all() and (virial is None or np.isfinite(virial).all())
        labels.append({"energy": energy, "forces": forces, "virial": virial} if finite else {})
    return labels


def differences(reference: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Per frame, lists; None where the reference lacks a quantity or one of both failed."""
    out: dict[str, list[Any]] = {k: [] for k in ("n_atoms", "energy", "force_mse", "force_square", "virial_mse")}
    for a, b in zip(reference, other, strict=True):
        energy, forces, virial = (None if not b else a.get(k) for k in ("energy", "forces", "virial"))
        n = len(b["forces"]) if b else 0
        out["n_atoms"].append(n)
        out["energy"].append(None if energy is None else (b["energy"] - float(energy)) / n)
        out["force_mse"].append(None if forces is None else float(np.mean((b["forces"] - forces) ** 2)))
        out["force_square"].append(None if forces is None else float(np.mean(np.square(forces))))
        missing = virial is None or b["virial"] is None
        out["virial_mse"].append(None if missing else float(np.mean((b["virial"] - virial) ** 2)) / n**2)
    return out
