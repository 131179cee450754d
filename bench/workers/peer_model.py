"""Make a DeePMD-kit model with random weights, as model.dp (portable) and model.pth (to run): by the peer's Python."""

import json
import sys
from pathlib import Path

from deepmd.dpmodel.utils.serialization import save_dp_model
from deepmd.pt.model.model import get_model
from deepmd.pt.utils.serialization import deserialize_to_file
from deepmd.utils.argcheck import normalize
from deepmd.utils.compat import update_deepmd_input


def main() -> None:
    folder = Path(sys.argv[1]).parent
    config = normalize(update_deepmd_input(json.loads(Path(sys.argv[1]).read_text()), warning=False))
    model = get_model(config["model"])
    data = {"model": model.serialize(), "model_def_script": config["model"], "backend": "PyTorch", "@variables": {}}
    save_dp_model(str(folder / "model.dp"), data)
    deserialize_to_file(str(folder / "model.pth"), data)


if __name__ == "__main__":
    main()
