"""One base in pieces over several processes (FSDP2), with whole adapters on each of them."""

from __future__ import annotations

from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from flow_opd.processes import Processes


def shard_base(transformer: nn.Module, processes: Processes) -> None:
    """Splits the frozen weights over the processes; each transformer block is put together while it works.

    The LoRA factors stay whole: their gradients are sums over processes like everywhere else. From now on
    all processes must call the transformer equally often, as every call is a joint one.

    Args:
        transformer: a diffusers transformer with its adapters around it; no adapter may come later.
        processes: who holds the pieces; nothing happens where it is one.
    """
    if processes.count == 1:
        return
    base = transformer.get_base_model() if isinstance(transformer, PeftModel) else transformer
    blocks = [block for child in base.children() if isinstance(child, nn.ModuleList) for block in child]
    mesh = init_device_mesh(processes.device.split(":")[0], (processes.count,))
    whole = {parameter for name, parameter in transformer.named_parameters() if "lora_" in name}
    for block in blocks:
        fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(base, mesh=mesh, ignored_params=whole)
