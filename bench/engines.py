"""One student in every engine: ns/day, and the share of a step that is not the model.

    python bench/engines.py --realtime --peer-python /path/to/env/bin/python --work /where/student.py/keeps/models

Water at constant energy, 0.5 fs, 330 K, one thread, a list of cutoff + 1 A, thermodynamic output every 10 steps and
frames every 20. Every window is a process of its own, so engines take turns; after a warm-up its number is the mean of
its steps, and reported is the median of the windows. "Not the model" is

- LAMMPS: 1 - Pair / Loop of LAMMPS's own timing, ranks averaged. Neighbour lists, communication, integration and output
  are overhead; what the pair style adds around the model (the list's copy, adding forces up) is not.
- the others: 1 - time inside NativeStudent.compute / time from one call of it to the next. The student builds its
  neighbour list in that call, so here the list is no overhead; Python, conversions, integration and output are.

With --peer-python, DeePMD-kit's LAMMPS pair style runs compressed models from --work beside dpsim's on students of the
same weights (bench/student.py makes all of them). Its time is Pair as well.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import HERE, MAX_ATTEMPTS, MAX_FOREIGN, busy_seconds, new_report, write_report
from student import plural
from workers.engine_steps import THERMO_EVERY, TIMESTEP_FS, TRAJECTORY_EVERY
from workers.protocol import MARK

from dpsim.calculators.lammps_pair import plugin_directory

WATER = HERE.parent / "examples/water/water.extxyz"
BUNDLED = "water-pbe0ts-student"
CELLS = {192: 1, 1536: 2, 12288: 4, 98304: 8}  # copies along each edge
REFERENCE = 12288  # atoms; where the targets hold
TARGETS = {"LAMMPS": 0.15, "ASE": 0.30, "OpenMM, openmm_force": 0.30}  # largest share that is not the model
TARGET_RANKS, TARGET_PEER = 1.8, 8.0
PYTHON_ENGINES = {
    "ASE": "ase", "OpenMM, openmm_force": "openmm", "OpenMM, engine of protocols": "dpsim-openmm", "i-PI": "ipi",
}  # fmt: skip
IPI_MAX_ATOMS = 1536
SAME_WEIGHTS = {"LAMMPS, peer's weights, full rank": "full", "LAMMPS, peer's weights, rank by tolerance": "auto"}
PEERS = {"DeePMD-kit TensorFlow, LAMMPS": "compressed.pb", "DeePMD-kit PyTorch, LAMMPS": "compressed.pth"}
WARMUP = 5  # steps
GUESSED_US = {"dpsim": 15.0, "peer": 250.0}  # per atom and step: how many steps a window has

IN_FILE = """units metal
atom_style atomic
read_data {data}
pair_style {style}
pair_coeff * * O H
neighbor 1.0 bin
neigh_modify every 1 delay 0 check yes
timestep {timestep}
thermo_style custom step temp pe etotal press
thermo {thermo}
velocity all create 330 4928459 mom yes dist gaussian
fix integrate all nve
run {warmup}
dump frames all custom {frames} frames.dump id type xu yu zu vx vy vz fx fy fz
run {steps}
"""


def main() -> None:
    args = parse()
    args.threads = 1
    report: dict[str, Any] = {**new_report("engines", args), "model": BUNDLED, "targets": TARGETS, "left_out": {}}
    with tempfile.TemporaryDirectory() as name:
        for n_atoms in args.atoms:
            report["results"][n_atoms] = measure(args, n_atoms, Path(name), report["left_out"])
            print(f"{n_atoms} atoms done", flush=True)
            write_report(report, markdown(report), args.output)
    print(markdown(report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, help="Python of an environment with deepmd-kit[lmp]")
    parser.add_argument("--work", type=lambda text: Path(text).resolve(), help="the --work of bench/student.py")
    parser.add_argument("--atoms", nargs="+", type=int, choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--peer-max-atoms", type=int, default=REFERENCE)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--window-seconds", type=float, default=8.0, help="aimed at; a window has 20 steps at least")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, shortest windows: does everything run?")
    parser.add_argument("--realtime", action="store_true", help="run the windows at real-time priority (needs root)")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    if bool(args.peer_python) != bool(args.work):
        parser.error("--peer-python and --work go together")
    if args.quick:  # says nothing of speed, so noise is not waited out either
        args.atoms = [n for n in args.atoms if n <= IPI_MAX_ATOMS]
        args.windows, args.window_seconds = 1, 0.0
    return args


# ---- measurement -----------------------------------------------------------------------------------------------------
def measure(args: argparse.Namespace, n_atoms: int, folder: Path, left_out: dict[str, str]) -> dict[str, Any]:
    """All engines at one size, in turns."""
    write_structures(CELLS[n_atoms], folder)
    windows: dict[str, list[dict[str, Any]]] = {name: [] for name in names(args, n_atoms)}
    for _window in range(args.windows):
        for name in list(windows):
            try:
                windows[name].append(window(args, name, n_atoms, folder))
            except RuntimeError as error:  # one engine less is still a report
                left_out[f"{name}, {n_atoms} atoms"] = str(error)
                del windows[name]
    return {name: summary(found) for name, found in windows.items()}


def names(args: argparse.Namespace, n_atoms: int) -> list[str]:
    found = ["LAMMPS", "LAMMPS, 2 ranks", *(n for n in PYTHON_ENGINES if n != "i-PI" or n_atoms <= IPI_MAX_ATOMS)]
    if args.work:
        found += SAME_WEIGHTS
        found += PEERS if n_atoms <= args.peer_max_atoms else ()
    return found


def window(args: argparse.Namespace, name: str, n_atoms: int, folder: Path) -> dict[str, Any]:
    """One process: ms and model_ms of a step, and the share of the machine that other processes used meanwhile."""
    us = GUESSED_US["peer" if name in PEERS else "dpsim"]
    steps = max(20, min(2000, round(1e6 * args.window_seconds / (us * n_atoms) / 20) * 20))
    if name in PYTHON_ENGINES:
        spec = {
            "engine": PYTHON_ENGINES[name], "model": BUNDLED, "structure": str(folder / "water.extxyz"),
            "warmup": WARMUP, "steps": steps,
        }  # fmt: skip
        (folder / "spec.json").write_text(json.dumps(spec))
        command = [sys.executable, str(HERE / "workers/engine_steps.py"), "spec.json"]
    else:
        command = lammps_command(args, name, steps, folder)
    # At real-time priority others take no core from us: their share is noted, and no reason to measure again.
    for _attempt in range(1 if args.quick or args.realtime else MAX_ATTEMPTS):
        output, foreign = run(command, args.realtime, folder, peer=name in PEERS)
        if foreign <= MAX_FOREIGN:
            break
        time.sleep(1)
    found = python_times(output) if name in PYTHON_ENGINES else lammps_times(output, steps)
    return {**found, "steps": steps, "foreign_cpu": round(foreign, 3)}


def lammps_command(args: argparse.Namespace, name: str, steps: int, folder: Path) -> list[str]:
    """Writes in.water; `lmp` on one or two ranks."""
    style = f"deepmd {args.work / PEERS[name]}" if name in PEERS else f"dpsim {BUNDLED}"
    if name in SAME_WEIGHTS:
        style = f"dpsim {args.work}/student-{SAME_WEIGHTS[name]}.dpsim"
    (folder / "in.water").write_text(
        IN_FILE.format(
            data="water.data", style=style, timestep=1e-3 * TIMESTEP_FS, thermo=THERMO_EVERY,
            frames=TRAJECTORY_EVERY, warmup=WARMUP, steps=steps,
        )
    )  # fmt: skip
    # Not resolved: a virtual environment's Python is a link, and its programs lie beside the link.
    programs = args.peer_python.parent if name in PEERS else Path(sys.executable).parent
    command = [str(programs / "lmp"), "-in", "in.water", "-log", "none"]
    return [str(programs / "mpiexec"), "-n", "2", *command] if name.endswith("2 ranks") else command


def run(command: list[str], realtime: bool, folder: Path, peer: bool) -> tuple[str, float]:
    """Output of a command on one thread, and the share of the machine that others used. Raises RuntimeError."""
    env = {
        **os.environ, "OMP_NUM_THREADS": "1", "DP_INTRA_OP_PARALLELISM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "DP_INTER_OP_PARALLELISM_THREADS": "1", "PYTHONPATH": "" if peer else str(HERE.parent),
    }  # fmt: skip
    if not peer:  # of this checkout, installed or not
        env["LAMMPS_PLUGIN_PATH"] = plugin_directory()
    if realtime:
        command = ["chrt", "--fifo", "1", *command]
    begin, busy, own = time.perf_counter(), busy_seconds(), children_seconds()
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    others = (busy_seconds() - busy) - (children_seconds() - own)
    if done.returncode:
        lines = [x for x in (done.stdout + done.stderr).splitlines() if "ERROR" in x or "Error" in x]
        raise RuntimeError((lines or done.stderr.strip().splitlines() or ["no message"])[-1])
    return done.stdout, others / (time.perf_counter() - begin) / (os.cpu_count() or 1)


def children_seconds() -> float:
    """CPU time of the processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def python_times(output: str) -> dict[str, Any]:
    """Means over the steps of a window, from the worker's line."""
    found = next(json.loads(x[len(MARK) :]) for x in output.splitlines() if x.startswith(MARK))
    return {**found, "ms": statistics.fmean(found["ms"]), "model_ms": statistics.fmean(found["model_ms"])}


def lammps_times(output: str, steps: int) -> dict[str, Any]:
    """From the timing of the last run: `Loop time of 1.2 on 1 procs for 100 steps`, and `Pair | min | avg | max`."""
    loop = re.findall(r"^Loop time of (\S+) on", output, re.MULTILINE)[-1]
    sections = {
        name.strip().lower(): 1000 * float(average) / steps
        for name, average in re.findall(
            r"^(\w+) +\|[^|\n]*\| *([0-9.e+-]+) *\|", output[output.rindex("Loop time") :], re.MULTILINE
        )
    }
    version = re.search(r"^LAMMPS \((.+)\)", output, re.MULTILINE)
    return {
        "ms": 1000 * float(loop) / steps, "model_ms": sections["pair"], "sections_ms": sections,
        "versions": {"lammps": version[1] if version else "unknown"},
    }  # fmt: skip


def summary(windows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the windows."""
    ms = statistics.median(w["ms"] for w in windows)
    return {
        "ms": ms,
        "ns_per_day": 86400e3 * TIMESTEP_FS * 1e-6 / ms,
        "not_model": statistics.median(1 - w["model_ms"] / w["ms"] for w in windows),
        "model_ms": statistics.median(w["model_ms"] for w in windows),
        "windows": windows,
    }


def write_structures(cells: int, folder: Path) -> None:
    """The bundled water, repeated: water.extxyz and water.data."""
    from ase.io import read, write

    atoms = read(WATER).repeat(cells)
    write(folder / "water.extxyz", atoms)
    write(folder / "water.data", atoms, format="lammps-data", specorder=["O", "H"], masses=True, atom_style="atomic")


# ---- report ----------------------------------------------------------------------------------------------------------
def markdown(report: dict[str, Any]) -> str:
    """The report as one table for each size, and the targets."""
    lines = [
        f"# Engines: {report['model']} in each of them",
        "",
        f"{report['date']}; {report['cpu']}, {report['cores']} cores, load before the run {report['load_before']}; "
        f"{plural(report['threads'])} a process. Medians of {report['windows']} windows taken in turn; what is timed: "
        "`engines.py --help`.",
    ]
    for n_atoms, engines in report["results"].items():
        lines += ["", f"## {n_atoms} atoms", "", *table(engines)]
    lines += ["", f"## Targets, {REFERENCE} atoms", "", *targets(report["results"].get(REFERENCE, {}))]
    lines += ["", *(f"- {name}: left out, {why}" for name, why in report["left_out"].items())]
    versions = {
        f"- {name}: {', '.join(f'{key} {value}' for key, value in e['windows'][0]['versions'].items())}"
        + (f", platform {e['windows'][0]['platform']}" if "platform" in e["windows"][0] else ""): None
        for engines in report["results"].values()
        for name, e in engines.items()
    }
    every = [w["foreign_cpu"] for engines in report["results"].values() for e in engines.values() for w in e["windows"]]
    lines += ["", "## Versions", "", *versions]
    if every and max(every) > MAX_FOREIGN:
        lines.append(f"- NOT QUIET: other processes used up to {100 * max(every):.0f} % of the machine in a window.")
    return "\n".join(lines) + "\n"


def table(engines: dict[str, Any]) -> list[str]:
    """One row per engine."""
    return [
        "| engine | ns/day | ms/step | model ms | not the model | steps in a window |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {e['ns_per_day']:.3g} | {e['ms']:.4g} | {e['model_ms']:.4g} | {100 * e['not_model']:.1f} % | "
            f"{e['windows'][0]['steps']} |"
            for name, e in engines.items()
        ),
    ]


def targets(engines: dict[str, Any]) -> list[str]:
    """What was aimed at beside what was measured."""
    if not engines:
        return ["Not measured: no run of that size."]
    lines = [
        f"- {name}, not the model: {100 * engines[name]['not_model']:.1f} %; target at most {100 * limit:.0f} %"
        for name, limit in TARGETS.items()
        if name in engines
    ]
    if {"LAMMPS", "LAMMPS, 2 ranks"} <= engines.keys():
        ratio = engines["LAMMPS"]["ms"] / engines["LAMMPS, 2 ranks"]["ms"]
        lines.append(f"- LAMMPS, 2 ranks against 1: {ratio:.2f}x; target at least {TARGET_RANKS}x")
    peers = [engines[name]["ms"] for name in PEERS if name in engines]
    for name in SAME_WEIGHTS:
        if peers and name in engines:
            ratio = min(peers) / engines[name]["ms"]
            lines.append(f"- {name}, against DeePMD-kit's faster: {ratio:.1f}x; target at least {TARGET_PEER:.0f}x")
    return lines


if __name__ == "__main__":
    main()
