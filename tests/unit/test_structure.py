"""g(r) against cases whose answer is known: an ideal gas, lattices, and the real frames of a reference file."""

from pathlib import Path

import numpy as np
import pytest

from dpsim.analysis.structure import (
    RDFReference,
    compare_rdf,
    coordination_number,
    load_rdf_reference,
    rdf,
    save_rdf,
)
from dpsim.errors import ConfigError, DataError

mda = pytest.importorskip("MDAnalysis")

SHARED = Path(__file__).parents[3] / "shared" / "data"


def universe(positions, dimensions, elements):
    """A Universe in memory: positions (frames, atoms, 3) A, dimensions (frames, 6)."""
    from MDAnalysis.coordinates.memory import MemoryReader

    u = mda.Universe.empty(len(elements), trajectory=True)
    u.add_TopologyAttr("elements", list(elements))
    u.load_new(
        np.asarray(positions, dtype=np.float32),
        format=MemoryReader,
        dimensions=np.asarray(dimensions, dtype=np.float32),
    )
    return u


def ideal_gas(seed=0, n_frames=200, elements="AABBBBBBBB" * 3, dimensions=(10.0, 11.0, 12.0, 80.0, 90.0, 100.0)):
    from MDAnalysis.lib.mdamath import triclinic_vectors

    random = np.random.default_rng(seed)
    fractional = random.uniform(size=(n_frames, len(elements), 3))
    cell = np.asarray(triclinic_vectors(np.array(dimensions, dtype=np.float32)), dtype=np.float64)
    species = ["O" if e == "A" else "H" for e in elements]
    return universe(fractional @ cell, [dimensions] * n_frames, species)


def test_ideal_gas_in_a_triclinic_cell_has_g_of_one_at_any_number_of_atoms():
    for result in rdf(ideal_gas(), bins=20):
        assert result.n_frames == 200
        assert result.n_blocks == 10
        outer = result.r > 1.0
        pulls = (result.g - 1.0)[outer] / result.g_error[outer]
        assert np.sqrt(np.mean(pulls**2)) < 1.6
        # six O atoms: N instead of N - 1 would give 5/6, far outside the error of the mean
        ideal = result.ideal_pairs[outer]
        assert np.average(result.g[outer], weights=ideal) == pytest.approx(1.0, abs=4.0 / np.sqrt(200 * ideal.sum()))


def test_block_errors_cover_the_truth_for_independent_frames():
    covered = []
    for seed in range(12):
        result = rdf(ideal_gas(seed, n_frames=60), pairs=[("H", "H")], bins=12)[0]
        covered += list(np.abs(result.g - 1.0)[3:] < 2.262 * result.g_error[3:])  # t_9 at 95 %
    assert 0.88 <= np.mean(covered) <= 0.99


def test_fcc_lattice_has_12_6_24_neighbors():
    a, cells = 4.0, 3
    base = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    grid = np.stack(np.meshgrid(*[np.arange(cells)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    positions = (a * (grid + base)).reshape(-1, 3)
    jitter = 0.02 * np.random.default_rng(0).normal(size=(20, len(positions), 3))
    box = [a * cells] * 3 + [90.0] * 3
    result = rdf(universe(positions + jitter, [box] * 20, ["Cu"] * len(positions)))[0]
    assert result.edges[-1] == pytest.approx(6.0)
    for shell, r, n in zip(result.shells, (a / np.sqrt(2), a, a * np.sqrt(1.5)), (12, 18, 42), strict=False):
        assert shell.peak_position.value == pytest.approx(r, abs=0.01)
        assert shell.coordination.value == pytest.approx(n, abs=1e-6)
    assert coordination_number(result, 3.4).value == pytest.approx(12.0)


def test_molecules_keep_their_bonds():
    random = np.random.default_rng(1)
    centers = random.uniform(0.0, 12.0, size=(40, 30, 1, 3))
    direction = random.normal(size=(40, 30, 1, 3))
    bond = 0.98 * direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    positions = np.concatenate([centers, centers + bond], axis=2).reshape(40, 60, 3)
    results = rdf(universe(positions, [[12.0] * 3 + [90.0] * 3] * 40, ["O", "H"] * 30))
    assert [r.label for r in results] == ["O-O", "O-H", "H-H"]
    covalent = results[1].shells[0]
    assert covalent.peak_position.value == pytest.approx(0.98, abs=0.03)
    strangers = 29 / 12.0**3 * 4.0 / 3.0 * np.pi * 1.1**3  # molecules of this gas overlap
    assert coordination_number(results[1], 1.1).value == pytest.approx(1.0 + strangers, abs=0.03)


def test_breathing_cells_are_normalised_with_their_own_volume():
    random = np.random.default_rng(2)
    lengths = 10.0 * (1.0 + 0.03 * random.normal(size=300))
    positions = random.uniform(size=(300, 40, 3)) * lengths[:, None, None]
    dimensions = np.column_stack([lengths] * 3 + [np.full(300, 90.0)] * 3)
    result = rdf(universe(positions, dimensions, ["Ar"] * 40), bins=10)[0]
    assert result.edges[-1] <= 0.5 * lengths.min()
    assert np.average(result.g, weights=result.ideal_pairs) == pytest.approx(1.0, abs=0.01)


def test_correlated_blocks_enlarge_the_error():
    random = np.random.default_rng(3)
    walk = np.cumsum(random.normal(size=(400, 30, 3)), axis=0) * 0.02 + random.uniform(0, 10, size=(30, 3))
    slow = rdf(universe(walk, [[10.0] * 3 + [90.0] * 3] * 400, ["Ar"] * 30), bins=10)[0]
    fast = rdf(ideal_gas(), pairs=[("H", "H")], bins=10)[0]
    assert rdf(ideal_gas(n_frames=20), frames=range(4, 20, 2))[0].n_frames == 8
    assert slow.inflation > 1.35
    assert not slow.reliable
    assert fast.reliable
    assert fast.inflation < 1.15


@pytest.mark.skipif(not (SHARED / "water_pbe0ts").is_dir(), reason="needs ../shared/data/water_pbe0ts")
def test_real_water_frames_reproduce_their_reference_file():
    positions, boxes = [], []
    for split in ("train", "test"):
        for folder in sorted((SHARED / "water_pbe0ts" / split / "O64H128").glob("set.*")):
            positions.append(np.load(folder / "coord.npy").reshape(-1, 192, 3))
            boxes.append(np.load(folder / "box.npy").reshape(-1, 9)[:, [0, 4, 8]])
    root = SHARED / "water_pbe0ts" / "test" / "O64H128"
    names = (root / "type_map.raw").read_text().split()
    elements = [names[int(t)] for t in (root / "type.raw").read_text().split()]
    lengths = np.concatenate(boxes)
    dimensions = np.column_stack([lengths, np.full((len(lengths), 3), 90.0)])
    results = rdf(universe(np.concatenate(positions), dimensions, elements))
    references = load_rdf_reference(SHARED / "reference" / "rdf_water_pbe0ts.npz")
    for result in results:
        comparison = compare_rdf(result, references[result.label])
        assert comparison.rms_difference < 2e-4
        assert comparison.r_factor.value < 1e-4
        assert comparison.reference_error == "estimated"
        assert comparison.overlap > 0.9999
        # frames of this file are shuffled, so its blocks are independent: their error is the counting noise that
        # is assumed for a reference without error bars
        noise = np.sqrt(result.g / (result.n_frames * result.ideal_pairs))
        dense = result.g > 0.3
        assert 0.85 < np.median(result.g_error[dense] / noise[dense]) < 1.15
        assert comparison.peak_height_difference.value == pytest.approx(0.0, abs=1e-3)
        assert comparison.peak_position_difference.error < 0.01
    oxygen, bond = results[0].shells[0], results[1].shells[0]
    assert oxygen.peak_height.value == pytest.approx(2.88, abs=0.05)
    assert oxygen.peak_position.value == pytest.approx(2.74, abs=0.02)
    assert bond.coordination.value == pytest.approx(2.0, abs=1e-9)


def test_comparison_measures_a_known_shift():
    result = rdf(ideal_gas(n_frames=400), pairs=[("H", "H")], bins=20)[0]
    same = compare_rdf(result, RDFReference(("H", "H"), result.r, np.ones_like(result.g)))
    assert same.rms_in_errors < 1.7 * same.rms_in_errors_expected
    assert same.r_factor.value < 3.0 * same.r_factor_noise
    assert same.reference_error == "unknown"
    shifted = compare_rdf(result, RDFReference(("H", "H"), result.r, np.full_like(result.g, 1.2)))
    assert shifted.rms_difference == pytest.approx(0.2, abs=0.05)
    assert shifted.rms_in_errors > 4.0
    assert shifted.r_factor.value == pytest.approx(0.2 / 1.2, abs=0.03)
    itself = compare_rdf(result, result)
    assert itself.r_factor.value == pytest.approx(0.0, abs=1e-12)
    assert (itself.rms_difference, itself.reference_error) == (0.0, "given")


def test_a_reference_on_other_uneven_bins_is_rebinned_by_its_pair_count():
    result = rdf(ideal_gas(n_frames=400), pairs=[("H", "H")], r_max=4.0, bins=40)[0]

    def curve(r):
        return 1.0 + 0.8 * np.exp(-((r - 2.5) ** 2) / 0.1)

    uneven = np.sort(np.concatenate([np.linspace(0.02, 2.0, 60), np.linspace(2.02, 3.0, 90), np.linspace(3.05, 5, 30)]))
    fine = compare_rdf(result, RDFReference(("H", "H"), uneven, curve(uneven)))
    exact = compare_rdf(result, RDFReference(("H", "H"), result.r, curve(result.r)))
    inside = fine.r > 0.5
    np.testing.assert_allclose(fine.g_reference[inside], curve(fine.r)[inside], atol=0.01)
    within = exact.r > 0.5
    np.testing.assert_allclose(fine.difference[inside], exact.difference[within], atol=0.01)
    short = compare_rdf(result, RDFReference(("H", "H"), np.linspace(1.0, 3.0, 81), np.ones(81)))
    assert short.r[0] > 0.95
    assert short.r[-1] < 3.05


def test_csv_round_trip_and_loader_errors(tmp_path):
    results = rdf(ideal_gas(n_frames=20), bins=15)
    path = save_rdf(tmp_path / "rdf.csv", results)
    loaded = load_rdf_reference(path)
    assert list(loaded) == [r.label for r in results]
    np.testing.assert_allclose(loaded["O-H"].g, results[1].g, rtol=1e-4, atol=1e-6)
    assert compare_rdf(results[1], loaded["O-H"]).reference_error == "given"
    with pytest.raises(DataError, match="which is no file"):
        load_rdf_reference(tmp_path / "missing.npz")
    (tmp_path / "bad.csv").write_text("# comment\ndistance,gOO\n1,2\n")
    with pytest.raises(DataError, match="expected `r`"):
        load_rdf_reference(tmp_path / "bad.csv")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(DataError, match="cannot be read"):
        load_rdf_reference(tmp_path / "text.npz")


def test_errors_name_the_value():
    u = ideal_gas(n_frames=5)
    with pytest.raises(ConfigError, match="`r_max` is 7 A; expected at most"):
        rdf(u, r_max=7.0)
    with pytest.raises(ConfigError, match="element 'X'"):
        rdf(u, pairs=[("O", "X")])
    with pytest.raises(DataError, match="`frames` are 1 of the 5"):
        rdf(u, start=4)
    with pytest.raises(DataError, match="expected O-O"):
        compare_rdf(rdf(u, pairs=[("O", "O")])[0], RDFReference(("H", "H"), np.arange(1.0, 4.0), np.ones(3)))
    with pytest.raises(DataError, match="expected a periodic cell"):
        rdf(universe(np.zeros((3, 2, 3)), np.zeros((3, 6)), ["O", "H"]))
    with pytest.raises(ConfigError, match="the range of the RDF"):
        coordination_number(rdf(u, pairs=[("O", "O")])[0], 30.0)


@pytest.mark.parametrize("angles", [(90.0, 90.0, 90.0), (80.0, 95.0, 70.0)])
def test_written_trajectories_of_unwrapped_positions_give_the_same_rdf(tmp_path, angles):
    from MDAnalysis.lib.mdamath import triclinic_vectors

    from dpsim.trajectory import TrajectoryWriter, write_topology

    dimensions = np.array([9.0, 10.0, 11.0, *angles], dtype=np.float32)
    cell = np.asarray(triclinic_vectors(dimensions), dtype=np.float64)
    random = np.random.default_rng(4)
    fractional = random.uniform(size=(12, 20, 3))
    elements = ["O", "H"] * 10
    topology = write_topology(tmp_path / "topology.pdb", elements, fractional[0] @ cell, cell)
    writer = TrajectoryWriter(tmp_path / "trajectory.trr", 20)
    for k, inside in enumerate(fractional):
        diffused = inside + random.integers(-3, 4, size=(20, 3))  # atoms that have left the cell several times
        writer.append(k, 0.001 * k, diffused @ cell, cell)
    writer.close()
    wrapped = rdf(universe(fractional @ cell, [dimensions] * 12, elements), r_max=3.5, bins=7)
    written = rdf((topology, tmp_path / "trajectory.trr"), r_max=3.5, bins=7)
    for a, b in zip(wrapped, written, strict=True):
        np.testing.assert_allclose(a.g, b.g, rtol=1e-4)
