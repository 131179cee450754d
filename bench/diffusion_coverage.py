"""How often the 95 % interval of D covers the true one: `python bench/diffusion_coverage.py [runs]`, 2000 by default.

Walkers of known D, as free Brownian motion and rattling in cages that live for a while. Measured (2000 runs each) is in
docs/acceptance.md.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from scipy.signal import lfilter

from dpsim.analysis.diffusion import CAGE_A, diffusion_coefficient

D, DT = 0.23, 0.05  # A^2/ps, ps between frames
CASES = {
    "16 walkers, 1000 frames": (1, 1000, 16, 0.0, 0.0),
    "16 walkers, 4 runs of 300 frames": (4, 300, 16, 0.0, 0.0),
    "64 walkers, 4 runs of 600 frames, cages of 0.5 A and 0.5 ps": (4, 600, 64, 0.5, 0.5),
    "64 walkers, 2 runs of 400 frames, cages of 0.5 A and 2 ps": (2, 400, 64, 0.5, 2.0),
}


def walk(random: np.random.Generator, n_frames: int, n_atoms: int, width: float, tau: float) -> np.ndarray:
    """Positions (n_frames, n_atoms, 3), A."""
    paths = np.cumsum(random.normal(0.0, np.sqrt(2.0 * D * DT), (n_frames, n_atoms, 3)), axis=0)
    if not width:
        return paths
    keep = np.exp(-DT / tau)
    kicks = random.normal(0.0, width * np.sqrt(1.0 - keep**2), paths.shape)
    kicks[0] = random.normal(0.0, width, paths.shape[1:])
    return paths + lfilter([1.0], [1.0, -keep], kicks, axis=0)


def main(n: int) -> None:
    for name, (n_runs, *case) in CASES.items():
        random = np.random.default_rng(1)
        begin, inside, found = time.perf_counter(), 0, []
        for _ in range(n):
            result = diffusion_coefficient(
                [walk(random, *case) for _ in range(n_runs)], DT, least_A=CAGE_A * (case[2] > 0.0)
            )
            if result.estimate is None:
                continue
            low, high = result.interval()
            inside += low <= D <= high
            found.append((result.value / D, result.error / D, result.lag_ps))
        mean, error, lag = np.mean(found, axis=0)
        spread = np.std(found, axis=0)[0]
        cost = 1e3 * (time.perf_counter() - begin) / n
        print(
            f"{name}: covers {100 * inside / len(found):.1f} %, refused {n - len(found)} of {n}; D/true {mean:.4f}, "
            f"spread {spread:.4f}, error {error:.4f}, lag {lag:.2f} ps, {cost:.0f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
