"""What a model costs: seconds and bytes per atom of a force call, measured in a process of its own."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpsim.analysis.report import Section, Table
from dpsim.distill.accept_units import ase_calculator
from dpsim.distill.accept_work import Work
from dpsim.protocols.memory import peak_memory
from dpsim.protocols.schema import Structure
from dpsim.protocols.structures import load_structure
from dpsim.workers import Unit, WorkersConfig, run_units

if TYPE_CHECKING:
    from ase import Atoms

_CALLS = 7
_MOVE = 0.005  # A: as far as an atom gets in a step
_LARGE = (1000, 8000, 64000)  # atoms: memory is measured between the cell and one of so many, the first that ...
_CLEAR = 2.0**25  # ... needs 32 MiB more than loading did
_SECONDS = 20.0  # a model that is slower than this for the large cell is not asked for its memory


@dataclass(frozen=True)
class Cost:
    """seconds: of the fastest force call, per atom; bytes: of memory per atom, None where unknown.

    n_atoms: of the structure that was timed; threads: of the processor.
    """

    seconds: float
    bytes: float | None
    n_atoms: int
    device: str
    threads: int


def measure_costs(work: Work) -> dict[str, Cost]:
    """Both contenders, on the first structure; {} where measuring fails, which no verdict depends on."""
    units = []
    for contender in work.contenders:
        arguments = {
            "source": contender.plain(),
            "structure": work.groups[0].structure.model_dump(mode="json"),
            "seed": work.config.seed,
            "precision": work.config.precision,
            "device": work.config.device,
        }
        folder = work.directory / "cost" / contender.role
        units.append(Unit(f"cost {contender.role} {contender.identity[:12]}", folder, arguments))
    found = {}
    for outcome in run_units(measure, units, WorkersConfig(threads=work.workers.threads if work.workers else 1)):
        if not outcome.failed:
            found[outcome.unit.folder.name] = Cost(**outcome.result)
    return found if len(found) == len(units) else {}


def measure(
    folder: Path, *, source: Any, structure: dict[str, Any], seed: int, precision: str | None, device: str
) -> dict[str, Any]:
    """Time and memory of one contender, as the fields of `Cost`. Memory needs a fresh process, which starts here."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_here, source, structure, seed, precision, device).result()


def measure_here(
    source: Any, structure: dict[str, Any], seed: int, precision: str | None, device: str
) -> dict[str, Any]:
    """As `measure`, in this process, whose peak of memory should be that of loading the model."""
    import torch

    atoms = load_structure(Structure.model_validate(structure), seed)
    calculator = ase_calculator(source, precision, device)
    random = np.random.default_rng(0)
    times = [_timed_call(atoms, calculator, random) for _ in range(_CALLS + 1)][1:]
    seconds = min(times) / len(atoms)  # whatever else the machine does only adds to it
    memory = None
    before = peak_memory(device)
    for size in _LARGE:
        repeat = next(k for k in range(1, 1000) if len(atoms) * k**3 >= size)
        large = atoms.repeat([repeat if periodic else 1 for periodic in atoms.pbc])
        if len(large) < size or seconds * len(large) > _SECONDS:
            break
        _timed_call(large, calculator, random)
        if (grown := peak_memory(device) - before) > _CLEAR:
            memory = grown / (len(large) - len(atoms))
            break
    return {
        "seconds": seconds,
        "bytes": memory,
        "n_atoms": len(atoms),
        "device": device,
        "threads": torch.get_num_threads(),
    }


def _timed_call(atoms: Atoms, calculator: Any, random: np.random.Generator) -> float:
    """Seconds of a force call after a small move."""
    atoms.positions += random.normal(0.0, _MOVE, atoms.positions.shape)
    atoms.calc = calculator
    begin = time.perf_counter()
    atoms.get_forces()
    return time.perf_counter() - begin


def cost_section(costs: dict[str, Cost]) -> Section | None:
    """A table for the report; None where nothing was measured."""
    if not costs:
        return None
    rows = [
        (role, 1e6 * c.seconds, None if c.bytes is None else c.bytes / 1024.0, c.n_atoms, c.threads, c.device)
        for role, c in costs.items()
    ]
    header = ("model", "µs per atom and step", "KiB per atom", "atoms", "threads", "device")
    return Section("Cost", "Force calls in a row, each after a small move.", table=Table(header, rows))
