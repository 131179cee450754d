"""Energy bias, environment statistics, neighbour counts."""

import numpy as np
import pytest

from dpsim.data.readers import open_dataset, open_system
from dpsim.data.statistics import (
    EnergyBias,
    Statistics,
    auto_sel,
    auto_sel_total,
    compute_statistics,
    core_distances,
    sample_frames,
)
from dpsim.errors import DataError
from dpsim.neighbors import neighbor_list_reference
from systems_for_tests import SHARED_DATA, random_arrays, write_npy


def stats_with(max_neighbors, total=0):
    zero = np.zeros((len(max_neighbors), 4))
    return Statistics(np.zeros(len(max_neighbors)), zero, zero, np.array(max_neighbors), total, 1.0)


def test_bias_of_independent_compositions():
    """Energies that are sums over elements give those back."""
    bias, true = EnergyBias(2), np.array([-400.0, -15.0])
    for counts in ((1, 2), (2, 2), (0, 2), (1, 2)):
        bias.add(np.array(counts), float(np.dot(counts, true)))
    np.testing.assert_allclose(bias.solve(), true, rtol=1e-12)


def test_bias_is_the_least_squares_over_frames():
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 4, (60, 3))
    energies = counts @ np.array([-400.0, -15.0, -1e4]) + generator.normal(0, 1, 60)
    bias = EnergyBias(3)
    for n, e in zip(counts, energies, strict=True):
        bias.add(n, e)
    expected = np.linalg.lstsq(counts.astype(float), energies, rcond=None)[0]
    np.testing.assert_allclose(bias.solve(), expected, rtol=1e-10)


def test_bias_of_one_composition_has_minimum_norm():
    """64 O + 128 H: b = E n / |n|^2, so that b_H = 2 b_O; absent elements get zero."""
    bias = EnergyBias(3)
    for energy in (-29943.0, -29945.0):
        bias.add(np.array([64, 128, 0]), energy)
    n = np.array([64, 128, 0.0])
    np.testing.assert_allclose(bias.solve(), -29944.0 * n / (n @ n), rtol=1e-12)
    assert np.all(EnergyBias(3).solve() == 0)


def naive(system, n_types, rcut, rcut_smth, sel):
    """Statistics by loops over a table of slots, as DeePMD-kit fills it."""
    rows = [[] for _ in range(n_types)]
    most, closest = np.zeros(n_types, int), np.inf
    for k in range(len(system)):
        frame = system.frame(k)
        i, j, s = neighbor_list_reference(frame.positions, frame.cell, frame.pbc, rcut)
        vector = frame.positions[j] - frame.positions[i] + s @ frame.cell
        for a in range(frame.n_atoms):
            table, mine = np.zeros((sel, 4)), vector[i == a]
            for slot, d in enumerate(mine):
                r = np.linalg.norm(d)
                u = np.clip((r - rcut_smth) / (rcut - rcut_smth), 0, 1)
                w = u**3 * (-6 * u**2 + 15 * u - 10) + 1
                table[slot] = w / r * np.array([1, *(d / r)])
                closest = min(closest, r)
            rows[frame.types[a]].append(table)
            most = np.maximum(most, np.bincount(frame.types[j[i == a]], minlength=n_types))
    davg, dstd = np.zeros((n_types, 4)), np.full((n_types, 4), 0.1)
    for t, tables in enumerate(rows):
        if tables:
            table = np.concatenate(tables)
            davg[t, 0] = table[:, 0].mean()
            dstd[t] = [table[:, 0].std()] + 3 * [table[:, 1:].std()]
    return davg, np.maximum(dstd, 1e-2), most, closest


@pytest.mark.parametrize("nopbc", [False, True])
def test_environment_statistics(tmp_path, nopbc):
    system = open_system(write_npy(tmp_path / "a", random_arrays(4, 8), types=[0, 1] * 4, nopbc=nopbc))
    stats = compute_statistics([system], ["O", "H", "C"], 4.5, 1.0, sel=[30, 30, 4])
    davg, dstd, most, closest = naive(system, 3, 4.5, 1.0, 64)
    np.testing.assert_allclose(stats.davg, davg, atol=1e-12)
    np.testing.assert_allclose(stats.dstd, dstd, atol=1e-12)
    np.testing.assert_array_equal(stats.max_neighbors, most)
    assert stats.min_distance == pytest.approx(closest, abs=1e-12) and stats.n_frames == 4
    assert np.all(stats.dstd[2] == 0.1) and np.all(stats.davg[2] == 0)  # carbon never occurs


def test_one_atom_alone(tmp_path):
    arrays = {"coord": np.zeros((2, 3)), "energy": np.array([-1.0, -3.0])}
    system = open_system(write_npy(tmp_path / "a", arrays, types=[0], type_map=["O"], nopbc=True))
    stats = compute_statistics([system], ["O"], 6.0, 0.5)
    assert stats.energy_bias == pytest.approx([-2.0]) and stats.min_distance == np.inf
    assert auto_sel(stats) == [4] and stats.max_neighbors_total == 0
    np.testing.assert_array_equal(stats.dstd, np.full((1, 4), 1e-2))  # seen, but no spread


def test_auto_sel_rounds_as_deepmd():
    """4 * ((int(1.1 n) + 3) // 4)."""
    assert auto_sel(stats_with([40, 41, 1, 0])) == [44, 48, 4, 0]
    assert auto_sel(stats_with([38, 72]), factor=1.0) == [40, 72]
    assert auto_sel_total(stats_with([38, 72], total=108)) == 120


def test_sample_is_seeded_and_visits_every_system(tmp_path):
    big = open_system(write_npy(tmp_path / "a", random_arrays(90)))
    small = open_system(write_npy(tmp_path / "b", random_arrays(2)))
    taken = sample_frames([big, small], 20, seed=3)
    assert taken == sample_frames([big, small], 20, seed=3) != sample_frames([big, small], 20, seed=4)
    assert len(set(taken)) == len(taken) and sum(s == 1 for s, _ in taken) == 1
    assert len(sample_frames([big, small], None, 0)) == 92
    with pytest.raises(DataError, match="no frames"):
        sample_frames([], 5, 0)


def test_types_are_counted_in_the_given_type_map(tmp_path):
    system = open_system(write_npy(tmp_path / "a", random_arrays(3)))
    a = compute_statistics([system], ["O", "H"], 4.0, 1.0, sel=40)
    b = compute_statistics([system], ["H", "O"], 4.0, 1.0, sel=40)
    np.testing.assert_allclose(a.dstd, b.dstd[::-1])
    np.testing.assert_array_equal(a.max_neighbors, b.max_neighbors[::-1])


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="../shared/data is absent")
def test_real_water():
    stats = compute_statistics(open_dataset(SHARED_DATA / "water_pbe0ts" / "train"), ["O", "H"], 6.0, 0.5, n_frames=20)
    assert 30 <= stats.max_neighbors[0] <= 46 and 60 <= stats.max_neighbors[1] <= 92
    assert 0.8 < stats.min_distance < 1.0
    assert stats.energy_bias @ [64, 128] == pytest.approx(-29944, abs=2)


def test_core_distances(tmp_path):
    """Below the shortest distance of each pair of types, by its spread over the frames; 0 for pairs that never meet."""
    write_npy(tmp_path / "s", random_arrays(n_frames=3))
    system = open_system(tmp_path / "s")
    found = np.array(core_distances([system], [*system.type_map, "Xe"]))
    shortest = np.full((3, 2, 2), np.inf)
    for k in range(3):
        f = system.frame(k)
        i, j, shift = neighbor_list_reference(f.positions, f.cell, f.pbc, 4.0)
        r = np.linalg.norm(f.positions[j] - f.positions[i] + shift @ f.cell, axis=1)
        for a, b, x in zip(f.types[i], f.types[j], r, strict=True):
            shortest[k, a, b] = min(shortest[k, a, b], x)
    m = shortest.min(0)
    np.testing.assert_allclose(found[:2, :2], m - np.minimum(3.0 * shortest.std(0), 0.1 * m), atol=6e-5)
    assert (found[:2, :2] < m).all()
    assert not found[2].any() and not found[:, 2].any()
