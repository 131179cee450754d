"""The PES file of i-PI: a Deep Potential inside i-PI or its Python driver, beads in one batch.

i-pi-py_driver -u -a NAME -m custom -P $(dpsim ipi-driver --pes-path) -o template=init.xyz,model=water-pbe0ts

<ffdirect name="dpsim"> <pes> custom </pes> <pes_path> $(dpsim ipi-driver --pes-path) </pes_path>
  <parameters> {template: init.xyz, model: water-pbe0ts} </parameters> <batch_size> 16 </batch_size> </ffdirect>
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ipi.pes.dummy import Dummy_driver

from dpsim.calculators.ipi_driver import Answer, Array, BeadPotential, read_template

__DRIVER_NAME__ = "dpsim"
__DRIVER_CLASS__ = "DpsimDriver"


class DpsimDriver(Dummy_driver):
    """i-PI's interface to `BeadPotential`.

    Args:
        template: structure file with the atoms of i-PI's input, in its order.
        model, precision, device: as for BeadPotential.
    """

    def __init__(
        self,
        template: str,
        model: str = "water-pbe0ts",
        precision: str | None = None,
        device: str = "cpu",
        **kwargs: Any,
    ):
        self._potential = BeadPotential(read_template(template), model, precision, device)  # type: ignore[arg-type]
        super().__init__(**kwargs)

    def compute_structure(self, cell: Array, pos: Array) -> tuple[float, Array, Array, str]:
        """One bead: energy, forces, virial, and no extras."""
        return self._with_extras(self._potential.compute([cell], [pos])[0])

    def compute(self, cell: Any, pos: Any) -> Any:
        """One bead, or lists of all of them."""
        if not isinstance(cell, list):
            return self.compute_structure(np.asarray(cell), np.asarray(pos))
        return [self._with_extras(answer) for answer in self._potential.compute(cell, pos)]

    @staticmethod
    def _with_extras(answer: Answer) -> tuple[float, Array, Array, str]:
        return *answer, ""
