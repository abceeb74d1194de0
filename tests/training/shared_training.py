"""Trains a tiny student in one of several processes: `python shared_training.py ALGORITHM FOLDER ROUNDS`.

The environment says which process this is, as torchrun and accelerate do (RANK, WORLD_SIZE, ...).
"""

from __future__ import annotations

import sys
from pathlib import Path

import typer
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from flow_opd.adapters.sharding import shard_base
from flow_opd.config.common import ComputeSettings
from flow_opd.console import user_errors
from flow_opd.runs.launch import join_processes
from flow_opd.runs.training import resume_or_restart
from flow_opd.training.progress import MetricsLog
from tiny import Tiny, tiny_trainer


def main(algorithm: str, folder: Path, rounds: int, shard: bool = False, checkpointing: bool = False) -> None:
    """Resumes, or begins, and trains to the end."""
    with user_errors():
        processes = join_processes(ComputeSettings(device="cpu"))
        tiny = Tiny(lockstep=shard)
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


if __name__ == "__main__":
    typer.run(main)
