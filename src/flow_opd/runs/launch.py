"""Joins the processes that a launcher has started for one run, and splits a base over them."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta

import torch
from accelerate import PartialState
from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from flow_opd.config.common import ComputeSettings
from flow_opd.errors import ConfigError
from flow_opd.processes import ALONE, Processes

TIMEOUT = timedelta(minutes=60)  # how long a process waits for the others, an evaluation's rewards included


def join_processes(compute: ComputeSettings) -> Processes:
    """Returns who this process is, once the others that `accelerate launch` or `torchrun` started are there.

    Raises:
        ConfigError: if several processes are to share one device that was named.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if compute.device not in ("auto", "cpu"):
        raise ConfigError(
            "one device for several processes",
            value=compute.device,
            allowed="'auto', which gives each process an accelerator of its own, or 'cpu'",
            fix="leave compute.device out",
        )
    cpu = compute.device == "cpu" or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu, timeout=TIMEOUT)
    atexit.register(state.destroy_process_group)  # an open group can abort a process that is done
    device = "cpu" if state.device.type == "cpu" else str(state.device)
    return Processes(state.process_index, state.num_processes, device)


def check_shares(total: int, processes: Processes, *, key: str, collective: bool, updates: int = 1) -> None:
    """Passes if every process gets a row of each update.

    Args:
        total: trajectories of a round.
        processes: who shares them.
        key: the setting that decides how many there are.
        collective: whether all processes need the same number of rows, as they do with a sharded base.
        updates: that share the round.

    Raises:
        ConfigError: if there are fewer rows than processes, or unequal shares.
    """
    rows = total // updates  # of the smallest update
    if collective and total % (updates * processes.count):
        raise ConfigError(
            "unequal shares of an update, while the processes share a sharded base",
            value=f"{processes.count} processes, {total} trajectories in {updates} updates",
            allowed=f"a multiple of {processes.count * updates} trajectories",
            fix=f"change {key}, or set compute.shard_base to false",
        )
    if rows < processes.count:
        raise ConfigError(
            "more processes than trajectories in an update",
            value=f"{processes.count} processes, {rows} trajectories",
            allowed=f"up to {rows} processes",
            fix=f"raise {key}, or start fewer processes",
        )


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
