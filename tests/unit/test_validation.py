"""Every way data can be wrong gives an error that names file, frame, value and fix."""

from dataclasses import replace

import numpy as np
import pytest

from dpsim.data.frame import Frame
from dpsim.data.readers import open_dataset, open_system
from dpsim.data.validation import validate_frame, validate_systems
from dpsim.errors import DataError, ElementError
from systems_for_tests import SHARED_DATA, random_arrays, write_npy

GOOD = Frame(
    positions=np.array([[0.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]]),
    types=np.array([0, 1, 1]),
    type_map=("O", "H"),
    cell=np.eye(3) * 4.0,
    pbc=np.ones(3, bool),
    energy=-400.0,
    forces=np.zeros((3, 3)),
    virial=np.zeros((3, 3)),
    source="water/set.000 frame 12",
)


def with_value(name, index, value):
    array = np.array(getattr(GOOD, name), dtype=float)
    array[index] = value
    return replace(GOOD, **{name: array})


def test_good_frames_pass():
    validate_frame(GOOD, ["H", "O"])
    validate_frame(replace(GOOD, energy=None, forces=None, virial=None))
    validate_frame(replace(GOOD, cell=np.zeros((3, 3)), pbc=np.zeros(3, bool)))
    validate_frame(replace(GOOD, cell=np.diag([4.0, 4, 0]), pbc=np.array([True, True, False])))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (replace(GOOD, forces=np.zeros((2, 3))), r"`forces` has shape \(2, 3\); expected \(3, 3\)"),
        (replace(GOOD, virial=np.zeros(6)), r"`virial` has shape \(6,\)"),
        (replace(GOOD, types=np.zeros(0, int)), "`types` is empty"),
        (with_value("positions", (1, 2), np.nan), "`positions` of atom 1 is nan"),
        (with_value("forces", (2, 0), np.inf), "`forces` of atom 2 is inf"),
        (with_value("virial", (0, 1), np.nan), r"`virial` of component \(0, 1\) is nan"),
        (with_value("cell", (0, 1), np.nan), "`cell` of component"),
        (replace(GOOD, energy=float("nan")), "`energy` of the frame is nan"),
        (replace(GOOD, types=np.array([0, 1, 2])), "`types` of atom 2 is 2; expected 0 to 1"),
        (replace(GOOD, types=np.array([0, -1, 1])), "`types` of atom 1 is -1"),
        (with_value("forces", (1, 1), -2e4), r"`forces` of atom 1 is 2e\+04 eV/A.*Convert the forces to eV/A"),
        (replace(GOOD, energy=-1e8), r"`energy` is -1e\+08 eV for 3 atoms.*Convert"),
        (with_value("virial", (0, 0), 1e6), "`virial` is .* eV per atom.*volume"),
        (replace(GOOD, cell=np.diag([4.0, 4.0, 0.0])), "degenerate"),
        (replace(GOOD, cell=np.array([[4.0, 0, 0], [8, 0, 0], [0, 0, 4]])), "degenerate"),
        (replace(GOOD, cell=np.eye(3)[[1, 0, 2]] * 4), "left-handed.*Swap two of its rows"),
        (replace(GOOD, cell=np.eye(3) * 0.4), r"A\^3 per atom.*nm"),
        (with_value("positions", 2, [1.0, 0.0, 0.05]), "atoms 1 and 2 are 0.05 A apart"),
        (with_value("positions", 2, [1.0, 4.0, 0.0]), r"atoms 1 and 2 \(its image \[0, -1, 0\]\) are 0 A apart"),
        (replace(GOOD, positions=GOOD.positions / 10, cell=np.zeros((3, 3)), pbc=np.zeros(3, bool)), None),
    ],
)
def test_bad_frames(frame, message):
    if message is None:  # a molecule in nm: 0.1 A between O and H is just allowed, a little less is not
        frame = replace(frame, positions=frame.positions * 0.96)
        message = "nm"
    with pytest.raises(DataError, match=message) as caught:
        validate_frame(frame)
    assert str(caught.value).startswith("water/set.000 frame 12: ")


def test_elements_outside_the_models_type_map():
    with pytest.raises(ElementError, match=r"\['O'\].*water/set.000 frame 12"):
        validate_frame(GOOD, ["H", "C"])


def test_systems_name_file_and_frame(tmp_path):
    arrays = random_arrays(6)
    system = open_system(write_npy(tmp_path / "good", arrays))
    assert validate_systems([system], ["O", "H"]) == 6
    assert validate_systems([system], n_frames=2) == 2
    arrays["force"][4, 7] = np.nan
    bad = open_system(write_npy(tmp_path / "bad", arrays, sets=2))
    with pytest.raises(DataError, match=r"bad/set.001 frame 1: `forces` of atom 2 is nan"):
        validate_systems([system, bad])


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="../shared/data is absent")
@pytest.mark.parametrize("name", ["water_pbe0ts", "mlearn_li", "ta_pbe", "ethanol", "perovskite_pbesol"])
def test_real_data_pass(name):
    assert validate_systems(open_dataset(SHARED_DATA / name), n_frames=40) >= 35
