"""Frames of a data set as a stage: the files are those of a run, and analyses take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpsim.analysis.structure import rdf
from dpsim.engines.output import read_thermo
from dpsim.errors import DataError
from dpsim.protocols.data_stage import stage_of_data
from dpsim.protocols.sampling import sample
from dpsim.trajectory import count_frames, read_frame
from systems_for_tests import random_arrays, write_npy


def test_the_frames_are_those_of_the_data(tmp_path: Path) -> None:
    arrays = random_arrays(n_frames=24)
    stage = stage_of_data(write_npy(tmp_path / "data", arrays, sets=2), tmp_path / "stage", interval_fs=20.0)
    thermo = read_thermo(stage.thermo)
    assert count_frames(stage.trajectory) == 24
    frame = read_frame(stage.trajectory, 17)
    assert (frame.step, frame.velocities) == (17, None)
    assert frame.time_ps == pytest.approx(0.34)
    np.testing.assert_allclose(frame.positions, arrays["coord"][17].reshape(-1, 3), atol=1e-5)
    np.testing.assert_allclose(frame.cell, arrays["box"][17].reshape(3, 3), atol=1e-5)
    assert frame.forces is not None
    np.testing.assert_allclose(frame.forces, arrays["force"][17].reshape(-1, 3), rtol=1e-5)
    np.testing.assert_array_equal(thermo["potential_energy_eV"], arrays["energy"])
    np.testing.assert_allclose(thermo["volume_A3"], np.linalg.det(arrays["box"].reshape(-1, 3, 3)))
    assert np.isnan(thermo["temperature_K"]).all()
    assert sample(stage, skip_fs=None).n_frames == 24
    assert stage.result.step == 23
    assert {item.label for item in rdf((stage.topology, stage.trajectory), blocks=2)} == {"O-O", "O-H", "H-H"}


def test_frames_of_other_atoms_are_refused(tmp_path: Path) -> None:
    for name, types in (("a", (0, 1, 1, 0)), ("b", (0, 1, 0, 1))):
        write_npy(tmp_path / name, random_arrays(n_frames=2), types)
    with pytest.raises(DataError, match=r"b.* has other atoms than .*a"):
        stage_of_data(tmp_path, tmp_path / "stage")
    assert not (tmp_path / "stage").exists()
