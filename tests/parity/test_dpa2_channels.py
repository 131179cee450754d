"""Every channel of DPA-2 gives DeePMD-kit's numbers; see dpa2_channels.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
from dpa2_channels import CHANNELS, PATH, TYPE_MAP, frame, model_input, weights

from dpsim.data.frame import Batch, Frame
from dpsim.models.deepmd import binding
from dpsim.models.deepmd.model import kind_of
from dpsim.models.energy_model import EnergyModel

NUMBERS = json.loads(PATH.read_text())


def model_of(name: str) -> EnergyModel:
    """The model of an input, its weights from the formula."""
    kind = kind_of("standard")
    model = kind.build(kind.read(kind.from_input(model_input(name))))
    table = kind.bindings(model)
    found = {leaf.path: weights(leaf.path, leaf.value.shape) for leaf in binding.leaves(table)}
    binding.fill(table, found, "path")
    return model


@pytest.mark.parametrize("name", CHANNELS)
def test_channels(name: str) -> None:
    model, expected, f = model_of(name), NUMBERS[name], frame()
    structure = Frame(f["coord"], f["type"], tuple(TYPE_MAP), f["cell"], np.ones(3, bool))
    p = model(Batch.from_frames([structure], model.rcut))
    for key, ours in {"atom_energy": p.atom_energy, "force": p.forces, "virial": p.virial}.items():
        np.testing.assert_allclose(ours.ravel(), expected[key], rtol=1e-10, atol=1e-12)
