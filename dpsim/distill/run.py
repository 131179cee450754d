"""What every piece of a distillation has at hand: its configuration, its folder, what is done, who watches.

`Run.once` and `Run.units` are how anything is done: found done if the ledger has it, else done and entered.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dpsim.analysis.report import Verdict
from dpsim.distill.config import DistillConfig
from dpsim.distill.ledger import Ledger
from dpsim.distill.progress import Display
from dpsim.distill.select import Counts
from dpsim.files import atomic_write
from dpsim.workers import RESULT, Outcome, Unit, run_units

CONFIG = "distill.yaml"


class Interrupted(Exception):
    """Asked to stop; everything is saved."""


@dataclass(frozen=True)
class RoundRecord:
    """What became of a round: who drove it, whether there was a student to judge, frames by condition, labels asked
    for, frames added to train on and to validate with.
    """

    number: int
    driver: str
    judged: bool
    counts: dict[str, Counts]
    asked: int
    train: int
    validation: int

    @property
    def accurate(self) -> float:
        """The smallest fraction of accurate frames of any condition."""
        return min(c.fraction_accurate for c in self.counts.values())

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"accurate": self.accurate}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RoundRecord:
        counts = {name: Counts(**c) for name, c in data["counts"].items()}
        return cls(**{k: v for k, v in data.items() if k != "accurate"} | {"counts": counts})


@dataclass(frozen=True)
class DistillOutcome:
    """How a distillation ended: finished, stopped with everything saved, or waiting for labels from outside.

    model: the student to use; verdict: of the acceptance test, None where there was none.
    """

    state: Literal["finished", "stopped", "waiting"]
    message: str
    directory: Path
    model: Path | None = None
    verdict: Verdict | None = None
    report: Path | None = None


@dataclass(frozen=True)
class Run:
    """What every piece needs: what to do, where, what is done already, who watches."""

    config: DistillConfig
    folder: Path
    ledger: Ledger
    display: Display

    def round_folder(self, round_: int) -> Path:
        return self.folder / "rounds" / f"{round_:02d}"

    def once(self, unit: str, result: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The JSON in the file `result`: as it is if the ledger has the unit, else what `make` returns, kept there."""
        if self.ledger.entry(unit) is not None:
            return json.loads(result.read_bytes())
        content = make()
        atomic_write(result, (json.dumps(content, indent=1) + "\n").encode())
        self.ledger.add(unit, result)
        return content

    def units(self, stage: str, function: Callable[..., Any], units: Sequence[Unit]) -> list[Outcome]:
        """Outcomes in the order of the units, each in the ledger. Raises DpsimError for a full disk."""
        outcomes: dict[str, Outcome] = {}
        with self.display.bar(stage, len(units)) as advance:
            for outcome in run_units(function, units, self.config.workers):
                outcomes[outcome.unit.key] = outcome
                if "No space left" in outcome.error:
                    raise OSError(errno.ENOSPC, outcome.error)
                if outcome.failed:
                    self.display.say(f"{outcome.unit.key}: {outcome.error}")
                elif outcome.unit.key not in self.ledger:
                    self.ledger.add(outcome.unit.key, outcome.unit.folder / RESULT)
                advance()
        return [outcomes[unit.key] for unit in units]
