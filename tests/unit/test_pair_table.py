"""Tables of pair potentials: their numbers, their files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpsim.data.frame import Batch, Frame
from dpsim.errors import ConfigError, DataError, ModelFileError, SimulationError, UnsupportedModelError
from dpsim.models import container
from dpsim.models.checkpoint import load_model, load_trainable, save_model
from dpsim.models.config import FittingConfig, ModelConfig
from dpsim.models.energy_model import EnergyModel
from dpsim.models.pair_table import PairPotential, read_table, spline, zbl_table
from dpsim.models.pair_table_config import Grid, PairPotentialConfig, PairTableConfig
from dpsim.train.config import TrainConfig
from dpsim.train.progress import Silent
from dpsim.train.trainer import train

FIXTURES = Path(__file__).parents[2].parent / "shared" / "reference" / "deepmd"


def pair(r: float, types: tuple[int, int] = (0, 1)) -> Frame:
    x = np.array([[0.0, 0, 0], [r, 0, 0]])
    return Frame(x, np.array(types), ("O", "H"), np.zeros((3, 3)), np.zeros(3, bool))


def energy(model: Any, frame: Frame) -> float:
    return float(model(Batch.from_frames([frame], model.rcut)).energy[0])


def table_file(folder: Path, end: float = 4.0) -> Path:
    """u_00 = (4 - r)^3, u_01 twice, u_11 three times it, from 0.5 A on in steps of 0.05."""
    r = np.arange(0.5, end + 1e-9, 0.05)
    u = np.clip(4 - r, 0, None) ** 3
    np.savetxt(folder / "tab.txt", np.column_stack([r, u, 2 * u, 3 * u]))
    return folder / "tab.txt"


def model_of(**table: Any) -> EnergyModel:
    config = ModelConfig(
        type_map=["O", "H"],
        descriptor={"type": "se_e2_r", "rcut": 4.0, "sel": [8, 8], "neuron": [4, 8]},  # type: ignore[arg-type]
        fitting=FittingConfig(neuron=[8]),
        pair_table=PairTableConfig(**table),
    )
    return EnergyModel(config, seed=1)


def test_zbl_is_the_screened_coulomb_repulsion() -> None:
    """LAMMPS's numbers: `pair_style zbl`, outside its switch."""
    r, u = zbl_table(["O", "H"], inner=3.0, rcut=4.0)
    a = 0.46850 / (8**0.23 + 1)
    x = 1.0 / a
    phi = 0.18175 * np.exp(-3.1998 * x) + 0.50986 * np.exp(-0.94229 * x) + 0.28022 * np.exp(-0.4029 * x)
    phi += 0.02817 * np.exp(-0.20162 * x)
    at = np.argmin(np.abs(r - 1.0))
    assert r[at] == pytest.approx(1.0)
    assert u[at, 1] == pytest.approx(14.399645 * 8 * phi, rel=1e-6)  # pairs: OO, OH, HH
    assert not u[-1].any()
    model = PairPotential(PairPotentialConfig(type_map=["O", "H"], rcut=6.0))
    assert energy(model, pair(1.0)) == pytest.approx(14.399645 * 8 * phi, rel=1e-6)
    for t in ((0, 0), (1, 1), (1, 0)):
        assert energy(model, pair(1.0, t)) == pytest.approx(u[at, t[0] + t[1]], rel=1e-9)
    with pytest.raises(ConfigError, match=r"`type_map` has \['X_'\]; expected elements"):
        zbl_table(["X_"], 1.0, 4.0)


def test_spline_is_exact_for_cubics_and_close_for_others() -> None:
    r = np.linspace(0.5, 4.0, 71)
    grid, c = spline(r, np.column_stack([(4 - r) ** 3] * 3), 2)
    assert (grid.r_min, grid.n_intervals) == (0.5, 70)
    x = 0.3
    value = ((c[0, 1, 10, 0] * x + c[0, 1, 10, 1]) * x + c[0, 1, 10, 2]) * x + c[0, 1, 10, 3]
    assert value == pytest.approx((4 - (0.5 + 0.05 * 10.3)) ** 3, rel=1e-12)
    assert np.array_equal(c[0, 1], c[1, 0])


def test_a_file_and_then_no_file(tmp_path: Path) -> None:
    """The numbers of the table are in the model file."""
    path = table_file(tmp_path)
    model = model_of(table=path, sw_rmin=1.0, sw_rmax=1.5)
    assert energy(model, pair(0.8)) == pytest.approx(2 * 3.2**3, rel=1e-6)
    save_model(tmp_path / "m.dpsim", model)
    path.unlink()
    again = load_model(tmp_path / "m.dpsim")
    assert isinstance(again.config.pair_table.table, Grid)
    assert energy(again, pair(1.2)) == energy(model, pair(1.2))


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="no DeePMD-kit reference models")
def test_deepmd_tables_are_read_as_deepmd_does() -> None:
    """Its spline, but for the first intervals, where it takes the slope to be 0."""
    from dpsim.models.deepmd.files import read_deepmd

    r, u = read_table(FIXTURES / "tab_OH.txt", 2, 6.0)
    grid, ours = spline(r, u, 2)
    theirs = read_deepmd(FIXTURES / "pairtab" / "model.dp").members[0].table
    assert grid.n_intervals == theirs.grid.n_intervals
    assert grid.step == pytest.approx(theirs.grid.step, rel=1e-12)
    difference = np.abs(ours - theirs.coefficients.numpy())[:, :, 100:]
    assert (difference <= 1e-9 * np.abs(ours[:, :, 100:]).max(3, keepdims=True) + 1e-12).all()


@pytest.mark.parametrize(("end", "rcut"), [(4.0, 5.0), (3.0, 5.0), (3.0, 3.4)])
def test_tables_that_end_early_are_continued_to_zero(tmp_path: Path, end: float, rcut: float) -> None:
    r, u = read_table(table_file(tmp_path, end), 2, rcut)
    assert r[-1] >= rcut - 1e-9
    assert not u[-1].any()
    np.testing.assert_allclose(np.diff(r), 0.05, rtol=1e-9)
    model = PairPotential(PairPotentialConfig(type_map=["O", "H"], table=tmp_path / "tab.txt", rcut=rcut))
    slopes = [(energy(model, pair(x + 1e-5)) - energy(model, pair(x - 1e-5))) / 2e-5 for x in (end - 0.02, end + 0.02)]
    assert abs(slopes[0] - slopes[1]) < 0.1 * abs(slopes[0]) + 1e-2
    assert energy(model, pair(rcut - 1e-6)) == pytest.approx(0, abs=1e-6)


def test_tables_that_cannot_be_used(tmp_path: Path) -> None:
    path = table_file(tmp_path)
    with pytest.raises(DataError, match="has 71 rows of 4 numbers; expected 4 or more of 7"):
        read_table(path, 3, 4.0)
    with pytest.raises(DataError, match="is 3 eV at rcut = 3 A; expected 0"):
        read_table(path, 2, 3.0)
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path / "absent.txt", 2, 3.0)
    np.savetxt(path, [[1.0, 1.0], [1.1, 1.0], [1.3, 1.0], [1.4, 0.0]])
    with pytest.raises(DataError, match="in equal steps"):
        read_table(path, 1, 1.4)


def test_atoms_below_the_table_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match=r"two atoms are 0.4 A apart; the model's pair table begins at 0.5 A"):
        energy(model_of(table=table_file(tmp_path), sw_rmin=1.0, sw_rmax=1.5), pair(0.4))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sw_rmin": 2.0, "sw_rmax": 1.0}, "`sw_rmin` is 2.0; expected a number below `sw_rmax`"),
        ({"smin_alpha": 0.5}, "`sw_rmax` .* is 11; expected at most the cutoff, 4"),
        ({"rcut": 2.0}, "expected at most the cutoff, 2"),
    ],
)
def test_switches_that_cannot_be(settings: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        model_of(**settings)


def test_core_distances_beside_it() -> None:
    config = model_of().config.model_dump() | {"core_distances": [[1.0, 1.0], [1.0, 1.0]]}
    with pytest.raises(ValueError, match="`core_distances` is .* beside a `pair_table`; expected one of the two"):
        ModelConfig.model_validate(config)


def test_training_with_a_table(train_settings: dict[str, Any], tmp_path: Path) -> None:
    """The network learns where it counts, the table is not touched, the run can go on from its files."""
    model = train_settings["model"] | {"pair_table": {"table": "zbl", "sw_rmin": 0.8, "sw_rmax": 1.4}}
    settings = train_settings | {"model": model, "steps": 20}
    result = train(TrainConfig.model_validate(settings), tmp_path / "run", reporter=Silent())
    trained = load_trainable(result.model)
    fresh = PairPotential(PairPotentialConfig(type_map=["He", "Ne"], rcut=4.0))
    assert trained.pair_table.coefficients.shape == fresh.table.coefficients.shape
    again = train(
        TrainConfig.model_validate(settings | {"steps": 25, "init_from": str(result.model)}),
        tmp_path / "second",
        reporter=Silent(),
    )
    assert torch.equal(load_trainable(again.model).pair_table.coefficients, trained.pair_table.coefficients)


def test_hostile_files_name_no_paths(tmp_path: Path) -> None:
    """A model file whose config still names a table to read is refused."""
    model = model_of()
    save_model(tmp_path / "m.dpsim", model)
    header, tensors = container.read(tmp_path / "m.dpsim")
    header.pop("sha256")
    header["config"]["pair_table"]["table"] = str(tmp_path / "secret.txt")
    container.write(tmp_path / "m.dpsim", tensors, header)
    with pytest.raises(ModelFileError, match="contradicts itself"):
        load_model(tmp_path / "m.dpsim")


def test_students_have_none() -> None:
    from dpsim.distill.tabulate import sources

    with pytest.raises(UnsupportedModelError, match="the model has a pair table, which students lack"):
        sources(model_of())
