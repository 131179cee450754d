"""Fine-tuning: a run that starts from a model trained on other data.

    1. the descriptor with its statistics is the file's; the fitting net is that of the head, or a fresh one
    2. the energy bias is shifted by the least squares of label minus prediction (dpsim/train/energy_bias.py)
    3. what the model can do so far, its zero-shot errors, is measured: what training has to improve on
    4. after the first steps the loss is compared with that of the start: a rate that destroys it stops the run
    5. the errors after training are told beside those before, and both are kept in the model file

At each step guards refuse what cannot go well (dpsim/train/guards.py). With `replay` the run is one of several tasks:
the new data, and some of the pre-training, each with its head.
Source: Zhang et al., DPA-2, npj Comput. Mater. 10, 293 (2024), Methods, "Pre-training and fine-tuning".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from dpsim.config import validate
from dpsim.data.readers import open_dataset
from dpsim.data.system import System
from dpsim.errors import ConfigError, UnsupportedModelError, did_you_mean
from dpsim.models.checkpoint import load_trainable, read_header, split_head
from dpsim.models.code import without_code
from dpsim.models.config import ModelConfig
from dpsim.models.deepmd.model import with_conventions
from dpsim.models.elements import with_elements
from dpsim.models.energy_model import EnergyModel
from dpsim.models.multi_task import MultiTaskConfig, MultiTaskModel, Trainable, heads_of
from dpsim.train.config import InitConfig, TaskConfig, TrainConfig, WeightedPath
from dpsim.train.energy_bias import fit_energy_bias, shift_energy_bias
from dpsim.train.evaluate import evaluate_systems
from dpsim.train.guards import Guards, check_elements, check_energies, check_virials

_VIRIAL_FRAMES = 20  # whose virials are compared with the model's own
Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """The file of a trained model: its name, the head asked for, all its heads ([]: one model without a name), and
    the elements that each learned from (None: the file does not say)."""

    path: str
    head: str | None
    heads: tuple[str, ...]
    seen: dict[str, list[str]] | None

    @classmethod
    def of(cls, name: str) -> Source:
        """What a file says of itself. Raises ModelFileError."""
        path, head = split_head(name)
        header = read_header(path)
        heads, provenance = header.get("heads", {}), header.get("provenance", {})
        seen = provenance.get("elements")
        if seen is not None:  # and what it had seen before it was fine-tuned
            earlier = provenance.get("fine_tuning", {}).get("elements", [])
            seen = {head: sorted({*of_head, *earlier}) for head, of_head in seen.items()}
        if seen is None and isinstance(heads, dict):  # DeePMD-kit's checkpoints say it, the newer ones
            found = {h: of_head.get("trained_on") for h, of_head in heads.items()} or {"": header.get("trained_on")}
            seen = found if all(found.values()) else None
        return cls(path, head, tuple(heads), seen)

    def load(self, config: TrainConfig, head: str | None) -> EnergyModel:
        """The model of a head, in the run's precision; among several, without a code. ModelFileError lists heads."""
        precision = config.model.precision if config.model else None
        model = load_trainable(self.path, head=head, precision=precision)
        init = config.init_from
        several = config.tasks or (isinstance(init, InitConfig) and init.replay is not None)
        return without_code(model) if several else model


def complete(config: TrainConfig, saved: Mapping[str, Any]) -> TrainConfig:
    """A configuration with what `init_from` implies: the `model` of the file, and with replay the `tasks`.

    Args: saved: the configuration of the run that is resumed, {} for a new one.
    Raises: ModelFileError; ElementError for elements that the model never saw.
    """
    init, update = config.init_from, dict[str, Any]()
    if init is None:
        return config
    if not config.model:
        update["model"] = ModelConfig.model_validate(saved["model"]) if saved else _model_of_file(config)
    if isinstance(init, InitConfig) and init.replay is not None and config.data is not None:
        replay = init.replay
        total = sum(task.weight for task in replay.tasks.values())
        factor = replay.share / (1 - replay.share) / total
        tasks = {replay.name: TaskConfig.model_validate({**config.data.model_dump(mode="json"), "weight": 1.0})}
        tasks |= {name: t.model_copy(update={"weight": t.weight * factor}) for name, t in replay.tasks.items()}
        update |= {"data": None, "tasks": tasks}
    return config.model_copy(update=update)


def _model_of_file(config: TrainConfig) -> ModelConfig:
    """The configuration of the model to start from; with unseen elements of the data in it where that is overridden."""
    init = config.init_from
    if not isinstance(init, InitConfig):
        return load_trainable(str(init)).config
    source = Source.of(init.model)
    fresh = init.head == "fresh"
    model = source.load(config, source.head or (source.heads[0] if fresh and source.heads else None))
    elements = sorted(_elements_of(config, model.type_map))
    if more := [symbol for symbol in elements if symbol not in model.type_map]:
        unseen = check_elements(
            elements, source.seen or {"": model.type_map}, source.head or "", not fresh, source.path
        )
        Guards(init.override).judge("elements", unseen)
        model = with_elements(model, [*model.type_map, *more])
    if not fresh:
        return model.config
    fitting = model.config.fitting.model_copy(update={"dim_case_embd": 0})
    return model.config.model_copy(update={"fitting": fitting})


def _elements_of(config: TrainConfig, type_map: Sequence[str]) -> set[str]:
    """The elements of the training data of a run."""
    paths = [e.path if isinstance(e, WeightedPath) else e for d in config.sets.values() for e in d.train]
    return set[str]().union(*(s.elements() for path in paths for s in open_dataset(path, type_map)))


def start(
    config: TrainConfig, train: Mapping[str, Sequence[System]], say: Say = lambda _: None
) -> tuple[Trainable, dict[str, Any]]:
    """The model that a fine-tuning run begins with, and the record of how it was made, for the model file.

    Args: config: completed; train: the training systems of each task; say: told of what was done and overridden.
    Raises: what a guard refuses; ModelFileError, ConfigError for a file or a head that does not fit `model`.
    """
    init = cast(InitConfig, config.init_from)
    source, guards = Source.of(init.model), Guards(init.override)
    kept = set(init.replay.tasks) if init.replay else set(source.heads)
    new = [name for name in config.sets if not name or name not in kept]
    record: dict[str, Any] = {
        "from": init.model.rpartition("/")[2],
        "elements": sorted(set[str]().union(*(source.seen or {}).values())),
        "new": new,
        **init.model_dump(mode="json", include={"head", "freeze", "override"}),
    }
    models = {}
    for name in config.sets:
        if name not in new:
            models[name] = _fit_to(source.load(config, name if source.heads else None), config, init, fresh=False)
        else:
            models[name], shift = _downstream(config, init, source, train[name], guards, say)
            record.setdefault("energy_bias_shift_eV", {})[name] = shift
    record["sha256"] = next(iter(models.values())).metadata.get("sha256", "")
    if not config.tasks:
        record["energy_bias_shift_eV"] = record["energy_bias_shift_eV"][""]
        return models[""], record
    return _together(config, models), record


def _together(config: TrainConfig, models: Mapping[str, EnergyModel]) -> MultiTaskModel:
    """One model of several heads, each with a fitting net of its own. Raises ConfigError where they should share."""
    if config.heads != "separate":
        raise ConfigError(
            "`heads` is encoded; expected separate: a trained model goes on with a fitting net for each task. Leave "
            "`heads` out."
        )
    shared = {"model": next(iter(models.values())).config.model_dump(mode="json"), "heads": list(models)}
    together = MultiTaskModel(validate(shared, MultiTaskConfig, source="tasks"), seed=config.seed)
    for name, head in together.heads.items():
        head.load_state_dict(models[name].state_dict())
    return together


def _downstream(
    config: TrainConfig, init: InitConfig, source: Source, train: Sequence[System], guards: Guards, say: Say
) -> tuple[EnergyModel, dict[str, float]]:
    """The model for new data, and the shift of its energy bias."""
    fresh = init.head == "fresh"
    head = source.head or (source.heads[0] if fresh and source.heads else None)
    before = source.load(config, head)
    elements = sorted(set[str]().union(*(s.elements() for s in train)))
    if source.seen is None:
        say(f"note: {init.model} does not say which elements it learned from; whether it saw the data's is unchecked")
    _tell(guards.judge("elements", check_elements(elements, source.seen, head or "", not fresh, source.path)), say)
    model = _fit_to(before, config, init, fresh).to(config.device)
    if any(s.has("virial") for s in train):  # judged by the file's head, which has learned something
        judge = with_elements(before, config.model.type_map, config.seed).to(config.device) if fresh else model
        errors = evaluate_systems(judge, [s for s in train if s.has("virial")], "virial", _VIRIAL_FRAMES)
        _tell(guards.judge("virials", check_virials(errors)), say)
    if not any(s.has("energy") for s in train):
        return model, {}
    fit = fit_energy_bias(model, train, seed=config.seed)
    _tell(guards.judge("energies", check_energies(fit)), say)
    if init.energy_bias == "keep":
        return model, {}
    shift_energy_bias(model, fit.shift)
    return model, fit.by_element()


def _tell(message: str, say: Say) -> None:
    if message:
        say(message)


def _fit_to(model: EnergyModel, config: TrainConfig, init: InitConfig, fresh: bool) -> EnergyModel:
    """A model of a file as the run's `model` wants it: its elements, conventions, and a fresh fitting net where asked.

    Raises: ConfigError naming what differs otherwise.
    """
    wanted = config.model
    model = with_elements(model, wanted.type_map, config.seed)
    theirs, ours = (c.descriptor.environments for c in (model.config, wanted))
    if len(theirs) == len(ours):  # `sel: auto` is what the file has
        sels: list[Any] = [t.sel if o.sel == "auto" else o.sel for t, o in zip(theirs, ours, strict=True)]
        wanted = wanted.model_copy(update={"descriptor": wanted.descriptor.with_sel(sels)})
    refuse_difference(model.config, wanted, init.model, ignore={"fitting"} if fresh else set())
    model = as_deepmd(model, wanted.deepmd_conventions, init.model)
    if not fresh:
        return model
    renewed = EnergyModel(wanted, seed=config.seed)
    old, new = model.state_dict(), renewed.state_dict()
    is_net = [name.startswith(("fitting.nets.", "fitting.case_embd")) for name in new]
    renewed.load_state_dict({k: v if net else old.get(k, v) for (k, v), net in zip(new.items(), is_net, strict=True)})
    renewed.metadata = model.metadata
    return renewed


def refuse_difference(theirs: ModelConfig, ours: ModelConfig, path: str, ignore: set[str] | None = None) -> None:
    """Raise ConfigError unless the weights of a file fit a `model`; `deepmd_conventions` may differ."""
    own, other = (_comparable(c) for c in (ours, theirs))
    differ = [key for key in own if own[key] != other[key] and key not in (ignore or ())]
    if differ:
        raise ConfigError(
            f"`init_from` is {path}, whose {', '.join(differ)} differ from `model`; expected the same. "
            f"Copy them from the file: {', '.join(f'{key} = {other[key]}' for key in differ)}; or leave `model` out."
        )


def as_deepmd(model: EnergyModel, conventions: bool, path: str) -> EnergyModel:
    """The model of a file with `deepmd_conventions` as wanted. Raises ConfigError where that changes numbers."""
    try:
        return cast(EnergyModel, with_conventions(model, conventions))
    except UnsupportedModelError as error:
        raise ConfigError(f"`init_from` is {path}: {error} Write `deepmd_conventions: true` in `model`.") from None


def _comparable(config: ModelConfig) -> dict[str, Any]:
    """What must agree for weights to fit, every default resolved."""
    values = config.model_dump(mode="json", exclude={"deepmd_conventions"})
    if values["fitting"]["type_wise"] is None:
        values["fitting"]["type_wise"] = not config.descriptor.embeds_types
    return values


def freeze(model: Trainable, parts: Sequence[str]) -> None:
    """Keep the weights of some parts, named as in a head: `descriptor`, `fitting`, `descriptor.layers.0`.

    Raises: ConfigError for a part without weights, or if nothing is left to train.
    """
    for part in parts:
        found = False
        for head in heads_of(model).values():
            for name, parameter in head.named_parameters():
                if f"{name}.".startswith(f"{part}."):
                    parameter.requires_grad_(False)
                    found = True
        if not found:
            names = [n for head in heads_of(model).values() for n, _ in head.named_parameters()]
            known = sorted({".".join(n.split(".")[:depth]) for n in names for depth in (1, 2)})
            raise ConfigError(
                f"`freeze` has {part!r}; expected parts with weights, such as {', '.join(known[:8])}."
                f"{did_you_mean(part, known)} Correct it."
            )
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"`freeze` is {list(parts)}, which is all of the model; expected something left to train.")
