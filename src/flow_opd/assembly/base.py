"""The frozen base of a run."""

from __future__ import annotations

import torch

from flow_opd.backbones import loading
from flow_opd.backbones.compute import choose_device
from flow_opd.config.common import BaseModelSettings, ComputeSettings
from flow_opd.processes import ALONE, Processes
from flow_opd.protocols import LoadedBackbone


def load_backbone(
    base: BaseModelSettings, compute: ComputeSettings, processes: Processes = ALONE
) -> LoadedBackbone:
    """Returns the frozen base, on the device of this process and computing as the settings say."""
    if processes.count > 1:
        compute = compute.model_copy(update={"device": processes.device})
    return loading.load_backbone(base, compute)


def device_of(compute: ComputeSettings, processes: Processes = ALONE) -> torch.device:
    """Returns the device of this process, where the base and large reward models compute."""
    return choose_device(processes.device if processes.count > 1 else compute.device)
