"""PEFT folders: a round trip through PEFT itself, and every way in which a folder can be wrong."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from errors import refused
from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.formats.reading import read_adapter
from flow_opd.adapters.lora import CONFIG_FILE, WEIGHTS_FILE, LoraWeights
from flow_opd.config.common import ATTENTION_PROJECTIONS, LoraSettings
from flow_opd.errors import AdapterError


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def saved(bank: AdapterBank, tmp_path: Path) -> Path:
    """The student's folder: rank 4, alpha 8."""
    bank.weights("student").write(tmp_path / "student", base_model="base/name")
    return tmp_path / "student"


def test_peft_loads_what_we_save(bank: AdapterBank, backbone: Any, inputs: Any, saved: Path) -> None:
    fresh = type(backbone.transformer.get_base_model()).from_config(
        backbone.transformer.get_base_model().config
    )
    fresh.load_state_dict(
        {
            name.replace(".base_layer", ""): tensor
            for name, tensor in backbone.transformer.get_base_model().state_dict().items()
            if ".lora_" not in name
        }
    )
    loaded = PeftModel.from_pretrained(fresh.eval(), saved, is_trainable=True).eval()
    assert torch.equal(loaded(**inputs).sample, backbone.transformer(**inputs).sample)
    config = json.loads((saved / CONFIG_FILE).read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8, "base/name")


def test_we_load_what_peft_saves(backbone: Any, inputs: Any, tmp_path: Path) -> None:
    config = LoraConfig(
        r=3, lora_alpha=9, target_modules=list(ATTENTION_PROJECTIONS), init_lora_weights=False
    )
    theirs = get_peft_model(deepcopy(backbone.transformer), config).eval()
    theirs.save_pretrained(tmp_path / "peft")
    bank = AdapterBank(backbone)
    bank.put("theirs", read_adapter(tmp_path / "peft"))
    assert (bank.settings("theirs").rank, bank.settings("theirs").alpha) == (3, 9.0)
    bank.train("theirs")  # torch's matmul folds, and so rounds, by requires_grad: compare like with like
    assert torch.equal(backbone.transformer(**inputs).sample, theirs(**inputs).sample)


def test_null_base_and_task_type_are_accepted(bank: AdapterBank, saved: Path) -> None:
    edit_config(saved, base_model_name_or_path=None, task_type=None)
    bank.put("again", read_adapter(saved))
    assert all(torch.equal(value, bank.state("student")[key]) for key, value in bank.state("again").items())


def test_folder_is_deterministic_and_keeps_other_files(bank: AdapterBank, saved: Path) -> None:
    (saved / "README.md").write_text("card")
    first = {path.name: path.read_bytes() for path in saved.iterdir()}
    bank.weights("student").write(saved, base_model="base/name")
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == first
    assert sorted(path.name for path in saved.parent.iterdir()) == ["student"]  # no staging folder is left


def test_unwritable_folder(bank: AdapterBank, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with refused(AdapterError, names=["adapter"]):
        bank.weights("student").write(tmp_path / "file" / "adapter")
    with refused(AdapterError, names=["file"]):
        bank.weights("student").write(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_adapter_of_a_wider_base(wide_backbone: Any, saved: Path) -> None:
    wide = AdapterBank(wide_backbone)
    with refused(AdapterError, value=[32, 32]):
        wide.put("student", read_adapter(saved))
    assert wide.names == ()


def test_adapter_of_a_deeper_base(bank: AdapterBank, saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    deeper = {key.replace("blocks.1.", "blocks.7."): value.clone() for key, value in tensors.items()}
    save_file(tensors | deeper, saved / WEIGHTS_FILE)
    with refused(AdapterError, names=["transformer_blocks.7"]):
        bank.put("deeper", read_adapter(saved))


def test_a_module_is_missing(bank: AdapterBank, saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    save_file({k: v for k, v in tensors.items() if "blocks.1.attn.to_q." not in k}, saved / WEIGHTS_FILE)
    with refused(AdapterError, value={"missing": ["transformer_blocks.1.attn.to_q"], "not in this base": []}):
        bank.put("partial", read_adapter(saved))


def test_one_factor_is_missing(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    tensors.pop("base_model.model.transformer_blocks.1.attn.to_q.lora_B.weight")
    save_file(tensors, saved / WEIGHTS_FILE)
    with refused(AdapterError, names=["attn.to_q"]):
        LoraWeights.read(saved)


def test_unknown_key(saved: Path) -> None:
    save_file(load_file(saved / WEIGHTS_FILE) | {"transformer.x": torch.zeros(1)}, saved / WEIGHTS_FILE)
    with refused(AdapterError, names=["transformer.x"]):
        LoraWeights.read(saved)


def test_other_rank_than_the_config_says(saved: Path) -> None:
    edit_config(saved, r=8)
    with refused(AdapterError, value="A [4, 32], B [32, 4]"):
        LoraWeights.read(saved)


@pytest.mark.parametrize("shapes", [((3, 8), (8, 4)), ((4, 8), (8, 3)), ((4,), (8, 4))])
def test_one_factor_of_another_rank(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    down, up = shapes
    with refused(AdapterError, names=[str(list(down)), str(list(up))]):
        LoraWeights(4, 8.0, {"to_q": (torch.zeros(down), torch.zeros(up))})


@pytest.mark.parametrize("targets", [["attn.to_q"], [*ATTENTION_PROJECTIONS, "ff.net.2"]])
def test_targets_and_weights_differ(saved: Path, targets: list[str]) -> None:
    edit_config(saved, target_modules=targets)
    with refused(AdapterError, names=["target_modules"]):
        LoraWeights.read(saved)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_truncated_weights(saved: Path, length: int) -> None:
    content = (saved / WEIGHTS_FILE).read_bytes()
    (saved / WEIGHTS_FILE).write_bytes(content[:length])
    with refused(AdapterError, names=[WEIGHTS_FILE]):
        LoraWeights.read(saved)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE])
def test_missing_file(bank: AdapterBank, saved: Path, name: str) -> None:
    (saved / name).unlink()
    with refused(AdapterError, names=[name]):
        bank.put("new", read_adapter(saved))


def test_weights_that_are_not_finite(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, saved / WEIGHTS_FILE)
    with refused(AdapterError, value="transformer_blocks.0.attn.add_k_proj"):
        LoraWeights.read(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"r": None},
        {"r": "4"},
        {"r": 0},
        {"lora_alpha": None},
        {"lora_alpha": 0},
        {"target_modules": 3},
        {"peft_type": "LOKR"},
    ],
)
def test_config_of_something_else(saved: Path, changes: dict[str, Any]) -> None:
    edit_config(saved, **changes)
    with refused(AdapterError, names=["peft_type" if "peft_type" in changes else next(iter(changes))]):
        LoraWeights.read(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"init_lora_weights": "pissa_niter_4"},
        {"modules_to_save": ["proj_out"]},
        {"an_option_of_a_later_version": {"on": True}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_options_that_change_the_meaning_are_refused(saved: Path, changes: dict[str, Any]) -> None:
    edit_config(saved, **changes)
    with refused(AdapterError, value=changes):
        LoraWeights.read(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_config_that_is_no_object(saved: Path, text: str) -> None:
    (saved / CONFIG_FILE).write_text(text)
    with pytest.raises(AdapterError, match=r"not JSON|not the config of a LoRA"):
        LoraWeights.read(saved)


def test_put_takes_a_lora_from_memory(bank: AdapterBank, backbone: Any, inputs: Any) -> None:
    bank.put("copy", bank.weights("student"))
    expected = backbone.transformer(**inputs).sample
    with bank.using("copy"):
        assert torch.equal(backbone.transformer(**inputs).sample, expected)
    assert bank.settings("copy") == LoraSettings(rank=4, alpha=8.0)


@pytest.mark.parametrize(
    "values", [{"rank": 0}, {"alpha": 0.0}, {"alpha": -1.0}, {"alpha": float("nan")}, {"factors": {}}]
)
def test_what_cannot_be_a_lora_is_refused(values: dict[str, Any]) -> None:
    factors = {"attn.to_q": (torch.zeros(2, 3), torch.zeros(4, 2))}
    with refused(AdapterError):
        LoraWeights(**{"rank": 2, "alpha": 4.0, "factors": factors, **values})
