"""Merging LoRAs: one LoRA out of several, and a report of what was kept of each."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from flow_opd.adapters.form import LoraForm
from flow_opd.adapters.lora import LoraWeights
from flow_opd.adapters.lowrank import LowRank, nearest_to
from flow_opd.adapters.merge_methods import MERGE_METHODS, MergeMethod, MergeOptions
from flow_opd.errors import AdapterError, explain


@dataclass(frozen=True)
class ModuleReport:
    """What cutting to the rank did to one module; energy = squared Frobenius norm of a delta."""

    energy: float  # of the method's delta before the cut
    kept_energy: float  # share in [0, 1]; 1 if there was none to lose


@dataclass(frozen=True)
class TeacherReport:
    """How much of one teacher's delta, over all modules, is in the merge."""

    cosine: float | None  # between its delta and the merged one; None if either is zero
    norm_ratio: float | None  # |merged delta| / |its delta|; None if its delta is zero
    missing: tuple[str, ...] = ()  # modules of the merge that it does not change; they count as zero


@dataclass(frozen=True)
class MergeReport:
    """What a merge did."""

    method: str
    rank: int
    alpha: float
    weights: tuple[float, ...]  # K
    kept_energy: float  # over all modules, share in [0, 1]
    modules: Mapping[str, ModuleReport]
    teachers: tuple[TeacherReport, ...]  # K, in the order given
    notes: tuple[str, ...]

    @property
    def lost_energy(self) -> float:
        """The share of the energy that the cut to the rank lost, in [0, 1]."""
        return 1.0 - self.kept_energy

    @property
    def layers(self) -> dict[str, ModuleReport]:
        """What the cut did to each layer of the transformer, such as "transformer_blocks.3", in order."""
        grouped: dict[str, list[ModuleReport]] = {}
        for module, report in self.modules.items():
            grouped.setdefault(_layer_of(module), []).append(report)
        ordered = sorted(
            grouped, key=lambda name: [int(part) if part.isdigit() else part for part in name.split(".")]
        )
        return {
            name: ModuleReport(sum(each.energy for each in grouped[name]), _kept(grouped[name]))
            for name in ordered
        }


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
    module that one of them does not change is one with a delta of zero there.

    The delta does not depend on the alpha of the result, its training does. AdamW moves every entry of both
    factors by about the learning rate, so the delta moves by lr alpha / rank (S_B A + B S_A), S the signs.
    After a cut both factors have the size 1 / sqrt(alpha / rank): the delta moves by lr sqrt(alpha / rank).

    Args:
        loras: K LoRAs whose common modules have the same shapes.
        weights: w_k, used as they are; None = 1 / K each. Method "mean" takes none, "weighted" needs them.
        method: a name of MERGE_METHODS.
        rank: of the result, for methods that cut ("svd", "ties", "dare"), or less if there is less to keep.
            The others have their own: the sum ("mean", "weighted"), the common one ("factor-average").
        alpha: of the result; None = twice its rank, as in the published adapters.
        options: of TIES and DARE.

    Raises:
        ConfigError: if there is no such method.
        AdapterError: if the LoRAs do not fit each other, or weights or rank do not fit the method.
    """
    chosen = MERGE_METHODS.get(method)
    _shapes(loras)
    shares = _shares(chosen, method, weights, len(loras))
    if chosen.rank == "chosen" and (rank is None or rank < 1):
        raise AdapterError(
            explain(
                f"rank of merge method {method!r}",
                value=rank,
                allowed="1 and above",
                fix="say which rank to keep",
            )
        )
    merged, modules = _combine(loras, shares, chosen, rank, options or MergeOptions())
    result_rank = max(delta.rank for delta in merged.values())
    if chosen.rank == "own" and rank not in (None, result_rank):
        raise AdapterError(
            explain(
                f"merge method {method!r} has a rank of its own",
                value=rank,
                allowed=f"{result_rank}, or none",
                fix="leave the rank out, or use method svd, which cuts to a rank and reports the loss",
            )
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
        kept_energy=_kept(modules.values()),
        modules=modules,
        teachers=tuple(_compare(lora, merged) for lora in loras),
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
        modules[module] = ModuleReport(kept + lost, _share(kept, kept + lost))
    return merged, modules


def _shapes(loras: Sequence[LoraWeights]) -> dict[str, tuple[int, int]]:
    """Returns each module that any of the LoRAs changes with its shape, (out, in).

    Raises:
        AdapterError: if there is no LoRA, or two give one module different shapes.
    """
    if not loras:
        raise AdapterError(
            explain("nothing to merge", value=0, allowed="one LoRA or more", fix="name the adapters")
        )
    shapes: dict[str, tuple[int, int]] = {}
    for index, lora in enumerate(loras, start=1):
        for module, (down, up) in lora.factors.items():
            shape = (up.shape[0], down.shape[1])
            if shapes.setdefault(module, shape) != shape:
                raise AdapterError(
                    explain(
                        f"LoRA number {index} has another shape of {module} than one before it",
                        value=shape,
                        allowed=shapes[module],
                        fix="merge adapters of one base",
                    )
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
                explain(
                    f"merge method {method!r} without weights",
                    value=None,
                    allowed="a list",
                    fix="give weights",
                )
            )
        return (1.0 / count,) * count
    if chosen.weights == "equal":
        raise AdapterError(
            explain(
                f"weights for merge method {method!r}",
                value=list(weights),
                allowed="none, all count alike",
                fix="leave the weights out, or use method weighted or svd",
            )
        )
    if len(weights) != count or not all(map(math.isfinite, weights)) or not any(weights):
        raise AdapterError(
            explain(
                "merge weights",
                value=list(weights),
                allowed=f"{count} finite numbers, not all 0",
                fix="give one weight for each adapter",
            )
        )
    return tuple(float(weight) for weight in weights)


def _generator(seed: int, module: str) -> torch.Generator:
    """Returns a generator of its own for each module, whatever the order of the modules."""
    digest = hashlib.sha256(f"{seed}/{module}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _layer_of(module: str) -> str:
    """Returns the name of a module up to its first number, or its first part."""
    parts = module.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: number + 1])


def _kept(modules: Collection[ModuleReport]) -> float:
    """Returns the share of the energy of all these modules together that was kept."""
    kept = sum(report.energy * report.kept_energy for report in modules)
    return _share(kept, sum(report.energy for report in modules))


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 1.0


def _to_lora(merged: Mapping[str, LowRank], form: LoraForm, *, balanced: bool) -> LoraWeights:
    """Returns the deltas as a LoRA; a module of lower rank than the others is padded with zeros.

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


def _compare(lora: LoraWeights, merged: Mapping[str, LowRank]) -> TeacherReport:
    """Returns cosine and norm ratio of a teacher's delta and the merged one, over all modules together."""
    own = product = other = 0.0
    for module, delta in merged.items():
        other += delta.inner(delta)
        if module in lora.factors:
            part = LowRank.of(lora, module)
            own += part.inner(part)
            product += part.inner(delta)
    missing = tuple(sorted(merged.keys() - lora.factors.keys()))
    if own <= 0:
        return TeacherReport(None, None, missing)
    other = max(other, 0.0)
    cosine = product / math.sqrt(own * other) if other > 0 else None
    return TeacherReport(cosine, math.sqrt(other / own), missing)


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
