"""The runs of examples/accuracy stay valid: what its settings say, and what its finished runs were made with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpsim.train.config import TrainConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "accuracy"


def test_settings_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import settings

    for data in settings.SETS.values():
        for model in settings.MODELS:
            TrainConfig.model_validate(settings.training(data, model, Path("data")))
    del sys.modules["settings"]


@pytest.mark.parametrize("path", sorted(EXAMPLE.glob("results/*/*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_results_can_be_trained_again(path: Path) -> None:
    settings: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    TrainConfig.model_validate(settings)
    assert path.with_suffix(".csv").is_file()
    assert path.with_suffix(".json").is_file()
