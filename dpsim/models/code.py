"""A head that gets the code of its data set, as a model without one: the code is fixed, so it is part of a bias.

[D, c] W + b = D W_D + (b + c W_c),     W_c: the last rows of the first layer's weights
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from dpsim.errors import UnsupportedModelError
from dpsim.models.energy_model import EnergyModel
from dpsim.models.nets import Layer


@torch.no_grad()
def without_code(model: EnergyModel) -> EnergyModel:
    """The same energies from a fitting net of its own. `metadata` stays.

    Raises: UnsupportedModelError where the first layer adds its input to what it gives, or would without the code.
    """
    n = model.config.fitting.dim_case_embd
    if not n:
        return model
    fitting = model.config.fitting.model_copy(update={"dim_case_embd": 0})
    plain = EnergyModel(model.config.model_copy(update={"fitting": fitting}))
    tensors = {k: v for k, v in model.state_dict().items() if k != "fitting.case_embd"}
    for k, (old, new) in enumerate(zip(model.fitting.nets, plain.fitting.nets, strict=True)):
        first = cast(Layer, old[0])  # type: ignore[index]
        if first.residual or cast(Layer, new[0]).residual:  # type: ignore[index]
            raise UnsupportedModelError(
                f"`fitting.neuron` begins with {first.n_out}, for {first.n_in} inputs: its first layer has a residual, "
                "and the code of the data set cannot be taken out of it. Pre-train with `heads: separate`."
            )
        name, bias = f"fitting.nets.{k}.0", cast(Tensor, first.bias)
        tensors[f"{name}.weight"] = first.weight[:-n]
        tensors[f"{name}.bias"] = bias + model.fitting.case_embd @ first.weight[-n:]
    plain.load_state_dict(tensors)
    plain.metadata = model.metadata
    return plain.to(model.energy_bias.device)
