"""What follows from the sizes that were measured: exponents, bytes per atom, how many atoms a memory holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpsim.analysis.report import Curve, Figure, Result, Section, Table
from dpsim.analysis.scaling import MemoryLine, Size, fit_memory, fit_times, memory_bend
from dpsim.analysis.statistics import format_value, student_t
from dpsim.protocols.context import AnalysisOutput
from dpsim.protocols.scaling import ScalingProtocol, ScalingRequirements
from dpsim.protocols.verdicts import verdict_of
from dpsim.workers import Outcome

_NOISY = 0.1  # difference of the quartiles of the blocks, as a part of the median
_BENT = 1.25  # bytes per atom of the last interval of sizes beside the one before
_FAR = 30.0  # times the largest size: beyond, an extrapolation is a guess
_GB = 1e-9


def conclude(config: ScalingProtocol, found: Mapping[str, Sequence[Outcome]], figures: Path) -> AnalysisOutput:
    """Numbers, figure and warnings. found: outcomes of each series, small to large."""
    sizes = {name: [_size(o.result) for o in outcomes if not o.failed] for name, outcomes in found.items()}
    output = AnalysisOutput()
    for name, measured in sizes.items():
        if measured:
            require = config.require if name == config.judged else ScalingRequirements()
            output.results.extend(of_series(config, name, measured, require))
            output.warnings.extend(_doubts(config, name, measured))
            output.curves.extend(_curves(name, measured))
    failed = [
        f"{name} {o.unit.folder.name}: {o.error}" for name, outcomes in found.items() for o in outcomes if o.failed
    ]
    if failed:
        total = sum(map(len, found.values()))
        text = "The same command measures the others again, and only these."
        output.results.append(
            Result("sizes", "Sizes measured", total - len(failed), None, "", str(total), "UNDECIDED", text)
        )
        output.warnings.extend(failed)
    output.sections.append(_section(config, sizes, figures))
    return output


def of_series(config: ScalingProtocol, name: str, sizes: Sequence[Size], require: ScalingRequirements) -> list[Result]:
    """The numbers of one model with one number of threads, against limits where there are any."""
    largest = sizes[-1]
    value, error = largest.per_atom
    found = [
        _limited(
            Result(f"{name}.time_per_atom", f"{name}: time per step and atom", value, error, "us",
                   explanation=f"At {largest.n_atoms} atoms, {1e3 * largest.time:.4g} ms a step."),
            largest.interval(), most=require.time_per_atom,
        ),
        Result(f"{name}.speed", f"{name}: speed at {largest.n_atoms} atoms", largest.ns_per_day(config.timestep),
               largest.ns_per_day(config.timestep) * largest.error / largest.time, "ns/day",
               explanation=f"With a time step of {config.timestep:g} fs."),
    ]  # fmt: skip
    if (law := fit_times(sizes)) is not None:
        text = f"Time ~ N^p from {sizes[0].n_atoms} to {largest.n_atoms} atoms; p = 1 is linear."
        plain = Result(f"{name}.exponent", f"{name}: exponent of the time", law.exponent, _finite(law.error),
                       explanation=text)  # fmt: skip
        found.append(_limited(plain, law.interval, most=require.exponent))
    if (line := fit_memory(sizes)) is not None:
        found.extend(_of_memory(config, name, line, largest, require))
    return found


def _of_memory(
    config: ScalingProtocol, name: str, line: MemoryLine, largest: Size, require: ScalingRequirements
) -> list[Result]:
    per_atom = None if line.per_atom_error is None else 1e-3 * line.per_atom_error
    fixed = None if line.covariance is None else _GB * math.sqrt(line.covariance[0, 0])
    atoms, error = line.atoms_in(config.memory / _GB)
    half = math.inf if error is None else student_t(0.95, line.freedom) * error
    text = f"In {config.memory:g} GB; {atoms / largest.n_atoms:.3g} times the largest size measured."
    plain = Result(f"{name}.atoms_in_memory", f"{name}: atoms in {config.memory:g} GB", atoms, error, explanation=text)
    judged = _limited(plain, (atoms - half, atoms + half), least=require.atoms)
    if require.atoms is not None and require.atoms > _FAR * largest.n_atoms:
        text += f" The limit is more than {_FAR:g} times that size, too far to tell."
        judged = replace(judged, verdict="UNDECIDED", explanation=text)
    return [
        Result(f"{name}.memory_per_atom", f"{name}: memory per atom", 1e-3 * line.per_atom, per_atom, "kB"),
        Result(f"{name}.fixed_memory", f"{name}: memory without atoms", _GB * line.fixed, fixed, "GB",
               explanation="Of the line through the peaks: libraries, the model, and what they allocate once."),
        judged,
    ]  # fmt: skip


def _limited(
    plain: Result, interval: tuple[float, float], most: float | None = None, least: float | None = None
) -> Result:
    """With a verdict, where there is a limit: by the whole 95 % interval."""
    if most is None and least is None:
        return plain
    accepted = (-math.inf if least is None else least, math.inf if most is None else most)
    verdict = verdict_of(interval, accepted)
    text = plain.explanation
    if verdict == "UNDECIDED":
        text += " The 95 % interval contains the limit: measure more blocks or sizes, on a quiet machine."
    return replace(plain, threshold=f"≥ {least:g}" if most is None else most, verdict=verdict, explanation=text)


def _doubts(config: ScalingProtocol, name: str, sizes: Sequence[Size]) -> list[str]:
    found = []
    if noisy := [str(s.n_atoms) for s in sizes if s.spread > _NOISY]:
        found.append(
            f"{name}: times of {', '.join(noisy)} atoms differ by more than {100.0 * _NOISY:g} % from block to block: "
            "the machine did other things too. Measure again when it does not."
        )
    bend = memory_bend(sizes)
    if bend is not None and not 1.0 / _BENT < bend < _BENT:
        found.append(
            f"{name}: the last atoms need {bend:.2g} times the memory of those before: it is not linear yet, and the "
            "number of atoms that fit is doubtful. Add a larger size."
        )
    line = fit_memory(sizes)
    if line is None and len(sizes) > 1:
        found.append(f"{name}: memory does not grow with the number of atoms, so far. Add larger sizes.")
    elif line is not None and line.atoms_in(config.memory / _GB)[0] > _FAR * sizes[-1].n_atoms:
        found.append(
            f"{name}: the number of atoms that fit is more than {_FAR:g} times the largest size: a guess. Add larger "
            "sizes."
        )
    return found


def _curves(name: str, sizes: Sequence[Size]) -> list[Curve]:
    n = [s.n_atoms for s in sizes]
    return [
        Curve(f"{name}.time_per_step", f"{name}: time of a step", "atoms", "time (s/step)", n, [s.time for s in sizes],
              [s.error for s in sizes]),
        Curve(f"{name}.memory", f"{name}: peak memory", "atoms", "memory (GB)", n, [_GB * s.peak for s in sizes]),
    ]  # fmt: skip


def _section(config: ScalingProtocol, sizes: Mapping[str, Sequence[Size]], figures: Path) -> Section:
    from dpsim.analysis.figures_cost import plot_scaling

    header = ("", "atoms", "ms/step", "us/step/atom", "ns/day", "spread (%)", "peak (GB)", "empty (GB)")
    rows: list[Sequence[str | float | int | None]] = [
        (name, s.n_atoms, format_value(1e3 * s.time, 1e3 * s.error), format_value(*s.per_atom),
         format_value(s.ns_per_day(config.timestep), None, 3), format_value(100.0 * s.spread, None, 2),
         format_value(_GB * s.peak, None, 3), format_value(_GB * s.empty, None, 3))
        for name, measured in sizes.items() for s in measured
    ]  # fmt: skip
    where = "torch's on the GPU" if config.device.startswith("cuda") else "resident memory of the process"
    text = (
        f"Each size in a process of its own, in {config.engine}: the median of {config.blocks} blocks of steps, after "
        f"one to warm up. Spread: difference of the quartiles. Memory: {where}; empty: with model and engine loaded."
    )
    shown = []
    if any(sizes.values()):
        path = plot_scaling(figures / "scaling.png", {n: m for n, m in sizes.items() if m}, config.memory)
        shown = [
            Figure(
                path, "Bars: quartiles of the blocks. Dotted: linear. Dashed: `memory`; open: the atoms that it holds."
            )
        ]
    return Section("Scaling", text, figures=shown, table=Table(header, rows))


def _size(result: dict[str, Any]) -> Size:
    return Size(result["n_atoms"], tuple(result["seconds"]), result["peak"], result["empty"])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
