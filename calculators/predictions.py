"""`dpsim evaluate`: what a model says of every structure of an extxyz file, written beside what the file holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpsim.calculators.base import evaluate_frames
from dpsim.calculators.members import open_calculator
from dpsim.calculators.selection import Precision
from dpsim.data.extxyz import ExtxyzSystem, with_predictions
from dpsim.data.frame import Frame, Prediction
from dpsim.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dpsim.calculators.members import Models


def predict_file(
    model: Models,
    source: str | Path,
    output: str | Path,
    *,
    precision: Precision | None = None,
    device: str = "cpu",
) -> int:
    """Copy an extxyz file with predictions added to each frame: dpsim_energy, dpsim_forces, dpsim_virial, dpsim_stress.

    Everything else, REF_* labels above all, stays as it is, to the letter. A virial is given where any direction is
    periodic, a stress where all are. Several models, a committee, give their mean. Memory holds a few frames at a time;
    `output` appears when it is complete.

    Returns: the number of frames.
    Raises: ModelFileError, DataError, ElementError, SimulationError; ConfigError where output is the source itself.
    """
    source, output = Path(source), Path(output)
    if not source.is_file() or source.suffix.lower() not in (".xyz", ".extxyz"):
        raise DataError(f"`{source}` is no extxyz file; expected structures in one (.extxyz, .xyz). Convert them.")
    if output.resolve() == source.resolve():
        raise ConfigError(f"`output` is {output}, the file with the structures; expected another. Rename it.")
    calculator = open_calculator(model, precision, device)
    system = ExtxyzSystem(source)
    indices = range(len(system))
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            for k, prediction in zip(indices, evaluate_frames(calculator, map(system.frame, indices)), strict=True):
                file.write(_added(system.text(k), prediction, system.frame(k)))
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return len(system)


def _added(text: str, prediction: Prediction, frame: Frame) -> str:
    assert prediction.forces is not None
    assert prediction.virial is not None
    virial = prediction.virial[0].cpu().numpy().astype(np.float64) if frame.pbc.any() else None
    stress = -virial / abs(np.linalg.det(frame.cell)) if virial is not None and frame.pbc.all() else None
    forces = prediction.forces.cpu().numpy()
    return with_predictions(text, float(prediction.energy[0]), forces, virial, stress, frame.source)
