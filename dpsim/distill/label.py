"""Label: what a teacher says of frames. A model, any ASE calculator, or somebody outside (dpsim/distill/offline.py).

    energy (eV)     the one whose derivative the forces are: ASE's free_energy where there is one
    forces (eV/A)
    virial (eV)     -V stress, for a cell of three vectors and a teacher that gives a stress

A frame without a whole label (an exception, NaN, a self-consistency that did not converge, arrays of a wrong shape) is
set aside with its reason. Labels say what made them.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ase.calculators.calculator import all_changes
from ase.stress import voigt_6_to_full_3x3_stress

from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.calculators.base import calculator_of, evaluate_frames
from dpsim.data.frame import Frame
from dpsim.distill.config import OfflineTeacher, PythonTeacher
from dpsim.distill.found import atoms_of
from dpsim.errors import ConfigError, DpsimError, did_you_mean
from dpsim.models.checkpoint import load_model

_LONGEST = 300  # characters of a reason
_DISK = (errno.ENOSPC, errno.EDQUOT)


class Waiting(Exception):
    """Labels have to come from outside first: the message says which, and where they are to be put."""


@dataclass(frozen=True)
class Labelled:
    """A frame with energy, forces and, where known, virial; or as it was, with the reason of the `failure`.

    by: what made the labels.
    """

    frame: Frame
    failure: str = ""
    by: str = ""


class Labeller(Protocol):
    """A teacher that can be asked now."""

    def label(self, frames: Sequence[Frame]) -> list[Labelled]:
        """Each frame with its labels, or with the reason why it has none."""
        ...


def make_labeller(teacher: str | PythonTeacher | OfflineTeacher, device: str = "cpu") -> Labeller:
    """The labeller for a teacher of distill.yaml that is not offline. Raises DpsimError if there is no such teacher."""
    if isinstance(teacher, str):
        return ModelLabeller(teacher, device)
    return AseLabeller(lambda: teacher_calculator(teacher, device), described(teacher))


def teacher_calculator(teacher: str | PythonTeacher | OfflineTeacher, device: str = "cpu") -> Any:
    """The teacher as an ASE calculator. Raises DpsimError, naming what is missing."""
    if isinstance(teacher, str):
        return DPCalculator(teacher, device=device)
    if isinstance(teacher, OfflineTeacher):
        raise ConfigError("`teacher` is offline; expected one that can be asked now: a model, or an ASE calculator.")
    factory = _imported(teacher)
    try:
        calculator = factory(**teacher.kwargs)
    except Exception as error:  # of somebody else's code
        raise ConfigError(
            f"`teacher.python` {teacher.python} with {teacher.kwargs} fails ({reason_of(error)}); expected an ASE "
            "calculator. Try the call in Python."
        ) from error
    if not hasattr(calculator, "get_forces"):
        raise ConfigError(
            f"`teacher.python` {teacher.python} gives {type(calculator).__name__}; expected an ASE calculator. Name a "
            "calculator's class, or a function that returns a calculator."
        )
    return calculator


def _imported(teacher: PythonTeacher) -> Callable[..., Any]:
    """What "package.module:factory" names; modules may lie in `teacher.folder`."""
    module_name, _, name = teacher.python.partition(":")
    if (folder := str(teacher.folder)) not in sys.path:
        sys.path.append(folder)
    try:
        module = import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"`teacher.python` {teacher.python}: the module cannot be imported ({reason_of(error)}); expected one in "
            f"{folder} or installed. Install it, or correct the name."
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        hint = did_you_mean(name, vars(module))
        raise ConfigError(f"`teacher.python`: {module_name} has no function or class `{name}`; expected one.{hint}")
    return found


def described(teacher: str | PythonTeacher | OfflineTeacher) -> str:
    """What labels and models say of a teacher: a file's name; what makes a calculator, of which version."""
    if isinstance(teacher, str):
        return Path(teacher).name
    if isinstance(teacher, OfflineTeacher):
        return "labels from outside"
    _imported(teacher)
    version = getattr(sys.modules[teacher.python.partition(".")[0].partition(":")[0]], "__version__", "")
    return f"{teacher.python}({json.dumps(teacher.kwargs) if teacher.kwargs else ''}) {version}".strip()


class ModelLabeller:
    """A model of dpsim, or a head of one."""

    def __init__(self, model: str, device: str = "cpu"):
        loaded = load_model(model, device=device)
        self._calculator = calculator_of(loaded, device)
        self._by = f"{model} sha256:{str(loaded.metadata.get('sha256', ''))[:12]}"

    def label(self, frames: Sequence[Frame]) -> list[Labelled]:
        return [_guarded(frame, lambda f=frame: self._one(f)) for frame in frames]  # type: ignore[misc]

    def _one(self, frame: Frame) -> Labelled:
        (prediction,) = evaluate_frames(self._calculator, [frame])
        assert prediction.forces is not None and prediction.virial is not None
        virial = prediction.virial[0].cpu().numpy() if frame.pbc.any() else None
        return checked(frame, float(prediction.energy[0]), prediction.forces.cpu().numpy(), virial, self._by)


class AseLabeller:
    """An ASE calculator, made anew after a failure: nothing is known of what one left behind."""

    def __init__(self, make: Callable[[], Any], by: str = ""):
        self._make, self._by = make, by
        self._calculator = make()

    def label(self, frames: Sequence[Frame]) -> list[Labelled]:
        out = []
        for frame in frames:
            out.append(_guarded(frame, lambda f=frame: self._one(f)))  # type: ignore[misc]
            if out[-1].failure:
                self._calculator = self._make()
        return out

    def _one(self, frame: Frame) -> Labelled:
        calculator, atoms = self._calculator, atoms_of(frame)
        atoms.calc = calculator
        wanted = [p for p in ("energy", "forces", "stress") if p in calculator.implemented_properties]
        if atoms.cell.rank < 3 and "stress" in wanted:
            wanted.remove("stress")
        calculator.calculate(atoms, wanted, all_changes)  # all of them in one calculation
        if getattr(calculator, "converged", None) is False:
            return Labelled(frame, "the self-consistency did not converge")
        return checked_results(frame, dict(calculator.results), self._by)


def checked_results(frame: Frame, results: dict[str, Any], by: str) -> Labelled:
    """A frame with what an ASE calculator found, if that is a whole label."""
    energy = results.get("free_energy", results.get("energy"))
    stress, virial = results.get("stress"), None
    if stress is not None and abs(np.linalg.det(frame.cell)) > 0:
        full = np.asarray(stress, dtype=np.float64)
        full = voigt_6_to_full_3x3_stress(full) if full.shape == (6,) else full.reshape(3, 3)
        virial = -full * abs(np.linalg.det(frame.cell))
    return checked(frame, energy, results.get("forces"), virial, by)


def checked(frame: Frame, energy: Any, forces: Any, virial: Any, by: str) -> Labelled:
    """The frame with these labels, if they are whole: energy and forces there, shapes right, every number finite."""
    wanted = {"energy": (), "forces": (frame.n_atoms, 3), "virial": (3, 3)}
    labels: dict[str, Any] = {}
    for (name, shape), value in zip(wanted.items(), (energy, forces, virial), strict=True):
        if value is None:
            if name == "virial":
                continue
            return Labelled(frame, f"no {name}")
        array = np.array(value, dtype=np.float64)
        if name == "energy" and array.size == 1:
            array = array.reshape(())
        if array.shape != shape:
            return Labelled(frame, f"{name} of shape {array.shape}; expected {shape}")
        if not np.isfinite(array).all():
            return Labelled(frame, f"{name} not finite")
        labels[name] = array
    return Labelled(replace(frame, **labels | {"energy": float(labels["energy"])}), by=by)


def _guarded(frame: Frame, label: Callable[[], Labelled]) -> Labelled:
    """What `label` returns; the frame set aside if it raises. Full disks and full memories are nobody's frame."""
    try:
        return label()
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _DISK):
            raise
        return Labelled(frame, reason_of(error))


def reason_of(error: Exception) -> str:
    """An error in one line."""
    text = str(error) if isinstance(error, DpsimError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:_LONGEST]
