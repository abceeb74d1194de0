"""Bytes by hand, and what is advised where they do not fit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from flow_opd.config.common import OptimizerSettings
from flow_opd.planning.flops import gpu_hours
from flow_opd.planning.machines import GIB, MACHINES, RESERVE, Machine
from flow_opd.planning.memory import Dynamic, largest_micro_batch, optimizer_size, sharded_size
from flow_opd.planning.verdicts import Options, Saving, Verdict, judge

CARD = Machine("card", 10.0, 100.0, 20.0)


def test_moments_in_32_bits_are_eight_bytes_a_number() -> None:
    parameters = [torch.zeros(32, 100), torch.zeros(64, 100)]
    assert optimizer_size(parameters, OptimizerSettings()) == 8 * 9600


def test_moments_in_8_bits_have_scales_and_small_tensors_stay() -> None:
    parameters = [torch.zeros(32, 100), torch.zeros(64, 100)]  # 3200 < 4096 <= 6400 = 25 blocks of 256
    expected = 8 * 3200 + 2 * (6400 + 4 * 25)
    assert optimizer_size(parameters, OptimizerSettings(state_bits=8)) == expected


def test_what_comes_and_goes_grows_with_the_rows() -> None:
    assert Dynamic(4, kept=100, peak=200).at(6) == Dynamic(6, 150, 300)


def test_the_largest_micro_batch_fits_and_one_more_does_not() -> None:
    fixed, dynamic = 2 * GIB, Dynamic(4, kept=3 * GIB, peak=4 * GIB)
    most = largest_micro_batch(fixed, dynamic, 10.0, limit=100)
    assert most == 7  # 10 GiB less 1 reserved and 2 fixed, 1 a row
    assert fixed + dynamic.at(most).peak <= (10 - RESERVE) * GIB < fixed + dynamic.at(most + 1).peak
    assert largest_micro_batch(fixed, dynamic, 10.0, limit=5) == 5
    assert largest_micro_batch(20 * GIB, dynamic, 10.0, limit=5) == 0


def test_a_sharded_base_is_a_share_of_its_blocks_and_two_of_them() -> None:
    blocks = nn.ModuleList([nn.Linear(10, 10, bias=False) for _ in range(6)])
    base = nn.ModuleDict({"blocks": blocks, "head": nn.Linear(10, 3, bias=False)})
    block, head = 400, 120  # bytes
    assert sharded_size(base, 3) == head + 6 * block // 3 + 2 * block
    assert sharded_size(base, 1) == head + 6 * block  # never more than the whole


def options(
    *, per_row: float, checkpointed: float, rows: int = 8, fixed: float = 2.0, **changes: object
) -> Options:
    """Returns options from GiB."""
    dynamic = {
        on: Dynamic(rows, 0, math.ceil(one * rows * GIB))
        for on, one in ((False, per_row), (True, checkpointed))
    }
    values = {"checkpointing": False, "encoding": 0, **changes}
    return Options(fixed=int(fixed * GIB), dynamic=dynamic, rows=rows, **values)


def verdict(asked: Options) -> Verdict:
    return judge(CARD, asked, hours=2.0, naive_hours=4.0)


def test_hours_by_hand() -> None:
    assert gpu_hours({"teacher": 2.6e17, "anchor": 1e17}, CARD, 0.5) == pytest.approx(2.0)  # / 50e12 / 3600
    assert gpu_hours({"teacher": 1e15}, CARD, 1.0) == pytest.approx(10 / 3600)
    assert gpu_hours({"decode": 1e15}, CARD, 1.0) == pytest.approx(20 / 3600)  # TF32: half of the rate
    assert gpu_hours({"rewards": 1e15}, CARD, 1.0) == pytest.approx(50 / 3600)  # float32
    assert gpu_hours({"teacher": 1e15}, CARD, 0.5, cpu_seconds=7) == pytest.approx(27 / 3600)
    found = verdict(options(per_row=0.1, checkpointed=0.1))
    assert (found.gpu_hours, found.naive_gpu_hours) == (2.0, 4.0)


def test_scoring_needs_room_of_its_own_but_not_beside_the_update() -> None:
    small, large = (
        verdict(options(per_row=0.5, checkpointed=0.1, scoring=scoring * GIB)) for scoring in (3, 6)
    )
    assert small.needs_gib == pytest.approx(2 + 8 * 0.5 + RESERVE)
    assert large.needs_gib == pytest.approx(2 + 6 + RESERVE)
    assert large.fits
    none = verdict(options(per_row=0.5, checkpointed=0.1, scoring=8 * GIB))
    assert not none.fits
    assert (none.largest_micro_batch, none.largest_micro_batch_with_checkpointing) == (0, 0)


def test_what_fits_needs_no_advice() -> None:
    found = verdict(options(per_row=0.5, checkpointed=0.1))
    assert found.fits
    assert found.needs_gib == pytest.approx(2 + 8 * 0.5 + RESERVE)
    assert found.advice == ""


def test_either_change_alone_is_advised_first() -> None:
    found = verdict(options(per_row=2.0, checkpointed=0.25))
    assert not found.fits
    assert found.advice == (
        "does not fit in 10.0 GiB (needs 19.0): lower micro_batch_size to 3 (9.0 GiB), "
        "or turn on compute.gradient_checkpointing (5.0 GiB)"
    )


def test_both_changes_together_where_one_is_too_little() -> None:
    found = verdict(options(per_row=8.0, checkpointed=1.0))
    assert found.advice == (
        "does not fit in 10.0 GiB (needs 67.0): "
        "turn on compute.gradient_checkpointing and lower micro_batch_size to 7 (10.0 GiB)"
    )
    assert (found.largest_micro_batch, found.largest_micro_batch_with_checkpointing) == (0, 7)


def test_checkpointing_that_is_on_is_not_advised() -> None:
    found = verdict(options(per_row=8.0, checkpointed=1.0, checkpointing=True))
    assert found.advice == "does not fit in 10.0 GiB (needs 11.0): lower micro_batch_size to 7 (10.0 GiB)"


HALF = Saving("set base.dtype to bfloat16", 6 * GIB, at_least=True)
ENCODERS = Saving("set embeddings to {}", 5 * GIB)


def test_half_precision_comes_last() -> None:
    found = verdict(options(per_row=0.5, checkpointed=0.25, fixed=12.0, savings=(HALF,)))
    assert found.advice == (
        "does not fit in 10.0 GiB (needs 17.0): "
        "set base.dtype to bfloat16 and lower micro_batch_size to 6 (at most 10.0 GiB), "
        "or set base.dtype to bfloat16 and turn on compute.gradient_checkpointing (at most 9.0 GiB)"
    )


def test_a_saving_alone_is_enough_if_it_is() -> None:
    found = verdict(options(per_row=0.25, checkpointed=0.2, fixed=12.0, savings=(ENCODERS, HALF)))
    assert found.advice == "does not fit in 10.0 GiB (needs 15.0): set embeddings to {} (10.0 GiB)"


def test_savings_add_up_where_one_is_too_little() -> None:
    found = verdict(options(per_row=0.25, checkpointed=0.2, fixed=16.0, savings=(ENCODERS, HALF)))
    assert "set embeddings to {} and set base.dtype to bfloat16 (at most 8.0 GiB)" in found.advice


def test_where_nothing_helps_it_says_so() -> None:
    assert (
        "no setting helps, take a larger card" in verdict(options(per_row=8, checkpointed=1, fixed=12)).advice
    )


def test_text_encoders_that_do_not_fit_are_told_apart() -> None:
    found = verdict(options(per_row=0.5, checkpointed=0.1, encoding=20 * GIB))
    assert not found.fits
    assert found.advice.startswith("encoding the prompts needs 21.0 GiB")
    assert "base.t5" not in found.advice
    assert (
        "set base.t5 to false, or encode"
        in verdict(options(per_row=0.5, checkpointed=0.1, encoding=20 * GIB, t5_may_go=True)).advice
    )
    assert "does not fit" not in found.advice


def test_cards_are_the_asked_ones() -> None:
    assert [machine.name for machine in MACHINES] == [
        "A100 80GB",
        "A100 40GB",
        "H100 SXM",
        "H800 SXM",
        "RTX 4090",
    ]
