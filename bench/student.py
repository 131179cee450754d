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
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from models import COMMON
from side_by_side import HERE, WATER, Side, new_report, realtime_priority, write_report
from student_models import CELLS, PEERS, STUDENTS, make_peers, make_students, native_description, reference, structure
from student_report import markdown, plural

QUICK = [192, 1536]
SKIN = 1.0  # A
RACED = 1536  # atoms; larger sizes are left to DeePMD-kit's fastest way
BYTES_GUESSED = {"dpsim": 8e3, "deepmd": 250e3}  # per atom, before a size has been measured


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


if __name__ == "__main__":
    main()
