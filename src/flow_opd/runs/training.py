"""The one course of a training: resume, record, train round by round, write the adapter."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from flow_opd.config.base import Settings
from flow_opd.config.common import PlaceSettings, TrainingConfig
from flow_opd.config.file.reader import dump
from flow_opd.errors import ConfigError
from flow_opd.files import write_json
from flow_opd.layout import ADAPTER, COLD_START, CONFIG, METRICS, TRAINING
from flow_opd.processes import ALONE, Processes
from flow_opd.protocols import BatchSource, Objective
from flow_opd.training.progress import MetricsLog
from flow_opd.training.trainer import LoopSettings, Trainer, progress_of

if TYPE_CHECKING:  # it takes peft along, which merges, cards and releases do without
    from flow_opd.adapters.lora import LoraWeights
    from flow_opd.runs.base import Base
    from flow_opd.runs.identity import Identity

STUDENT = "student"  # name of the adapter that is trained, in a bank


def open_run(run: PlaceSettings) -> Path:
    """Sets the processor threads and returns the run folder; nothing is written yet."""
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    return run.out


def record(settings: Settings, folder: Path, processes: Processes = ALONE) -> None:
    """Writes the resolved config.yaml; to be called once everything that can be refused has been built."""
    if processes.is_main:
        dump(settings, folder / CONFIG)


@dataclass(frozen=True)
class Place:
    """Where a training is kept."""

    folder: Path | None = None  # None keeps nothing: no checkpoint, no log, no adapter
    resume: bool = True  # from the newest checkpoint, if there is one; False forgets all of them
    record: Settings | None = None  # what is written as the run's config.yaml

    @classmethod
    def at(cls, folder: Path | str | None, resume: bool, record: Settings | None) -> Place:
        """Returns the place that a path names."""
        return cls(None if folder is None else Path(folder), resume, record)


class Training:
    """A training of one adapter, round by round.

    Go through it to train round by round, each of which gives its metrics; stop in the middle, look at
    `adapter`, and go on later. Or call `train`, which shows its progress. With a folder there are
    checkpoints and a log below it, and in the end the adapter.

    An interrupt takes effect between two rounds, and then, as after a `break`, there is a checkpoint.
    """

    def __init__(
        self,
        base: Base,
        student: str,
        source: BatchSource,
        objective: Objective,
        config: TrainingConfig,
        *,
        rounds: int,
        updates_per_round: int,
        identity: Identity,
        place: Place,
        title: str,
        show: Sequence[str],
    ) -> None:
        """Goes back to the newest checkpoint, if there is one; records settings and first weights.

        Args:
            base: with the student in its bank.
            student: name of the adapter that is trained.
            source: yields updates for a round index.
            objective: loss of a micro-batch.
            config: optimizer, average and checkpoints.
            rounds: of the whole training.
            updates_per_round: optimizer steps of a round.
            identity: all that a checkpoint must agree with.
            place: where the training is kept.
            title: what is being trained, for the progress bar.
            show: names of the metrics beside the bar.

        Raises:
            CheckpointError: if the checkpoint is damaged or of another training; the folder stays as it was.
        """
        if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
            allowed, fix = "whole numbers from 1", "say how long to train"
            raise ConfigError("rounds of a training", value=rounds, allowed=allowed, fix=fix)
        self.base = base
        self.student = student
        self.folder = place.folder
        self.history: list[dict[str, float]] = []
        """The metrics of each round that was trained here."""
        self.keeps: object = None
        """What has to last as long as the training."""
        self._title, self._show = title, tuple(show)
        base.bank.train(student)
        start = base.bank.weights(student)
        self.trainer = Trainer(
            parameters=base.bank.parameters(student),
            source=source,
            objective=objective,
            settings=loop_settings(config, base, rounds=rounds, updates_per_round=updates_per_round),
            folder=place.folder,
            identity=identity.digest,
            basis=identity.values,
            processes=base.processes,
        )
        if place.folder is None:
            return
        resume_or_restart(self.trainer, resume=place.resume)
        if place.record is not None:
            record(place.record, place.folder, base.processes)
        if base.processes.is_main:
            start.write(place.folder / COLD_START, base.settings.path)
            log = MetricsLog(place.folder / METRICS, resume_step=self.trainer.progress.step)
            self.trainer.callbacks.append(log)

    def __repr__(self) -> str:
        """Returns what is trained, and how far it is."""
        return f"Training({self._title}: {self.round} of {self.trainer.settings.rounds} rounds)"

    @property
    def round(self) -> int:
        """Rounds that are done."""
        return self.trainer.progress.round

    @property
    def adapter(self) -> LoraWeights:
        """A copy of what has been trained so far: the moving average, where there is one."""
        with self.trainer.average.applied() if self.trainer.average else nullcontext():
            return self.base.bank.weights(self.student)

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Trains the rounds that are left, one at a time, and yields the metrics of each."""
        try:
            while not self.trainer.finished:
                self._train_here()
                self._note(self.trainer.round())
                if self.trainer.finished:
                    self._finish()
                yield self.history[-1]
            self._finish()
        except (GeneratorExit, KeyboardInterrupt):  # the caller has stopped iterating, or was interrupted
            self.trainer.save()
            raise

    def train(self) -> Training:
        """Trains the rounds that are left, under a progress bar."""
        with progress_of(self.trainer, self._title, self._show):
            while not self.trainer.finished:
                self._train_here()
                self._note(self.trainer.round())
        self._finish()
        return self

    def save(self, folder: Path | str) -> Path:
        """Writes `adapter` as a PEFT folder and returns it.

        Raises:
            AdapterError: if the folder cannot be written.
        """
        self.adapter.write(folder, self.base.settings.path)
        return Path(folder)

    def _train_here(self) -> None:
        """Gives the gradients to this training's student, where another one has had them."""
        if self.base.bank.student != self.student:
            self.base.bank.train(self.student)

    def close(self) -> None:
        """Takes the student off the base, with its gradients and optimizer state; the training is over then.

        Adapters of teachers stay: another training may share them.
        """
        self.base.bank.remove(self.student)
        self.keeps = None

    def _note(self, metrics: dict[str, float]) -> None:
        self.history = [each for each in self.history if each["round"] < self.round]  # it may have gone back
        self.history.append({"round": self.round, **metrics})

    def _finish(self) -> None:
        """Leaves the adapter, and what it has cost, in the run folder."""
        processes, progress = self.base.processes, self.trainer.progress
        if self.folder is None:
            return
        if processes.is_main:
            self.save(self.folder / ADAPTER)
            seconds = round(progress.seconds, 1)
            numbers = {"seconds": seconds, "steps": progress.step, "processes": processes.count}
            write_json(self.folder / TRAINING, numbers)
        processes.wait()


def loop_settings(
    config: TrainingConfig, base: Base, *, rounds: int, updates_per_round: int = 1
) -> LoopSettings:
    """Returns how long a training runs, how it steps and how often it is saved.

    On a base in float16 the loss is scaled by the number of latent dimensions, which it is divided by: what
    reaches the network then has the size of a velocity, where unscaled it would be lost below float16's
    smallest numbers.
    """
    dimensions = math.prod(base.backbone.latent_shape)
    return LoopSettings(
        rounds=rounds,
        updates_per_round=updates_per_round,
        optimizer=config.optimizer,
        ema=config.ema,
        checkpoint=config.checkpoint,
        loss_scale=float(dimensions) if base.settings.dtype == "float16" else 1.0,
    )


def resume_or_restart(trainer: Trainer, *, resume: bool) -> None:
    """Goes back to the newest checkpoint, or forgets all of them.

    Args:
        trainer: ready to begin, with a folder.
        resume: whether to go back.

    Raises:
        CheckpointError: if the checkpoint is damaged or of another training; the folder stays as it was.
    """
    assert trainer.checkpoints is not None
    if not resume and trainer.processes.is_main:
        shutil.rmtree(trainer.checkpoints.folder, ignore_errors=True)
    trainer.processes.wait()
    if resume:
        trainer.resume()
