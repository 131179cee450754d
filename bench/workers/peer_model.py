"""Make a DeePMD-kit model of random weights and of the statistics of the data, by the peer's Python.

Writes model.dp (portable) and model.pth (to run) beside the input.
"""

import json
import logging
import sys
from pathlib import Path

from deepmd.dpmodel.utils.serialization import save_dp_model
from deepmd.pt.entrypoints.main import get_trainer
from deepmd.pt.utils.serialization import deserialize_to_file
from deepmd.utils.argcheck import normalize
from deepmd.utils.compat import update_deepmd_input


def main() -> None:
    logging.disable(logging.INFO)
    path = Path(sys.argv[1]).resolve()
    config = normalize(update_deepmd_input(json.loads(path.read_text()), warning=False))
    model = get_trainer(config).model
    data = {"model": model.serialize(), "model_def_script": config["model"], "backend": "PyTorch", "@variables": {}}
    save_dp_model(str(path.parent / "model.dp"), data)
    deserialize_to_file(str(path.parent / "model.pth"), data)


if __name__ == "__main__":
    main()
