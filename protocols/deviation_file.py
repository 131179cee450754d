"""`dpsim deviation`: how far models disagree about the structures of a file, or about the trajectory of a run.

With labels, how far they are from these (`--label`). The formulas are in `dpsim.calculators.deviation`, the columns
those of DeePMD-kit's `dp model-devi`, in its order.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from dpsim.calculators.base import calculator_of
from dpsim.calculators.deviation import UNITS, check_relative, columns, row
from dpsim.calculators.members import Committee, deviation_of, members_of, open_models
from dpsim.calculators.selection import Precision
from dpsim.data.frame import Frame
from dpsim.data.readers import open_dataset
from dpsim.engines.base import Array
from dpsim.engines.output import START, TRAJECTORY, load_checkpoint
from dpsim.errors import ConfigError, DataError
from dpsim.files import atomic_write
from dpsim.trajectory import count_frames, read_frame

try:
    from ase.data import chemical_symbols
except ImportError as error:
    from dpsim.errors import MissingDependencyError

    raise MissingDependencyError("ase", "ase", "`dpsim deviation`") from error

if TYPE_CHECKING:
    from dpsim.calculators.members import ModelLike

Key = tuple[str | int | float, ...]


@dataclass(frozen=True)
class Deviations:
    """keys: what names each frame, under `headings`; values: (n_frames, n_statistics) under `names`, with units."""

    headings: tuple[str, ...]
    keys: list[Key]
    names: list[str]
    values: Array

    def as_csv(self) -> str:
        """The table; numbers in full precision, those that are missing are nan."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*self.headings, *self.names])
        for key, values in zip(self.keys, self.values, strict=True):
            writer.writerow([*key, *(repr(float(value)) for value in values)])
        return text.getvalue()


def deviation_file(
    models: Sequence[ModelLike],
    source: str | Path,
    output: str | Path | None = None,
    *,
    relative: float | None = None,
    relative_v: float | None = None,
    label: bool = False,
    precision: Precision | None = None,
    device: str = "cpu",
    console: Console | None = None,
) -> Deviations:
    """The model deviation of every frame of a data set, or of a stage of a run.

    Args:
        models: two or more; with `label` one will do.
        source: extxyz, DeePMD npy or HDF5; or the folder of a stage, or its trajectory.trr.
        output: the csv to write; None: none. relative, relative_v, label: as for `model_deviation`.
        console: where a summary is printed; None: nowhere.

    Raises: ConfigError, DataError, ElementError, ModelFileError; SimulationError for a frame that cannot be evaluated.
    """
    members = [m for named in models for m in members_of(named)]
    members = members_of(members)  # none twice
    if len(members) < 2 and not label:
        raise ConfigError(
            f"`models` is {', '.join(map(str, members))}; expected two or more. Name others, or compare one model with "
            "labels: --label."
        )
    check_relative(relative, relative_v)
    committee = Committee([calculator_of(m, device) for m in open_models(members, precision)])
    headings, frames = _open(Path(source), committee.type_map)
    keys, values, labelled = [], [], False
    named, streamed = itertools.tee(frames)
    for (key, frame), predictions in zip(named, committee.each(f for _, f in streamed), strict=True):
        found = deviation_of(predictions, relative, relative_v, frame if label else None)
        if not frame.pbc.any():
            found |= {name: np.nan for name in UNITS if "devi_v" in name}  # no strain to speak of
        labelled |= any(x is not None for x in (frame.energy, frame.forces, frame.virial))
        keys.append(key)
        values.append(row(found))
    if label and not labelled:
        raise DataError(f"`{source}` has no labels; expected energies, forces or virials. Leave --label out.")
    names = columns(relative is not None, relative_v is not None, errors=label)
    result = Deviations(headings, keys, names, np.array(values))
    if output is not None:
        atomic_write(output, result.as_csv().encode())
    if console is not None:
        console.print(table(result, str(source)))
    return result


def table(found: Deviations, source: str) -> Table:
    """Mean, 95th percentile and largest of each statistic, and the frame that it is of."""
    out = Table(title=f"{len(found.keys)} frames of {source}", title_justify="left")
    out.add_column("statistic", no_wrap=True)
    for heading in ("mean", "95 % below", "largest", f"at {', '.join(found.headings)}"):
        out.add_column(heading, justify="right", overflow="fold")
    for name, values in zip(found.names, found.values.T, strict=True):
        known = values[np.isfinite(values)]
        if len(known):
            numbers = (known.mean(), np.percentile(known, 95), known.max())
            where = found.keys[int(np.nanargmax(values))]
            out.add_row(name, *(f"{x:.4g}" for x in numbers), ", ".join(map(str, where)))
    return out


# ---- the frames ----------------------------------------------------------------------------------------------------


def _open(source: Path, type_map: tuple[str, ...]) -> tuple[tuple[str, ...], Iterator[tuple[Key, Frame]]]:
    """What names a frame, and all of them, each with its name."""
    if (source / "protocol.yaml").is_file() and (source / "stages").is_dir():
        stages = sorted(str(path) for path in (source / "stages").iterdir())
        raise DataError(f"`{source}` is the folder of a run; expected a stage. Name one of {', '.join(stages)}.")
    trajectory = source if source.suffix == ".trr" else source / TRAJECTORY
    if trajectory.is_file():
        return ("step", "time_ps"), _of_trajectory(trajectory)
    systems = open_dataset(source, type_map)
    if len(systems) == 1:
        return ("frame",), (((k,), systems[0].frame(k)) for k in range(len(systems[0])))
    return ("system", "frame"), (((str(s.path), k), s.frame(k)) for s in systems for k in range(len(s)))


def _of_trajectory(path: Path) -> Iterator[tuple[Key, Frame]]:
    """The frames of a stage; elements and periodicity are those of its start."""
    beginning = path.with_name(START)
    start = load_checkpoint(beginning)
    if start is None:
        raise DataError(f"`{beginning}` is missing; expected it beside the trajectory. Name the folder of a stage.")
    numbers = sorted(set(start.state.numbers.tolist()))
    type_map = tuple(chemical_symbols[z] for z in numbers)
    types = np.searchsorted(numbers, start.state.numbers)
    pbc = start.state.pbc
    for k in range(count_frames(path)):
        found = read_frame(path, k)
        cell = found.cell if pbc.any() else np.zeros((3, 3))
        frame = Frame(found.positions, types, type_map, cell, pbc, source=f"{path} frame {k}")
        yield (found.step, round(found.time_ps, 6)), frame
