"""The adapter that a run trains, at its start: fresh, an adapter that exists, or a merge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.form import LoraForm
from flow_opd.adapters.lora import LoraWeights
from flow_opd.config.common import BaseModelSettings, LoraSettings
from flow_opd.config.merge import ColdStartSettings
from flow_opd.processes import Processes
from flow_opd.runs.adapters import files_of, load_lora, merge_by, print_report
from flow_opd.runs.training import STUDENT
from flow_opd.training.seeding import derived_seed

COLD_START = "cold_start"  # folder of the student's first weights, below the run folder


def put_student(
    bank: AdapterBank,
    start: ColdStartSettings | None,
    lora: LoraSettings | None,
    base: BaseModelSettings,
    *,
    seed: int,
    processes: Processes,
    teachers: Mapping[str, LoraWeights] | None = None,
) -> LoraWeights:
    """Puts the student into the bank, to be trained there, and returns its first weights.

    Args:
        bank: on the base.
        start: a merge or an adapter, or None for a fresh adapter.
        lora: form of a fresh adapter; None takes the defaults.
        base: settings of the base.
        seed: of the run.
        processes: the main one prints what a merge has kept.
        teachers: name -> adapter that a merge takes which names none.
    """
    if start is None:
        bank.add(STUDENT, LoraForm.of(lora or LoraSettings()), derived_seed(seed, "lora"))
    elif start.adapter is not None:
        bank.put(STUDENT, load_lora(start.adapter, base, key="cold_start.adapter"))
    else:
        assert start.merge is not None
        merged = dict(teachers or {})
        if start.adapters is not None:
            merged = {name: load_lora(name, base, key="cold_start.adapters") for name in start.adapters}
        weights, report = merge_by(start.merge, list(merged.values()), None, seed=seed)
        if processes.is_main:
            print_report(report, list(merged))
        bank.put(STUDENT, weights)
    bank.train(STUDENT)
    return bank.weights(STUDENT)


def cold_start_files(start: ColdStartSettings | None, base: BaseModelSettings) -> list[Path]:
    """Returns the files of the adapters that a start names; those of the teachers are named elsewhere.

    Raises:
        ConfigError: if a path or asset does not exist.
        AdapterError: if one cannot be had from the hub, or is no adapter.
    """
    named = () if start is None else start.named()
    return [file for name in named for file in files_of(name, base, key="cold_start")]
