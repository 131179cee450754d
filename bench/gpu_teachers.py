"""DPA-2 and DPA-3 on a GPU: time and memory of energy, forces and virial, up to the largest system that fits.

    python bench/gpu_teachers.py --seconds 240    # also a part of gpu_check.py

Liquid-like atoms at water's density (0.1 per A^3, two types), random weights, float32, neighbour lists (CPU) with a
skin of 1 A included, as in dynamics; the calculators of `dpsim.calculators` without ASE, which need not be installed.
Needs torch, numpy, pydantic and vesin.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
from models import TEACHERS, random_model  # noqa: E402

from tests.student_files import random_atoms  # noqa: E402

CELL_ATOMS = 192
REPEATS = [(1, 1, 1), (1, 1, 2), (1, 2, 2), *((k, k, m) for k in range(2, 17) for m in (k, k + 1))]  # 192 to 835 584
SKIN = 1.0


def stepper(name: str, repeats: tuple[int, ...], device: str) -> tuple[int, Callable[[], float]]:
    """Number of atoms, and a function that moves them a little and gives the seconds of an evaluation."""
    from dpsim.calculators.evaluator import evaluator_of

    evaluator = evaluator_of(random_model(name).eval(), device, SKIN)
    types, cell_positions, cell = random_atoms(CELL_ATOMS, closest=1.0)
    shifts = np.stack(np.meshgrid(*map(np.arange, repeats), indexing="ij"), -1).reshape(-1, 1, 3) @ cell
    start = (cell_positions[None] + shifts).reshape(-1, 3)
    n, types = len(start), np.tile(types, len(shifts)).astype(np.int64)
    velocity = np.random.default_rng(0).normal(scale=0.004, size=(n, 3))
    cell, count = cell * np.array(repeats)[:, None], iter(range(1_000_000))

    def step() -> float:
        reach = next(count) % 80  # out for 40 steps, and back
        positions = start + velocity * min(reach, 80 - reach)
        begin = time.perf_counter()
        prediction = evaluator.evaluate(types, positions, cell, np.ones(3, dtype=bool))
        float(prediction.energy.sum())  # waits for the device
        return time.perf_counter() - begin

    return n, step


def measure(name: str, device: str, seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each size until one does not fit, or would take more than what is left of the time."""
    end = time.perf_counter() + seconds
    for repeats in REPEATS:
        n = CELL_ATOMS * int(np.prod(repeats))
        try:
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            n, step = stepper(name, repeats, device)
            first, times = step(), [step()]
            begin = time.perf_counter()
            while len(times) < 50 and time.perf_counter() - begin < min(1.5, seconds / 50):
                times.append(step())
        except (torch.OutOfMemoryError, MemoryError) as error:
            yield {"model": name, "n": n, "error": f"out of memory: {str(error).splitlines()[0]}"}
            return
        median = statistics.median(times)
        row = {
            "model": name, "n": n, "ms": 1e3 * median, "us_per_atom": 1e6 * median / n, "first_ms": 1e3 * first,
            "steps": len(times),
        }  # fmt: skip
        if device == "cuda":
            row["bytes_per_atom"] = torch.cuda.max_memory_allocated() / n
        yield row
        if time.perf_counter() + 4 * (first + times[0]) > end:
            return


def all_models(device: str, seconds: float) -> list[dict[str, Any]]:
    """Rows of all models, printed as they come; a model that cannot be measured says why."""
    rows = []
    for name in TEACHERS:
        found = measure(name, device, seconds / len(TEACHERS))
        while True:
            try:
                rows.append(next(found))
            except StopIteration:
                break
            except Exception as error:  # the other models are still worth having
                rows.append({"model": name, "n": 0, "error": f"{type(error).__name__}: {error}"})
            print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    lines = ["| teacher | atoms | ms/step | us/atom | bytes/atom |", "|---|---|---|---|---|"]
    for row in rows:
        numbers = (
            f"{row['ms']:.2f} | {row['us_per_atom']:.3f} | {row.get('bytes_per_atom', float('nan')):.0f}"
            if "ms" in row
            else f"{row['error'][:80]} | | "
        )
        lines.append(f"| {row['model']} | {row['n']} | {numbers} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=240.0, help="for all models together")
    args = parser.parse_args()
    print("\n".join(table(all_models(args.device, args.seconds))))


if __name__ == "__main__":
    main()
