"""The smallest sweep: the mean potential energy at several temperatures, and its slope, the heat capacity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt

from dpsim.analysis.report import Result, Section, Table
from dpsim.analysis.statistics import mean_with_error
from dpsim.config import Temperature
from dpsim.engines.output import read_thermo
from dpsim.protocols.context import AnalysisOutput
from dpsim.protocols.stages import NvtStage
from dpsim.protocols.sweep import FinishedPoint, Point, Sweep


class Ladder(Sweep):
    """A run at each temperature."""

    protocol: Literal["ladder"]
    temperatures: tuple[Temperature, ...] = Field(min_length=2, description="at least two")
    replicas: PositiveInt = Field(1, description="independent runs at each temperature")
    stage: NvtStage = Field(description="simulated at each temperature; its own temperature is replaced")

    def points(self) -> list[Point]:
        points = []
        for temperature in self.temperatures:
            for replica in range(1, self.replicas + 1):
                key = f"{temperature:g}K.{replica}"
                stage = self.stage.model_copy(update={"temperature": temperature, "name": "nvt"})
                labels = {"temperature_K": temperature, "replica": replica}
                points.append(Point(key, self.md(key, [stage]), labels))
        return points

    def conclude(self, points: Sequence[FinishedPoint], figures: Path) -> AnalysisOutput:
        rows = []
        for point in points:
            energy = mean_with_error(read_thermo(point.stages["nvt"].thermo)["potential_energy_eV"])
            rows.append((point.labels["temperature_K"], energy.value, energy.error))
        slope = float(np.polyfit(*np.array(rows).T[:2], 1)[0]) if len({row[0] for row in rows}) > 1 else None
        output = AnalysisOutput(
            [Result("heat_capacity", "Heat capacity without the kinetic part", slope, None, "eV/K")]
        )
        output.sections.append(Section("Energies", table=Table(("T (K)", "U (eV)", "error"), rows)))
        return output
