"""The limit of an update: the same network, forwards and backwards, and nothing around it.

No walk, noise, loss, optimizer, text encoder, routing or PEFT. A LoRA is two products that are added to a
linear layer; they belong to the limit, as no way to distil into a LoRA does without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from our_update import Rows, prompt_rounds
from torch import Tensor, nn
from torch.nn import Parameter, functional

from flow_opd.adapters.lora import LoraWeights
from flow_opd.backbones.loading import load_backbone
from flow_opd.config.distill import DistillSettings
from flow_opd.runs.training import STUDENT


class AddedLora(nn.Module):
    """A frozen linear layer and the student's LoRA; without gradients, each teacher's on its rows."""

    def __init__(
        self, linear: nn.Linear, module: str, student: LoraWeights, teachers: Sequence[LoraWeights]
    ) -> None:
        """Takes the factors of one module."""
        super().__init__()
        self.linear = linear
        self.down, self.up = (Parameter(factor.clone()) for factor in student.factors[module])
        self.scale = student.scale
        self.teachers = [(*teacher.factors[module], teacher.scale) for teacher in teachers]

    def forward(self, x: Tensor) -> Tensor:
        """Returns W x + b + (alpha / rank) B A x, [M, ..., out]."""
        result: Tensor = self.linear(x)
        if torch.is_grad_enabled():
            inner = functional.linear(x, self.down).flatten(0, -2)
            whole = torch.addmm(result.flatten(0, -2), inner, self.up.t(), alpha=self.scale)
            return whole.view_as(result)
        parts = zip(result.tensor_split(len(self.teachers)), x.tensor_split(len(self.teachers)), strict=True)
        for (out, rows), (down, up, scale) in zip(parts, self.teachers, strict=True):
            inner = functional.linear(rows, down).flatten(0, -2)
            out.flatten(0, -2).addmm_(inner, up.t(), alpha=scale)  # a view of the result
        return result


def bare_update(
    settings: DistillSettings, adapters: Mapping[str, LoraWeights], asked: Rows
) -> tuple[Callable[[], None], nn.Module]:
    """Returns forwards and backwards of as many states as an update asks its network for, and the network.

    Each step has one pass for the student and one, split between the teachers, for all without gradients.

    Args:
        settings: of the distillation.
        adapters: the student's and the teachers' LoRAs, by name.
        asked: states of an update.
    """
    backbone = load_backbone(settings.base, settings.compute)
    teachers = [lora for name, lora in adapters.items() if name != STUDENT]
    parameters = []
    for module in adapters[STUDENT].factors:
        layer = AddedLora(
            backbone.transformer.get_submodule(module),  # type: ignore[arg-type]
            module,
            adapters[STUDENT],
            teachers,
        )
        backbone.transformer.set_submodule(module, layer)
        parameters += [layer.down, layer.up]
    rows = settings.prompts_per_round
    steps = asked.with_gradient // rows
    frozen = round(asked.without_gradient / steps)
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(max(rows, frozen), *backbone.latent_shape, generator=draw)
    sigma = torch.rand(len(states), generator=draw)
    with torch.no_grad():
        known = backbone.encode_prompts(prompt_rounds(settings).round(0))
    texts = known.rows([row % rows for row in range(len(states))])
    ours, theirs = texts.rows(list(range(rows))), texts.rows(list(range(frozen)))

    def update() -> None:
        for parameter in parameters:
            parameter.grad = None
        for _ in range(steps):
            velocity = backbone.velocity(states[:rows], sigma[:rows], ours)
            with torch.no_grad():
                backbone.velocity(states[:frozen], sigma[:frozen], theirs)
            velocity.sum().backward()

    return update, backbone.transformer
