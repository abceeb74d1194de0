"""Merging LoRAs: one LoRA out of several, and a report of what was kept of each."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch

from flow_opd.adapters.form import LoraForm
from flow_opd.adapters.lora import LoraWeights
from flow_opd.adapters.lowrank import LowRank, nearest_to
from flow_opd.adapters.merge_methods import MERGE_METHODS, MergeMethod, MergeOptions
from flow_opd.adapters.merge_report import MergeReport, ModuleReport, compare, kept_energy, share
from flow_opd.errors import AdapterError


def merge(
    loras: Sequence[LoraWeights],
    weights: Sequence[float] | None = None,
    method: str = "mean",
    rank: int | None = None,
    alpha: float | None = None,
    options: MergeOptions | None = None,
) -> tuple[LoraWeights, MergeReport]:
    """Returns one LoRA made of several, and the report.

    Adapters of different rank and alpha are merged by their deltas (alpha / rank) B A; the report says so. A
    module that one of them does not change has a delta of zero there.

    Args:
        loras: K LoRAs whose common modules have the same shapes.
        weights: w_k, used as they are; None = 1 / K each. Method "mean" takes none, "weighted" needs them.
        method: a name of MERGE_METHODS.
        rank: of the result, for methods that cut ("svd", "ties", "dare"), or less if there is less to keep.
            The others have their own: the sum ("mean", "weighted"), the common one ("factor-average").
        alpha: of the result, whose delta does not depend on it but whose training does (`_to_lora`); None =
            twice its rank, as in the published adapters.
        options: of TIES and DARE.

    Raises:
        ConfigError: if there is no such method.
        AdapterError: if the LoRAs do not fit each other, or weights or rank do not fit the method.
    """
    chosen = MERGE_METHODS.get(method)
    _shapes(loras)
    shares = _shares(chosen, method, weights, len(loras))
    if chosen.rank == "chosen" and (rank is None or rank < 1):
        what, fix = f"rank of merge method {method!r}", "say which rank to keep"
        raise AdapterError(what, value=rank, allowed="1 and above", fix=fix)
    merged, modules = _combine(loras, shares, chosen, rank, options or MergeOptions())
    result_rank = max(delta.rank for delta in merged.values())
    if chosen.rank == "own" and rank not in (None, result_rank):
        raise AdapterError(
            f"merge method {method!r} has a rank of its own",
            value=rank,
            allowed=f"{result_rank}, or none",
            fix="leave the rank out, or use method svd, which cuts to a rank and reports the loss",
        )
    result = _to_lora(
        merged,
        LoraForm(result_rank, 2.0 * result_rank if alpha is None else alpha, _targets(loras)),
        balanced=chosen.rank == "chosen",
    )
    report = MergeReport(
        method=method,
        rank=result.rank,
        alpha=result.alpha,
        weights=shares,
        kept_energy=kept_energy(modules.values()),
        modules=modules,
        teachers=tuple(compare(lora, merged) for lora in loras),
        notes=_notes(loras, rank, result_rank),
    )
    return result, report


def _combine(
    loras: Sequence[LoraWeights],
    shares: Sequence[float],
    chosen: MergeMethod,
    rank: int | None,
    options: MergeOptions,
) -> tuple[dict[str, LowRank], dict[str, ModuleReport]]:
    """Returns each module's merged delta, cut to the rank if the method wants that, and its report."""
    merged: dict[str, LowRank] = {}
    modules: dict[str, ModuleReport] = {}
    for module in sorted(_shapes(loras)):
        parts = _parts(loras, module)
        whole = chosen.combine(parts, shares, options, _generator(options.seed, module))
        if chosen.rank == "own":
            assert isinstance(whole, LowRank)
            merged[module], kept, lost = whole, whole.inner(whole), 0.0
        else:
            assert rank is not None
            cut = whole.truncated(rank) if isinstance(whole, LowRank) else nearest_to(whole, rank)
            merged[module], kept, lost = cut
        modules[module] = ModuleReport(kept + lost, share(kept, kept + lost))
    return merged, modules


def _shapes(loras: Sequence[LoraWeights]) -> dict[str, tuple[int, int]]:
    """Returns each module that any of the LoRAs changes with its shape, (out, in).

    Raises:
        AdapterError: if there is no LoRA, or two give one module different shapes.
    """
    if not loras:
        raise AdapterError("nothing to merge", value=0, allowed="one LoRA or more", fix="name the adapters")
    shapes: dict[str, tuple[int, int]] = {}
    for index, lora in enumerate(loras, start=1):
        for module, (down, up) in lora.factors.items():
            shape = (up.shape[0], down.shape[1])
            if shapes.setdefault(module, shape) != shape:
                raise AdapterError(
                    f"LoRA number {index} has another shape of {module} than one before it",
                    value=shape,
                    allowed=str(shapes[module]),
                    fix="merge adapters of one base",
                )
    return shapes


def _parts(loras: Sequence[LoraWeights], module: str) -> list[LowRank]:
    """Returns the K deltas of a module, zero of the LoRA's own rank where it does not change the module."""
    known = next(lora.factors[module] for lora in loras if module in lora.factors)
    return [
        LowRank.of(lora, module)
        if module in lora.factors
        else LowRank(
            torch.zeros(known[1].shape[0], lora.rank, dtype=torch.float64),
            torch.zeros(lora.rank, known[0].shape[1], dtype=torch.float64),
        )
        for lora in loras
    ]


def _targets(loras: Sequence[LoraWeights]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(target for lora in loras for target in lora.target_modules))


def _shares(
    chosen: MergeMethod, method: str, weights: Sequence[float] | None, count: int
) -> tuple[float, ...]:
    """Returns the K weights of a merge.

    Raises:
        AdapterError: if the method takes none, needs some, or they are not K finite numbers, or all 0.
    """
    if weights is None:
        if chosen.weights == "given":
            raise AdapterError(
                f"merge method {method!r} without weights",
                value=None,
                allowed="a list",
                fix="give weights",
            )
        return (1.0 / count,) * count
    if chosen.weights == "equal":
        raise AdapterError(
            f"weights for merge method {method!r}",
            value=list(weights),
            allowed="none, all count the same",
            fix="leave the weights out, or use method weighted or svd",
        )
    if len(weights) != count or not all(map(math.isfinite, weights)) or not any(weights):
        raise AdapterError(
            "merge weights",
            value=list(weights),
            allowed=f"{count} finite numbers, not all 0",
            fix="give one weight for each adapter",
        )
    return tuple(float(weight) for weight in weights)


def _generator(seed: int, module: str) -> torch.Generator:
    """Returns a generator of its own for each module, whatever the order of the modules."""
    digest = hashlib.sha256(f"{seed}/{module}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _to_lora(merged: Mapping[str, LowRank], form: LoraForm, *, balanced: bool) -> LoraWeights:
    """Returns the deltas as a LoRA; a module of lower rank than the others is padded with zeros.

    AdamW moves every entry of both factors by about the learning rate, so the delta moves by
    lr alpha / rank (S_B A + B S_A), S the signs of the steps. Balanced factors have the size
    1 / sqrt(alpha / rank), so the delta moves by lr sqrt(alpha / rank).

    Args:
        merged: module -> delta.
        form: rank, alpha and targets of the result.
        balanced: divides both factors by the root of alpha / rank, which keeps factors of equal size equal;
            else B alone by all of it, which keeps A.
    """
    scale_down = math.sqrt(form.scale) if balanced else 1.0
    factors = {}
    for module, delta in merged.items():
        up = torch.zeros(delta.up.shape[0], form.rank)
        down = torch.zeros(form.rank, delta.down.shape[1])
        up[:, : delta.rank] = delta.up / (form.scale / scale_down)
        down[: delta.rank] = delta.down / scale_down
        factors[module] = (down, up)
    return LoraWeights(form.rank, form.alpha, factors, form.target_modules)


def _notes(loras: Sequence[LoraWeights], asked: int | None, rank: int) -> tuple[str, ...]:
    """Returns what the reader of the report should know besides the numbers."""
    notes = []
    forms = [(lora.rank, lora.alpha) for lora in loras]
    if len(set(forms)) > 1:
        listed = ", ".join(f"{rank}/{alpha:g}" for rank, alpha in forms)
        notes.append(
            f"the adapters differ in rank/alpha ({listed}); their deltas (alpha/rank) B A were merged"
        )
    if asked is not None and rank < asked:
        notes.append(f"rank {rank} holds everything; the {asked} asked for are not needed")
    return tuple(notes)
