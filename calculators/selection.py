"""What every adapter begins with: the model that a user named, and the types of the atoms' elements."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dpsim.errors import ConfigError, ElementError

if TYPE_CHECKING:
    from dpsim.models.potential import Potential

Precision = Literal["float32", "float64"]


def resolve_model(
    model: str | PathLike[str] | Potential, precision: Precision | None, head: str | None = None
) -> Potential:
    """Load by name or path; a model is used as it is, or copied where `precision` asks for another dtype."""
    if isinstance(model, str | PathLike):
        from dpsim.models.checkpoint import load_model

        return load_model(fspath(model), precision=precision, head=head)
    if precision not in (None, "float32", "float64"):
        raise ConfigError(f"`precision` is {precision!r}; expected 'float32', 'float64' or None (the model's own).")
    if precision is None or getattr(torch, precision) == model.dtype:
        return model
    given: Any = model  # a config of its own kind
    converted: Potential = type(given)(given.config.model_copy(update={"precision": precision}))
    converted.load_state_dict(given.state_dict())
    converted.metadata = given.metadata
    return converted


def without_parameters(model: Potential, who: str, given: Sequence[str] = ()) -> Potential:
    """The model, if it needs no parameters but those `given` from `who`, which has no others. Raises ConfigError."""
    fitting = getattr(getattr(model, "config", None), "fitting", None)
    default = ("fparam",) if getattr(fitting, "default_fparam", None) is not None else ()
    needs = [
        f"{n} numbers `{name}`"
        for name, n in (("fparam", model.numb_fparam), ("aparam", model.numb_aparam))
        if n and name not in (*given, *default)
    ]
    if not needs:
        return model
    raise ConfigError(
        f"the model takes {' and '.join(needs)}, which {who} does not give; expected a model without, or with "
        "`default_fparam`. Give `fparam` in a protocol, or use DPCalculator(model, fparam=..., aparam=...), which "
        "every engine of dpsim runs."
    )


def model_name(model: str | PathLike[str] | Potential) -> str:
    """What messages call it."""
    return fspath(model) if isinstance(model, str | PathLike) else f"{type(model).__name__} object"


def types_of(elements: Sequence[str], type_map: Sequence[str], model: str) -> NDArray[np.int64]:
    """Types (n_atoms,) in the model's type_map. Raises ElementError naming every unknown element."""
    unknown = sorted(set(elements) - set(type_map))
    if unknown:
        raise ElementError(
            f"elements {unknown} of the structure are unknown to the model `{model}`; it knows {list(type_map)}. "
            "Use a model trained on these elements."
        )
    index = {name: k for k, name in enumerate(type_map)}
    return np.array([index[name] for name in elements], dtype=np.int64)
