"""Students and teachers on a GPU, in one go and offline: build with nvcc, run the CUDA tests, time the steps.

    python bench/gpu_check.py    # a machine with a GPU, nvcc, cmake and torch: below 10 minutes
    python bench/gpu_check.py --dry-run build/cuda-emulation/libdpsim.so    # anywhere: the same path, tiny, emulated

Times are of whole calls through the C interface: positions up, neighbour list checked, energy, forces and virial
down, on liquid-like atoms (0.1 per A^3, two types, cutoff 6 A, skin 1 A) and random weights of the shapes of the
published water model: 100 channels, axis 16, 240 x 3 (full rank), and 16 modes for each type of neighbour (low rank).
Writes bench/results/gpu_<date>.{json,md}. Parts that cannot run say why and leave the others alone.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
import gpu_teachers  # noqa: E402

from dpsim.kernels import native  # noqa: E402
from dpsim.kernels import student as kernels  # noqa: E402
from tests.student_files import Part, random_atoms, random_student, write_student  # noqa: E402

PARTS = {
    "full rank": Part(rcut=6.0, rcut_smth=0.5, n_intervals=110, width=100, axis=16),
    "low rank": Part(rcut=6.0, rcut_smth=0.5, n_intervals=110, width=16, axis=32, low_rank=True),
}
CELL_ATOMS = 192
REPEATS = (1, 2, 3, 4, 6, 8, 16, 32, 48)  # along each edge: 192 atoms to 21 million
SKIN = 1.0


def build() -> str:
    """Build the library into the package; the tail of the log, or "" if all went well."""
    folder = ROOT / "build" / "gpu-check"
    for command in (
        ["cmake", "-S", ROOT, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", "-DDPSIM_CUDA=ON", "-DDPSIM_INPLACE=ON"],
        ["cmake", "--build", folder, "--parallel", str(os.cpu_count())],
    ):
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        if done.returncode:
            return (done.stdout + done.stderr)[-4000:]
    return ""


def parity() -> str:
    """The last lines of the tests on the GPU."""
    tests = {"test_student_cuda.py": "gpu and not emulated", "test_environment.py": "cuda"}
    lines = []
    for name, chosen in tests.items():
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, f"tests/parity/{name}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=150)
        lines += (done.stdout + done.stderr).splitlines()[-12:]
    return "\n".join(lines)


def agreement(student: kernels.NativeStudent, n: int) -> dict[str, Any]:
    """Largest deviations from the CPU path in the same precision, and whether a second call gives the same bits."""
    types, positions, cell = random_atoms(n, skewed=True)
    where = (types, positions, cell, (True,) * 3, SKIN)
    found, again, cpu = (
        student.compute(w, *where, virial=True, atom_virial=True)
        for w in [kernels.Workspace(device="cuda")] * 2 + [kernels.Workspace(os.cpu_count())]
    )
    same = all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    names = ("atom_energy", "forces", "virial", "atom_virial")
    return {"n": n, "same_bits": same, **{k: float(np.abs(getattr(found, k) - getattr(cpu, k)).max()) for k in names}}


def measure(
    student: kernels.NativeStudent, repeats: int, cell_atoms: int, device: str, seconds: float
) -> dict[str, Any]:
    """Median of steps that keep the list, and of steps that build it. The movement between steps is not timed."""
    types, positions, cell = random_atoms(cell_atoms, closest=1.0)
    shifts = np.stack(np.meshgrid(*[np.arange(repeats)] * 3, indexing="ij"), -1).reshape(-1, 1, 3) @ cell
    positions = (positions[None] + shifts).reshape(-1, 3)
    types, cell, n = np.tile(types, repeats**3), cell * repeats, cell_atoms * repeats**3
    workspace = kernels.Workspace(device=device)
    random = np.random.default_rng(0)
    block = random.normal(scale=0.002, size=(min(n, 100_000), 3))

    def step() -> float:
        start = time.perf_counter()
        student.compute(workspace, types, positions, cell, (True,) * 3, SKIN, virial=True)
        return time.perf_counter() - start

    first, kept, built = step(), [], []
    begin = time.perf_counter()
    for k in range(1000):
        positions += np.resize(block * (-1) ** k, positions.shape)  # back and forth: within the skin
        kept.append(step())
        if k >= 2 and time.perf_counter() - begin > seconds:
            break
    before = workspace.n_rebuilds
    for _ in range(3 if n < 2_000_000 else 1):
        positions[0] += SKIN
        built.append(step())
    assert workspace.n_rebuilds - before == len(built), "the list was not built when it had to be"
    ms, rebuild_ms = 1e3 * float(np.median(kept)), 1e3 * float(np.median(built))
    return {
        "n": n, "ms": ms, "us_per_atom": 1e3 * ms / n, "rebuild_ms": rebuild_ms, "first_ms": 1e3 * first,
        "steps": len(kept), "bytes_per_atom": workspace.n_bytes / n,
    }  # fmt: skip


def profile(student: kernels.NativeStudent, repeats: int, cell_atoms: int) -> list[dict[str, Any]]:
    """us per step of each kernel, by torch's profiler, which sees every kernel of the process."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA]) as trace:
        measured = measure(student, repeats, cell_atoms, "cuda", 0.5)
    steps = measured["steps"] + 4
    rows = [{"kernel": e.key[:70], "us": e.device_time_total / steps, "calls": e.count} for e in trace.key_averages()]
    return sorted(rows, key=lambda row: -row["us"])[:25]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry-run", type=Path, metavar="LIBRARY", help="use this library, with an emulated GPU")
    parser.add_argument("--seconds", type=float, default=200.0, help="budget of the timings of students together")
    parser.add_argument("--teachers", type=float, default=100.0, help="seconds for DPA-2 and DPA-3 (gpu_teachers.py)")
    options = parser.parse_args()
    report: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "agreement": [], "timings": []}
    repeats, cell_atoms = REPEATS, CELL_ATOMS
    if options.dry_run:
        library = ctypes.CDLL(str(options.dry_run))
        library.dpsim_last_error.restype = ctypes.c_char_p
        for name, (arguments, result) in native._PLAIN_SIGNATURES.items():
            getattr(library, f"dpsim_{name}").argtypes = arguments
            getattr(library, f"dpsim_{name}").restype = result
        native._open = lambda: (library, "")  # type: ignore[assignment]
        native.library = lambda: library  # type: ignore[assignment]
        repeats, cell_atoms = (1, 2), 8
    else:
        start = time.time()
        report["build"] = build() or f"ok, {time.time() - start:.0f} s"
        report["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch sees"
        report["capabilities"] = str(native.capabilities())
        print(report["build"], report["gpu"], report["capabilities"], sep="\n", flush=True)
        report["parity"] = parity()
        print(report["parity"], flush=True)

    begin = time.time()
    for name, part in PARTS.items():
        header, tensors = random_student(parts=(part,), hidden=(240, 240, 240), r_min=0.5)
        with tempfile.TemporaryDirectory() as folder:
            path = write_student(Path(folder) / "student.dpsim", header, tensors)
            students = {p: kernels.NativeStudent(path, p) for p in ("float32", "float64")}  # type: ignore[arg-type]
        for precision, student in students.items():
            for n in (cell_atoms, 12 * cell_atoms):
                try:
                    row = agreement(student, n)
                except Exception as error:
                    row = {"n": n, "error": str(error)}
                report["agreement"].append({"student": name, "precision": precision, **row})
                print(report["agreement"][-1], flush=True)
            for k in repeats if precision == "float32" else repeats[:6]:
                if time.time() - begin > options.seconds:
                    break
                try:
                    row = measure(student, k, cell_atoms, "cuda", 1.0 if k < 20 else 4.0)
                except Exception as error:  # the other sizes are still worth having
                    row = {"n": cell_atoms * k**3, "error": str(error)}
                report["timings"].append({"student": name, "precision": precision, **row})
                print(report["timings"][-1], flush=True)
        if not options.dry_run:
            try:
                report[f"kernels, {name}"] = profile(students["float32"], 8, cell_atoms)
            except Exception as error:
                report[f"kernels, {name}"] = [{"kernel": f"no profile: {error}", "us": 0.0, "calls": 0}]
    if options.teachers and not options.dry_run:
        report["teachers"] = gpu_teachers.all_models("cuda", options.teachers)
    write(report, Path(tempfile.gettempdir()) if options.dry_run else ROOT / "bench" / "results")


def write(report: dict[str, Any], folder: Path) -> None:
    path = folder / f"gpu_{datetime.now(UTC):%Y-%m-%d_%H%M}"
    path.with_suffix(".json").write_text(json.dumps(report, indent=1))
    lines = [
        f"# Students on a GPU\n\n{report['date']}; {report.get('gpu', 'dry run')}; build: {report.get('build', '-')}\n"
    ]
    lines += ["| student | precision | atoms | ms/step | us/atom | ms with a new list | bytes/atom |", "|---" * 7 + "|"]
    for t in report["timings"]:
        numbers = (
            f"{t['ms']:.3f} | {t['us_per_atom']:.4f} | {t['rebuild_ms']:.3f} | {t['bytes_per_atom']:.0f}"
            if "ms" in t
            else f"{t['error'][:60]} | | |"
        )
        lines.append(f"| {t['student']} | {t['precision']} | {t['n']} | {numbers} |")
    for name, rows in report.items():
        if name.startswith("kernels"):
            lines += [f"\n{name}, us per step\n", "| kernel | us | calls |", "|---|---|---|"]
            lines += [f"| `{r['kernel']}` | {r['us']:.1f} | {r['calls']} |" for r in rows]
    if "teachers" in report:
        lines.append("\nDPA-2 and DPA-3, float32, neighbour lists by the CPU included:\n")
        lines += gpu_teachers.table(report["teachers"])
    lines.append("\nLargest deviations from the CPU path (eV, eV/A):\n")
    lines += [f"- {row}" for row in report["agreement"]]
    lines += ["\n```", report.get("parity", "parity tests: not run"), "```"]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
