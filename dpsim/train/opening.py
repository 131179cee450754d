"""What a run says of itself: at its start, and in the model file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpsim.data.statistics import Statistics
from dpsim.models.local_frame_config import LocalFrameConfig
from dpsim.models.multi_task import Trainable, heads_of
from dpsim.train.config import TrainConfig
from dpsim.train.setup import Data


def opening(data: Mapping[str, Data], model: Trainable, stats: Sequence[Statistics]) -> str:
    """What a new run starts from, in a few lines."""
    config = next(iter(heads_of(model).values())).config
    n = sum(p.numel() for p in model.parameters())
    descriptor = config.descriptor
    cutoffs = ", ".join(f"cutoff {e.rcut:g} A with sel {e.sel}" for e in descriptor.environments)
    if isinstance(descriptor, LocalFrameConfig):  # its slots do cut
        warnings = [f"\nwarning: {config.caveat}"]
    else:
        pairs = zip(descriptor.environments, stats, strict=True)
        warnings = [_beyond_sel(e.sel, model.type_map, s) for e, s in pairs]
    return (
        "\n".join(_of_data(name, d) for name, d in data.items())
        + f"; nearest two atoms {min(s.min_distance for s in stats):.3g} A\n"
        f"model: {descriptor.type} ({cutoffs}), elements {', '.join(model.type_map)}, {n:,} parameters, "
        + config.precision
        + "".join(warnings)
    )


def provenance(config: TrainConfig, data: Mapping[str, Data]) -> dict[str, Any]:
    """What the model file says of the run, that does not change while it runs; of several tasks, by task."""
    described = {name: d.provenance() for name, d in data.items()}
    return {
        **config.provenance.model_dump(mode="json"),
        "data": described if config.tasks else described[""],
        "elements": {name: d.elements(config.model.type_map) for name, d in data.items()},
        "training": {
            "steps": config.steps,
            "seed": config.seed,
            "loss": config.loss.model_dump(mode="json"),
            "schedule": config.schedule.model_dump(mode="json"),
        },
    }


def _of_data(name: str, data: Data) -> str:
    heading = f"task {name}" if name else "data"
    return f"{heading}: {data.n_train} training frames in {len(data.train)} systems, {data.n_validation} for validation"


def _beyond_sel(sel: list[int] | int | str, type_map: Sequence[str], stats: Statistics) -> str:
    """A warning if atoms of the data have more neighbours than `sel`: it normalises sums, and cuts nothing."""
    if isinstance(sel, list):
        pairs = zip(type_map, sel, stats.max_neighbors.tolist(), strict=True)
        over = [f"{found} {element} (sel {n})" for element, n, found in pairs if found > n]
    else:
        over = [f"{stats.max_neighbors_total} (sel {sel})"] if stats.max_neighbors_total > int(sel) else []
    if not over:
        return ""
    return (
        f"\nwarning: atoms have up to {', '.join(over)} neighbours; all of them count, and `sel` is only the "
        "normaliser here, but other codes would cut them. Raise `sel`, or set it to auto."
    )
