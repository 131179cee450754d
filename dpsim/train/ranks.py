"""The processes of a run: one, or as many as torchrun starts, which add up their gradients.

torchrun tells each process its number (RANK), how many there are (WORLD_SIZE) and its device (LOCAL_RANK). They meet by
gloo on CPUs and nccl on GPUs. Sums are the same to the last bit on every rank, so all take the same step.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """Rank `rank` of `world`, on `device`. A context: the processes meet on entering, and part on leaving."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @classmethod
    def of_run(cls, device: str) -> Ranks:
        """What torchrun says, and without it a single process."""
        world = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
        if world == 1:
            return cls(device=torch.device(device))
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device == "cuda" else torch.device(device)
        return cls(int(os.environ["RANK"]), world, own)

    @property
    def main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def __enter__(self) -> Ranks:
        if self.device.type == "cuda" and self.world > 1:
            torch.cuda.set_device(self.device)
        if self.world > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.world > 1 and error is None:  # else the others may never come: torchrun ends them
            dist.destroy_process_group()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Add up the gradients of all ranks; parameters that no rank has a gradient of keep none."""
        if self.world == 1:
            return
        present = self.sum(torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)).tolist()
        shared = [p for p, n in zip(parameters, present, strict=True) if n]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in shared])
        for p, total in zip(shared, self.sum(flat).split([p.numel() for p in shared]), strict=True):
            p.grad = total.view_as(p)

    def copy_from_main(self, model: nn.Module) -> None:
        """Give every rank the weights of rank 0. Nobody goes on before all have them."""
        if self.world > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.detach(), 0)

    def agree(self, reason: str) -> str:
        """A reason to stop, if any rank has one: its own, where it has one."""
        stopping = float(self.sum(torch.tensor(float(bool(reason)), device=self.device)))
        return reason or ("stopped by another process" if stopping else "")

    def has_largest(self, value: float) -> bool:
        """Whether the value of this rank is the largest of all; of equals, the first."""
        values = torch.zeros(self.world, dtype=torch.float64, device=self.device)
        values[self.rank] = min(value, 1e300)
        return int(self.sum(values).argmax()) == self.rank
