"""The frozen base of a run."""

from __future__ import annotations

from flow_opd.backbones import loading
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
