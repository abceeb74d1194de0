"""The meter counts what PyTorch counts, and knows what is alive."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as functional
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from flow_opd.planning.meter import CPU_ATTENTION, Meter

KIB = 1024


def test_a_matrix_product_is_two_flops_a_term() -> None:
    left, right = torch.zeros(3, 5), torch.zeros(5, 7)
    with Meter() as meter:
        _ = left @ right
    assert meter.flops == 2 * 3 * 5 * 7


def test_attention_is_two_products_and_its_gradient_five() -> None:
    query = torch.zeros(2, 3, 16, 8, requires_grad=True)
    with Meter() as meter:
        output = functional.scaled_dot_product_attention(query, query, query)
        forward = meter.flops
        output.sum().backward()
    product = 2 * 2 * 3 * 16 * 16 * 8
    assert forward == 2 * product
    assert meter.flops - forward == 5 * product


def test_it_counts_what_flop_counter_mode_counts(tiny) -> None:
    pipe = tiny.backbone.pipe
    inputs = {
        "hidden_states": torch.zeros(2, 4, 4, 4),
        "timestep": torch.zeros(2),
        "encoder_hidden_states": torch.zeros(2, 10, 16),
        "pooled_projections": torch.zeros(2, 16),
    }
    counts = []
    for counter in (Meter(), FlopCounterMode(display=False, custom_mapping=dict(CPU_ATTENTION))):
        with counter:
            tiny.backbone.transformer(**inputs).sample.sum().backward()
            pipe.vae.decode(torch.zeros(1, 4, 4, 4))
        counts.append(counter.flops if isinstance(counter, Meter) else counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_bytes_live_until_the_last_owner_goes() -> None:
    with Meter() as meter:
        one = torch.zeros(KIB, dtype=torch.uint8)
        view = one[10:]
        two = torch.zeros(3 * KIB, dtype=torch.uint8)
        del one
        assert meter.live == 4 * KIB  # the view keeps it
        del two
        assert meter.live == KIB
        del view
        assert meter.live == 0
    assert meter.peak == 4 * KIB


def test_what_was_there_before_is_not_counted() -> None:
    weight = torch.zeros(KIB)
    with Meter([weight]) as meter:
        _ = weight.view(2, -1).t()
    assert meter.peak == 0


def test_a_span_has_its_own_peak_and_adds_up() -> None:
    with Meter() as meter:
        kept = torch.zeros(KIB, dtype=torch.uint8)
        for rows in (1, 2):
            with meter.span("part", rows=rows):
                _ = torch.zeros(2 * KIB * rows, dtype=torch.uint8)
            del _
        with meter.span("other", rows=1):
            pass
    del kept
    assert meter.spans["part"].rows == 3
    assert meter.spans["part"].peak == 5 * KIB
    assert meter.spans["other"].peak == KIB
    assert meter.peak == 5 * KIB


def test_a_new_reading_forgets_the_old_one() -> None:
    meter = Meter()
    with meter:
        old = torch.zeros(KIB)
    meter.reset()
    del old
    assert (meter.live, meter.peak, meter.flops, meter.spans) == (0, 0, 0, {})


@pytest.mark.parametrize("fake", [True, False])
def test_checkpointing_frees_what_it_computes_again(fake: bool) -> None:
    """FlopCounterMode keeps it alive, which is why the meter counts FLOPs by itself."""
    with torch.device("meta" if fake else "cpu"):
        blocks = [torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU()) for _ in range(8)]
    layers = torch.nn.Sequential(*blocks)
    if fake:
        with FakeTensorMode(allow_non_fake_inputs=True):
            layers.to_empty(device="cpu")
    for parameter in layers.parameters():
        parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in layers.parameters() if parameter.grad is not None]
    peaks = {}
    for on in (False, True):
        with Meter([*layers.parameters(), *gradients]) as meter:
            state = torch.zeros(256, 64, requires_grad=True)
            for layer in layers:
                state = checkpoint(layer, state, use_reentrant=False) if on else layer(state)
            state.sum().backward()
            del state
        peaks[on] = meter.peak / (256 * 64 * 4)
    assert peaks[False] > 16  # the input and the output of each of the 8 products
    assert peaks[True] < 8 + 6  # the inputs of the blocks, and one block's insides


def test_a_number_that_is_not_there_is_one() -> None:
    with FakeTensorMode():
        loss, whole = torch.zeros(()), torch.zeros((), dtype=torch.long)
    with Meter():
        assert float(loss) == 1.0
        assert int(whole) == 1
        assert bool(torch.isfinite(loss))
        assert float(torch.tensor(2.5)) == 2.5  # a real tensor keeps its number
