"""A sweep: a protocol made of ordinary runs, its points, that differ in temperature, pressure, replica, model ...

A subclass of `Sweep` says what the points are and what follows from them:

    points() -> [Point, ...]               each a `Protocol` of molecular dynamics; make them with `self.md`
    conclude(points) -> AnalysisOutput     the numbers, figures and warnings, from the points that have finished

Each point is a unit of work (dpsim/workers.py) in `points/<key>/`, an ordinary run folder with a report of its own, and
has a seed of its own, derived from the sweep's and its key. A point that fails does not stop the others; the same command
runs only what is missing, and continues what was begun.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from dpsim.analysis.report import Result, Section, Table, read_results_json
from dpsim.config import dump_yaml, validate
from dpsim.errors import ConfigError
from dpsim.files import atomic_write
from dpsim.protocols.context import AnalysisOutput, CalculatorFor, StageRecord
from dpsim.protocols.plan import Plan, Step
from dpsim.protocols.progress import ProgressDisplay, ProgressFile, watching
from dpsim.protocols.provenance import origin_of
from dpsim.protocols.rundir import (
    PROTOCOL,
    RESULTS,
    RunOutcome,
    conclude_run,
    interrupted_by_signals,
    locked,
    stopped_outcome,
)
from dpsim.protocols.runner import (
    Checked,
    check_protocol as check_run,
    default_calculator,
    identity_of,
    plan_protocol as plan_run,
    require_continuable,
    run_protocol as run_one,
    stage_records,
)
from dpsim.protocols.schema import Protocol, ProtocolHead
from dpsim.workers import RESULT, Outcome, Unit, WorkersConfig, run_units

POINTS = "points"


@dataclass(frozen=True)
class Point:
    """One run of a sweep. labels: what distinguishes it, plain data, e.g. {"temperature_K": 300.0, "replica": 1}."""

    key: str
    protocol: Protocol
    labels: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FinishedPoint:
    """A point whose run is done: its folder, the numbers of its results.json by name, and its stages."""

    point: Point
    directory: Path
    results: Mapping[str, Result]
    stages: Mapping[str, StageRecord]

    @property
    def key(self) -> str:
        return self.point.key

    @property
    def labels(self) -> Mapping[str, Any]:
        return self.point.labels


class Sweep(ProtocolHead, ABC):
    """What every sweep has besides."""

    workers: WorkersConfig = Field(WorkersConfig(), description="who works on the points: docs/workers.md")

    @abstractmethod
    def points(self) -> list[Point]:
        """The runs. Raises ConfigError."""

    @abstractmethod
    def conclude(self, points: Sequence[FinishedPoint], figures: Path) -> AnalysisOutput:
        """What follows from the points that have finished, at least one, in the order of `points()`.

        Args: figures: the folder for figures.
        """

    def md(self, key: str, stages: Sequence[Any], analyses: Sequence[Any] = (), /, **changes: Any) -> Protocol:
        """Molecular dynamics with this sweep's model, structure and engine, and a seed of its own.

        Args:
            key: of the point; letters, digits, `_`, `.`, `-`.
            stages, analyses: configurations, or plain data as in YAML.
            changes: other keys of the protocol that are not the sweep's, e.g. model="other.dpsim".
        """
        head = {name: getattr(self, name) for name in ProtocolHead.model_fields}
        plain = validate({"name": key, "stages": _plain(stages), "analyses": _plain(analyses)} | changes, _Stages)
        own = {"name": key, "seed": derived_seed(self.seed, key)}
        return Protocol.model_validate(plain)
