"""The criteria of the acceptance test: what the finished work says of the student, with error bars and verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpsim.analysis.density import mean_density
from dpsim.analysis.diffusion import Diffusion, Walk, diffusion_coefficient, read_walk
from dpsim.analysis.dynamics import energy_drift
from dpsim.analysis.equivalence import judge, relative_difference
from dpsim.analysis.figures import plot_diffusion, plot_energy_drift, plot_parity, plot_rdf
from dpsim.analysis.rdf_distance import rdf_distance
from dpsim.analysis.rdf_shells import jackknife
from dpsim.analysis.report import Figure, Result, Section, Table, Verdict
from dpsim.analysis.statistics import format_value, mean_with_error, student_t
from dpsim.analysis.structure import RDF, compare_rdf, half_smallest_height, rdf
from dpsim.distill.accept_config import AcceptConfig
from dpsim.distill.accept_units import FRAMES
from dpsim.distill.accept_work import ROLES, Group, Role, Work
from dpsim.engines.output import RESTART, THERMO, TOPOLOGY, TRAJECTORY, load_checkpoint, read_thermo
from dpsim.errors import DataError
from dpsim.trajectory import count_frames, open_universe

if TYPE_CHECKING:
    from MDAnalysis import Universe

_BLOCKS = 20  # of g(r), over all runs
_FRAME_BLOCKS = 20  # of frames, for the jackknife
_MEV = 1e3
_COLUMNS = ("n_atoms", "energy", "force_mse", "force_square", "virial_mse")
_QUANTITIES = ("n_atoms", "energy", "force_mse", "virial_mse")


@dataclass
class Part:
    """Results, and the figures and tables that show them."""

    results: list[Result] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    table: Table | None = None

    def add(self, other: Part) -> None:
        self.results += other.results
        self.figures += other.figures
        self.table = other.table or self.table


@dataclass(frozen=True)
class Measured:
    """A number, its standard error and interval, and whether these can be trusted."""

    value: float
    error: float
    interval: tuple[float, float]
    reliable: bool = True


def _criterion(
    name: str, label: str, found: Measured, limit: float, confidence: float, text: str, unit: str = ""
) -> Result:
    """|value| <= limit, judged by the interval."""
    judged = judge(found.value, found.interval, (-limit, limit), confidence, found.reliable)
    return Result(
        name, label, found.value, found.error, unit, limit, judged.verdict, f"{text} {judged.explanation}".strip()
    )


def judge_group(
    group: Group, work: Work, simulations: Mapping[str, Any], comparisons: Mapping[str, Any]
) -> tuple[list[Result], Section]:
    """Everything about one structure at one condition."""
    part = Part(judge_stability(group, work, simulations))
    runs = [f"{group.name}.{run}" for run in range(work.config.runs)]
    part.add(judge_errors(group, work, {run: comparisons[run] for run in runs if run in comparisons}))
    if all(result.verdict == "PASS" for result in part.results[:2]):
        part.add(judge_rdf(group, work))
        if group.condition.pressure is not None:
            part.add(judge_density(group, work))
        part.add(judge_diffusion(group, work))
        part.add(judge_drift(group, work))
    return part.results, Section(group.label[:1].upper() + group.label[1:], figures=part.figures, table=part.table)


def judge_stability(group: Group, work: Work, simulations: Mapping[str, Any]) -> list[Result]:
    """Did every simulation come to its end? The student has to; without the teacher nothing can be told."""
    results = []
    for role, bad in zip(ROLES, ("UNDECIDED", "FAIL"), strict=True):
        failures = [
            failure
            for run in range(work.config.runs)
            if (failure := simulations[f"{group.name}.{role}.{run}"]["failure"])
        ]
        verdict: Verdict = "PASS" if not failures else bad  # type: ignore[assignment]  # one of ROLES' two
        text = f"All {work.config.runs} came to their end." if not failures else f"The first: {failures[0]}"
        label = f"Simulations of the {role} that failed, {group.label}"
        results.append(Result(f"{group.name}.{role}_failures", label, len(failures), None, "", 0, verdict, text))
    return results


def judge_errors(group: Group, work: Work, comparisons: Mapping[str, Mapping[str, Any]]) -> Part:
    """Energy, forces and virial of the student against the teacher, on the student's own fresh frames."""
    if not comparisons:
        return Part()
    rows = [row for c in comparisons.values() for row in zip(*(c[k] for k in _COLUMNS), strict=True)]
    known = [row for row in rows if row[2] is not None]
    of, frames = group.label, f"On {len(known)} fresh frames of the student"
    if len(known) < len(rows):
        frames += f" ({len(rows) - len(known)} set aside, which could not be evaluated)"
    if len(known) < 2:
        text = f"{frames}: too few."
        return Part([Result(f"{group.name}.forces", f"Forces, {of}", None, verdict="UNDECIDED", explanation=text)])
    n_atoms, energy, force_mse, force_square = (np.array(column) for column in list(zip(*known, strict=True))[:4])
    virial = [row[4] for row in known if row[4] is not None]
    offset = f"{frames}; without the mean, {format_value(_MEV * float(energy.mean()))} meV/atom, which moves no atom."
    criteria, confidence = work.config.criteria, work.config.confidence
    squares = np.stack([force_mse, force_square], axis=1) * n_atoms[:, None]
    rms = np.sqrt(squares.sum(axis=0) / n_atoms.sum())
    of_energy = _root_mean(_MEV**2 * (energy - energy.mean()) ** 2, confidence)
    of_forces = _root_ratio(squares, confidence)
    part = Part([
        _criterion(f"{group.name}.energy", f"Energy, rms error, {of}", of_energy, criteria.energy, confidence,
                   offset, "meV/atom"),
        _criterion(f"{group.name}.forces", f"Forces, relative rms error, {of}", of_forces, criteria.forces, confidence,
                   f"{frames}: {rms[0]:.3g} of {rms[1]:.3g} eV/A rms."),
    ])  # fmt: skip
    if virial:
        found = _root_mean(_MEV**2 * np.array(virial), confidence)
        label = f"Virial, rms error, {of}"
        part.results.append(
            _criterion(f"{group.name}.virial", label, found, criteria.virial, confidence, f"{frames}.", "meV/atom")
        )
    part.figures.append(_parity(group, work, list(comparisons)))
    return part


def _parity(group: Group, work: Work, units: Sequence[str]) -> Figure:
    """Forces of both on the student's frames."""
    forces = [np.load(work.directory / "frames" / unit / FRAMES) for unit in units]
    teacher, student = (np.concatenate([f[role].ravel() for f in forces]) for role in ROLES)
    path = plot_parity(_figure(work, f"{group.name}_forces"), {"forces (eV/Å)": (teacher, student)})
    return Figure(path, "Forces of the student against the teacher's (reference), on fresh frames.")


def _root_mean(squares: np.ndarray, confidence: float) -> Measured:
    """The root of the mean of a correlated series of squares."""
    mean = mean_with_error(squares)
    value, (low, high) = math.sqrt(max(0.0, mean.value)), mean.interval(confidence)
    error = mean.error / (2.0 * value) if value > 0.0 else 0.0
    return Measured(value, error, (math.sqrt(max(0.0, low)), math.sqrt(max(0.0, high))), mean.reliable)


def _root_ratio(sums: np.ndarray, confidence: float) -> Measured:
    """sqrt(sum a / sum b) of rows (a, b), one per frame, with a jackknife over blocks of rows.

    Both numbers of a row are of one frame, so what they share cancels. The interval is that of the logarithm.
    """
    if not (sums.sum(axis=0) > 0.0).all():  # equal to the last bit, or nothing to compare with
        ratio = math.inf if sums[:, 0].any() else 0.0
        return Measured(ratio, 0.0, (ratio, ratio))
    blocks = np.array([part.sum(axis=0) for part in np.array_split(sums, min(_FRAME_BLOCKS, len(sums)))])
    value, error = jackknife(blocks, lambda s: 0.5 * math.log(s[0] / s[1]), 1.0)
    half = student_t(confidence, len(blocks) - 1) * error
    return Measured(math.exp(value), math.exp(value) * error, (math.exp(value - half), math.exp(value + half)))


def judge_rdf(group: Group, work: Work) -> Part:
    """Every g(r) of the student against the teacher's."""
    if not _is_periodic(group, work):
        return Part()
    config = work.config
    universes = {role: _universe(group, work, role) for role in ROLES}
    frames = {role: _frames(group, work, role) for role in ROLES}
    radius = min(half_smallest_height(universes[role], frames[role]) for role in ROLES)
    radius = 0.05 * math.floor(min(radius, config.r_max or radius) / 0.05 + 1e-6)
    blocks = config.runs * max(1, round(_BLOCKS / config.runs))
    curves: dict[Role, list[RDF]] = {
        role: rdf(universes[role], None, radius, blocks=blocks, frames=frames[role]) for role in ROLES
    }
    part, limit = Part(), config.criteria.rdf
    compared = []
    for teacher, student in zip(curves["teacher"], curves["student"], strict=True):
        if not ((teacher.g > 0.0) | (student.g > 0.0)).any():
            continue  # a pair that never comes that near
        d = rdf_distance(student, teacher, config.confidence)
        found = "can be told apart" if d.distinguishable else "cannot be told apart"
        text = (
            f"Within error bars the two {found} (chi²/dof {d.chi2:.2g} with {d.degrees_of_freedom:.0f} degrees of "
            f"freedom, p = {d.p_value:.2g}; r-factor {d.r_factor:.2g}; noise alone {d.noise:.2g})."
        )
        error = 0.5 * (d.interval[1] - d.interval[0]) / student_t(config.confidence, 2 * blocks - 2)
        label = f"g(r) of {d.label}, distance, {group.label}"
        measured = Measured(d.distance, error, d.interval, d.reliable)
        part.results.append(_criterion(f"{group.name}.rdf.{d.label}", label, measured, limit, config.confidence, text))
        compared.append((student, compare_rdf(student, teacher)))
    if compared:
        path = plot_rdf(
            _figure(work, f"{group.name}_rdf"), [a for a, _ in compared], [b for _, b in compared], "teacher", "student"
        )
        part.figures.append(Figure(path, f"Radial distribution functions, {curves['student'][0].n_frames} frames."))
    return part


def judge_density(group: Group, work: Work) -> Part:
    """Mean densities at constant pressure."""
    config = work.config
    found = {}
    for role in ROLES:
        thermo = [read_thermo(work.md(group, role, run) / THERMO) for run in range(config.runs)]
        mass = float(_start(group, work, role).masses.sum())
        found[role] = mean_density(
            [(t["time_ps"], t["volume_A3"]) for t in thermo], mass, skip_ps=1e-3 * config.equilibration
        )
    student, teacher = found["student"].density, found["teacher"].density
    value, error, interval = relative_difference(student, teacher, config.confidence)
    reliable = all(f.density.reliable and f.equilibrated for f in found.values())
    late = "" if all(f.equilibrated for f in found.values()) else " The volume had not settled in half of the run."
    text = (
        f"Student {format_value(student.value, student.error)}, teacher {format_value(teacher.value, teacher.error)} "
        f"g/cm³.{late}"
    )
    label, measured = f"Density, relative difference, {group.label}", Measured(value, error, interval, reliable)
    limit = config.criteria.density
    return Part([_criterion(f"{group.name}.density", label, measured, limit, config.confidence, text)])


def judge_diffusion(group: Group, work: Work) -> Part:
    """Diffusion coefficients, element by element."""
    config = work.config
    walks = {role: _walks(group, work, role) for role in ROLES}
    symbols = set(walks["student"][0].symbols)
    species = sorted(symbols) if config.species is None else [s for s in config.species if s in symbols]
    part = Part()
    for element in species:
        found = _diffusion_of_both(element, walks)
        name, label = f"{group.name}.diffusion.{element}", f"Diffusion of {element}, ratio, {group.label}"
        part.results.append(diffusion_result(name, label, found["student"], found["teacher"], config))
        path = plot_diffusion(_figure(work, f"{group.name}_diffusion_{element}"), found, "teacher")
        part.figures.append(Figure(path, f"Diffusion of {element}: bands and bars are 95 % intervals."))
    return part


def _diffusion_of_both(element: str, walks: Mapping[Role, Sequence[Walk]]) -> dict[str, Diffusion]:
    """D of each; where both diffuse, from one lag on, the longer of the two, so that what is left of cages cancels."""

    def found(role: Role, shortest_ps: float) -> Diffusion:
        paths = [walk.of(element) for walk in walks[role]]
        return diffusion_coefficient(paths, walks[role][0].interval_ps, shortest_ps=shortest_ps)

    both: dict[str, Diffusion] = {role: found(role, 0.0) for role in ROLES}
    if all(d.estimate is not None for d in both.values()):
        lag = max(d.lag_ps for d in both.values())
        for role in ROLES:
            again = found(role, 0.5 * lag) if both[role].lag_ps < lag else both[role]
            both[role] = again if again.estimate is not None else both[role]
    return both


def diffusion_result(name: str, label: str, student: Diffusion, teacher: Diffusion, config: AcceptConfig) -> Result:
    """D of the student over the teacher's. Where neither diffuses there is nothing to compare."""
    limit = math.log1p(config.criteria.diffusion)
    threshold = f"{math.exp(-limit):.3g} ... {math.exp(limit):.3g}"
    if student.estimate is None or teacher.estimate is None:
        text = f"Student: {student.explanation} Teacher: {teacher.explanation}"
        both = student.regime == teacher.regime == "caged"
        if (moving := _only_one_moves(student, teacher, config.confidence)) is not None:
            return Result(name, label, None, None, "", threshold, "FAIL", f"Only the {moving} diffuses. {text}")
        return Result(name, label, None, None, "", threshold, "INFO" if both else "UNDECIDED", text)
    finite = "The two cells are alike, so their finite size cancels."
    if min(student.value, teacher.value) <= 0.0:
        return Result(name, label, None, None, "", threshold, "UNDECIDED", "D is zero within its error. Run longer.")
    value, error, interval = relative_difference(student.estimate, teacher.estimate, config.confidence)
    reliable = student.estimate.reliable and teacher.estimate.reliable
    judged = judge(value, interval, (-limit, limit), config.confidence, reliable)
    text = (
        f"Student {format_value(student.value, student.error)}, teacher {format_value(teacher.value, teacher.error)} "
        f"Å²/ps, at lags from {student.lag_ps:g} and {teacher.lag_ps:g} ps on. {finite} {judged.explanation} (Of the "
        "logarithm of the ratio.)"
    )
    ratio = math.exp(value)
    return Result(name, label, ratio, ratio * error, "", threshold, judged.verdict, text)


def _only_one_moves(student: Diffusion, teacher: Diffusion, confidence: float) -> str | None:
    """Which one diffuses, where the other one surely does less."""
    for name, moving, still in (("student", student, teacher), ("teacher", teacher, student)):
        if moving.estimate is not None and still.upper is not None and moving.interval(confidence)[0] > still.upper:
            return name
    return None


def judge_drift(group: Group, work: Work) -> Part:
    """Does the student conserve energy?"""
    config = work.config
    n_steps = config.stage(group.condition).n_steps
    folder = work.md(group, "student", 0).parent / f"nve_after_{n_steps}"
    thermo = read_thermo(folder / THERMO)
    drift = energy_drift(thermo["time_ps"], thermo["total_energy_eV"], _start(group, work, "student").n_atoms)
    text = f"Over {drift.duration_ps:g} ps at constant energy, steps of {config.timestep:g} fs."
    measured = Measured(drift.drift, drift.error, drift.interval(config.confidence), drift.reliable)
    label, limit = f"Energy drift, {group.label}", config.criteria.drift
    result = _criterion(f"{group.name}.drift", label, measured, limit, config.confidence, text, "meV/atom/ps")
    path = plot_energy_drift(_figure(work, f"{group.name}_drift"), thermo["time_ps"], thermo["total_energy_eV"], drift)
    return Part([result], [Figure(path, "Total energy of the student at constant energy.")])


def judge_data(work: Work, labelled: Mapping[str, Mapping[str, Any]]) -> tuple[list[Result], Section | None]:
    """All against labels: the student's force error over the teacher's, or that of a baseline, set by set."""
    config, results, rows = work.config, [], []
    yardstick: Role = "teacher" if config.baseline is None else "baseline"
    for k, path in enumerate(config.data):
        found: dict[Role, Mapping[str, Any]] = {r: labelled[f"{k}.{r}"] for r in dict.fromkeys((*ROLES, yardstick))}
        rows += [(Path(path).name, role, *(_set_error(found[role], q) for q in _QUANTITIES)) for role in found]
        result = _data_result(k, Path(path), found["student"], found[yardstick], config)
        results += [] if result is None else [result]
    if not rows:
        return [], None
    header = ("set", "model", "frames", "energy (meV/atom)", "forces (eV/Å)", "virial (meV/atom)")
    text = "Root mean square errors against labels; of energies without their mean difference."
    return results, Section("Labelled data", text, table=Table(header, rows))


def _set_error(found: Mapping[str, Any], quantity: str) -> float | int | None:
    values = np.array([v for v in found[quantity] if v is not None])
    if quantity == "n_atoms":
        return int((values > 0).sum())
    if not len(values):
        return None
    if quantity == "energy":
        return _MEV * float(values.std())
    return (_MEV if quantity == "virial_mse" else 1.0) * math.sqrt(values.mean())


def _data_result(
    k: int, path: Path, student: Mapping[str, Any], yardstick: Mapping[str, Any], config: AcceptConfig
) -> Result | None:
    """The ratio of force errors, with a jackknife over blocks of frames, in which both are paired."""
    weights = np.array(student["n_atoms"], dtype=np.float64)
    squares = [yardstick["force_mse"], student["force_mse"]]
    known = np.array([a is not None and b is not None for a, b in zip(*squares, strict=True)])
    if known.sum() < 2:
        return None
    sums = np.array([[w * b, w * a] for w, a, b in zip(weights, *squares, strict=True) if a is not None])
    whose = "the teacher's" if config.baseline is None else f"that of {Path(config.baseline).name}"
    label = f"Force error on {path.name}, over {whose}"
    text = f"On {len(sums)} labelled frames."
    measured = _root_ratio(sums, config.confidence)
    return _criterion(f"data{k + 1}.forces", label, measured, config.criteria.data, config.confidence, text)


def _figure(work: Work, name: str) -> Path:
    return work.directory / "figures" / f"{name}.png"


def _start(group: Group, work: Work, role: Role) -> Any:
    """The state of a run's checkpoint: its atoms, masses and cell."""
    path = work.md(group, role, 0) / RESTART
    saved = load_checkpoint(path)
    if saved is None:
        raise DataError(f"`{path}` is missing; expected the checkpoint of a simulation. Delete its folder and rerun.")
    return saved.state


def _is_periodic(group: Group, work: Work) -> bool:
    return bool(_start(group, work, "student").pbc.all())


def _frames(group: Group, work: Work, role: Role) -> Sequence[int]:
    """The frames of all runs end to end, without equilibration."""
    frames: list[int] = []
    first = 0
    for run in range(work.config.runs):
        n = count_frames(work.md(group, role, run) / TRAJECTORY)
        frames += range(first + work.config.skipped_frames, first + n)
        first += n
    return frames


def _universe(group: Group, work: Work, role: Role) -> Universe:
    folders = [work.md(group, role, run) for run in range(work.config.runs)]
    universe = open_universe(folders[0] / TOPOLOGY, folders[0] / TRAJECTORY)
    universe.load_new([str(folder / TRAJECTORY) for folder in folders])
    return universe


def _walks(group: Group, work: Work, role: Role) -> list[Walk]:
    folders = [work.md(group, role, run) for run in range(work.config.runs)]
    return [read_walk((f / TOPOLOGY, f / TRAJECTORY), work.config.skipped_frames) for f in folders]
