"""BatchSampler: pure in (seed, step), every frame once per epoch, DeePMD-kit's batch sizes and probabilities."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from dpsim.data.frame import Batch
from dpsim.data.readers import open_system
from dpsim.data.sampler import BatchSampler, batch_sizes, system_probabilities
from dpsim.errors import ConfigError, DataError, ElementError
from systems_for_tests import random_arrays, write_npy

TYPE_MAP = ("H", "O")


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    folder = tmp_path_factory.mktemp("systems")
    sizes = (("a", 10, 4), ("b", 30, 8), ("c", 3, 2))
    return [
        open_system(write_npy(folder / name, random_arrays(n, atoms, seed=n), types=[0, 1] * (atoms // 2)))
        for name, n, atoms in sizes
    ]


def assert_batches_equal(a, b):
    for name, value in vars(a).items():
        other = getattr(b, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


def test_batch_is_a_function_of_seed_and_step(systems):
    first = BatchSampler(systems, TYPE_MAP, 2, seed=5, cutoff=4.0)
    steps = [first.batch(k) for k in range(12)]
    again = BatchSampler(systems, TYPE_MAP, 2, seed=5, cutoff=4.0, cache_bytes=0)
    for k in (11, 3, 7, 0):
        assert_batches_equal(again.batch(k), steps[k])
    other = BatchSampler(systems, TYPE_MAP, 2, seed=6, cutoff=4.0)
    assert [other.frames_at(k) for k in range(12)] != [first.frames_at(k) for k in range(12)]


def test_batch_contents(systems):
    sampler = BatchSampler(systems, TYPE_MAP, 2, seed=0, cutoff=4.0)
    chosen = sampler.frames_at(4)
    expected = Batch.from_frames([systems[s].frame(k).with_type_map(TYPE_MAP) for s, k in chosen], 4.0)
    for _ in range(2):  # the second time, edges come from the cache
        assert_batches_equal(sampler.batch(4), expected)
    assert sampler.batch(4).center.dtype == torch.int64


def test_every_frame_once_per_epoch(systems):
    for size in (1, 3, 4):
        sampler = BatchSampler(systems[:1], TYPE_MAP, size, seed=1, cutoff=4.0)
        stream = [k for step in range(20) for _, k in sampler.frames_at(step)]
        epochs = np.array(stream[: len(stream) // 10 * 10]).reshape(-1, 10)
        assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
        assert not np.array_equal(epochs[0], epochs[1])


def test_every_frame_once_per_epoch_in_several_systems(systems):
    sampler = BatchSampler(systems, TYPE_MAP, 1, seed=1, cutoff=4.0)
    drawn = [sampler.frames_at(step)[0] for step in range(9000)]  # over several blocks of draws
    for index, system in enumerate(systems):
        stream = [k for s, k in drawn if s == index]
        n = len(system)
        for start in range(0, len(stream) - n, n):
            assert sorted(stream[start : start + n]) == list(range(n))
    counts = Counter(drawn).values()
    assert len(counts) == 43 and max(counts) - min(counts) < 60  # 9000 / 43 = 209 each, in expectation


def test_late_steps_are_the_same_when_reached_from_either_side(systems):
    forward, jumping = (BatchSampler(systems, TYPE_MAP, 1, seed=1) for _ in range(2))
    for step in range(0, 20000, 37):
        forward.frames_at(step)
    assert jumping.frames_at(20000) == forward.frames_at(20000)
    assert jumping.frames_at(5) == forward.frames_at(5)


def test_prefetch_changes_nothing(systems):
    sampler = BatchSampler(systems, TYPE_MAP, "auto:8", seed=2, cutoff=4.0)
    stream = sampler.prefetch(start_step=100, depth=3)
    for step, batch in enumerate(islice(stream, 8), start=100):
        assert_batches_equal(batch, BatchSampler(systems, TYPE_MAP, "auto:8", seed=2, cutoff=4.0).batch(step))
    stream.close()


def test_prefetch_raises_the_readers_error(systems):
    sampler = BatchSampler(systems, ("H",), 1)
    with pytest.raises(ElementError, match="'O'"):
        next(sampler.prefetch(0))


def test_edge_cache_is_bounded(systems):
    sampler = BatchSampler(systems, TYPE_MAP, 1, seed=0, cutoff=4.0, cache_bytes=6000)
    reference = BatchSampler(systems, TYPE_MAP, 1, seed=0, cutoff=4.0, cache_bytes=0)
    for step in range(100):
        assert_batches_equal(sampler.batch(step), reference.batch(step))
        assert sampler._edges.n_bytes <= 6000
    assert sampler._edges.n_bytes > 0 and reference._edges.n_bytes == 0


def test_batch_sizes(systems):
    assert batch_sizes(systems, 2) == [2, 2, 2]
    assert batch_sizes(systems, [1, 2, 3]) == [1, 2, 3]
    assert batch_sizes(systems, "auto:9") == [3, 2, 3]  # 5 frames of 2 atoms wanted, 3 there are
    assert batch_sizes(systems, "auto") == [8, 4, 3]
    assert batch_sizes(systems, "max:9") == [2, 1, 3]
    for bad in (0, [1, 2], "auto:x", "max", "mixed", "auto:0:1"):
        with pytest.raises(ConfigError, match="`batch_size`"):
            batch_sizes(systems, bad)


def test_probabilities(systems):
    sizes = [1, 1, 1]
    np.testing.assert_allclose(system_probabilities(systems, sizes, "prob_sys_size"), np.array([10, 30, 3]) / 43)
    np.testing.assert_allclose(system_probabilities(systems, [1, 3, 1], "prob_sys_size"), np.array([10, 10, 3]) / 23)
    np.testing.assert_allclose(system_probabilities(systems, sizes, "prob_uniform"), np.ones(3) / 3)
    np.testing.assert_allclose(system_probabilities(systems, sizes, [1, 0, 3]), [0.25, 0, 0.75])
    blocks = system_probabilities(systems, sizes, "prob_sys_size;0:2:0.5;2:3:0.5")
    np.testing.assert_allclose(blocks, [0.125, 0.375, 0.5])
    for bad in ("prob", "prob_sys_size;0:9:1", "prob_sys_size;a:b", [1, 2], [0, 0, 0], [1, -1, 1], [1, np.nan, 1]):
        with pytest.raises(ConfigError, match="`probabilities`"):
            system_probabilities(systems, sizes, bad)


def test_draws_follow_the_weights(systems):
    sampler = BatchSampler(systems, TYPE_MAP, 1, [1, 0, 3], seed=0)
    drawn = Counter(sampler.frames_at(step)[0][0] for step in range(4000))
    assert drawn[1] == 0 and abs(drawn[2] / 4000 - 0.75) < 0.03


def test_errors(systems):
    with pytest.raises(DataError, match="empty"):
        BatchSampler([], TYPE_MAP)
    with pytest.raises(ConfigError, match="`seed`"):
        BatchSampler(systems, TYPE_MAP, seed=-1)
