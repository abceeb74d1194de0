"""The identity of text encoders: a hash over everything that decides an embedding."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

T5_PARTS = ("text_encoder_3", "tokenizer_3")  # Stable Diffusion 3 was trained to do without them, too
LONGEST_T5_PROMPT = 512  # tokens; diffusers refuses more for SD3 and FLUX
_SAYS_NOTHING = ("transformers_version", "_name_or_path", "architectures")  # of a configuration


def identity_of(
    pipeline: str,
    encoders: Mapping[str, nn.Module | None],
    tokenizers: Mapping[str, Any],
    max_sequence_length: int,
) -> str:
    """Returns 16 hex digits that change whenever an embedding might.

    They cover the configuration and every byte of every weight of each encoder, so another dtype is another
    identity and another device is not, each tokenizer, and the number of T5 tokens.

    Args:
        pipeline: class of the pipeline: it decides how the encoders are put together.
        encoders: by name; None for a part that the base lacks.
        tokenizers: by the same names.
        max_sequence_length: T5 tokens per prompt.
    """
    digest = hashlib.sha256(f"{pipeline} {max_sequence_length}".encode())
    for name, encoder in sorted(encoders.items()):
        digest.update(f"\n{name} {'absent' if encoder is None else _configuration(encoder)}".encode())
        if encoder is None:
            continue
        digest.update(_tokenizer(tokenizers[name]).encode())
        for key, parameter in sorted(encoder.named_parameters()):
            digest.update(f"\n{key} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
            digest.update(_bytes(parameter))
    return digest.hexdigest()[:16]


def _configuration(encoder: Any) -> str:
    entries = encoder.config.to_diff_dict()
    told = {key: value for key, value in entries.items() if key not in _SAYS_NOTHING}
    return f"{type(encoder).__name__} {json.dumps(told, sort_keys=True, default=str)}"


def _tokenizer(tokenizer: Any) -> str:
    """Returns vocabulary, merges and rules; how the last batch happened to be padded is left out."""
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
    else:
        rules = {"vocab": tokenizer.get_vocab()}
    return json.dumps([rules, tokenizer.model_max_length, tokenizer.padding_side], sort_keys=True)


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    content: memoryview = flat.cpu().numpy().data
    return content
