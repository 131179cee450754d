"""What is left behind when training has to stop: which frames did it, on disk and in the message."""

from __future__ import annotations

import json
import math
from pathlib import Path

from torch import Tensor

from dpsim.data.frame import Batch
from dpsim.errors import TrainingError
from dpsim.files import atomic_write


def training_error(
    reason: str, step: int, batch: Batch, per_frame: Tensor, directory: Path, type_map: tuple[str, ...]
) -> TrainingError:
    """Write failure.json and failure.extxyz (worst frame first) and return the error to raise."""
    losses = [float(x) for x in per_frame]
    order = sorted(range(len(losses)), key=lambda k: (math.isfinite(losses[k]), -losses[k]))
    frames = [
        {"source": batch.sources[k], "loss": losses[k] if math.isfinite(losses[k]) else str(losses[k])} for k in order
    ]
    report = {"step": step, "reason": reason, "frames": frames}
    atomic_write(directory / "failure.json", (json.dumps(report, indent=1) + "\n").encode())
    text = "".join(_extxyz(batch, k, losses[k], type_map) for k in order)
    atomic_write(directory / "failure.extxyz", text.encode())
    named = "; ".join(f"{batch.sources[k]} (loss {losses[k]:.3g})" for k in order[:3])
    return TrainingError(
        f"{reason} at step {step}. The batch was: {named}{'; ...' if len(frames) > 3 else ''}. Its frames are in "
        f"{directory / 'failure.extxyz'}. Look at their labels; if they are right, lower `schedule.start_lr` or set "
        "`optimizer.gradient_clip`. The last good checkpoint is kept."
    )


def _extxyz(batch: Batch, k: int, loss: float, type_map: tuple[str, ...]) -> str:
    """Frame k of a batch with its labels, as extended XYZ."""
    atoms = (batch.frame_index == k).nonzero()[:, 0].tolist()
    cell = batch.cell[k].reshape(-1).tolist()
    periodic = "T T T" if any(cell) else "F F F"
    comment = f'Properties=species:S:1:pos:R:3:REF_forces:R:3 pbc="{periodic}" dpsim_loss={loss} '
    if any(cell):
        comment += f'Lattice="{" ".join(map(repr, cell))}" '
    if batch.energy is not None:
        comment += f"REF_energy={float(batch.energy[k])!r} "
    comment += f'source="{batch.sources[k]}"'
    lines = [str(len(atoms)), comment]
    for i in atoms:
        numbers = batch.positions[i].tolist() + (batch.forces[i].tolist() if batch.forces is not None else [0.0] * 3)
        lines.append(" ".join([type_map[int(batch.types[i])], *(f"{x:.8f}" for x in numbers)]))
    return "\n".join(lines) + "\n"
