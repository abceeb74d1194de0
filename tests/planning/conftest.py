"""A tiny real base on disk with LoRAs that fit it, and a distillation on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from flow_opd.adapters.bank import AdapterBank
from flow_opd.backbones.sd3 import SD3Backbone
from flow_opd.config.common import LoraSettings
from flow_opd.quiet import quiet_loading
from tiny import new_tiny_pipeline
from tiny_pipelines import tiny_flux


@dataclass(frozen=True)
class Disk:
    """A base folder, four adapters of rank 2 and one of rank 4 beside it."""

    base: Path
    adapters: dict[str, Path]

    def distillation(self, **changes: Any) -> dict[str, Any]:
        """Returns the settings of a distillation with two teachers, one of them guided, and an anchor."""
        return {
            "run": {"out": "unused", "rounds": 5},
            "base": {"path": str(self.base), "max_sequence_length": 0},
            "teachers": [
                {
                    "name": "a",
                    "tasks": ["shapes"],
                    "adapter": str(self.adapters["a"]),
                    "guidance_scale": 1.0,
                },
                {"name": "b", "tasks": ["signs"], "adapter": str(self.adapters["b"]), "guidance_scale": 2.0},
            ],
            "anchor": {"adapter": str(self.adapters["c"]), "share": 1.0, "guidance_scale": 1.0},
            "cold_start": {"adapter": str(self.adapters["wide"])},
            "prompts": [{"path": "asset:prompts/train/text.jsonl"}],
            "prompts_per_round": 8,
            "micro_batch_size": 4,
            "sampling": {"num_steps": 3, "guidance_scale": 3.0},
            **changes,
        }

    def grpo(self, **changes: Any) -> dict[str, Any]:
        """Returns the settings of a Flow-GRPO teacher: 8 images, 3 steps of which 2 are trained."""
        return {
            "run": {"out": "unused", "rounds": 5},
            "base": {"path": str(self.base), "max_sequence_length": 0},
            "lora": {"rank": 2, "alpha": 4.0},
            "prompts": [{"path": "asset:prompts/train/text.jsonl"}],
            "rewards": [{"name": "ocr"}],
            "group_size": 4,
            "groups_per_round": 2,
            "micro_batch_size": 4,
            "kl_weight": 0.1,
            "sampling": {"num_steps": 3, "guidance_scale": 3.0},
            **changes,
        }


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    folder = tmp_path_factory.mktemp("planned")
    pipe = new_tiny_pipeline()
    with quiet_loading():
        pipe.save_pretrained(folder / "base")
    bank = AdapterBank(SD3Backbone(pipe, max_sequence_length=0))
    draw = torch.Generator().manual_seed(0)
    for name, rank in (("a", 2), ("b", 2), ("c", 2), ("wide", 4)):
        bank.add(name, LoraSettings(rank=rank, alpha=2.0 * rank), 0)
        filled = {
            key: torch.randn(value.shape, generator=draw) / 5 for key, value in bank.state(name).items()
        }
        bank.load_state(name, filled)
        bank.weights(name).write(folder / name)
    return Disk(folder / "base", {name: folder / name for name in ("a", "b", "c", "wide")})


@pytest.fixture(scope="session")
def flux_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux") / "base"
    with quiet_loading():
        tiny_flux().save_pretrained(folder)
    return folder
