"""DeePMD-kit's PyTorch trainer, paused between windows of steps: run by bench/training.py with the peer's Python.

The trainer's own loop is timed (data, forward, loss, backward, Adam, schedule); the clock is read where each step
ends, in its learning-rate schedule. Logging, validation and saving fall outside the windows.
"""

import json
import logging
import sys
import time
from pathlib import Path

from protocol import hear, memory_MiB, say, versions


class Pacer:
    """Stands in for `scheduler.step`: notes the time of each step and waits for the driver between windows."""

    def __init__(self, step):
        self._step = step
        self._left = 0
        self._times: list[float] = []
        self._start = 0.0

    def begin(self) -> None:
        message = hear()
        if message["do"] == "quit":
            say(memory_MiB())
            sys.stdout.flush()
            # The trainer would go on for the steps its input names; nothing is left to do.
            import os

            os._exit(0)
        self._left = message["steps"]
        self._times = []
        self._start = time.perf_counter()

    def __call__(self, *args, **kwargs):
        out = self._step(*args, **kwargs)
        now = time.perf_counter()
        self._times.append(now - self._start)
        self._start = now
        self._left -= 1
        if self._left == 0:
            say({"ms": [1000 * t for t in self._times]})
            self.begin()
        return out


def first_frame(model, data: Path) -> dict:
    """Energy (eV/atom) and forces of the first frame, and the norm of the gradient of |forces|^2 by all weights."""
    import numpy as np
    import torch

    coord, box = (
        torch.tensor(np.load(data / f"set.000/{name}.npy")[:1], dtype=torch.float64) for name in ("coord", "box")
    )
    types = torch.tensor(np.loadtxt(data / "type.raw", dtype=int))[None]
    found = model.train()(coord.view(1, -1, 3), types, box=box)
    found["force"].square().sum().backward()
    squares = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return {
        "energy": found["energy"].item() / types.numel(),
        "forces": found["force"][0].tolist(),
        "gradient": float(torch.stack(squares).sum().sqrt()),
    }


def main() -> None:
    input_file = Path(sys.argv[1])
    import torch
    from deepmd.dpmodel.utils.serialization import load_dp_model
    from deepmd.pt.entrypoints.main import get_trainer
    from deepmd.utils.argcheck import normalize
    from deepmd.utils.compat import update_deepmd_input

    logging.disable(logging.INFO)
    after_import = memory_MiB()["VmRSS"]
    spec = json.loads(input_file.read_text())
    weights = spec.pop("weights")
    config = normalize(update_deepmd_input(spec, warning=False))
    trainer = get_trainer(config)
    model = trainer.model
    model.load_state_dict(type(model).deserialize(load_dp_model(weights)["model"]).state_dict())
    numbers = first_frame(model, Path(config["training"]["training_data"]["systems"][0]))
    pacer = Pacer(trainer.scheduler.step)
    trainer.scheduler.step = pacer
    parameters = sum(p.numel() for p in trainer.wrapper.parameters())
    say(
        {
            "versions": versions("deepmd-kit", "torch", "numpy"),
            "threads": torch.get_num_threads(),
            "parameters": parameters,
            "numbers": numbers,
            "after_import_MiB": after_import,
        }
    )
    pacer.begin()
    trainer.run()


if __name__ == "__main__":
    main()
