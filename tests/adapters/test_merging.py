"""Merges act on deltas: identities, energies, and the factor average as negative control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

import flow_opd
from errors import ANY, refused
from flow_opd.adapters import merging
from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.lora import LoraWeights
from flow_opd.adapters.lowrank import LowRank, nearest_to
from flow_opd.adapters.merge_report import MergeReport
from flow_opd.config.merge import MergeMethodSettings
from flow_opd.errors import AdapterError, ConfigError

METHODS = list(MergeMethodSettings.kind.own)
CUT = ("svd", "ties", "dare")
SHAPES = {"block.0.to_q": (12, 10), "block.1.to_q": (7, 16), "block.1.to_k": (9, 9)}


def merge(
    loras: Sequence[LoraWeights],
    weights: Sequence[float] | None = None,
    method: str = "mean",
    rank: int | None = None,
    alpha: float | None = None,
    *,
    options: dict[str, float] | None = None,
    seed: int = 0,
) -> tuple[LoraWeights, MergeReport]:
    given = {**({} if rank is None else {"rank": rank}), **(options or {})}
    chosen = replace(MergeMethodSettings.of(method, given).build(), alpha=alpha)
    return merging.merge(loras, chosen, weights, seed=seed)


def make(seed: int, rank: int = 3, alpha: float = 6.0) -> LoraWeights:
    generator = torch.Generator().manual_seed(seed)
    factors = {
        module: (
            torch.randn(rank, width, generator=generator),
            torch.randn(height, rank, generator=generator),
        )
        for module, (height, width) in SHAPES.items()
    }
    return LoraWeights(rank, alpha, factors)


def deltas(loras: list[LoraWeights], weights: list[float] | None = None) -> dict[str, Tensor]:
    """The dense weighted sum, computed without any of the code under test but `delta`."""
    shares = weights or [1 / len(loras)] * len(loras)
    return {
        module: sum(share * lora.delta(module) for share, lora in zip(shares, loras, strict=True))
        for module in SHAPES
    }


def assert_deltas(lora: LoraWeights, expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    for module, delta in expected.items():
        torch.testing.assert_close(lora.delta(module), delta, atol=tolerance, rtol=tolerance)


loras = st.lists(
    st.builds(make, st.integers(0, 999), st.integers(1, 5), st.sampled_from([0.5, 3.0, 8.0])),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=25)
@given(loras, st.sampled_from([None, 1.0, 5.0]))
def test_mean_by_stacking_is_the_mean_of_the_deltas(several: list[LoraWeights], alpha: float | None) -> None:
    merged, report = merge(several, method="mean", alpha=alpha)
    assert merged.rank == report.rank == sum(lora.rank for lora in several)
    assert merged.alpha == (alpha or 2 * merged.rank)
    assert report.kept_energy == 1.0
    assert_deltas(merged, deltas(several))


def test_mean_is_exact_to_1e_6() -> None:
    several = [make(seed) for seed in range(4)]
    merged, _ = merge(several, method="mean")
    for module, delta in deltas(several).items():
        assert (merged.delta(module) - delta).norm() / delta.norm() < 1e-6


@settings(deadline=None, max_examples=25)
@given(loras, st.data())
def test_weighted_and_full_svd_are_the_weighted_sum(several: list[LoraWeights], data: st.DataObject) -> None:
    weights = data.draw(
        st.lists(st.sampled_from([-1.0, 0.25, 0.5, 2.0]), min_size=len(several), max_size=len(several))
    )
    expected = deltas(several, weights)
    assert_deltas(merge(several, weights, method="weighted")[0], expected, 1e-4)
    full, report = merge(several, weights, method="svd", rank=64)
    assert_deltas(full, expected, 1e-4)
    assert report.kept_energy == pytest.approx(1.0, abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(loras, st.integers(1, 6))
def test_lost_energy_is_the_frobenius_gap_of_the_best_cut(several: list[LoraWeights], rank: int) -> None:
    merged, report = merge(several, method="svd", rank=rank)
    lost = total = 0.0
    for module, delta in deltas(several).items():
        values = torch.linalg.svdvals(delta.double())
        gap = (delta - merged.delta(module)).double().square().sum().item()
        energy = values.square().sum().item()
        assert gap == pytest.approx(values[rank:].square().sum().item(), abs=1e-5 * energy)
        assert report.modules[module].energy == pytest.approx(energy, rel=1e-5)
        assert 1 - report.modules[module].kept_energy == pytest.approx(gap / energy, abs=1e-5)
        lost, total = lost + gap, total + energy
    assert report.lost_energy == pytest.approx(lost / total, abs=1e-5)


def test_cutting_really_loses() -> None:
    _, report = merge([make(0), make(1)], method="svd", rank=3)
    assert 0.05 < report.lost_energy < 0.6


@pytest.mark.parametrize(("count", "expected"), [(2, 0.71), (3, 0.58), (4, 0.50)])
def test_factor_average_is_not_the_mean(count: int, expected: float) -> None:
    """Negative control: cosine 1/sqrt(K) with the true mean for independent adapters, as published."""
    generator = torch.Generator().manual_seed(0)
    several = [
        LoraWeights(
            8,
            8.0,
            {"m": (torch.randn(8, 256, generator=generator), torch.randn(256, 8, generator=generator))},
        )
        for _ in range(count)
    ]
    wrong = merge(several, method="factor-average")[0].delta("m")
    right = merge(several, method="mean")[0].delta("m")
    assert torch.cosine_similarity(wrong.flatten(), right.flatten(), dim=0).item() == pytest.approx(
        expected, abs=0.02
    )


def test_factor_average_is_right_for_equal_adapters_only() -> None:
    one = make(0)
    assert_deltas(merge([one, one], method="factor-average")[0], deltas([one]))
    with refused(AdapterError, value=[2, 3]):
        merge([make(0, rank=2), make(1, rank=3)], method="factor-average")


@pytest.mark.parametrize("method", METHODS)
def test_merging_one_adapter_is_the_identity(method: str) -> None:
    one = make(5)
    weights = [1.0] if method == "weighted" else None
    rank = one.rank if method in CUT else None
    options = {"ties": {"density": 1.0}, "dare": {"drop": 0.0}}.get(method)
    merged, report = merge([one], weights, method, rank, options=options)
    assert_deltas(merged, deltas([one]))
    assert report.teachers[0].cosine == pytest.approx(1.0)
    assert report.teachers[0].norm_ratio == pytest.approx(1.0)
    if method in ("mean", "weighted", "factor-average"):
        assert all(torch.equal(merged.factors[m][0], one.factors[m][0]) for m in SHAPES)


@pytest.mark.parametrize("method", ["mean", "svd", "ties", "factor-average"])
def test_order_does_not_matter(method: str) -> None:
    several = [make(seed) for seed in range(3)]
    rank = 4 if method in CUT else None
    first = merge(several, method=method, rank=rank)[0]
    for order in permutations(several):
        again = merge(list(order), method=method, rank=rank)[0]
        assert_deltas(again, {module: first.delta(module) for module in SHAPES})


def test_different_rank_and_alpha_are_scaled_and_said() -> None:
    several = [make(0, rank=2, alpha=8.0), make(1, rank=4, alpha=4.0)]
    merged, report = merge(several, method="mean", alpha=12.0)
    assert (merged.rank, merged.alpha) == (6, 12.0)
    assert_deltas(merged, deltas(several))
    assert "2/8, 4/4" in report.notes[0]
    assert merge([make(0), make(1)], method="mean")[1].notes == ()


def test_teachers_are_compared_with_the_merge() -> None:
    several = [make(0), make(1)]
    merged, report = merge(several, [0.9, 0.1], "svd", rank=4)
    flat = torch.cat([merged.delta(module).flatten() for module in SHAPES])
    for lora, teacher in zip(several, report.teachers, strict=True):
        own = torch.cat([lora.delta(module).flatten() for module in SHAPES])
        assert teacher.cosine == pytest.approx(torch.cosine_similarity(own, flat, dim=0).item(), abs=1e-5)
        assert teacher.norm_ratio == pytest.approx((flat.norm() / own.norm()).item(), rel=1e-5)
    assert report.teachers[0].cosine > report.teachers[1].cosine


def test_fresh_adapters_have_no_energy_and_no_cosine() -> None:
    zero = LoraWeights(2, 4.0, {m: (torch.ones(2, w), torch.zeros(h, 2)) for m, (h, w) in SHAPES.items()})
    merged, report = merge([zero, zero], method="svd", rank=2)
    assert (report.kept_energy, report.teachers[0].cosine, report.teachers[0].norm_ratio) == (1.0, None, None)
    assert_deltas(merged, deltas([zero]))
    _, mixed = merge([zero, make(0)], method="mean")
    assert mixed.teachers[0].cosine is None
    assert mixed.teachers[1].norm_ratio == pytest.approx(0.5)


def test_ties_by_hand() -> None:
    """Density 1/2 keeps two of four; signs by the sum; the mean of those that agree.

    d1 = [[4, -1], [3, 2]] -> [[4, 0], [3, 0]];  d2 = [[-2, 5], [1, -6]] -> [[0, 5], [0, -6]]
    d3 = [[2, 1], [-5, 0]] -> [[2, 0], [-5, 0]]; sums 6, 5, -2, -6 -> (4 + 2)/2, 5, -5, -6
    """
    eye = torch.eye(2)
    several = [
        LoraWeights(2, 2.0, {"m": (eye, torch.tensor(delta))})
        for delta in ([[4.0, -1.0], [3.0, 2.0]], [[-2.0, 5.0], [1.0, -6.0]], [[2.0, 1.0], [-5.0, 0.0]])
    ]
    merged, _ = merge(several, method="ties", rank=2, options={"density": 0.5})
    torch.testing.assert_close(merged.delta("m"), torch.tensor([[3.0, 5.0], [-5.0, -6.0]]))
    with refused(AdapterError, value=[1.0, 1.0, -1.0]):
        merge(several, [1.0, 1.0, -1.0], "ties", rank=2)


def test_dare_is_seeded_unbiased_and_drops() -> None:
    several = [make(0), make(1)]

    def run(seed: int) -> Tensor:
        merged, _ = merge(several, method="dare", rank=16, options={"drop": 0.6}, seed=seed)
        return merged.delta("block.0.to_q")

    assert torch.equal(run(3), run(3))
    assert not torch.allclose(run(3), run(4))
    assert (run(3).abs() < 1e-5).float().mean().item() == pytest.approx(0.36, abs=0.15)  # both dropped: 0.6^2
    mean = torch.stack([run(seed) for seed in range(400)]).mean(0)
    expected = deltas(several)["block.0.to_q"]
    assert ((mean - expected).norm() / expected.norm()).item() < 0.1


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_sparse_methods_have_full_rank_and_report_the_cut(method: str) -> None:
    several = [make(seed, rank=1) for seed in range(2)]
    merged, report = merge(several, method=method, rank=2)
    assert merged.rank == 2
    assert 0.01 < report.lost_energy < 0.9  # the mean of two adapters of rank 1 would fit into rank 2 exactly
    whole, full = merge(several, method=method, rank=16)
    gap = sum((whole.delta(m) - merged.delta(m)).square().sum().item() for m in SHAPES)
    energy = sum(whole.delta(m).square().sum().item() for m in SHAPES)
    assert full.kept_energy == pytest.approx(1.0)
    assert report.lost_energy == pytest.approx(gap / energy, rel=1e-4)


def test_thin_svd_never_needs_the_wide_matrix() -> None:
    """A dense 200,000 x 200,000 delta would take 160 GB."""
    generator = torch.Generator().manual_seed(0)
    parts = [
        LowRank(
            torch.randn(200_000, 2, generator=generator, dtype=torch.float64),
            torch.randn(2, 200_000, generator=generator, dtype=torch.float64),
        )
        for _ in range(2)
    ]
    stacked = LowRank.stack(parts, [0.5, 0.5])
    cut, kept, lost = stacked.truncated(3)
    assert kept + lost == pytest.approx(stacked.inner(stacked))
    assert stacked.inner(stacked) - cut.inner(cut) == pytest.approx(lost)


@pytest.mark.parametrize(
    ("arguments", "value", "name"),
    [
        ({"loras": []}, ANY, "merge"),
        ({"method": "mean", "weights": [0.5, 0.5]}, [0.5, 0.5], "'mean'"),
        ({"method": "weighted"}, ANY, "weights"),
        ({"method": "svd", "rank": 2, "weights": [1.0]}, [1.0], "weights"),
        ({"method": "svd", "rank": 2, "weights": [0.0, 0.0]}, [0.0, 0.0], "weights"),
        ({"method": "svd", "rank": 2, "weights": [float("nan"), 1.0]}, [float("nan"), 1.0], "weights"),
    ],
)
def test_what_a_merge_refuses(arguments: dict[str, Any], value: object, name: str) -> None:
    with refused(AdapterError, value=value, names=[name]):
        merge(**({"loras": [make(0), make(1)]} | arguments))


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"method": "svd"}, "rank"),
        ({"method": "ties", "rank": 0}, "rank"),
        ({"method": "mean", "rank": 3}, "rank"),
    ],
)
def test_settings_that_do_not_fit_the_method(arguments: dict[str, Any], key: str) -> None:
    with refused(ConfigError, names=[key]):
        flow_opd.merge([make(0), make(1)], **arguments)


def test_an_alpha_that_is_none() -> None:
    with refused(AdapterError, value=0.0, names=["alpha"]):
        flow_opd.merge([make(0), make(1)], alpha=0.0)


def test_a_function_of_ones_own_merges() -> None:
    def largest(parts: Sequence[LowRank], weights: Sequence[float], generator: torch.Generator) -> LowRank:
        return max(parts, key=lambda part: part.inner(part))

    small, large = make(0), make(1)
    large = LoraWeights(large.rank, 4 * large.alpha, large.factors)
    assert_deltas(flow_opd.merge([small, large], method=largest), deltas([large]))
    dense = flow_opd.merge([small, large], method=lambda *given: largest(*given).dense(), rank=2)
    assert dense.rank == 2


@pytest.mark.parametrize(
    ("made", "rank"),
    [
        (lambda parts: parts[0].dense(), None),  # dense, and no rank to cut it to
        (lambda parts: parts[0].dense()[:-1], 2),
        (lambda parts: parts[0].dense() * float("nan"), 2),
    ],
)
def test_what_a_function_may_not_return(made: Callable[..., Tensor], rank: int | None) -> None:
    with refused(AdapterError):
        flow_opd.merge([make(0), make(1)], method=lambda parts, *_: made(parts), rank=rank)


def test_unknown_method_and_options() -> None:
    with refused(ConfigError, names=["'tie'", "'ties'"]):
        flow_opd.merge([make(0)], method="tie")
    with pytest.raises(ValidationError, match="density"):
        MergeMethodSettings.of("ties", {"rank": 2, "density": 0.0})
    with pytest.raises(ValidationError, match="drop"):
        MergeMethodSettings.of("dare", {"rank": 2, "drop": 1.0})


def test_different_shapes_are_refused() -> None:
    one, two = make(0), make(1)
    swapped = LoraWeights(two.rank, two.alpha, {m: (b.T, a.T) for m, (a, b) in two.factors.items()})
    with refused(AdapterError, value=(10, 12), names=["block.0.to_q"]):
        merge([one, swapped], method="mean")


@pytest.mark.parametrize("method", METHODS)
def test_a_module_that_an_adapter_lacks_counts_as_zero(method: str) -> None:
    one, two = make(0), make(1)
    lacking, absent = list(SHAPES)[:2], list(SHAPES)[2]
    fewer = LoraWeights(two.rank, two.alpha, {m: two.factors[m] for m in lacking})
    zero = {absent: (two.factors[absent][0], torch.zeros_like(two.factors[absent][1]))}
    whole = LoraWeights(two.rank, two.alpha, {**two.factors, **zero})
    weights = [0.5, 0.5] if method == "weighted" else None
    rank = 6 if method in CUT else None
    options = {"ties": {"density": 0.5}, "dare": {"drop": 0.3}}.get(method)
    expected = merge([one, whole], weights, method, rank, options=options, seed=1)[0]
    for order in ([one, fewer], [fewer, one]) if method != "dare" else ([one, fewer],):
        merged, report = merge(order, weights, method, rank, options=options, seed=1)
        if method == "factor-average":  # its A is halved too, as that of a zero adapter would be
            assert_deltas(merged, {m: expected.delta(m) for m in lacking})
            assert_deltas(merged, {absent: one.delta(absent) / 4})
        else:
            assert_deltas(merged, {m: expected.delta(m) for m in SHAPES}, 1e-4)
        missing = {teacher.missing for teacher in report.teachers}
        assert missing == {(), (absent,)}
        assert report.teachers[order.index(fewer)].missing == (absent,)
        flat = torch.cat([merged.delta(m).flatten() for m in SHAPES])
        own = torch.cat([whole.delta(m).flatten() for m in SHAPES])
        cosine = torch.cosine_similarity(own, flat, dim=0).item()
        assert report.teachers[order.index(fewer)].cosine == pytest.approx(cosine, abs=1e-5)


ALPHAS = (16.0, 32.0, 64.0)


@pytest.mark.parametrize("method", ["svd", "ties", "dare"])
def test_the_delta_does_not_depend_on_alpha(method: str) -> None:
    several = [make(seed) for seed in range(3)]
    first, *others = (merge(several, method=method, rank=4, alpha=alpha)[0] for alpha in ALPHAS)
    assert [first.alpha, *(each.alpha for each in others)] == list(ALPHAS)
    for module in SHAPES:
        delta = first.delta(module)
        for other in others:
            assert (other.delta(module) - delta).norm() / delta.norm() < 1e-6


def test_how_far_a_learning_rate_moves_the_delta_goes_with_the_root_of_alpha_over_rank() -> None:
    """The first step of Adam is lr times the sign of the gradient, in both factors.

    delta' - delta = alpha / rank ((B + lr S_B) (A + lr S_A) - B A)
                   = alpha / rank lr (S_B A + B S_A) + O(lr^2),
    and of one merge both factors have the size 1 / sqrt(alpha / rank).
    """
    several, rate, module = [make(seed) for seed in range(3)], 1e-4, "block.0.to_q"
    wish = torch.randn(SHAPES[module], generator=torch.Generator().manual_seed(9))
    moved = []
    for alpha in ALPHAS:
        merged, _ = merge(several, method="svd", rank=4, alpha=alpha)
        down, up = (factor.clone().requires_grad_() for factor in merged.factors[module])
        before = merged.delta(module)
        optimizer = torch.optim.Adam([down, up], lr=rate)
        (merged.scale * up @ down * wish).sum().backward()
        assert up.grad is not None
        assert down.grad is not None
        signs = up.grad.sign(), down.grad.sign()
        closed = -rate * merged.scale * (signs[0] @ down + up @ signs[1]).detach()
        optimizer.step()
        step = merged.scale * (up @ down).detach() - before
        assert (step - closed).norm() / closed.norm() < 0.01
        moved.append(step.norm().item())
    assert moved[1] / moved[0] == pytest.approx(2**0.5, rel=0.01)
    assert moved[2] / moved[0] == pytest.approx(2.0, rel=0.01)


def test_merge_in_the_bank_moves_the_weights_by_the_mean(bank: AdapterBank) -> None:
    bank.put("merged", merge([bank.weights("student"), bank.weights("teacher")], method="mean")[0])
    student, teacher, merged = (bank.weights(name) for name in ("student", "teacher", "merged"))
    for module in merged.factors:
        mean = (student.delta(module) + teacher.delta(module)) / 2
        torch.testing.assert_close(merged.delta(module), mean, atol=1e-6, rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 14), st.integers(1, 12), st.integers(0, 99))
def test_the_nearest_of_a_rank_is_that_of_the_whole_decomposition(
    height: int, width: int, rank: int, own: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    up = torch.randn(height, own, generator=draw, dtype=torch.float64)
    delta = up @ torch.randn(own, width, generator=draw, dtype=torch.float64)
    cut, kept, lost = nearest_to(delta, rank)
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    expected = (left[:, :rank] * values[:rank]) @ right[:rank]
    torch.testing.assert_close(cut.dense(), expected, atol=1e-7, rtol=1e-7)
    assert cut.rank == min(rank, height, width)
    energy = values.square()
    assert kept == pytest.approx(energy[:rank].sum().item(), rel=1e-9)
    assert lost == pytest.approx(energy[rank:].sum().item(), rel=1e-6, abs=1e-6)


def test_the_nearest_to_nothing_is_nothing() -> None:
    cut, kept, lost = nearest_to(torch.zeros(4, 6, dtype=torch.float64), 2)
    assert (kept, lost) == (0.0, 0.0)
    assert torch.equal(cut.dense(), torch.zeros(4, 6, dtype=torch.float64))


def test_energy_by_layer_adds_up() -> None:
    _, report = merge([make(0), make(1)], method="svd", rank=2)
    assert list(report.layers) == ["block.0", "block.1"]
    parts = [report.modules["block.1.to_q"], report.modules["block.1.to_k"]]
    layer = report.layers["block.1"]
    assert layer.energy == pytest.approx(sum(part.energy for part in parts))
    assert layer.kept_energy == pytest.approx(sum(p.energy * p.kept_energy for p in parts) / layer.energy)
    assert 0.1 < layer.kept_energy < 0.99
