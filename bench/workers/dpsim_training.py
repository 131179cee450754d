"""dpsim's trainer, paused between windows of steps: run by bench/training.py.

The loop is `Trainer.run`'s: the next batch from the sampler, then `Trainer.step` (forward, loss, backward, Adam,
schedule). As on the peer's side, logging, validation and saving fall outside the windows.
"""

import json
import sys
import time
from pathlib import Path

from protocol import hear, memory_MiB, say, versions


class Silent:
    """A reporter that shows nothing."""

    def say(self, text):
        pass


def train_config(spec: dict) -> dict:
    """The specification of bench/training.py in the words of train.yaml: fine-tuning of the model in a file."""
    from dpsim.models.checkpoint import load_trainable

    pairs = {"energy": "e", "forces": "f", "virial": "v"}
    return {
        "model": load_trainable(spec["model"]).config.model_dump(mode="json"),
        "init_from": spec["model"],
        "data": {"train": [spec["data"]], "batch_size": 1},
        "loss": {
            name: {"start": spec["loss"][f"start_pref_{k}"], "limit": spec["loss"][f"limit_pref_{k}"]}
            for name, k in pairs.items()
        },
        "schedule": spec["learning_rate"],
        "steps": spec["n_steps"],
        "tensorboard": False,
    }


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    import torch

    from dpsim.data.sampler import prefetch
    from dpsim.kernels.memory import keep_freed_memory
    from dpsim.train.config import TrainConfig
    from dpsim.train.trainer import Trainer

    keep_freed_memory()  # as `dpsim train` does
    after_import = memory_MiB()["VmRSS"]
    trainer = Trainer(TrainConfig.model_validate(train_config(spec)), Path.cwd(), False, Silent())
    numbers = first_frame(trainer)
    batches = prefetch(trainer.batches.at, 0)
    say(
        {
            "versions": versions("torch", "numpy"),
            "threads": torch.get_num_threads(),
            "parameters": sum(p.numel() for p in trainer.parameters),
            "native": native_description(),
            "numbers": numbers,
            "after_import_MiB": after_import,
        }
    )
    while (message := hear())["do"] != "quit":
        ms = []
        for _step in range(message["steps"]):
            start = time.perf_counter()
            trainer.step(next(batches))
            ms.append(1000 * (time.perf_counter() - start))
        say({"ms": ms})
    say(memory_MiB())


def first_frame(trainer) -> dict:
    """Energy (eV/atom) and forces of the first frame, and the norm of the gradient of |forces|^2 by all weights."""
    import torch

    from dpsim.data.frame import Batch

    frame = trainer.data[""].train[0].frame(0)  # of the only task
    batch = Batch.from_frames([frame], trainer.model.rcut)
    found = trainer.model(batch, forces=True, create_graph=True)
    torch.autograd.backward(found.forces.square().sum(), inputs=trainer.parameters)
    squares = [p.grad.square().sum() for p in trainer.parameters if p.grad is not None]
    trainer.optimizer.zero_grad(set_to_none=True)
    return {
        "energy": found.energy.item() / frame.n_atoms,
        "forces": found.forces.tolist(),
        "gradient": float(torch.stack(squares).sum().sqrt()),
    }


def native_description() -> str:
    """The native library in use, or why there is none."""
    from dpsim.kernels import native

    found = native.capabilities()
    return found.problem or f"libdpsim {found.version}, {found.isa}, OpenMP {'on' if found.openmp else 'off'}"


if __name__ == "__main__":
    main()
