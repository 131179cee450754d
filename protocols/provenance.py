"""How a result was made: model and its hash, versions, seed, hardware, wall time."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpsim.errors import DpsimError
from dpsim.protocols.context import RunContext
from dpsim.protocols.schema import Protocol, ProtocolHead

if TYPE_CHECKING:
    from ase import Atoms

_PACKAGES = ("torch", "ase", "numpy", "scipy", "MDAnalysis", "vesin")


def provenance(context: RunContext) -> dict[str, Any]:
    """Plain data for results.json and the report."""
    streams = [f"{name}/{use}" for name in context.stages for use in ("velocities", "thermostat")]
    speed = {
        name: f"{stage.result.step} steps, {stage.result.wall_seconds:.1f} s" for name, stage in context.stages.items()
    }
    return origin_of(context.protocol, speed, streams)


def origin_of(protocol: ProtocolHead, speed: Mapping[str, str], random_streams: Sequence[str] = ()) -> dict[str, Any]:
    """Likewise, of any protocol. speed: what took how long."""
    deviation = protocol.deviation if isinstance(protocol, Protocol) else None
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "dpsim": version("dpsim"),
        "protocol": {
            "kind": getattr(protocol, "protocol", "md"),
            "name": protocol.name,
            "seed": protocol.seed,
            "engine": protocol.engine,
            **({"ranks": protocol.ranks} if protocol.ranks > 1 else {}),
            "precision": protocol.precision or "the model's own",
            **({"random_streams": list(random_streams)} if random_streams else {}),
        },
        "model": model_facts(protocol.models[0]) if len(protocol.models) == 1 else committee_facts(protocol.models),
        **({"deviation from": committee_facts(deviation.models)} if deviation and deviation.models else {}),
        "software": {
            "Python": platform.python_version(),
            **{name: version(name) for name in dict.fromkeys((*_PACKAGES, protocol.engine))},
        },
        "hardware": hardware(protocol.device),
        "speed": dict(speed),
    }


def model_facts(name: str) -> dict[str, Any]:
    """A model's name, its file, and its origin if it is a student."""
    return {"name": Path(name).name, **(model_file(name) or {}), **student_of(name)}


def committee_facts(names: Sequence[str]) -> dict[str, Any]:
    """The models of a committee, each with its SHA-256."""
    facts = [model_facts(name) for name in names]
    return {"name": ", ".join(f["name"] for f in facts), "sha256": ", ".join(f.get("sha256", "-") for f in facts)}


def version(package: str) -> str:
    """Of an installed package, "not installed" otherwise."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def model_file(name_or_path: str) -> dict[str, str] | None:
    """File name, SHA-256 and head of a model; None where the calculator does not come from a model file."""
    from dpsim.models.checkpoint import find_model, split_head

    try:
        path = find_model(name_or_path)
        with open(path, "rb") as file:
            facts = {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        head = split_head(name_or_path)[1]
        return facts if head is None else {**facts, "head": head}
    except (DpsimError, OSError):
        return None


def structure_hash(atoms: Atoms) -> str:
    """SHA-256 of elements, positions, cell and periodicity."""
    digest = hashlib.sha256()
    for values in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def student_of(name_or_path: str) -> dict[str, str]:
    """Of a compressed model: which model it was made from, and its errors against it. Empty for all others."""
    from dpsim.models.checkpoint import read_header

    try:
        header = read_header(name_or_path)
        if header.get("kind") != "student":
            return {}
        teacher = header["provenance"]["teacher"]
        facts = {"student of": f"{teacher['name'] or 'a model without a name'}, {teacher['sha256'] or 'not a file'}"}
        report = header["provenance"]["compression"]
        errors, frames = report["errors"]["float32"], "made-up frames" if report["made_up"] else "frames"
        facts["errors against it"] = (
            f"forces {errors['force_rms']:.1e} rms, {errors['force_max']:.1e} at most eV/A, energy "
            f"{errors['energy_max']:.1e} eV/atom; in float32 on {report['n_frames']} {frames}"
        )
        return facts
    except (DpsimError, OSError):  # not from a file
        return {}
    except (KeyError, TypeError, ValueError):  # provenance is free: a student of unknown origin is one all the same
        return {"student of": "unknown"}


def hardware(device: str) -> dict[str, Any]:
    """Processor, cores and threads, and the GPU if one was used."""
    torch = sys.modules.get("torch")
    known: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads() if torch is not None else None,
        "device": device,
    }
    if torch is not None and device.startswith("cuda") and torch.cuda.is_available():
        known["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return known


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
