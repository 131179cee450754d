"""neighbor_list and VerletList against the O(N^2) reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpsim.errors import DataError
from dpsim.neighbors import VerletList, neighbor_list, neighbor_list_reference

ZERO = np.zeros((3, 3))
CELLS = {
    "orthorhombic": (np.diag([5.0, 6.0, 7.0]), (1, 1, 1)),
    "triclinic": (np.array([[4.0, 0, 0], [1.5, 4, 0], [-1, 2, 5]]), (1, 1, 1)),
    "left-handed": (np.array([[0, 4.0, 0], [4, 0, 0], [0, 0, 5]]), (1, 1, 1)),
    "very skewed": (np.array([[4.0, 0, 0], [9, 4, 0], [0, 0, 5]]), (1, 1, 1)),
    "smaller than the cutoff": (np.diag([1.7, 2.1, 2.4]), (1, 1, 1)),
    "slab": (np.array([[4.0, 0, 0], [1.5, 4, 0], [-1, 2, 5]]), (1, 1, 0)),
    "slab without third vector": (np.array([[4.0, 0, 0], [1.5, 4, 0], [0, 0, 0]]), (1, 1, 0)),
    "slab, dependent third vector": (np.array([[4.0, 0, 0], [1.5, 4, 0], [1, 1, 0]]), (1, 1, 0)),
    "wire": (np.array([[0, 0, 0], [1.0, 4, 0], [0, 0, 0]]), (0, 1, 0)),
    "molecule": (ZERO, (0, 0, 0)),
    "molecule in a box": (np.diag([5.0, 6.0, 7.0]), (0, 0, 0)),
}


def as_set(edges):
    i, j, shift = edges
    table = np.column_stack([i, j, shift])
    assert len(np.unique(table, axis=0)) == len(table), "a pair is listed twice"
    return set(map(tuple, table.tolist()))


@pytest.mark.parametrize("n_atoms", [1, 2, 9])
@pytest.mark.parametrize("name", CELLS)
def test_same_pairs_as_reference(name, n_atoms):
    cell, pbc = CELLS[name]
    positions = np.random.default_rng(n_atoms).uniform(-4, 8, (n_atoms, 3))  # also outside the cell
    edges = neighbor_list(positions, cell, np.array(pbc, bool), 3.5)
    assert as_set(edges) == as_set(neighbor_list_reference(positions, cell, np.array(pbc, bool), 3.5))
    assert all(e.dtype == np.int64 for e in edges) and np.all(np.diff(edges[0]) >= 0)


@settings(max_examples=40, deadline=None)
@given(
    entries=st.lists(st.floats(-1.5, 1.5), min_size=9, max_size=9),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    n_atoms=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_random_cells(entries, pbc, n_atoms, seed):
    cell = np.diag([4.0, 4.5, 5.0]) + np.array(entries).reshape(3, 3)
    positions = np.random.default_rng(seed).uniform(-6, 6, (n_atoms, 3))
    pbc = np.array(pbc)
    assert as_set(neighbor_list(positions, cell, pbc, 3.0)) == as_set(
        neighbor_list_reference(positions, cell, pbc, 3.0)
    )


def test_pairs_by_hand():
    i, j, shift = neighbor_list(np.array([[0.5, 0, 0], [9.5, 0, 0]]), np.eye(3) * 10, np.ones(3, bool), 2.0)
    assert i.tolist() == [0, 1] and j.tolist() == [1, 0] and shift.tolist() == [[-1, 0, 0], [1, 0, 0]]
    assert len(neighbor_list(np.zeros((1, 3)), np.eye(3) * 2, np.ones(3, bool), 2.0)[0]) == 6  # its own images


def test_nothing_within_the_cutoff():
    for positions in (np.zeros((0, 3)), np.zeros((1, 3)), np.array([[0, 0, 0], [5.0, 0, 0]])):
        i, j, shift = neighbor_list(positions, ZERO, np.zeros(3, bool), 3.0)
        assert i.shape == j.shape == (0,) and shift.shape == (0, 3)


def test_atoms_far_apart_do_not_crash():
    positions = np.array([[0, 0, 0], [1e5, 0, 0], [1e5, 0.3, 0]])
    assert neighbor_list(positions, ZERO, np.zeros(3, bool), 0.5)[0].tolist() == [1, 2]


def test_more_atoms_than_16_bits_stay_sorted():
    n = 66000
    positions = np.column_stack([np.random.default_rng(0).permutation(n) * 1.0, np.zeros((n, 2))])
    i, _, _ = neighbor_list(positions, ZERO, np.zeros(3, bool), 7.0)
    assert len(i) == 14 * n - 56 and np.all(np.diff(i) >= 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e9])
def test_bad_positions_are_named(bad):
    positions = np.zeros((3, 3))
    positions[2, 1] = bad
    with pytest.raises(DataError, match="atom 2"):
        neighbor_list(positions, ZERO, np.zeros(3, bool), 3.0)


def test_degenerate_cell_is_refused():
    with pytest.raises(DataError, match="linearly independent"):
        neighbor_list(np.zeros((1, 3)), np.diag([5.0, 5.0, 0.0]), np.ones(3, bool), 3.0)
    with pytest.raises(DataError, match="linearly independent"):
        neighbor_list(np.zeros((1, 3)), np.diag([5.0, 5.0, np.nan]), np.ones(3, bool), 3.0)


def within(edges, positions, cell, cutoff):
    i, j, shift = edges
    near = np.linalg.norm(positions[j] - positions[i] + shift @ cell, axis=1) <= cutoff
    return as_set((i[near], j[near], shift[near]))


def walk(name, steps, change_cell=False, wrap=False, step=0.06):
    """Random walk, checking the Verlet list against the reference at every step; returns the list."""
    cell, pbc = CELLS[name]
    cell, pbc = cell.copy(), np.array(pbc, bool)
    generator = np.random.default_rng(7)
    positions = generator.uniform(0, 5, (8, 3))
    verlet = VerletList(3.0, 1.0)
    for _ in range(steps):
        positions = positions + generator.normal(0, step, positions.shape)
        if change_cell:
            strain = np.eye(3) + generator.normal(0, 0.01, (3, 3))
            cell, positions = cell @ strain, positions @ strain
        if wrap and pbc.all():
            positions = (positions @ np.linalg.inv(cell) % 1.0) @ cell
        edges = verlet.update(positions, cell, pbc)
        expected = as_set(neighbor_list_reference(positions, cell, pbc, 3.0))
        as_set(edges)  # no doubles
        assert within(edges, positions, cell, 3.0) == expected
    return verlet


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("change_cell", [False, True])
def test_verlet_never_misses_a_pair(name, change_cell):
    verlet = walk(name, 40, change_cell=change_cell, wrap=True)
    assert 1 <= verlet.n_rebuilds < verlet.n_updates == 40


def test_verlet_wrapping_is_no_move():
    cell, pbc = np.diag([6.0, 6.0, 6.0]), np.ones(3, bool)
    positions = np.random.default_rng(0).uniform(0, 6, (12, 3))
    verlet = VerletList(3.0, 0.5)
    first = verlet.update(positions, cell, pbc)
    assert verlet.update(positions.copy(), cell, pbc) is first
    jumps = np.random.default_rng(1).integers(-2, 3, positions.shape)
    moved = positions + jumps @ cell
    edges = verlet.update(moved, cell, pbc)
    assert verlet.n_rebuilds == 1 and edges[0] is not first[0]  # other shifts, other arrays
    assert within(edges, moved, cell, 3.0) == as_set(neighbor_list(moved, cell, pbc, 3.0))


def test_verlet_common_translation_is_no_move():
    cell, pbc = np.diag([6.0, 6.0, 6.0]), np.zeros(3, bool)
    positions = np.random.default_rng(0).uniform(0, 6, (12, 3))
    verlet = VerletList(3.0, 0.5)
    verlet.update(positions, cell, pbc)
    verlet.update(positions + 17.0, cell, pbc)
    assert verlet.n_rebuilds == 1


def test_verlet_rebuilds_on_another_structure():
    verlet = VerletList(3.0, 0.5)
    positions = np.random.default_rng(0).uniform(0, 6, (5, 3))
    for args in ((positions, ZERO, np.zeros(3, bool)), (positions[:4], ZERO, np.zeros(3, bool))):
        verlet.update(*args)
    verlet.update(positions[:4], np.eye(3) * 9, np.ones(3, bool))
    verlet.update(positions[:4], np.eye(3) * 7, np.ones(3, bool))
    assert verlet.n_rebuilds == 4
    with pytest.raises(DataError, match="skin"):
        VerletList(3.0, -1.0)
    with pytest.raises(DataError):
        verlet.update(positions[:4] * np.nan, np.eye(3) * 7, np.ones(3, bool))


def test_verlet_owns_its_copies():
    """Engines move atoms in place: the list must compare with where they were, not with the same memory."""
    verlet, positions = VerletList(1.0, 0.2), np.array([[0.0, 0, 0], [3.0, 0, 0]])
    assert len(verlet.update(positions, ZERO, np.zeros(3, bool))[0]) == 0
    positions[1, 0] = 0.5
    assert len(verlet.update(positions, ZERO, np.zeros(3, bool))[0]) == 2
