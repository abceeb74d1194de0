"""Stable Diffusion 3 under two naming schemes: diffusers' modules, and those of the original checkpoint.

ComfyUI and kohya's scripts use the original names (MMDiT), where query, key and value of a stream are one
layer, and where the last normalisations hold (shift, scale) instead of (scale, shift). Both moves are exact
for LoRA factors.

Source: `convert_sd3_transformer_checkpoint_to_diffusers` of diffusers, read as a table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from flow_opd.adapters.lora import Factors
from flow_opd.errors import AdapterError

FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
BLOCK = {
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.attn.ln_q": "attn.norm_q",
    "x_block.attn.ln_k": "attn.norm_k",
    "x_block.attn2.proj": "attn2.to_out.0",
    "x_block.attn2.ln_q": "attn2.norm_q",
    "x_block.attn2.ln_k": "attn2.norm_k",
    "x_block.adaLN_modulation.1": "norm1.linear",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k",
    "context_block.adaLN_modulation.1": "norm1_context.linear",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
}
OUTSIDE = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
POSITIONS = ("pos_embed", "pos_embed.pos_embed")  # a tensor without a module, original and diffusers

_ORIGINAL_BLOCK = re.compile(r"joint_blocks[._](?P<index>\d+)[._](?P<inside>.+)")
_DIFFUSERS_BLOCK = re.compile(r"transformer_blocks[._](?P<index>\d+)[._](?P<inside>.+)")
_ORIGINAL_OF = {name: original for original, name in (BLOCK | OUTSIDE).items()}


def dotted_original(name: str) -> str | None:
    """Returns an original module name with its dots, of a name with or without them; None if unknown."""
    return _dotted(name, _ORIGINAL_BLOCK, "joint_blocks", (*BLOCK, *FUSED), tuple(OUTSIDE))


def dotted_diffusers(name: str) -> str | None:
    """Returns a module name of diffusers with its dots, of a name with or without them; None if unknown."""
    inside = (*BLOCK.values(), *(part for parts in FUSED.values() for part in parts))
    return _dotted(name, _DIFFUSERS_BLOCK, "transformer_blocks", inside, tuple(OUTSIDE.values()))


def _dotted(
    name: str, form: re.Pattern[str], blocks: str, inside: Iterable[str], outside: Iterable[str]
) -> str | None:
    match = form.fullmatch(name)
    known, rest = (outside, name) if match is None else (inside, match["inside"])
    found = next((each for each in known if rest in (each, each.replace(".", "_"))), None)
    return found if match is None or found is None else f"{blocks}.{match['index']}.{found}"


def to_diffusers(parts: Mapping[str, Factors]) -> dict[str, Factors]:
    """Returns the factors of original modules as those of diffusers' modules; deltas are moved exactly."""
    moved: dict[str, Factors] = {}
    for name, part in parts.items():
        block, inside = _split_block(name, "joint_blocks")
        if inside in FUSED:
            for target, piece in zip(FUSED[inside], _thirds(name, part), strict=True):
                moved[f"transformer_blocks.{block}.{target}"] = piece
        elif block is None:
            moved[OUTSIDE[inside]] = _swapped(part) if _is_shift_scale(inside, part) else part
        else:
            target = f"transformer_blocks.{block}.{BLOCK[inside]}"
            moved[target] = _swapped(part) if _is_shift_scale(inside, part) else part
    return moved


def from_diffusers(parts: Mapping[str, Factors]) -> dict[str, Factors]:
    """Returns the factors of diffusers' modules as those of original modules; deltas are moved exactly.

    Raises:
        AdapterError: if a module is none of Stable Diffusion 3's.
    """
    unknown = [name for name in parts if dotted_diffusers(name) != name]
    if unknown:
        raise AdapterError(
            "modules without a name in the original checkpoint of Stable Diffusion 3",
            value=unknown[:5],
            allowed="linear layers of an SD3 transformer",
            fix="use the format peft or diffusers",
        )
    moved: dict[str, Factors] = {}
    fused_names = {part: fused for fused, names in FUSED.items() for part in names}
    for name, part in parts.items():
        block, inside = _split_block(name, "transformer_blocks")
        if block is not None and inside in fused_names:
            fused = fused_names[inside]
            target = f"joint_blocks.{block}.{fused}"
            if target not in moved:
                names = [f"transformer_blocks.{block}.{each}" for each in FUSED[fused]]
                moved[target] = _fuse([parts.get(each) for each in names], target)
        else:
            original = _ORIGINAL_OF[inside]
            target = original if block is None else f"joint_blocks.{block}.{original}"
            moved[target] = _swapped(part) if _is_shift_scale(original, part) else part
    return moved


def original_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of diffusers' `SD3Transformer2DModel` under the names of the original checkpoint.

    The inverse of `convert_sd3_transformer_checkpoint_to_diffusers`.
    """
    width = state["context_embedder.weight"].shape[0]
    third_of = {name: (fused, place) for fused, names in FUSED.items() for place, name in enumerate(names)}
    moved: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == POSITIONS[1]:
            moved[POSITIONS[0]] = tensor
            continue
        module, kind = name.rsplit(".", 1)
        block, inside = _split_block(module, "transformer_blocks")
        before = "" if block is None else f"joint_blocks.{block}."
        if inside in third_of:
            fused, place = third_of[inside]
            whole = moved.setdefault(f"{before}{fused}.{kind}", tensor.new_zeros(3, *tensor.shape))
            whole[place] = tensor
            continue
        original = _ORIGINAL_OF[inside]
        last_text = original == "context_block.adaLN_modulation.1" and tensor.shape[0] == 2 * width
        swap = last_text or original == "final_layer.adaLN_modulation.1"
        moved[f"{before}{original}.{kind}"] = torch.cat(tensor.chunk(2)[::-1]) if swap else tensor
    return {name: tensor.flatten(0, 1) if ".qkv." in name else tensor for name, tensor in moved.items()}


def _split_block(name: str, blocks: str) -> tuple[str | None, str]:
    """Returns the index of the block and the name inside it, or None and the whole name."""
    if not name.startswith(blocks + "."):
        return None, name
    _, index, inside = name.split(".", 2)
    return index, inside


def _is_shift_scale(original: str, part: Factors) -> bool:
    """Says whether the rows of B are (shift, scale) in one scheme and (scale, shift) in the other.

    That is so where nothing follows but the output: after the last block, and for the text in it, where the
    layer has two outputs for each input instead of six.
    """
    last_text = original == "context_block.adaLN_modulation.1" and part.up.shape[0] == 2 * part.down.shape[1]
    return last_text or original == "final_layer.adaLN_modulation.1"


def _swapped(part: Factors) -> Factors:
    return Factors(part.down, torch.cat(part.up.chunk(2)[::-1]), part.alpha)


def _thirds(name: str, part: Factors) -> list[Factors]:
    """Returns the factors of query, key and value of one fused layer; they share A.

    Rank dimensions that one of the three does not use are left out: a fused layer that was made of three
    gives these three back.
    """
    if part.up.shape[0] % 3:
        raise AdapterError(
            f"LoRA of a fused layer whose height is no multiple of three: {name}",
            value=part.up.shape[0],
            allowed="query, key and value of one height",
            fix="use an adapter of Stable Diffusion 3",
        )
    pieces = []
    for up in part.up.chunk(3):
        used = up.ne(0).any(dim=0)
        if not used.any():
            used[0] = True
        rank = int(used.sum())
        pieces.append(Factors(part.down[used], up[:, used].contiguous(), part.alpha * rank / part.rank))
    return pieces


def _fuse(pieces: Sequence[Factors | None], name: str) -> Factors:
    """Returns one layer of query, key and value: A stacked, B in blocks, or one A that the three share."""
    given = [piece for piece in pieces if piece is not None]
    height = given[0].up.shape[0]
    if any(piece.up.shape[0] != height for piece in given):
        raise AdapterError(
            f"query, key and value of different heights: {name}",
            value=[piece.up.shape[0] for piece in given],
            allowed="one height",
            fix="use the format peft or diffusers",
        )
    scale = given[0].scale
    ups = [None if piece is None else piece.up * (piece.scale / scale) for piece in pieces]
    if len(given) == 3 and all(torch.equal(piece.down, given[0].down) for piece in given):
        return Factors(given[0].down, torch.cat([up for up in ups if up is not None]), given[0].alpha)
    rank = sum(piece.rank for piece in given)
    fused = given[0].up.new_zeros(3 * height, rank)
    column = 0
    for place, up in enumerate(ups):
        if up is not None:
            fused[place * height : (place + 1) * height, column : column + up.shape[1]] = up
            column += up.shape[1]
    return Factors(torch.cat([piece.down for piece in given]), fused, scale * rank)
