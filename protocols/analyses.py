"""The analyses of molecular dynamics, as a protocol file says them. What each does is in the file of its name.

A new one: its keys here, in the union `Analysis`; its function in a file of its own, named in
`dpsim/protocols/analysis_table.py`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator

from dpsim.config import EnergyDrift, FilePath, Length, StrictModel, Time

DYNAMICS = ("nve", "nvt", "npt")


class AnalysisBase(StrictModel):
    """What every analysis has: the stages that it looks at."""

    stage_types: ClassVar[tuple[str, ...]] = DYNAMICS  # on which it can be made

    def named_stages(self) -> tuple[str, ...]:
        """Those that the file names, () where it leaves the choice to the analysis."""
        stages: tuple[str, ...] | None = getattr(self, "stages", None)
        return stages or ()


class NveCheck(AnalysisBase):
    """Is the total energy conserved? Judges the drift of an nve stage and, if it fails, finds what is at fault.

    The default threshold, 0.1 meV/atom/ps, heats a condensed phase (3 k_B per atom) by 0.4 K/ps: a thermostat with a
    relaxation time of 1 ps then settles 0.4 K off its target, 0.1 % at room temperature.
    """

    stage_types: ClassVar[tuple[str, ...]] = ("nve",)

    type: Literal["nve_check"]
    stage: str | None = Field(None, description="name of the nve stage; default: the last one")
    threshold: EnergyDrift = Field(0.1, gt=0.0, description="largest acceptable drift, in either direction")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="the whole confidence interval must be acceptable")
    timesteps: tuple[Annotated[Time, Field(gt=0.0)], ...] | None = Field(
        None,
        description="compared by short runs; default: half, one and two times the stage's time step; [] for none",
    )
    scan_duration: Time = Field(100.0, gt=0.0, description="length of each of these short runs")
    diagnosis: bool = Field(True, description="after a failure, find the cause by re-running from the same start")
    diagnosis_duration: Time = Field(1000.0, gt=0.0, description="longest re-run for the diagnosis")

    def named_stages(self) -> tuple[str, ...]:
        return (self.stage,) if self.stage else ()


class RdfCriteria(StrictModel):
    """What agreement with the reference means. Differences within their own error bars never fail."""

    r_factor: float = Field(0.1, gt=0.0, description="largest sum |g - g_ref| / sum |g_ref|")
    peak_position: Length = Field(0.05, gt=0.0, description="largest shift of the first peak")
    peak_height: float = Field(0.1, gt=0.0, description="largest relative difference of the first peak's height")


class RdfAnalysis(AnalysisBase):
    """Radial distribution functions with error bars, compared with a reference if there is one."""

    type: Literal["rdf"]
    stages: tuple[str, ...] | None = Field(None, description="names of stages; default: the last dynamics stage")
    pairs: Literal["all"] | tuple[str, ...] = Field("all", description='element pairs such as ["O-O", "O-H"]')
    r_max: Length | None = Field(None, gt=0.0, description="default: half the smallest height of the cell")
    bins: PositiveInt | None = Field(None, description="default: bins of 0.05 A")
    blocks: int = Field(10, ge=4, description="blocks of the trajectory for the error bars")
    skip: Time = Field(0.0, ge=0.0, description="time to leave out at the start of each stage")
    reference: FilePath | None = Field(None, description="npz or csv with r (A), gOO, gOH, ...")
    criteria: RdfCriteria = RdfCriteria()

    @field_validator("pairs")
    @classmethod
    def _are_pairs(cls, value: Any) -> Any:
        for pair in () if value == "all" else value:
            if not re.fullmatch(r"[A-Z][a-z]?-[A-Z][a-z]?", pair):
                raise ValueError(f"`pairs` has '{pair}'; expected two elements such as 'O-H'. Correct the pair.")
        return value


Analysis = Annotated[NveCheck | RdfAnalysis, Field(discriminator="type")]
