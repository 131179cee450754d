"""The optimiser: Adam or AdamW from torch, in its fused form, or SOAP."""

from __future__ import annotations

import torch

from dpsim.models.multi_task import Trainable
from dpsim.train.config import OptimizerConfig
from dpsim.train.soap import SOAP


def build_optimizer(config: OptimizerConfig, model: Trainable) -> torch.optim.Optimizer:
    """Adam (weight decay added to the gradient), AdamW (decoupled; Loshchilov and Hutter, arXiv:1711.05101) or SOAP."""
    betas = config.betas or ((0.95, 0.95) if config.type == "soap" else (0.9, 0.999))
    if config.type == "soap":
        return SOAP(model.parameters(), lr=0.0, betas=betas, eps=config.eps, weight_decay=config.weight_decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.type]
    return kind(model.parameters(), lr=0.0, betas=betas, eps=config.eps, weight_decay=config.weight_decay, fused=True)
