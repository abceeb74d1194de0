"""One frozen base, many named LoRAs: the student, its teachers, the anchor."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from flow_opd.adapters.lora import LoraWeights, check_fit, targeted_linears
from flow_opd.adapters.routed_linear import Route, RoutedLinear
from flow_opd.config.common import LoraSettings
from flow_opd.errors import AdapterError, nearest

_SIDES = ("lora_A", "lora_B")


class HoldsTransformer(Protocol):
    """A backbone: the bank puts its adapters around the transformer that it finds there."""

    transformer: nn.Module


class AdapterBank:
    """The adapters around the transformer of one backbone, and which of them is active.

    Outside of `using`, the student (see `train`) is active, or the bare base if there is none. The student
    alone carries `requires_grad`, and keeps it while another adapter is active, so a graph that was built
    before stays good. Call `backward` outside of `using` all the same: gradient checkpointing runs the
    forward pass again with whatever adapter is active at that time, and then raises a CheckpointError.
    """

    def __init__(self, backbone: HoldsTransformer) -> None:
        """Takes the backbone; its transformer is left as it is until the first adapter comes.

        Raises:
            AdapterError: if the transformer has adapters already.
        """
        if any(isinstance(module, LoraLayer) for module in backbone.transformer.modules()):
            raise AdapterError(
                "transformer that has adapters already",
                value=type(backbone.transformer).__name__,
                allowed="a bare transformer",
                fix="make one bank for a backbone, and use it everywhere",
            )
        self._backbone = backbone
        self._modules = dict(backbone.transformer.named_modules())
        self._settings: dict[str, LoraSettings] = {}
        self._layers: dict[str, RoutedLinear] = {}
        self._route = Route()
        self._active: str | None = None
        self._student: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters, in the order in which they came."""
        return tuple(self._settings)

    @property
    def student(self) -> str | None:
        """The adapter that is trained, or None."""
        return self._student

    @property
    def active(self) -> str | None:
        """The adapter that a forward pass uses now; None = the bare base."""
        return self._active

    def free_name(self, name: str) -> str:
        """Returns `name`, or where it is taken the first of name-2, name-3 ... that is not."""
        names = (name, *(f"{name}-{number}" for number in range(2, len(self._settings) + 2)))
        return next(each for each in names if each not in self._settings)

    def settings(self, name: str) -> LoraSettings:
        """Returns rank, alpha and targets of an adapter."""
        self._check_known(name)
        return self._settings[name]

    def add(self, name: str, settings: LoraSettings, seed: int) -> None:
        """Adds a fresh adapter with zero effect: A ~ N(0, 1 / rank^2) drawn from `seed`, B = 0.

        Raises:
            AdapterError: if the name is taken or unfit, or a target does not exist in this base.
        """
        self._check_new(name)
        generator = torch.Generator().manual_seed(seed)
        factors = {}
        for module, linear in targeted_linears(self._modules, settings).items():
            down = torch.randn(settings.rank, linear.in_features, generator=generator) / settings.rank
            factors[module] = (down, torch.zeros(linear.out_features, settings.rank))
        self._attach(name, settings, factors)

    def put(self, name: str, lora: LoraWeights) -> None:
        """Adds an adapter with the weights of `lora`, a merge for example.

        Raises:
            AdapterError: if the name is taken or unfit, or the LoRA belongs to another base.
        """
        self._check_new(name)
        check_fit(lora, targeted_linears(self._modules, lora.settings))
        self._attach(name, lora.settings, lora.factors)

    def remove(self, name: str) -> None:
        """Takes an adapter off the base.

        Raises:
            AdapterError: if there is no such adapter.
        """
        self._check_known(name)
        assert self._active == self._student, "remove() inside of using()"
        if name == self._student:
            self._student = self._active = None
            self._route.parts = ()
        del self._settings[name]
        model = cast(PeftModel, self._backbone.transformer)
        if not self._settings:  # PEFT cannot be without an adapter
            self._backbone.transformer, self._layers = model.unload(), {}
            return
        if model.active_adapter == _key(name):  # it must have one, which nobody reads
            model.set_adapter(_key(next(iter(self._settings))))
        model.delete_adapter(_key(name))
        self._freeze_all_but_the_student()

    def train(self, name: str) -> None:
        """Makes `name` the student: active outside of `using`, and the only adapter with gradients.

        Raises:
            AdapterError: if there is no such adapter.
        """
        self._check_known(name)
        assert self._active == self._student, "train() inside of using()"
        self._student = self._active = name
        self._route.parts = ((_key(name), None),)
        self._freeze_all_but_the_student()

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Activates an adapter (None = the bare base) for a while, without making it trainable.

        Raises:
            AdapterError: if there is no such adapter.
        """
        with self._routed(name, ((self._known_key(name), None),)):
            yield

    @contextmanager
    def using_rows(self, parts: Sequence[tuple[str | None, int]]) -> Iterator[None]:
        """Activates an adapter for each part of the rows of a forward pass without gradients.

        Args:
            parts: (adapter, number of rows) of consecutive rows; None = the bare base. Together they must
                be all rows of the batch.

        Raises:
            AdapterError: if there is no such adapter.
        """
        with self._routed(self._active, tuple((self._known_key(name), rows) for name, rows in parts)):
            yield

    @contextmanager
    def _routed(self, active: str | None, parts: tuple[tuple[str | None, int | None], ...]) -> Iterator[None]:
        before = self._active, self._route.parts
        self._active, self._route.parts = active, parts
        try:
            yield
        finally:
            self._active, self._route.parts = before

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Returns the parameters of an adapter by `<module>.lora_A.weight`, whatever its name."""
        self._check_known(name)
        return {
            f"{module}.{side}.weight": _factor(layer, side, name)
            for module, layer in self._layers.items()
            if _key(name) in layer.lora_A
            for side in _SIDES
        }

    def state(self, name: str) -> dict[str, Tensor]:
        """Returns copies of the parameters of an adapter."""
        return {key: parameter.detach().clone() for key, parameter in self.parameters(name).items()}

    def load_state(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Copies `tensors` into the parameters of an adapter; keys and shapes must be the same.

        Raises:
            AdapterError: if they differ; nothing is changed then.
        """
        parameters = self.parameters(name)
        wrong = sorted(parameters.keys() ^ tensors.keys()) + [
            key for key in parameters if key in tensors and tensors[key].shape != parameters[key].shape
        ]
        if wrong:
            raise AdapterError(
                f"state does not fit adapter {name!r}",
                value=wrong[:5],
                allowed="the keys and shapes of this adapter",
                fix="load the state of an adapter with the same rank and targets",
            )
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(tensors[key])

    def weights(self, name: str) -> LoraWeights:
        """Returns a copy of an adapter that needs no model, float32 on the CPU."""
        settings, state = self.settings(name), self.state(name)
        modules = [key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]
        factors = {
            module: (
                state[f"{module}.lora_A.weight"].float().cpu(),
                state[f"{module}.lora_B.weight"].float().cpu(),
            )
            for module in modules
        }
        return LoraWeights(settings.rank, settings.alpha, factors, settings.target_modules)

    def _attach(
        self, name: str, settings: LoraSettings, factors: Mapping[str, tuple[Tensor, Tensor]]
    ) -> None:
        """Enters an adapter with checked factors into the PEFT model, and restores what was active."""
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # declared int, but only ever divided by r
            target_modules=list(settings.target_modules),
            lora_dropout=0.0,
        )
        config._register_custom_module({nn.Linear: RoutedLinear})
        # PEFT initialises from the global generator; the draws are overwritten below, and must not show.
        with torch.random.fork_rng(devices=[]):
            bare = self._backbone.transformer
            if isinstance(bare, PeftModel):
                bare.add_adapter(_key(name), config)
            else:
                self._backbone.transformer = get_peft_model(bare, config, adapter_name=_key(name))
        base = cast(PeftModel, self._backbone.transformer).get_base_model()
        self._layers = {
            module: layer for module, layer in base.named_modules() if isinstance(layer, RoutedLinear)
        }
        for layer in self._layers.values():
            layer.route = self._route
        self._settings[name] = settings
        self.load_state(name, pack(factors))
        self._freeze_all_but_the_student()

    def _freeze_all_but_the_student(self) -> None:
        for name in self._settings:
            for parameter in self.parameters(name).values():
                parameter.requires_grad_(name == self._student)

    def _known_key(self, name: str | None) -> str | None:
        """Returns the name inside PEFT of an adapter that there is; None for the bare base."""
        if name is None:
            return None
        self._check_known(name)
        return _key(name)

    def _check_known(self, name: str) -> None:
        if name not in self._settings:
            raise AdapterError(
                "unknown adapter",
                value=name,
                allowed=", ".join(self._settings) or "none was added yet",
                fix=f"add or load it first.{nearest(name, self._settings)}",
            )

    def _check_new(self, name: str) -> None:
        if name in self._settings or not re.fullmatch(r"[\w-]+", name):
            raise AdapterError(
                "adapter name that is taken or unfit",
                value=name,
                allowed="letters, digits, _ and -, and not " + (", ".join(self._settings) or "empty"),
                fix="choose another name",
            )


def pack(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Returns factors under the names that `AdapterBank.parameters` uses."""
    return {
        f"{module}.{side}.weight": tensor
        for module, pair in factors.items()
        for side, tensor in zip(_SIDES, pair, strict=True)
    }


def _key(name: str) -> str:
    """Returns the name inside PEFT, where "lora", "keys" or "update" would clash with its own names."""
    return f"adapter_{name}"


def _factor(layer: LoraLayer, side: str, name: str) -> nn.Parameter:
    modules = layer.lora_A if side == "lora_A" else layer.lora_B
    return cast(nn.Parameter, modules[_key(name)].weight)
