"""Labels from outside: frames are handed out as inputs, dpsim stops, and takes up what it finds when it runs again.

    frames/<id>/frame.extxyz    the frame; beside it the template's files and the input in the format asked for
    frames/<id>/...             what a single-point calculation left there, found by its name
    frames/<id>/FAILED          instead, of any content: this one is given up
    frames/all.extxyz           all frames, for those who label with a script ...
    frames/results*.extxyz      ... and what it found, the frames told apart by `id`

A result is taken if it is of the frame: the same elements, cell and positions to 1e-3 A, in any order of atoms. One
that is not finished, or can't be read yet, is waited for; with one that did not converge, or of something else, the
frame is set aside.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.geometry import find_mic
from ase.io import read, write
from ase.io.formats import UnknownFileTypeError, filetype

from dpsim.data.extxyz import ExtxyzSystem
from dpsim.data.frame import Frame
from dpsim.distill.found import atoms_of, frame_of
from dpsim.distill.label import Labelled, Waiting, checked, checked_results, reason_of
from dpsim.errors import ConfigError, DataError
from dpsim.files import atomic_write

if TYPE_CHECKING:
    from dpsim.distill.config import OfflineFormat

FRAME, GIVEN_UP = "frame.extxyz", "FAILED"
_TOLERANCE = 1e-3  # A; programs print positions with five decimals or more
_INPUTS = {"vasp": "POSCAR", "espresso-in": "espresso.pwi", "aims": "geometry.in"}
_ID = re.compile(r'\bid="?([^"\s]+)')


@dataclass(frozen=True)
class Marks:
    """What the output of a program says when it has finished, and about its self-consistency."""

    finished: str
    converged: str = ""
    unconverged: str = ""


_MARKS = {
    "vasp-out": Marks("General timing and accounting", converged="aborting loop because EDIFF is reached"),
    "espresso-out": Marks("JOB DONE", unconverged="convergence NOT achieved"),
    "aims-output": Marks("Have a nice day", unconverged="Self-consistency cycle not converged"),
    "orca-output": Marks("ORCA TERMINATED NORMALLY", unconverged="SCF NOT CONVERGED"),
}


class _NotYet(Exception):
    """Why there is no result so far."""


class _Refused(Exception):
    """Why a result is no label of the frame."""


def exchange(config: OfflineFormat, folder: Path, frames: Sequence[Frame]) -> list[Labelled]:
    """Hand out the frames, named by their `source`, and give back what is known of all of them.

    Raises: Waiting while there are results of fewer than `enough` of them; ConfigError for a format or template that
        frames cannot be written with.
    """
    folder = folder / "frames"
    _hand_out(config, folder, frames)
    found: dict[str, Labelled] = {}
    missing: dict[str, str] = {}
    collected, problem = _collected(folder)
    for frame in frames:
        try:
            found[frame.source] = _of(frame, collected.get(frame.source) or _result(config, folder / frame.source))
        except _NotYet as why:
            missing[frame.source] = str(why)
        except _Refused as why:
            found[frame.source] = Labelled(frame, str(why))
    if missing and len(found) < config.enough * len(frames):
        raise Waiting(_message(config, folder, frames, missing, problem))
    late = "no result when those of the others were taken up"
    return [found.get(f.source) or Labelled(f, late) for f in frames]


def _message(
    config: OfflineFormat, folder: Path, frames: Sequence[Frame], missing: dict[str, str], problem: str
) -> str:
    odd = [f"{name}: {why}" for name, why in missing.items() if why]
    lines = [
        f"Waiting for labels of {len(missing)} of {len(frames)} frames. Each has a folder in {folder}.",
        f"Leave there what a single-point calculation writes ({', '.join(config.results)}), or a file {GIVEN_UP} to",
        f"give it up; or one file {folder / 'results.extxyz'} with the frames of all.extxyz, labelled.",
        "Then run the same command again.",
    ]
    lines += [f"Not readable yet: {text}" for text in [problem, *odd][:6] if text]
    return "\n".join(lines)


# Handing out


def _hand_out(config: OfflineFormat, folder: Path, frames: Sequence[Frame]) -> None:
    """A folder for each frame that has none yet, whole as soon as frame.extxyz is in it; then all.extxyz."""
    everything = folder / "all.extxyz"
    if everything.exists():
        return
    for frame in frames:
        own = folder / frame.source
        if (own / FRAME).exists():
            continue
        own.mkdir(parents=True, exist_ok=True)
        if config.template is not None:
            shutil.copytree(config.template, own, dirs_exist_ok=True)
        if config.format != "extxyz":
            _write_input(config, own, frame)
        atomic_write(own / FRAME, _extxyz([frame]))
    atomic_write(everything, _extxyz(frames))


def _write_input(config: OfflineFormat, folder: Path, frame: Frame) -> None:
    path = folder / _INPUTS.get(config.format, f"input.{config.format}")
    try:
        write(path, atoms_of(frame), format=config.format, **config.options)
    except Exception as error:  # ASE's writers raise whatever they like
        path.unlink(missing_ok=True)
        raise ConfigError(
            f"`teacher.offline.format` {config.format}: ASE cannot write {frame.source} ({reason_of(error)}); expected "
            "a format and `options` that suit the frames. Correct them."
        ) from error


def _extxyz(frames: Sequence[Frame]) -> bytes:
    text = io.StringIO()
    for frame in frames:
        atoms = atoms_of(frame)
        atoms.info["id"] = frame.source
        write(text, atoms, format="extxyz")
    return text.getvalue().encode()


# Taking up


def _collected(folder: Path) -> tuple[dict[str, Labelled], str]:
    """Labelled frames of files results*.extxyz by id, as they are there, and what is wrong with one of the files."""
    found: dict[str, Labelled] = {}
    for path in sorted(folder.glob("results*.extxyz")):
        try:
            system, by = ExtxyzSystem(path), _by(path, "extxyz")
            for k in range(len(system)):
                if (match := _ID.search(system.text(k).split("\n", 2)[1])) is not None:
                    found[match[1]] = _own_labels(system.frame(k), by)
        except DataError as error:
            return found, str(error)
    return found, ""


def _result(config: OfflineFormat, folder: Path) -> Labelled:
    """The first finished result in a frame's folder. Raises _NotYet where there is none."""
    if (folder / GIVEN_UP).exists():
        why = " ".join((folder / GIVEN_UP).read_text(errors="replace").split())[:200]
        raise _Refused(f"given up: {why}".removesuffix(": "))
    why = ""
    for path in _candidates(config, folder):
        try:
            return _read(path)
        except _NotYet as error:
            why = why or str(error)
    raise _NotYet(why)


def _candidates(config: OfflineFormat, folder: Path) -> Iterator[Path]:
    seen: set[Path] = set()
    for pattern in config.results:
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and path not in seen:
                seen.add(path)
                yield path


def _read(path: Path) -> Labelled:
    """The last configuration of an output, with its labels. Raises _NotYet for one that is not finished."""
    try:
        if path.suffix.lower() in (".xyz", ".extxyz"):
            return _read_extxyz(path)
        kind = filetype(path)
        atoms = None if kind in _MARKS else _last(path, kind)
    except _NotYet:
        raise
    except UnknownFileTypeError:
        raise _NotYet("") from None
    except Exception as error:  # ASE's readers raise whatever they like; it may be half written
        raise _NotYet(f"{path.name}: {reason_of(error)}") from None
    if atoms is None:
        atoms = _marked(path, kind, _MARKS[kind])
    theirs = frame_of(atoms, sorted(set(atoms.get_chemical_symbols())), path.name)
    return checked_results(theirs, {} if atoms.calc is None else dict(atoms.calc.results), _by(path, kind))


def _read_extxyz(path: Path) -> Labelled:
    system = ExtxyzSystem(path)
    theirs = system.frame(len(system) - 1)
    if theirs.energy is None and theirs.forces is None:
        raise _NotYet("")  # what was handed out
    return _own_labels(theirs, _by(path, "extxyz"))


def _marked(path: Path, kind: str, marks: Marks) -> Atoms:
    """The last configuration of a program's output that says it has finished, and converged."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if marks.finished not in text:
        raise _NotYet(f"{path.name} is not finished: it does not say {marks.finished!r}")
    if marks.converged not in text or (marks.unconverged and marks.unconverged in text):
        raise _Refused(f"the self-consistency did not converge ({path.name})")
    try:
        return _last(path, kind)
    except Exception as error:
        raise _Refused(f"{path.name} cannot be read: {reason_of(error)}") from error


def _last(path: Path, kind: str) -> Atoms:
    atoms = read(path, index=-1, format=kind)
    assert isinstance(atoms, Atoms)
    return atoms


def _own_labels(frame: Frame, by: str) -> Labelled:
    return checked(frame, frame.energy, frame.forces, frame.virial, by)


def _by(path: Path, kind: str) -> str:
    with open(path, "rb") as file:
        return f"{path.name} ({kind}) sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"


def _of(frame: Frame, result: Labelled) -> Labelled:
    """The frame with the labels of a result. Raises _Refused for one of another structure, or without whole labels."""
    theirs = result.frame
    if result.failure:
        raise _Refused(result.failure)
    if sorted(theirs.symbols) != sorted(frame.symbols):
        raise _Refused(f"the result is of {_formula(theirs)}; expected {_formula(frame)}")
    if np.abs((theirs.cell - frame.cell)[frame.pbc]).max(initial=0.0) > _TOLERANCE:
        raise _Refused(f"the result has the cell {theirs.cell.tolist()}; expected {frame.cell.tolist()}")
    order = _order(frame, theirs)
    assert theirs.forces is not None  # `checked` has seen to it
    virial = theirs.virial if frame.pbc.any() else None
    return Labelled(replace(frame, energy=theirs.energy, forces=theirs.forces[order], virial=virial), by=result.by)


def _order(frame: Frame, theirs: Frame) -> np.ndarray:
    """Which of their atoms is which of the frame's, (n_atoms,). Raises _Refused where atoms have moved."""
    ours, symbols = np.array(frame.symbols), np.array(theirs.symbols)
    order, worst = np.arange(frame.n_atoms), 0.0
    for i, position in enumerate(frame.positions):
        same = np.flatnonzero(symbols == ours[i])
        distances = find_mic(theirs.positions[same] - position, frame.cell, frame.pbc)[1]
        nearest = int(np.argmin(distances))
        order[i], worst = same[nearest], max(worst, float(distances[nearest]))
    if worst > _TOLERANCE or len(set(order.tolist())) < frame.n_atoms:
        raise _Refused(f"an atom of the result is {worst:.3g} A off; expected a single point, in which none moves")
    return order


def _formula(frame: Frame) -> str:
    return str(Atoms(frame.symbols).get_chemical_formula())
