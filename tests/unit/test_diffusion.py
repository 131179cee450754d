"""D of walkers of known D: covered by its interval as often as it says; refused where atoms do not diffuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from dpsim.analysis.diffusion import (
    CM2_PER_S,
    diffusion_coefficient,
    finite_size_correction,
    mean_squared_displacement,
    read_walk,
)
from dpsim.errors import DataError
from dpsim.trajectory import TrajectoryWriter, write_topology

D, DT = 0.23, 0.05  # A^2/ps, ps: water


def walkers(random: np.random.Generator, n_frames: int, n_atoms: int, d: float = D) -> np.ndarray:
    """Brownian: steps of variance 2 D dt along each axis."""
    return np.cumsum(random.normal(0.0, np.sqrt(2.0 * d * DT), (n_frames, n_atoms, 3)), axis=0)


def rattling(random: np.random.Generator, n_frames: int, n_atoms: int, width: float, tau: float) -> np.ndarray:
    """An overdamped spring: motion that stays within `width` (A) and forgets in `tau` (ps)."""
    keep = np.exp(-DT / tau)
    x = np.empty((n_frames, n_atoms, 3))
    x[0] = random.normal(0.0, width, x.shape[1:])
    kicks = random.normal(0.0, width * np.sqrt(1.0 - keep**2), x.shape)
    for k in range(1, n_frames):
        x[k] = keep * x[k - 1] + kicks[k]
    return x


def test_msd_is_that_of_the_definition() -> None:
    x = walkers(np.random.default_rng(1), 50, 3) + 1000.0
    naive = [np.mean(np.sum((x[lag:] - x[: len(x) - lag]) ** 2, axis=2)) for lag in range(50)]
    np.testing.assert_allclose(mean_squared_displacement(x), naive, atol=1e-9)


@pytest.mark.parametrize(("n_runs", "n_frames", "n_atoms"), [(1, 600, 16), (3, 200, 16)])
def test_the_interval_covers_the_truth(n_runs: int, n_frames: int, n_atoms: int) -> None:
    """bench/diffusion_coverage.py asks 2000 times; here 40, of which 38 are expected and 33 must."""
    random = np.random.default_rng(2)
    inside = 0
    for _ in range(40):
        runs = [walkers(random, n_frames, n_atoms) for _ in range(n_runs)]
        found = diffusion_coefficient(runs, DT, least_A=0.0)
        low, high = found.interval()
        inside += low <= D <= high
    assert inside >= 33


def test_cages_are_left_behind() -> None:
    """Rattling adds to the MSD, not to D, whose lag is longer than the cage lives."""
    random = np.random.default_rng(4)
    runs = [walkers(random, 800, 64) + rattling(random, 800, 64, 0.5, 0.5) for _ in range(3)]
    found = diffusion_coefficient(runs, DT)
    assert found.regime == "diffusive"
    assert found.lag_ps >= 1.0
    assert found.exponent < 0.95
    low, high = found.interval(0.99)
    assert low <= D <= high
    assert found.error < 0.1 * D


def test_a_solid_does_not_diffuse() -> None:
    found = diffusion_coefficient([rattling(np.random.default_rng(5), 800, 64, 0.3, 0.2)], DT)
    assert (found.regime, found.estimate) == ("caged", None)
    assert found.upper is not None
    assert found.upper < 0.01
    assert np.isnan(found.value)
    assert "vibrate" in found.explanation


def test_atoms_that_have_not_left_their_cage_do_not_diffuse_yet() -> None:
    """At the shortest lags rattling looks like diffusion, five times too fast; too few data to see it slow down."""
    random = np.random.default_rng(8)
    runs = [walkers(random, 60, 20) + rattling(random, 60, 20, 0.6, 1.0) for _ in range(2)]
    assert diffusion_coefficient(runs, DT).regime == "too short"


def test_a_ballistic_gas_is_refused() -> None:
    """Straight flight: the slope of the MSD never stops growing."""
    velocity = np.random.default_rng(6).normal(size=(20, 3))
    found = diffusion_coefficient([np.arange(200)[:, None, None] * DT * velocity], DT)
    assert (found.regime, found.estimate) == ("too short", None)
    assert "Run longer" in found.explanation


def test_a_walk_is_read_without_drift_and_breathing(tmp_path: Path) -> None:
    """Atoms that only drift together, or are carried by a cell that breathes, do not move."""
    atoms = Atoms("OH2Ar", positions=np.random.default_rng(7).uniform(0.0, 40.0, (4, 3)), cell=[10.0] * 3, pbc=True)
    write_topology(tmp_path / "top.pdb", atoms.get_chemical_symbols(), atoms.positions, atoms.cell.array)
    with TrajectoryWriter(tmp_path / "t.trr", 4) as writer:
        for k in range(50):
            scale = 1.0 + 0.02 * np.sin(k)
            cell = scale * atoms.cell.array
            writer.append(k, k * DT, scale * atoms.positions + 0.3 * k, cell)
    walk = read_walk((tmp_path / "top.pdb", tmp_path / "t.trr"), start=5)
    assert walk.symbols == ("O", "H", "H", "Ar")
    assert walk.interval_ps == pytest.approx(DT, rel=1e-4)
    assert walk.of("H").shape == (45, 2, 3)
    assert np.abs(walk.positions - walk.positions[0]).max() < 1e-3
    with pytest.raises(DataError, match="expected one of"):
        walk.of("He")


def test_finite_size() -> None:
    """SPC/E water, 64 molecules: Yeh and Hummer's correction is some 0.5e-5 cm^2/s."""
    correction = finite_size_correction(298.0, 0.729, 12.43) * CM2_PER_S
    assert correction == pytest.approx(6.83e-6, rel=0.02)


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([], "expected at least one"),
        ([np.zeros((100, 4, 3)), np.zeros((100, 5, 3))], "same atoms"),
        ([np.zeros((20, 4, 3))], "at least 40"),
        ([np.full((100, 4, 3), np.nan)], "finite"),
    ],
)
def test_bad_input(runs: list[np.ndarray], words: str) -> None:
    with pytest.raises(DataError, match=words):
        diffusion_coefficient(runs, DT)
