"""What every training stage does around the loop: open the run folder, resume, watch, save the adapter."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from flow_opd.adapters.bank import AdapterBank
from flow_opd.config.base import Settings
from flow_opd.config.common import RunSettings
from flow_opd.config.reader import dump
from flow_opd.files import write_json
from flow_opd.training.metrics import MetricsLog
from flow_opd.training.progress import ProgressBar
from flow_opd.training.trainer import Trainer

STUDENT = "student"
ADAPTER = "adapter"  # folder of the finished adapter, below the run folder


def open_run(settings: Settings, run: RunSettings, *, resume: bool) -> Path:
    """Makes the run folder, writes the resolved config.yaml and returns the folder.

    Args:
        settings: all settings of the stage.
        run: their run section.
        resume: False forgets the checkpoints of an earlier run in the same folder.
    """
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    run.out.mkdir(parents=True, exist_ok=True)
    if not resume:
        shutil.rmtree(run.out / "checkpoints", ignore_errors=True)
    dump(settings, run.out / "config.yaml")
    return run.out


def train(trainer: Trainer, title: str, *, show: Sequence[str], log_every: int = 1) -> None:
    """Resumes if there is a checkpoint, then trains to the end under a progress bar and a metrics log."""
    trainer.resume()
    done = trainer.progress.step
    trainer.callbacks += [
        MetricsLog(trainer.folder / "metrics.jsonl", resume_step=done, every=log_every),
        ProgressBar(title, total_steps=trainer.settings.total_steps, done=done, show=show),
    ]
    trainer.run()


def save_student(trainer: Trainer, bank: AdapterBank, *, base: str) -> Path:
    """Writes the trained adapter (its average, where there is one) as a PEFT folder and returns it."""
    folder = trainer.folder / ADAPTER
    if trainer.average:
        with trainer.average.applied():
            bank.save(STUDENT, folder, base_model=base)
    else:
        bank.save(STUDENT, folder, base_model=base)
    write_json(
        trainer.folder / "training.json",
        {"seconds": round(trainer.progress.seconds, 1), "steps": trainer.progress.step},
    )
    return folder
