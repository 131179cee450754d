"""Finding and loading the native library: signatures, capabilities, and life without it."""

import warnings
from pathlib import Path

import pytest
import torch

from dpsim.kernels import native
from dpsim.kernels.environment import environment, environment_reference


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Lets the test put its own file, or none, where the library is looked for."""

    def forget() -> None:
        native._open.cache_clear()
        native.library.cache_clear()

    monkeypatch.setattr(native, "library_path", lambda: tmp_path / "libdpsim.so")
    forget()
    yield tmp_path / "libdpsim.so"
    monkeypatch.undo()
    forget()


def test_without_the_library_the_reference_runs_after_one_warning(without_library: Path):
    edge_vec = torch.randn(20, 3, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="does not exist.*make lib"):
        env, w = environment(edge_vec, 6.0, 0.5)
    expected = environment_reference(edge_vec, 6.0, 0.5)
    assert torch.equal(env, expected[0]) and torch.equal(w, expected[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        environment(edge_vec, 6.0, 0.5)


def test_a_damaged_library_is_a_problem_not_a_crash(without_library: Path):
    without_library.write_bytes(b"\x7fELF, but no more than that")
    found = native.capabilities()
    assert found.path is None and found.problem


@pytest.mark.skipif(native.capabilities().path is None, reason="the native library is not built")
def test_the_library_says_what_it_is():
    found = native.capabilities()
    assert found.isa in native.ISA_NAMES.values() and found.version and not found.problem


def test_the_abi_number_is_that_of_the_header():
    header = Path(__file__).parents[2] / "csrc" / "include" / "dpsim.h"
    line = next(line for line in header.read_text().splitlines() if line.startswith("#define DPSIM_ABI"))
    assert int(line.split()[2]) == native.ABI
