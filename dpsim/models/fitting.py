"""The energy fitting net: atomic energy from a descriptor.

    E_i = L_out(L_n(... L_1(D_i))),  L_k residual where widths agree; one net per centre type, or one for all.
Source: DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023), Eqs. 28 and 48.
"""

import torch
from torch import Tensor, nn

from dpsim.models.config import FittingConfig
from dpsim.models.nets import MLP, Layer


class EnergyFitting(nn.Module):
    """See the module's docstring. The energy bias of each element is added by the model, in float64."""

    def __init__(
        self,
        dim_in: int,
        n_types: int,
        config: FittingConfig,
        type_wise: bool,
        generator: torch.Generator,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.type_wise = type_wise
        self.nets = nn.ModuleList()
        for _ in range(n_types if type_wise else 1):
            net = MLP(
                dim_in, config.neuron, config.activation, timestep=config.resnet_dt, generator=generator, dtype=dtype
            )
            out = Layer(config.neuron[-1], 1, "linear", resnet=False, generator=generator, dtype=dtype)
            nn.init.zeros_(out.bias)  # type: ignore[arg-type]
            net.append(out)
            self.nets.append(net)

    def forward(self, descriptor: Tensor, blocks: list[tuple[int, int, int]]) -> Tensor:
        """E_i (n_atoms,) without bias. `blocks` are the (type, start, stop) rows of atoms sorted by type."""
        if not self.type_wise:
            return self.nets[0](descriptor)[:, 0]
        return torch.cat([self.nets[t](descriptor[start:stop])[:, 0] for t, start, stop in blocks])
