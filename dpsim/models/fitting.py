"""The energy fitting net: atomic energy from a descriptor and, where the model takes them, from parameters.

    x_i = [D_i, (q - <q>) / sigma_q, (p_i - <p>) / sigma_p, c]
    E_i = L_out(L_n(... L_1(x_i))),  L_k residual where widths agree; one net per centre type, or one for all.

q: parameters of the frame (`fparam`), p_i: of the atom (`aparam`), with mean and standard deviation in the data;
c: the code of the data set whose energies are meant (`case_embd`), of models that learned from several.
Source: DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023), Eqs. 28 and 48 and II.A.2; c: DPA-3, arXiv 2506.01686, Eq. 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from dpsim.data.frame import Batch
from dpsim.errors import ConfigError, DataError
from dpsim.models.config import FittingConfig
from dpsim.models.nets import MLP, Layer

if TYPE_CHECKING:
    from dpsim.data.statistics import ParameterStatistics


class EnergyFitting(nn.Module):
    """See the module's docstring. The energy bias of each element is added by the model, in float64."""

    fparam_avg: Tensor
    fparam_inv_std: Tensor
    aparam_avg: Tensor
    aparam_inv_std: Tensor
    case_embd: Tensor

    def __init__(
        self,
        dim_descriptor: int,
        n_types: int,
        config: FittingConfig,
        type_wise: bool,
        generator: torch.Generator,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.config, self.type_wise = config, type_wise
        dim_in = dim_descriptor + config.numb_fparam + config.numb_aparam + config.dim_case_embd
        self.nets = nn.ModuleList()
        for _ in range(n_types if type_wise else 1):
            net = MLP(
                dim_in, config.neuron, config.activation, timestep=config.resnet_dt, generator=generator, dtype=dtype
            )
            out = Layer(config.neuron[-1], 1, "linear", resnet=False, generator=generator, dtype=dtype)
            nn.init.zeros_(out.bias)  # type: ignore[arg-type]
            net.append(out)
            self.nets.append(net)
        for name, n in (("fparam", config.numb_fparam), ("aparam", config.numb_aparam)):
            if n:
                self.register_buffer(f"{name}_avg", torch.zeros(n, dtype=dtype))
                self.register_buffer(f"{name}_inv_std", torch.ones(n, dtype=dtype))
        if config.dim_case_embd:
            self.register_buffer("case_embd", torch.zeros(config.dim_case_embd, dtype=dtype))

    def set_parameter_statistics(self, name: str, stats: ParameterStatistics) -> None:
        """Take mean and standard deviation of "fparam" or "aparam" from the data."""
        getattr(self, f"{name}_avg").copy_(torch.as_tensor(stats.avg))
        getattr(self, f"{name}_inv_std").copy_(1 / torch.as_tensor(stats.std))

    def set_case(self, case: int) -> None:
        """Say which of the data sets that the model learned from is meant: c is one-hot."""
        if not 0 <= case < self.config.dim_case_embd:
            n = self.config.dim_case_embd
            raise ConfigError(f"`case` is {case}; expected a number below `dim_case_embd` = {n}. Choose another.")
        self.case_embd.copy_(torch.eye(self.config.dim_case_embd)[case])

    def parameters_of(self, batch: Batch, order: Tensor) -> list[Tensor]:
        """What x_i holds besides D_i, (n_atoms, ...) each, of the atoms of a batch in the given order.

        Raises: DataError where the model takes parameters and the batch carries none, or another number of them.
        """
        found, c = [], self.config
        if c.numb_fparam:
            of_frames = _given(batch.fparam, "fparam", (batch.n_frames, c.numb_fparam), batch, c.default_fparam)
            standard = (of_frames.to(self.fparam_avg) - self.fparam_avg) * self.fparam_inv_std
            found.append(standard[batch.frame_index[order]])
        if c.numb_aparam:
            of_atoms = _given(batch.aparam, "aparam", (batch.n_atoms, c.numb_aparam), batch, None)
            found.append(((of_atoms.to(self.aparam_avg) - self.aparam_avg) * self.aparam_inv_std)[order])
        if c.dim_case_embd:
            found.append(self.case_embd.expand(batch.n_atoms, -1))
        return found

    def forward(self, descriptor: Tensor, blocks: list[tuple[int, int, int]], parameters: list[Tensor]) -> Tensor:
        """E_i (n_atoms,) without bias. `blocks` are the (type, start, stop) rows of atoms sorted by type."""
        x = torch.cat([descriptor, *parameters], 1) if parameters else descriptor
        if not self.type_wise:
            return cast(Tensor, self.nets[0](x)[:, 0])
        return torch.cat([self.nets[t](x[start:stop])[:, 0] for t, start, stop in blocks])


def _given(
    values: Tensor | None, name: str, shape: tuple[int, int], batch: Batch, default: list[float] | None
) -> Tensor:
    """The parameters of a batch, the default where there are none. Raises DataError."""
    whose = "atom" if name == "aparam" else "frame"
    expected = f"expected {shape[1]} numbers for each {whose}"
    sources = f" (frames: {', '.join(batch.sources[:3])})" if any(batch.sources) else ""
    how = f"Give them: `{name}` in the data ({name}.npy, or extxyz), or DPCalculator(model, {name}=...)."
    if values is not None and tuple(values.shape) != shape:
        raise DataError(f"`{name}` is of shape {tuple(values.shape)}; {expected}{sources}. {how}")
    absent = None if values is None else torch.isnan(values).any(1)
    if absent is not None and not bool(absent.any()):
        return cast(Tensor, values)
    if default is None:
        raise DataError(f"`{name}` is absent; {expected}{sources}. {how}")
    row = batch.positions.new_tensor(default)
    return row.expand(shape) if values is None else torch.where(absent[:, None], row, values)  # type: ignore[index]
