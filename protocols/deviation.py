"""`deviation:` of a protocol: a committee watches every stage of dynamics, and the report says how far it disagreed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dpsim.analysis.report import Figure, Result, Section, Table, Verdict
from dpsim.analysis.statistics import format_value, mean_with_error
from dpsim.engines.base import StageSettings
from dpsim.engines.deviation_observer import DEVIATION, HARVEST, DeviationObserver, Harvest, read_deviation
from dpsim.protocols.context import AnalysisOutput, RunContext, StageRecord
from dpsim.protocols.schema import Deviation, Protocol
from dpsim.protocols.schema import Harvest as HarvestConfig

_UNIT = "eV/A"
_WORST = "max_devi_f_eV_per_A"
_MIN_SAMPLES = 10


def make_committee(protocol: Protocol) -> Any:
    """The ASE calculator of all the models whose deviation is logged: their own copies, None if none is."""
    from dpsim.calculators.committee import CommitteeCalculator

    if not protocol.committee:
        return None
    return CommitteeCalculator(
        protocol.committee, precision=protocol.precision, device=protocol.device, fparam=protocol.fparam
    )


def observer_of(protocol: Protocol, committee: Any, name: str, stage: StageSettings) -> tuple[DeviationObserver, ...]:
    """What watches this stage: nothing where no deviation is asked for, or the stage is no dynamics."""
    wanted = protocol.deviation
    if wanted is None or stage.kind == "minimise":
        return ()
    harvest = None if wanted.harvest is None else Harvest(wanted.harvest.trust, wanted.harvest.max_frames)
    every = max(1, round(wanted.every / stage.timestep_fs))
    return (DeviationObserver(committee, name, every, stage.timestep_fs, wanted.stop_above, harvest),)


def deviation_output(context: RunContext) -> AnalysisOutput:
    """Numbers, figures and a table of what every stage's observer has written."""
    wanted = context.protocol.deviation
    output = AnalysisOutput()
    if wanted is None:
        return output
    figures, rows = [], []
    for stage in context.stages.values():
        if stage.settings.kind == "minimise" or not (stage.directory / DEVIATION).exists():
            continue
        found = read_deviation(stage.directory / DEVIATION)
        if not len(found[_WORST]):  # the stage failed before
            continue
        output.results.extend(_results(stage, found[_WORST], wanted))
        rows.append(_row(stage, found[_WORST], wanted))
        if np.isfinite(found[_WORST]).sum() > 1:
            figures.append(_figure(stage, found, wanted, context.figures))
    header = ["stage", "evaluations", "mean of max_devi_f (eV/Å)", "largest (eV/Å)"]
    if wanted.harvest is not None:
        header += ["below trust", "between", "above", "harvested"]
    output.sections.append(Section("Model deviation", _text(context.protocol), figures, Table(header, rows)))
    return output


def _results(stage: StageRecord, worst: np.ndarray, wanted: Deviation) -> list[Result]:
    limit = wanted.stop_above
    verdict: Verdict = "INFO" if limit is None else "PASS" if worst.max() <= limit else "FAIL"
    mean, error = _mean(worst)
    results = [
        Result(
            f"{stage.name}.max_devi_f", "Largest model deviation of a force", float(worst.max()), None, _UNIT, limit,
            verdict, stage.result.ended_early or "Of all atoms and all evaluations.",
        ),
        Result(f"{stage.name}.mean_max_devi_f", "Mean of the largest deviation", mean, error, _UNIT),
    ]  # fmt: skip
    if wanted.harvest is not None:
        count = _kept(worst, wanted.harvest)
        text = f"Structures with {_levels(wanted.harvest.trust)}, in {HARVEST} of the stage."
        results.append(Result(f"{stage.name}.harvested", "Harvested structures", count, explanation=text))
    return results


def _kept(worst: np.ndarray, harvest: HarvestConfig) -> int:
    """Frames in the harvest of a stage: the first that fit."""
    between = (worst >= harvest.trust[0]) & (worst < harvest.trust[1])
    return min(int(between.sum()), harvest.max_frames)


def _row(stage: StageRecord, worst: np.ndarray, wanted: Deviation) -> list[str | float | int | None]:
    row: list[str | float | int | None] = [stage.name, len(worst), format_value(*_mean(worst)), f"{worst.max():.3g}"]
    if wanted.harvest is not None:
        low, high = wanted.harvest.trust
        parts = [worst < low, (worst >= low) & (worst < high), worst >= high]
        row += [*(f"{100.0 * part.mean():.1f} %" for part in parts), _kept(worst, wanted.harvest)]
    return row


def _mean(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error, NaN where there are too few to tell, or an infinite one."""
    if len(values) < _MIN_SAMPLES or not np.isfinite(values).all():
        return float(values.mean()), float("nan")
    estimate = mean_with_error(values)
    return estimate.value, estimate.error


def _figure(stage: StageRecord, found: dict[str, np.ndarray], wanted: Deviation, folder: Path) -> Figure:
    from dpsim.analysis.figures import plot_deviation

    levels = [] if wanted.harvest is None else [("trust", level) for level in wanted.harvest.trust]
    if wanted.stop_above is not None:
        levels.append(("stop", wanted.stop_above))
    finite = np.isfinite(found[_WORST])
    series = {what: found[f"{what}_devi_f_eV_per_A"][finite] for what in ("max", "avg", "min")}
    path = plot_deviation(folder / f"{stage.name}_deviation.png", found["time_ps"][finite], series, levels)
    ended = f" Ended: {stage.result.ended_early}." if stage.result.ended_early else ""
    return Figure(path, f"Stage {stage.name}: model deviation of the forces over the atoms.{ended}")


def _text(protocol: Protocol) -> str:
    assert protocol.deviation is not None
    names = [f"`{Path(name).name}`" for name in protocol.committee]
    drives = "the mean of " + ", ".join(names[: len(protocol.models)]) if len(protocol.models) > 1 else names[0]
    return (
        f"The committee is {', '.join(names)}; {drives} moves the atoms. Every {protocol.deviation.every:g} fs: "
        "devi_f of an atom is sqrt(<|F - <F>|²>), averages over the models. Where it is large the models know too "
        "little; where it is small they may still all be wrong."
    )


def _levels(trust: tuple[float, float]) -> str:
    return f"{trust[0]:g} <= max_devi_f < {trust[1]:g} {_UNIT}"
