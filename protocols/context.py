"""What an analysis of a protocol is handed, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dpsim.analysis.report import Curve, Result, Section
from dpsim.engines.base import Engine, RunControl, StageFailed, StageResult, StageSettings
from dpsim.engines.output import THERMO, TOPOLOGY, TRAJECTORY
from dpsim.protocols.schema import Protocol, ProtocolHead

Precision = Literal["float32", "float64"]
CalculatorFor = Callable[[ProtocolHead, Precision | None], Any]
"""(protocol, precision or None for the protocol's) -> the calculator that the protocol's engine wants."""


@dataclass(frozen=True)
class StageRecord:
    """A finished stage; or one that failed, whose result is that of its last checkpoint."""

    name: str
    directory: Path
    settings: StageSettings
    result: StageResult
    failure: StageFailed | None = None

    @property
    def error(self) -> str | None:
        """What a stage that failed said."""
        return None if self.failure is None else str(self.failure)

    @property
    def thermo(self) -> Path:
        return self.directory / THERMO

    @property
    def topology(self) -> Path:
        return self.directory / TOPOLOGY

    @property
    def trajectory(self) -> Path:
        return self.directory / TRAJECTORY


@dataclass(frozen=True)
class AnalysisContext:
    """Stages that are done, and the folder where analyses of them write."""

    directory: Path
    stages: dict[str, StageRecord]

    @property
    def figures(self) -> Path:
        """Where figures go."""
        return self.directory / "figures"


@dataclass(frozen=True)
class RunContext(AnalysisContext):
    """Those of a run, and all that is needed to run parts of it again."""

    protocol: Protocol
    engine: Engine
    calculator: Any
    calculator_for: CalculatorFor
    control: RunControl
    say: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class AnalysisOutput:
    """Numbers with verdicts, sections of the report, what a reader must know before trusting them, and curves."""

    results: list[Result] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)


class Stopped(Exception):
    """The user asked to stop; everything is saved."""
