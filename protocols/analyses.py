"""The analyses of molecular dynamics, as a protocol file says them. What each does is in the file of its name.

A new one: its keys here, in the union `Analysis`; its function in a file of its own, named in
`dpsim/protocols/analysis_table.py`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from dpsim.config import Density, Diffusivity, EnergyDrift, FilePath, Frequency, Length, StrictModel, Time, Viscosity

DYNAMICS = ("nve", "nvt", "npt")


class AnalysisBase(StrictModel):
    """What every analysis has: the stages that it looks at."""

    stage_types: ClassVar[tuple[str, ...]] = DYNAMICS  # on which it can be made
    pools: ClassVar[bool] = True  # several stages count as independent runs of one system

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
    pools: ClassVar[bool] = False

    type: Literal["nve_check"]
    stage: str | None = Field(None, description="name of the nve stage; default: the last one")
    threshold: EnergyDrift = Field(0.1, gt=0.0, description="largest acceptable drift, in either direction")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="the whole confidence interval must be acceptable")
    timesteps: tuple[Annotated[Time, Field(gt=0.0)], ...] | None = Field(
        None,
        description="compared by short runs; default: half, one and two times the stage's time step; [] for none",
    )
    scan_duration: Time = Field(100.0, gt=0.0, description="length of each of these short runs")
    diagnosis: bool = Field(True, description="without a PASS, find the cause by re-running from the same start")
    diagnosis_duration: Time = Field(1000.0, gt=0.0, description="longest re-run for the diagnosis")

    def named_stages(self) -> tuple[str, ...]:
        return (self.stage,) if self.stage else ()


class RdfCriteria(StrictModel):
    """What agreement with the reference means."""

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


class Sampling(AnalysisBase):
    """Which part of the run counts: what comes before equilibrium does not, and is found unless told."""

    stages: tuple[str, ...] | None = Field(None, description="names of stages; default: the last that suits")
    skip: Time | None = Field(None, ge=0.0, description="left out at the start of each stage; default: found")


class AdfAnalysis(Sampling):
    """Distributions of the angles that neighbours make at an atom, compared with a reference if there is one."""

    type: Literal["adf"]
    triplets: tuple[str, ...] = Field(min_length=1, description="elements, the central one in the middle: [O-O-O]")
    shell: PositiveInt = Field(1, description="neighbours between this minimum of g(r) and the one before, or zero")
    cutoffs: dict[str, Length] = Field({}, description="instead of `shell`: the largest distance, {O-O: 3.4 A}")
    bins: int = Field(90, ge=6, le=720, description="from 0 to 180 degrees")
    blocks: int = Field(10, ge=4, description="blocks of the trajectory for the error bars")
    reference: FilePath | None = Field(None, description="npz or csv with angle_deg, adf_OOO_3.4A, ...")
    difference: float = Field(0.1, gt=0.0, description="largest sum |P - P_ref| / sum P_ref")

    @field_validator("triplets")
    @classmethod
    def _are_triplets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for triplet in value:
            if not re.fullmatch(r"[A-Z][a-z]?(-[A-Z][a-z]?){2}", triplet):
                raise ValueError(f"`triplets` has '{triplet}'; expected three elements such as 'O-O-O'. Correct it.")
        return value

    @model_validator(mode="after")
    def _cutoffs_are_of_arms(self) -> AdfAnalysis:
        arms = {frozenset((b, e)) for a, b, c in (t.split("-") for t in self.triplets) for e in (a, c)}
        for pair, length in self.cutoffs.items():
            if frozenset(pair.split("-")) not in arms or length <= 0.0:
                raise ValueError(
                    f"`cutoffs` has {pair}: {length:g} A; expected a positive distance from the central element of one "
                    f"of the triplets {list(self.triplets)} to an outer one. Correct it."
                )
        return self


class AveragesAnalysis(Sampling):
    """Mean temperature, potential energy and pressure."""

    type: Literal["averages"]


class DensityAnalysis(Sampling):
    """The mean density at constant pressure."""

    stage_types: ClassVar[tuple[str, ...]] = ("npt",)

    type: Literal["density"]
    reference: Density | None = Field(None, gt=0.0, description="what it should be")
    tolerance: float = Field(0.01, gt=0.0, description="largest relative difference from it")


class DiffusionReference(StrictModel):
    """What D should be."""

    species: str = Field(description="element")
    value: Diffusivity = Field(gt=0.0)
    factor: float = Field(1.5, gt=1.0, description="D lies between value / factor and value * factor")


class DiffusionAnalysis(Sampling):
    """Self-diffusion of each element from the mean squared displacement, where it is diffusive."""

    type: Literal["diffusion"]
    species: Literal["all"] | tuple[str, ...] = Field("all", description="elements such as [Li]")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="of the interval that is judged")
    viscosity: Viscosity | None = Field(None, gt=0.0, description="of the liquid: corrects for the size of the cell")
    references: tuple[DiffusionReference, ...] = ()


class VdosAnalysis(Sampling):
    """Velocity autocorrelation of each element and its spectrum, the vibrational density of states."""

    type: Literal["vdos"]
    resolution: Frequency = Field(1.0, gt=0.0, description="full width at half maximum of what a sharp line becomes")
    blocks: int = Field(5, ge=4, description="blocks of each stage for the error bars")
    reference: FilePath | None = Field(None, description="npz or csv with frequency_THz, vdos_O, ...")
    difference: float = Field(0.1, gt=0.0, description="largest sum |g - g_ref| / sum g_ref")


Analysis = Annotated[
    NveCheck | RdfAnalysis | AdfAnalysis | AveragesAnalysis | DensityAnalysis | DiffusionAnalysis | VdosAnalysis,
    Field(discriminator="type"),
]
