"""Several models asked as one: the mean of what they say, and each one's own word.

A committee is named as one model is: by several names with commas between them, "a.dpsim, b.dpsim", or a list.
`open_calculator` and `open_evaluator` serve one model and several alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpsim.calculators.base import Calculator, calculator_of, evaluate_frames
from dpsim.calculators.deviation import model_deviation
from dpsim.calculators.evaluator import Evaluator, Memory, ModelEvaluator, StudentEvaluator, evaluator_of
from dpsim.calculators.selection import Precision, model_name, resolve_model, without_parameters
from dpsim.data.frame import Batch, Frame, Prediction
from dpsim.errors import ConfigError

if TYPE_CHECKING:
    from dpsim.models.potential import Potential

    ModelLike = str | PathLike[str] | Potential
    Models = ModelLike | Sequence[ModelLike]
    """One model, or the members of a committee: a list, or names with commas between them."""


def members_of(models: Models) -> list[ModelLike]:
    """The members of a committee, one for a single model. Raises ConfigError for one without name, or there twice."""
    members: list[Any] = list(models) if isinstance(models, list | tuple) else [models]
    if isinstance(models, str) and "," in models and not Path(models).exists():
        members = [name.strip() for name in models.split(",")]
    names = [str(m) for m in members if isinstance(m, str | PathLike)]
    wrong = sorted({name for name in names if not name or names.count(name) > 1})
    if wrong or not members:
        raise ConfigError(
            f"`model` names {names}; expected one model, or different ones: a model does not deviate from itself. "
            "Correct the list."
        )
    return members


def models_name(models: Models) -> str:
    """What messages and files call it."""
    return ", ".join(model_name(m) for m in members_of(models))


def open_models(models: Models, precision: Precision | None = None, who: str | None = None) -> list[Potential]:
    """The members, loaded; `who`, if given, has no parameters to give: models that need some are refused."""
    found = [resolve_model(m, precision) for m in members_of(models)]
    return found if who is None else [without_parameters(m, who) for m in found]


def open_calculator(
    models: Models, precision: Precision | None = None, device: str | None = None, who: str | None = None
) -> Calculator:
    """The calculator of a model or a committee, as `calculator_of` makes it of a loaded model."""
    return committee_of(open_models(models, precision, who), device)


def committee_of(models: Sequence[Potential], device: str | None = None) -> Calculator:
    """The calculator of one loaded model, or of the mean of several."""
    found = [calculator_of(m, device) for m in models]
    return found[0] if len(found) == 1 else Committee(found)


def open_evaluator(models: Models, precision: Precision | None, device: str, skin: float, who: str) -> Evaluator:
    """The evaluator of a model or a committee, likewise."""
    found = [evaluator_of(m, str(device), float(skin)) for m in open_models(models, precision, who)]
    return found[0] if len(found) == 1 else CommitteeEvaluator(found)


def deviation_of(
    predictions: Sequence[Prediction],
    relative: float | None = None,
    relative_v: float | None = None,
    labels: Frame | None = None,
) -> dict[str, Any]:
    """`model_deviation` of the members' predictions of one frame, with forces."""

    def stacked(values: list[torch.Tensor | None]) -> NDArray[np.float64] | None:
        return None if values[0] is None else torch.stack(values).detach().double().cpu().numpy()  # type: ignore[arg-type]

    forces, energies = stacked([p.forces for p in predictions]), stacked([p.energy for p in predictions])
    virials = stacked([p.virial for p in predictions])
    assert forces is not None
    assert energies is not None
    return model_deviation(
        forces,
        None if virials is None else virials[:, 0],
        energies[:, 0],
        relative=relative,
        relative_v=relative_v,
        labels=labels,
    )


class Committee(Calculator):
    """The mean of several calculators, of the elements that all of them know. Raises ConfigError if there are none."""

    def __init__(self, members: Sequence[Calculator]):
        self.members = list(members)
        self.type_map, self._types = _common_types([m.type_map for m in members])
        self.rcut = max(m.rcut for m in members)

    def compute(
        self, batch: Batch, *, forces: bool = True, virial: bool = True, atom_virial: bool = False
    ) -> Prediction:
        """As documented in Calculator."""
        length = batch.edge_vectors().norm(dim=-1)
        found = []
        for member, type_of in zip(self.members, self._types, strict=True):
            near = length <= member.rcut
            edges = {name: getattr(batch, name)[near] for name in ("center", "neighbor", "shift")}
            own = replace(batch, types=torch.from_numpy(type_of).to(batch.types.device)[batch.types], **edges)
            found.append(member.compute(own, forces=forces, virial=virial, atom_virial=atom_virial))
        return mean_prediction(found)

    def compute_frames(
        self, frames: Sequence[Frame], *, forces: bool = True, virial: bool = True, atom_virial: bool = False
    ) -> Iterator[Prediction]:
        """As documented in Calculator."""
        wanted = {"forces": forces, "virial": virial, "atom_virial": atom_virial}
        each = [m.compute_frames([f.with_type_map(m.type_map) for f in frames], **wanted) for m in self.members]
        yield from map(mean_prediction, zip(*each, strict=True))

    def each(self, frames: Iterable[Frame]) -> Iterator[tuple[Prediction, ...]]:
        """What every member says of each frame; memory is bounded as in `evaluate_frames`."""
        copies = itertools.tee(frames, len(self.members))
        streams = [evaluate_frames(m, own) for m, own in zip(self.members, copies, strict=True)]
        return zip(*streams, strict=True)


def _common_types(maps: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], list[NDArray[np.int64]]]:
    """The elements common to all type maps, and the type of each of them in every map."""
    common = tuple(e for e in maps[0] if all(e in other for other in maps))
    if not common:
        raise ConfigError(f"`models` know the elements {[list(m) for m in maps]}; expected common ones. Correct it.")
    return common, [np.array([list(m).index(e) for e in common], dtype=np.int64) for m in maps]


class CommitteeEvaluator(Evaluator):
    """The mean of the members' predictions; `found` keeps the last one of each.

    Models that PyTorch evaluates and that have the same rcut share one neighbour list.
    """

    def __init__(self, members: Sequence[ModelEvaluator | StudentEvaluator]):
        self.members, self.found = list(members), list[Prediction]()
        self.type_map, self._types = _common_types([m.type_map for m in members])

    def evaluate(
        self,
        types: NDArray[np.int64],
        positions: NDArray[np.float64],
        cell: NDArray[np.float64],
        pbc: NDArray[np.bool_],
        *,
        forces: bool = True,
        virial: bool = True,
        atom_virial: bool = False,
        fparam: NDArray[np.float64] | None = None,
        aparam: NDArray[np.float64] | None = None,
    ) -> Prediction:
        wanted: dict[str, Any] = {"forces": forces, "virial": virial, "atom_virial": atom_virial}
        batches: dict[float, Batch] = {}
        self.found = []
        for member, type_of in zip(self.members, self._types, strict=True):
            own = type_of[types]
            if isinstance(member, StudentEvaluator):
                self.found.append(member.evaluate(own, positions, cell, pbc, **wanted))
                continue
            rcut = member.calculator.rcut
            if rcut not in batches:
                batches[rcut] = member.batch(own, positions, cell, pbc)
            batches[rcut].types = torch.from_numpy(own)
            batches[rcut].fparam = None if fparam is None else torch.from_numpy(fparam)[None]
            batches[rcut].aparam = None if aparam is None else torch.from_numpy(aparam)
            self.found.append(member.calculator.compute(batches[rcut], **wanted))
        return mean_prediction(self.found)

    @property
    def takes_parameters(self) -> bool:
        return any(m.takes_parameters for m in self.members)

    @property
    def below_range(self) -> int:
        return sum(m.below_range for m in self.members)

    def memory(self) -> Memory:
        return {f"{k}.{name}": value for k, m in enumerate(self.members) for name, value in m.memory().items()}

    def recall(self, memory: Memory) -> None:
        for k, member in enumerate(self.members):
            own = f"{k}."
            member.recall({name.removeprefix(own): v for name, v in memory.items() if name.startswith(own)})


def mean_prediction(predictions: Sequence[Prediction]) -> Prediction:
    """The mean of predictions of the same frames, all of the same quantities."""

    def mean(name: str) -> Any:
        values = [getattr(p, name) for p in predictions]
        return None if values[0] is None else torch.stack(values).mean(dim=0)

    return Prediction(**{name: mean(name) for name in vars(predictions[0])})
