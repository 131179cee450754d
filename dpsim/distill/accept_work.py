"""The work of an acceptance test, cut into units (dpsim/workers.py) that dpsim/distill/accept_units.py does:

    md/GROUP.ROLE.RUN       dynamics of teacher or student; of the student's first run, constant energy afterwards
    frames/GROUP.RUN        the student's frames, evaluated by both
    data/SET.ROLE           labelled frames, evaluated by one

What is done is not done again. Longer simulations continue shorter ones; other changes of what is simulated need a new
folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dpsim.config import StrictModel
from dpsim.distill.accept_config import AcceptConfig, Condition
from dpsim.distill.accept_units import compare_data, compare_frames, simulate
from dpsim.distill.config import PythonTeacher
from dpsim.engines.output import TRAJECTORY
from dpsim.errors import DpsimError
from dpsim.models.checkpoint import load_model, split_head
from dpsim.protocols.schema import Structure
from dpsim.trajectory import count_frames
from dpsim.workers import RESULT, Unit, WorkersConfig, run_units

Role = Literal["teacher", "student", "baseline"]  # the last is asked on labelled data only
ROLES: tuple[Role, Role] = ("teacher", "student")


@dataclass(frozen=True)
class Contender:
    """A model, or a factory of an ASE calculator, in its role. identity: of what it computes, not of its file."""

    role: Role
    source: str | PythonTeacher
    identity: str

    @classmethod
    def of(cls, role: Role, source: str | Path | PythonTeacher) -> Contender:
        """Raises ModelFileError for a model that cannot be read."""
        if isinstance(source, PythonTeacher):
            return cls(role, source, json.dumps(source.model_dump(mode="json", exclude={"folder"}), sort_keys=True))
        file, head = split_head(source)
        path = os.path.abspath(file) if os.path.isfile(file) else file
        name = path if head is None else f"{path}:{head}"
        return cls(role, name, fingerprint(name))

    @property
    def name(self) -> str:
        return self.source.python if isinstance(self.source, PythonTeacher) else Path(self.source).name

    def plain(self) -> Any:
        return self.source.model_dump(mode="json") if isinstance(self.source, PythonTeacher) else self.source


@dataclass(frozen=True)
class Group:
    """A structure at a condition: what is simulated several times with each model."""

    name: str
    label: str
    structure: Structure
    condition: Condition


def groups_of(structures: Sequence[Structure], conditions: Sequence[Condition]) -> list[Group]:
    """Every structure at every condition, with short names that differ."""
    groups = []
    for k, structure in enumerate(structures):
        what = f"water{structure.water_box}" if structure.file is None else structure.file.stem
        same = [s for s in structures if s.file is not None and s.file.stem == what]
        what = f"{what}{k + 1}" if len(same) > 1 else what
        groups += [Group(f"{what}_{c.name}", f"{what} at {_words(c)}", structure, c) for c in conditions]
    return groups


def _words(condition: Condition) -> str:
    """330 K, 1 bar"""
    pressure = "" if condition.pressure is None else f", {condition.pressure:g} bar"
    return f"{condition.temperature:g} K{pressure}"


def fingerprint(model: str) -> str:
    """SHA-256 of what a model computes: its configuration and weights, not what its file says of its origin."""
    loaded = load_model(model)
    digest = hashlib.sha256(loaded.config.model_dump_json().encode())
    for name, tensor in sorted(loaded.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Work:
    """The units of one test. say: is told of every unit that ends."""

    config: AcceptConfig
    contenders: tuple[Contender, ...]
    groups: Sequence[Group]
    directory: Path
    workers: WorkersConfig | None
    say: Callable[[str], None]

    def md(self, group: Group, role: Role, run: int) -> Path:
        """Where the dynamics of a run is."""
        return self.directory / "md" / f"{group.name}.{role}.{run}" / "md"

    def simulations(self) -> dict[str, dict[str, Any]]:
        """Run all dynamics: unit -> what `simulate` returns."""
        config, units = self.config, []
        for group in self.groups:
            for run in range(config.runs):
                for contender in self.contenders:
                    name = f"{group.name}.{contender.role}.{run}"
                    nve = config.nve_stage() if (contender.role, run) == ("student", 0) else None
                    stage = config.stage(group.condition)
                    arguments = {
                        "name": name,
                        "source": contender.plain(),
                        "identity": contender.identity,
                        "engine": config.engine,
                        "precision": config.precision,
                        "device": config.device,
                        "seed": config.seed,
                        "structure": _plain(group.structure),
                        "stage": asdict(stage),
                        "nve": None if nve is None else asdict(nve),
                    }
                    digest = _digest(group.structure)
                    units.append(self._unit("md", name, arguments, digest, total=stage.n_steps))
        return dict(self._run(simulate, units))

    def comparisons(self, simulations: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Evaluate both on the student's frames of the runs that ended well: unit -> `compare_frames`."""
        config, units = self.config, []
        teacher, student = self.contenders
        for group in self.groups:
            good = [r for r in range(config.runs) if not simulations[f"{group.name}.student.{r}"]["failure"]]
            for run in good:
                trajectory = self.md(group, "student", run) / TRAJECTORY
                first, last = config.skipped_frames, count_frames(trajectory) - 1
                count = min(-(-config.frames // len(good)), last - first + 1)
                arguments = {
                    "trajectory": str(trajectory),
                    "structure": _plain(group.structure),
                    "seed": config.seed,
                    "indices": np.linspace(first, last, count).round().astype(int).tolist(),
                    "teacher": teacher.plain(),
                    "student": student.plain(),
                    "precision": config.precision,
                    "device": config.device,
                }
                identities = [c.identity for c in self.contenders]
                units.append(self._unit("frames", f"{group.name}.{run}", arguments, identities, total=last))
        return dict(self._run(compare_frames, units))

    def labelled(self) -> dict[str, dict[str, Any]]:
        """Evaluate each on the labelled sets: unit -> `compare_data`."""
        units = []
        baseline = [] if self.config.baseline is None else [Contender.of("baseline", self.config.baseline)]
        for k, path in enumerate(self.config.data):
            for contender in (*self.contenders, *baseline):
                arguments = {
                    "path": str(path),
                    "n_frames": self.config.data_frames,
                    "source": contender.plain(),
                    "precision": self.config.precision,
                    "device": self.config.device,
                }
                units.append(self._unit("data", f"{k}.{contender.role}", arguments, contender.identity))
        return dict(self._run(compare_data, units))

    def _unit(self, kind: str, name: str, arguments: dict[str, Any], identity: Any = None, total: int = 0) -> Unit:
        """A unit whose key says what is done, and how far: a shorter one that is finished is opened again."""
        what = dict(arguments)
        if kind == "md":
            what["stage"] = {k: v for k, v in what["stage"].items() if k != "n_steps"}
            del what["source"]  # the identity says what matters; a file may be moved
            del what["nve"]
        text = json.dumps([what, identity], sort_keys=True)
        key = f"{kind}/{name} {hashlib.sha256(text.encode()).hexdigest()[:12]} {total} {_steps(arguments.get('nve'))}"
        folder = self.directory / kind / name
        if kind != "md" or _is_shorter(folder / RESULT, key):
            _forget_other(folder / RESULT, key)
        return Unit(key, folder, arguments)

    def _run(self, function: Callable[..., Any], units: Sequence[Unit]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Names of units and what they returned. Raises DpsimError with the first error once all have ended."""
        errors = []
        for count, outcome in enumerate(run_units(function, units, self.workers), start=1):
            name = outcome.unit.folder.name
            if outcome.failed:
                errors.append(f"{outcome.unit.folder}: {outcome.error}")
                continue
            failure = outcome.result.get("failure", "")
            if not outcome.reused:
                self.say(f"{count}/{len(units)} {outcome.unit.folder.parent.name} {name} {failure or 'done'}")
            yield name, outcome.result
        if errors:
            raise DpsimError(
                f"{len(errors)} of {len(units)} units failed; expected all to end. The same command tries them again.\n"
                + "\n".join(errors[:5])
            )


def _digest(structure: Structure) -> str:
    """Of the file that a structure is read from."""
    return "" if structure.file is None else hashlib.sha256(structure.file.read_bytes()).hexdigest()


def _plain(config: StrictModel) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _steps(stage: dict[str, Any] | None) -> int:
    return stage["n_steps"] if stage else 0


def _is_shorter(result: Path, key: str) -> bool:
    """Whether a finished unit is the same as the one with this key, but for how far it went."""
    old = _key_of(result).rsplit(" ", 2)
    new = key.rsplit(" ", 2)
    return old[0] == new[0] and all(int(a) <= int(b) for a, b in zip(old[1:], new[1:], strict=True))


def _forget_other(result: Path, key: str) -> None:
    """Remove a result that is not that of the unit with this key: it is cheap, or continued from its checkpoint."""
    if _key_of(result) != key:
        result.unlink(missing_ok=True)


def _key_of(result: Path) -> str:
    try:
        return str(json.loads(result.read_bytes())["key"])
    except (OSError, ValueError, KeyError):
        return ""
