"""Students against DeePMD-kit's compressed models: speed, memory and accuracy, the same weights on both sides.

    python bench/student.py --peer-python /path/to/env/bin/python --realtime

Water, energy + forces + virial, float32, from 192 atoms to as many as fit. DeePMD-kit trains its standard model
(se_e2_a, 25-50-100 with 16 axes, 240-240-240, cutoff 6 A) for some steps, freezes it and compresses it for TensorFlow
and PyTorch; dpsim reads the portable form of the same weights and makes students of it (`dpsim compress`). Everything
made but the students is kept in --work and used again.

A size is measured by all programs in turn, window by window; the number is the median of the windows' medians. Both
sides keep a neighbour list of cutoff + 1 A. Timed are

- dpsim: the call from Python, with the list kept ("ms/step") and, under "with lists", with its share of building one:
  as often as a run at 330 K needs it (measured).
- DeePMD-kit, `C library`: DP_DeepPotComputeNList, what its LAMMPS pair style calls, on a list made beforehand. Making
  it, moving the ghost atoms and adding up their forces, all of which LAMMPS does, is not timed: in DeePMD-kit's favour.
- DeePMD-kit, `Python`: DeepPot.eval, which makes a list of its own in every call.

Ratios are against the faster of all of these that DeePMD-kit has at the size. Errors are against the uncompressed model
in float64 on frames that neither side was fitted on. Memory is what the calls of a size add to a process that has
evaluated 192 atoms, at its peak, coordinates and DeePMD-kit's list not counted. The ceiling is a loop of float32
multiply-adds (fma.c) in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from models import COMMON, SE_E2_A, Model, peer_input
from side_by_side import HERE, MAX_FOREIGN, WATER, Side, new_report, realtime_priority, write_report

CELLS = {192: 1, 1536: 2, 5184: 3, 12288: 4, 41472: 6, 98304: 8, 331776: 12, 786432: 16, 1119744: 18}  # per edge
QUICK = [192, 1536]
SKIN = 1.0  # A
REFERENCE = 12288  # atoms; slopes start here
RACED = 1536  # atoms; larger sizes are left to DeePMD-kit's fastest way
STUDENTS = {"dpsim, full rank": "full", "dpsim, rank by tolerance": "auto", "dpsim, 16 modes": 16}
PEERS = {
    "DeePMD-kit TensorFlow, C library": ("deepmd-library", "compressed.pb"),
    "DeePMD-kit TensorFlow, Python": ("deepmd-python", "compressed.pb"),
    "DeePMD-kit PyTorch, C library": ("deepmd-library", "compressed.pth"),
    "DeePMD-kit PyTorch, Python": ("deepmd-python", "compressed.pth"),
}
BYTES_GUESSED = {"dpsim": 8e3, "deepmd": 250e3}  # per atom, before a size has been measured
FLOPS_ENVIRONMENT = 50  # per neighbour, beside what `dpsim compress` counts


def main() -> None:
    args = parse()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.peer_python:
        make_peers(args)
    elif not (args.work / "model.dp").exists():
        raise SystemExit(f"{args.work} holds no model.dp: give --peer-python once, or a --work that has one.")
    report: dict[str, Any] = {
        **new_report("student", args),
        "skin_A": SKIN,
        "students": make_students(args),
        "accuracy": {},
        "ceiling_gflops": {},
        "native": native_description(),
    }
    with tempfile.TemporaryDirectory() as name:
        Measurement(args, Path(name), report).all()
    print(markdown(report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dpsim/bench-student"
    parser.add_argument("--peer-python", help="Python of an environment with deepmd-kit (absent: dpsim alone)")
    parser.add_argument("--work", type=lambda text: Path(text).resolve(), default=cache, help="where models are kept")
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), default=WATER.resolve())
    parser.add_argument("--test-data", type=lambda text: Path(text).resolve(),
                        default=(WATER.parents[1] / "test/O64H128").resolve())  # fmt: skip
    parser.add_argument("--atoms", nargs="+", type=int, choices=list(CELLS), default=[n for n in CELLS if n != 786432])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--window-seconds", type=float, default=1.5, help="a window is one call at least")
    parser.add_argument("--peer-max-atoms", type=int, default=98304)
    parser.add_argument("--train-steps", type=int, default=2000, help="of the model, if --work has none yet")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, shortest windows: does everything run?")
    parser.add_argument("--realtime", action="store_true", help="run the windows at real-time priority (needs root)")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    if args.quick:
        args.atoms = [n for n in args.atoms if n in QUICK]
        args.windows, args.window_seconds = 2, 0.1
    return args


# ---- models ----------------------------------------------------------------------------------------------------------
def make_peers(args: argparse.Namespace) -> None:
    """model.pth, model.dp, compressed.pth and compressed.pb in --work, those that are not there yet."""

    def dp(*command: str, makes: str) -> None:
        if not (args.work / makes).exists():
            print(f"dp {' '.join(command)}", flush=True)
            with (args.work / f"{makes}.log").open("w") as log:
                subprocess.run(
                    [str(Path(args.peer_python).parent / "dp"), *command],
                    check=True, cwd=args.work, stdout=log, stderr=log, env=peer_environment(),
                )  # fmt: skip

    spec = peer_input(Model(SE_E2_A), args.data)
    spec["training"] |= {"numb_steps": args.train_steps, "save_freq": args.train_steps}
    spec["learning_rate"] |= {"stop_lr": 1e-5, "decay_steps": max(1, args.train_steps // 20)}
    (args.work / "input.json").write_text(json.dumps(spec, indent=1))
    dp("--pt", "train", "input.json", makes="checkpoint")
    dp("--pt", "freeze", "-o", "model.pth", makes="model.pth")
    dp("convert-backend", "model.pth", "model.dp", makes="model.dp")
    dp("--pt", "compress", "-i", "model.pth", "-o", "compressed.pth", makes="compressed.pth")
    if not (args.work / "bare.dp").exists():
        for_tensorflow(args.work / "model.dp", args.work / "bare.dp")
    dp("convert-backend", "bare.dp", "model.pb", makes="model.pb")
    dp("--tf", "compress", "-i", "model.pb", "-o", "compressed.pb", "-t", "input.json", makes="compressed.pb")


def for_tensorflow(source: Path, target: Path) -> None:
    """A copy of a portable model that DeePMD-kit's `compress` can bring through TensorFlow unchanged.

    Without the shortest distance it reads input.json and the data again, instead of stopping at the training script of
    converted models, which lacks a learning rate. The elements' energies become the fitting's: it drops the model's.
    """
    import h5py

    shutil.copyfile(source, target)
    with h5py.File(target, "r+") as file:
        tree = json.loads(file.attrs["json"])
        del tree["@variables"]["min_nbor_dist"]
        of_model = file[tree["model"]["@variables"]["out_bias"]]
        of_fitting = file[tree["model"]["fitting"]["@variables"]["bias_atom_e"]]
        of_fitting[...] += of_model[0]
        of_model[...] = 0
        file.attrs["json"] = json.dumps(tree)


def peer_environment() -> dict[str, str]:
    return {
        **os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": "", "NUM_WORKERS": "0", "OMP_NUM_THREADS": "1",
        "DP_INTRA_OP_PARALLELISM_THREADS": "1", "DP_INTER_OP_PARALLELISM_THREADS": "1",
    }  # fmt: skip


def make_students(args: argparse.Namespace) -> dict[str, Any]:
    """The students of the model, made anew by this version of dpsim: what their reports say."""
    from dpsim.distill.compress import compress_file

    found = {}
    for name, rank in STUDENTS.items():
        report = compress_file(
            args.work / "model.dp", args.work / f"student-{rank}.dpsim", [args.data],
            max_frames=2 if args.quick else 10, rank=rank,
        )  # fmt: skip
        found[name] = report.to_json()
    return found


def native_description() -> str:
    """The native library in use, or why there is none."""
    from dpsim.kernels import native

    found = native.capabilities()
    return found.problem or f"libdpsim {found.version}, {found.isa}, OpenMP {'on' if found.openmp else 'off'}"


# ---- structures ------------------------------------------------------------------------------------------------------
def structure(data: Path, frame: int, cells: int, path: Path) -> Path:
    """A file of types, positions and cell: one frame of the data, repeated along each edge."""
    positions = np.load(data / "set.000/coord.npy")[frame].reshape(-1, 3).astype(float)
    cell = np.load(data / "set.000/box.npy")[frame].reshape(3, 3).astype(float)
    positions -= np.floor(positions @ np.linalg.inv(cell)) @ cell
    shifts = np.stack(np.meshgrid(*3 * [np.arange(cells)], indexing="ij"), -1).reshape(-1, 3) @ cell
    types = np.loadtxt(data / "type.raw", dtype=np.int64)
    every = (shifts[:, None] + positions[None]).reshape(-1, 3)
    np.savez(path, types=np.tile(types, len(shifts)), positions=every, cell=cells * cell)
    return path


def reference(model: Path, files: list[Path]) -> list[tuple[float, np.ndarray]]:
    """Energy and forces of the uncompressed model in float64 on structures: dpsim's PyTorch path."""
    import torch

    from dpsim.data.frame import Batch, Frame
    from dpsim.models.deepmd.files import read_deepmd
    from dpsim.models.energy_model import EnergyModel

    imported = read_deepmd(model)
    teacher = EnergyModel(imported.config.model_copy(update={"precision": "float64"}))
    teacher.load_state_dict(imported.state_dict())
    found = []
    for file in files:
        s = np.load(file)
        frame = Frame(s["positions"], s["types"], tuple(teacher.type_map), s["cell"], np.ones(3, dtype=bool))
        prediction = teacher.eval()(Batch.from_frames([frame], teacher.rcut))
        assert prediction.forces is not None
        found.append((float(prediction.energy.detach().to(torch.float64)), prediction.forces.detach().numpy()))
    return found


# ---- measurement -----------------------------------------------------------------------------------------------------
class Measurement:
    """One run: `report` is filled, and written after each size."""

    def __init__(self, args: argparse.Namespace, folder: Path, report: dict[str, Any]):
        self.args, self.folder, self.report = args, folder, report
        self.small = structure(args.data, 0, 1, folder / "small.npz")
        self.bytes: dict[str, float] = {}  # per atom, of the largest size so far
        self.count = 0

    def all(self) -> None:
        self.accuracy()
        self.report["steps_per_list"] = self.steps_per_list()
        self.report["dynamics"] = {threads: self.dynamics(threads) for threads in self.args.threads}
        for threads in self.args.threads:
            self.report["ceiling_gflops"][threads] = ceiling(threads, self.folder, self.args.realtime)
            self.report["results"][threads] = sizes = {}
            for n_atoms in self.args.atoms:
                sizes[n_atoms] = self.size(n_atoms, threads, sizes)
                print(f"{plural(threads)}, {n_atoms} atoms done", flush=True)
                write_report(self.report, markdown(self.report), self.args.output)

    def sides(self) -> list[str]:
        return [*STUDENTS, *(PEERS if self.args.peer_python else ())]

    @contextlib.contextmanager
    def started(self, name: str, file: Path, threads: int) -> Iterator[Side]:
        """A worker for one side on a structure."""
        if name in STUDENTS:
            python, program, model = sys.executable, "dpsim", f"student-{STUDENTS[name]}.dpsim"
        else:
            python, (program, model) = self.args.peer_python, PEERS[name]
        spec = {
            "program": program, "model": str(self.args.work / model), "structure": str(file), "small": str(self.small),
            "skin": SKIN, "rcut": COMMON["rcut"], "threads": threads,
        }  # fmt: skip
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        side = Side.start(name, python, "student_steps.py", spec, threads, folder)
        try:
            yield side
        finally:
            side.stop()

    def accuracy(self) -> None:
        """Errors of each side against the uncompressed model in float64, on test frames."""
        frames = range(0, 80, 40 if self.args.quick else 10)
        files = [structure(self.args.test_data, k, 1, self.folder / f"test{k}.npz") for k in frames]
        truth = reference(self.args.work / "model.dp", files)
        for name in self.sides():
            output = self.folder / "evaluated.npz"
            with self.started(name, self.small, 1) as side:
                side.ask({"do": "evaluate", "files": [str(f) for f in files], "output": str(output)})
                self.report.setdefault("versions", {})[name] = side.info["versions"]
            with np.load(output) as found:
                d_energy = [abs(found[f"energy_{k}"] - e) / len(f) for k, (e, f) in enumerate(truth)]
                d_force = np.stack([found[f"forces_{k}"] - f for k, (_e, f) in enumerate(truth)])
            self.report["accuracy"][name] = {
                "energy_max": float(max(d_energy)),
                "force_rms": float(np.sqrt((d_force**2).mean())),
                "force_max": float(np.abs(d_force).max()),
            }
        self.report["force_rms"] = float(np.sqrt(np.mean([(f**2).mean() for _e, f in truth])))

    def steps_per_list(self) -> float:
        """Steps of 0.5 fs at 330 K between two neighbour lists, 1536 atoms."""
        file = structure(self.args.data, 0, 2, self.folder / "dynamics.npz")
        with self.started("dpsim, 16 modes", file, 1) as side:
            message = {"do": "dynamics", "steps": 60 if self.args.quick else 400, "timestep": 0.5, "temperature": 330}
            return float(side.ask(message)["steps_per_list"])

    def size(self, n_atoms: int, threads: int, smaller: dict[int, Any]) -> dict[str, Any]:
        """All sides at one size, in turns where they fit into memory together, one after the other where not."""
        names, left_out = self.that_fit(n_atoms, smaller)
        file = structure(self.args.data, 0, CELLS[n_atoms], self.folder / "structure.npz")
        together = sum(self.need(name, n_atoms) for name in names) < 0.8 * available_bytes()
        found: dict[str, Any] = {"interleaved": together, "left_out": left_out, "sides": {}}
        for group in [names] if together else [[name] for name in names]:
            with contextlib.ExitStack() as stack:
                sides = []
                for name in group:
                    try:
                        sides.append(stack.enter_context(self.started(name, file, threads)))
                    except RuntimeError as error:
                        left_out[name] = str(error).strip().splitlines()[-1]
                found["sides"] |= self.take_turns(sides)
        return found

    def that_fit(self, n_atoms: int, smaller: dict[int, Any]) -> tuple[list[str], dict[str, str]]:
        """The sides to measure at a size, and why not the others."""
        names, left_out = [], {}
        at_reference = {k: s["ms"] for k, s in smaller.get(RACED, {"sides": {}})["sides"].items() if k in PEERS}
        for name in self.sides():
            if name in PEERS and n_atoms > self.args.peer_max_atoms:
                left_out[name] = "not tried"
            elif n_atoms > RACED and at_reference and name in PEERS and name != min(at_reference, key=at_reference.get):
                left_out[name] = f"slower at {RACED} atoms"
            elif self.need(name, n_atoms) > 0.8 * available_bytes():
                left_out[name] = f"needs some {self.need(name, n_atoms) / 2**30:.0f} GiB"
            else:
                names.append(name)
        return names, left_out

    def need(self, name: str, n_atoms: int) -> float:
        guess = BYTES_GUESSED["dpsim" if name in STUDENTS else "deepmd"]
        return n_atoms * self.bytes.get(name, guess)

    def take_turns(self, sides: list[Side]) -> dict[str, dict[str, Any]]:
        """Windows of each side in turn: median ms per call, quartiles, memory."""
        seconds, realtime = self.args.window_seconds, self.args.realtime
        steps = {side.name: max(1, min(100, int(1000 * seconds / side.info["first_ms"]))) for side in sides}
        windows: dict[str, list[list[float]]] = {side.name: [] for side in sides}
        builds: dict[str, list[float]] = {side.name: [] for side in sides}
        foreign: dict[str, list[float]] = {side.name: [] for side in sides}
        for _window in range(self.args.windows):
            for side in sides:
                ms, others = side.window(steps[side.name], realtime)
                windows[side.name].append(ms)
                foreign[side.name].append(round(others, 3))
                if side.name in STUDENTS:
                    builds[side.name] += side.window(1, realtime, "build")[0]
        return {
            side.name: self.summary(side, windows[side.name], builds[side.name], foreign[side.name]) for side in sides
        }

    def summary(
        self, side: Side, windows: list[list[float]], builds: list[float], foreign: list[float]
    ) -> dict[str, Any]:
        memory = side.ask({"do": "quit"})
        n_atoms = side.info["n_atoms"]
        medians = [statistics.median(window) for window in windows]
        ms = statistics.median(medians)
        build = statistics.median(builds) if builds else None
        with_lists = ms if build is None else ms + (build - ms) / self.report["steps_per_list"]
        self.bytes[side.name] = max(memory["bytes_per_atom"], 1e3)
        return {
            "ms": ms, "us_per_atom": 1000 * ms / n_atoms, "window_medians_ms": medians,
            "steps_per_window": len(windows[0]), "building_ms": build, "with_lists_ms": with_lists,
            "foreign_cpu": foreign, **memory,
        }  # fmt: skip

    def dynamics(self, threads: int) -> dict[str, float]:
        """`dpsim run` at constant energy, 192 atoms, each student: ms of a step with everything, and ns/day."""
        from dpsim.engines.output import RESTART, load_checkpoint

        steps = 200 if self.args.quick else 4000
        found = {}
        for name, rank in STUDENTS.items():
            self.count += 1
            folder = self.folder / str(self.count)
            folder.mkdir()
            write_xyz(self.small, folder / "water.xyz")
            (folder / "run.yaml").write_text(
                f"name: speed\nmodel: {self.args.work / f'student-{rank}.dpsim'}\nstructure: water.xyz\nseed: 1\n"
                "stages:\n"
                f"  - {{type: nve, timestep: 0.5 fs, steps: {steps}, initial_temperature: 330 K}}\n"
            )
            env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(HERE.parent)}
            command = [
                sys.executable,
                "-c",
                "from dpsim.cli import main; main()",
                "run",
                "run.yaml",
                "--directory",
                "out",
            ]
            log = folder / "log.txt"
            with log.open("w") as out:
                run = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out, start_new_session=True)
                with realtime_priority(run.pid) if self.args.realtime else contextlib.nullcontext():
                    failed = run.wait()
            restart = next(folder.rglob(RESTART), None)
            if failed or restart is None:
                raise SystemExit(f"dpsim run failed:\n{log.read_text()[-3000:]}")
            checkpoint = load_checkpoint(restart)
            assert checkpoint is not None
            ms = 1000 * checkpoint.wall_seconds / checkpoint.step
            found[name] = {"ms_per_step": ms, "ns_per_day": 86400e3 * 0.5e-6 / ms, "steps": checkpoint.step}
        return found


def write_xyz(source: Path, path: Path) -> None:
    s = np.load(source)
    lattice = " ".join(f"{x:.10f}" for x in s["cell"].ravel())
    atoms = (f"{'OH'[t]} {x:.10f} {y:.10f} {z:.10f}" for t, (x, y, z) in zip(s["types"], s["positions"], strict=True))
    head = f'Lattice="{lattice}" Properties=species:S:1:pos:R:3 pbc="T T T"'
    path.write_text("\n".join([str(len(s["types"])), head, *atoms]) + "\n")


def ceiling(threads: int, folder: Path, realtime: bool) -> float:
    """GFLOP/s of float32 multiply-adds on this machine, now."""
    program = folder / "fma"
    source = str(HERE / "fma.c")
    subprocess.run(["cc", "-O3", "-march=native", "-fopenmp", source, "-o", str(program)], check=True)
    probe = subprocess.Popen([program, str(threads)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    with realtime_priority(probe.pid) if realtime else contextlib.nullcontext():
        return float(probe.communicate()[0])


def available_bytes() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


# ---- report ----------------------------------------------------------------------------------------------------------
def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    first = next(iter(report["students"].values()))
    lines = [
        "# Students: energy, forces and virial of water, the same weights in DeePMD-kit and dpsim",
        "",
        f"{report['date']}; {report['cpu']}, {report['cores']} cores, load before the run {report['load_before']}; "
        f"{report['native']}. Medians of {report['windows']} windows taken in turn; "
        "what is timed: `student.py --help`. "
        f"Lists of cutoff + {report['skin_A']} A"
        + (f", one in {report['steps_per_list']:.0f} steps at 330 K." if "steps_per_list" in report else "."),
        "",
        "| model | force error rms | max (eV/A) | energy error max (eV/atom) |",
        "|---|---|---|---|",
        *(
            f"| {name} | {e['force_rms']:.1e} | {e['force_max']:.1e} | {e['energy_max']:.1e} |"
            for name, e in report["accuracy"].items()
        ),
        "",
        f"Against the uncompressed model in float64, {first['neighbors']:.0f} neighbours per atom, rms force "
        f"{report.get('force_rms', math.nan):.2f} eV/A.",
    ]
    for name, student in report["students"].items():
        lines.append(f"- {name}: {describe(student)}")
    for threads, sizes in report["results"].items():
        lines += ["", f"## {plural(threads)}", "", *table(report, threads, sizes)]
    lines += ["", "## Dynamics: 192 atoms, 0.5 fs, `dpsim run` with all its output", ""]
    for threads, runs in report.get("dynamics", {}).items():
        for name, run in runs.items():
            lines.append(
                f"- {name}, {plural(threads)}: {run['ms_per_step']:.2f} ms/step, {run['ns_per_day']:.1f} ns/day"
            )
    return "\n".join([*lines, *foot(report)]) + "\n"


def plural(threads: Any) -> str:
    return f"{threads} thread{'s' if int(threads) > 1 else ''}"


def describe(student: dict[str, Any]) -> str:
    """Size and cost of a student."""
    parts = "; ".join(
        f"{p['width']} functions per pair of types, {p['n_intervals']} intervals of {p['step']:.3f} A, "
        f"{p['n_features']} features"
        for p in student["parts"]
    )
    return f"{parts}; {flops(student) / 1e6:.2f} MFLOP per atom and call"


def flops(student: dict[str, Any]) -> float:
    return student["flops_student"] + FLOPS_ENVIRONMENT * student["neighbors"]


def table(report: dict[str, Any], threads: Any, sizes: dict[int, Any]) -> list[str]:
    """One row per size and side."""
    rows = [
        "| atoms | program | ms/step | us/atom | with lists | faster | force error rms | of the ceiling | bytes/atom |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ceiling = report["ceiling_gflops"][threads]
    for n_atoms, size in sizes.items():
        peers = [s["ms"] for name, s in size["sides"].items() if name in PEERS]
        for name, s in size["sides"].items():
            ratio = f"{min(peers) / s['with_lists_ms']:.1f}x" if peers and name in STUDENTS else "-"
            student = report["students"].get(name, report["students"]["dpsim, full rank"])
            share = flops(student) * n_atoms / (s["ms"] * 1e6 * ceiling)
            memory = "-" if int(n_atoms) == min(CELLS) else f"{s['bytes_per_atom']:.0f}"
            rows.append(
                f"| {n_atoms} | {name} | {s['ms']:.4g} | {s['us_per_atom']:.2f} | "
                f"{1000 * s['with_lists_ms'] / n_atoms:.2f} | {ratio} | {report['accuracy'][name]['force_rms']:.1e} | "
                f"{100 * share:.0f} % | {memory} |"
            )
    notes = [f"Ceiling: {ceiling:.0f} GFLOP/s; DeePMD-kit's share counts the operations of dpsim's full-rank student."]
    for name in STUDENTS:
        measured = [(n, size["sides"][name]["ms"]) for n, size in sizes.items() if name in size["sides"]]
        large = [(n, ms) for n, ms in measured if int(n) >= REFERENCE]
        if len(large) > 1:
            (n0, t0), (n1, t1) = large[0], large[-1]
            slope = math.log(t1 / t0) / math.log(int(n1) / int(n0))
            notes.append(f"{name}: time grows as N^{slope:.3f} from {n0} to {n1} atoms.")
    notes += [
        f"{name}: {one / size['sides'][name]['ms']:.2f}x as fast as with 1 thread at {n_atoms} atoms."
        for n_atoms, size in sizes.items()
        for name in STUDENTS
        if (one := one_thread(report, threads, n_atoms, name)) and n_atoms == REFERENCE
    ]
    for n_atoms, size in sizes.items():
        for name, why in size["left_out"].items():
            notes.append(f"{n_atoms} atoms, {name}: {why}.")
        if not size["interleaved"]:
            notes.append(f"{n_atoms} atoms: one program after the other, for memory.")
    return [*rows, "", *(f"- {note}" for note in notes)]


def one_thread(report: dict[str, Any], threads: int, n_atoms: int, name: str) -> float | None:
    """ms with one thread, where that has been measured too."""
    if threads == 1 or name not in report["results"].get(threads, {}).get(n_atoms, {"sides": {}})["sides"]:
        return None
    size = report["results"].get(1, {}).get(n_atoms, {"sides": {}})
    return size["sides"].get(name, {}).get("ms")


def foot(report: dict[str, Any]) -> list[str]:
    """Versions, and a warning if the machine was not quiet."""
    lines = ["", "## Versions", ""]
    found: dict[str, None] = dict.fromkeys(
        f"- {name.split()[0].strip(',')}: {', '.join(f'{key} {value}' for key, value in versions.items())}"
        for name, versions in report.get("versions", {}).items()
    )
    lines += found
    sides = [s for sizes in report["results"].values() for size in sizes.values() for s in size["sides"].values()]
    shares = [share for s in sides for share in s["foreign_cpu"]]
    if shares and max(shares) > MAX_FOREIGN:
        lines.append(f"- NOT QUIET: other processes used up to {100 * max(shares):.0f} % of the machine in a window.")
    return lines


if __name__ == "__main__":
    main()
