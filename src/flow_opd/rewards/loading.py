"""Models of transformers as rewards load them: whole, frozen, and with one class of errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin

from flow_opd.errors import RewardError
from flow_opd.hub import model_folder
from flow_opd.quiet import quiet_loading


@contextmanager
def readable(path: Path | str, *, what: str, allowed: str) -> Iterator[Path]:
    """Yields the folder of a model, and turns whatever the libraries raise about its files into one message.

    Args:
        path: folder or hub id, as the user wrote it.
        what: what it was meant to be, such as "preference model".
        allowed: what would be usable.

    Raises:
        RewardError: instead of anything that is raised inside.
    """
    folder = model_folder(str(path), what=f"the {what}", error=RewardError)
    try:
        yield folder
    except Exception as damage:  # transformers, tokenizers and safetensors share no class of errors
        raise RewardError(
            f"no usable {what} ({type(damage).__name__}: {damage})",
            value=str(path),
            allowed=allowed,
            fix="correct the path, or build the model again",
        ) from damage


def whole_model(kind: type[PreTrainedModel], path: Path | str, *, unread: Sequence[str] = ()) -> Any:
    """Returns the model of a folder or hub id in float32, without gradients, in evaluation mode.

    Args:
        kind: its class.
        path: of the folder, or the hub id.
        unread: parts of names of weights that may be missing, as no forward pass reads them.

    Raises:
        ValueError: if it is of another class, or if weights are missing or of another shape.
        Exception: whatever the libraries raise about its files; see `readable`.
    """
    wanted = kind.config_class.model_type
    found = kind.config_class.get_config_dict(str(path))[0].get("model_type")
    if found != wanted:
        raise ValueError(f"a model of type {found!r}, where {wanted!r} belongs")
    with quiet_loading():
        model, report = kind.from_pretrained(path, use_safetensors=True, output_loading_info=True)
    # transformers only warns and draws random weights instead.
    missing = [key for key in report["missing_keys"] if not any(part in key for part in unread)]
    lacking = [*missing, *report["mismatched_keys"]]
    if lacking:
        raise ValueError(f"weights missing or of another shape: {lacking[:3]}")
    return model.float().requires_grad_(False).eval()


def processor_config(path: Path | str) -> Mapping[str, Any]:
    """Returns the content of a preprocessor_config.json.

    Raises:
        Exception: whatever the libraries raise if there is none; see `readable`.
    """
    return ImageProcessingMixin.get_image_processor_dict(str(path))[0]
