"""The model deviation while a stage runs: logged, structures harvested, the stage ended where the models part.

deviation.csv has a row for every look: step, time_ps, and the statistics of `dpsim.calculators.deviation` in the order
of DeePMD-kit's model_devi.out; where a model of the committee gives no finite number, max_devi_f is inf. harvest.extxyz
has the structures whose max_devi_f lies between the trust levels: not so small that the models know them, not so large
that they are nonsense.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpsim.calculators.deviation import columns, row
from dpsim.engines.ase_engine import atoms_from_state
from dpsim.engines.base import Array, Remembers, State
from dpsim.engines.observer import Record
from dpsim.engines.output import Log, read_columns
from dpsim.errors import MissingDependencyError, SimulationError

try:
    from ase import Atoms
    from ase.io import write
except ImportError as error:
    raise MissingDependencyError("ase", "ase", "Every engine") from error

DEVIATION, HARVEST = "deviation.csv", "harvest.extxyz"
COLUMNS = ("step", "time_ps", *columns())


@dataclass(frozen=True)
class Harvest:
    """Keep the structures with trust[0] <= max_devi_f < trust[1] (eV/A), the first max_frames of them."""

    trust: tuple[float, float]
    max_frames: int

    def wants(self, max_devi_f: float) -> bool:
        """Whether the deviation lies between the trust levels."""
        return self.trust[0] <= max_devi_f < self.trust[1]


class DeviationObserver:
    """Watches one stage.

    Args:
        committee: an ASE calculator that gives the model deviation, as CommitteeCalculator does. It is this observer's
            own: its memory is cleared before every look, so that rounding depends on the present structure alone.
        stage: its name, for the harvested frames. every: steps between two looks. timestep_fs: of the stage.
        stop_above: eV/A; a larger max_devi_f ends the stage. harvest: what to keep; None: nothing.
    """

    name = "deviation"

    def __init__(
        self,
        committee: Any,
        stage: str,
        every: int,
        timestep_fs: float,
        stop_above: float | None = None,
        harvest: Harvest | None = None,
    ):
        self.every = every
        self._committee, self._stage, self._timestep_ps = committee, stage, 1e-3 * timestep_fs
        self._stop_above, self._harvest = stop_above, harvest
        self._kept = 0

    def open(self, directory: Path, record: Record | None) -> None:
        """As documented in Recorder."""
        known = record or {"deviation": None, "harvest": None, "kept": 0}
        self._kept = known["kept"]
        self._log = Log(directory / DEVIATION, known["deviation"], ",".join(COLUMNS) + "\n")
        self._frames = None if self._harvest is None else Log(directory / HARVEST, known["harvest"])

    def record(self) -> Record:
        """As documented in Recorder."""
        harvested = None if self._frames is None else self._frames.sync()
        return {"deviation": self._log.sync(), "harvest": harvested, "kept": self._kept}

    def close(self) -> None:
        """As documented in Recorder."""
        self._log.close()
        if self._frames is not None:
            self._frames.close()

    def observe(self, step: int, state: State) -> str | None:
        """Write what is due, and say whether the models have parted."""
        atoms = atoms_from_state(state)
        found = self._deviation(atoms)
        time_ps = step * self._timestep_ps
        self._log.write(",".join([str(step), *(repr(x) for x in (time_ps, *row(found)))]) + "\n")
        worst = found["max_devi_f"]
        harvest = self._harvest
        if harvest is not None and self._kept < harvest.max_frames and harvest.wants(worst):
            low, high = harvest.trust
            reason = f"max_devi_f {worst:.4g} eV/A is between the trust levels {low:g} and {high:g} eV/A"
            self._keep(atoms, found["devi_f"], step=step, time_ps=time_ps, max_devi_f=worst, reason=reason)
        if self._stop_above is not None and not worst <= self._stop_above:
            return f"max_devi_f is {worst:.4g} eV/A at step {step}, above {self._stop_above:g} eV/A"
        return None

    def _deviation(self, atoms: Atoms) -> dict[str, Any]:
        if isinstance(self._committee, Remembers):
            self._committee.recall({})
        try:
            self._committee.get_property("max_devi_f", atoms)
        except SimulationError:  # a member gives no number: models cannot part further
            return {"max_devi_f": float("inf")}
        return dict(self._committee.results)

    def _keep(self, atoms: Atoms, devi_f: Array, **info: Any) -> None:
        """Add a frame to harvest.extxyz: unwrapped positions, momenta, and devi_f of each atom (eV/A)."""
        assert self._frames is not None
        frame = atoms.copy()
        frame.arrays["devi_f"] = np.array(devi_f)
        frame.info.update(info, stage=self._stage)
        text = io.StringIO()
        write(text, frame, format="extxyz")
        self._frames.write(text.getvalue())
        self._kept += 1


def read_deviation(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The columns of a deviation.csv; a last line that is still being written is left out. Raises DataError."""
    return read_columns(path, COLUMNS)
