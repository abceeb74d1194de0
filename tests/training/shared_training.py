"""Trainings of a tiny student that run in processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import typer
from torch.distributed.tensor import DTensor

from flow_opd.cli.common import user_errors
from flow_opd.config.common import ComputeSettings
from flow_opd.runs.launch import join_processes, shard_base
from flow_opd.runs.training import resume_or_restart
from flow_opd.training.progress import MetricsLog
from tiny import Tiny, tiny_trainer


def train(algorithm: str, folder: Path, rounds: int) -> None:
    """Resumes, or begins, and trains to the end, alone."""
    trainer = tiny_trainer(Tiny(), algorithm, folder, rounds=rounds)
    trainer.resume()
    trainer.callbacks.append(MetricsLog(folder / "metrics.jsonl", resume_step=trainer.progress.step))
    trainer.run()


def share(*words: str) -> None:
    """Runs `share_training` with these words, as a program that ends with an exit code."""
    sys.argv = ["share", *words]
    typer.run(share_training)


def share_training(
    algorithm: str, folder: Path, rounds: int, shard: bool = False, checkpointing: bool = False
) -> None:
    """Resumes, or begins, and trains to the end, as one of the processes that the environment tells of.

    It tells so as torchrun and accelerate do (RANK, WORLD_SIZE, ...).
    """
    with user_errors():
        processes = join_processes(ComputeSettings(device="cpu"))
        tiny = Tiny(collective=shard)
        if checkpointing:
            tiny.backbone.transformer.enable_gradient_checkpointing()
        if shard:
            shard_base(tiny.backbone.transformer, processes)
        trainer = tiny_trainer(
            tiny, algorithm, folder, rounds=rounds, micro_batch_size=3, processes=processes
        )
        resume_or_restart(trainer, resume=True)
        if processes.is_main:
            log = MetricsLog(folder / "metrics.jsonl", resume_step=trainer.progress.step)
            trainer.callbacks.append(log)
        trainer.run()
        held = sum(
            (one.to_local() if isinstance(one, DTensor) else one).numel()
            for one in tiny.backbone.transformer.parameters()
        )
        print("processes", processes.count, "held", held)
