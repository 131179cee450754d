"""The folder of a run: one process at a time works in it, and the results lie in it."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpsim.analysis.report import Verdict, overall_verdict, write_report, write_results_json
from dpsim.errors import DpsimError
from dpsim.protocols.context import AnalysisOutput

PROTOCOL, RESULTS = "protocol.yaml", "results.json"


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended. `stopped`: by request, everything saved; then there is no report yet and `verdict` is None.

    failure: of a stage that failed without an analysis that judges failures: what it said, when and where.
    """

    directory: Path
    verdict: Verdict | None
    report: Path | None
    results: Path | None
    stopped: bool
    message: str
    failure: str = ""


def stopped_outcome(directory: Path, say: Callable[[str], None]) -> RunOutcome:
    """Of a run that somebody asked to stop."""
    message = f"Stopped; everything is saved in {directory}. The same command continues."
    say(message)
    return RunOutcome(directory, None, None, None, True, message)


def conclude_run(
    directory: Path,
    title: str,
    output: AnalysisOutput,
    origin: Mapping[str, Any],
    facts: Mapping[str, str],
    say: Callable[[str], None],
) -> RunOutcome:
    """Write results.json and report.html of a finished run.

    Args: output: everything found; origin: `provenance`; facts: key figures under the title.
    """
    results = write_results_json(
        directory / RESULTS, output.results, origin, title=title, warnings=output.warnings, curves=output.curves
    )
    report = write_report(
        directory, title, output.results, output.sections, origin, facts=facts, warnings=output.warnings
    )
    verdict = overall_verdict(output.results)
    message = f"{verdict}: {report}"
    say(message)
    return RunOutcome(directory, verdict, report, results, False, message)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One process per directory; the lock dies with its process, however it dies."""
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DpsimError(
                f"`{directory}` is in use by another dpsim run; expected one at a time. "
                "Wait for it, or use --directory."
            ) from error
        yield
