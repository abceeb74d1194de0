"""The training loop. There is one: sources say what it sees, objectives what it minimises."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import Parameter

from flow_opd.config.common import CheckpointSettings, EMASettings, OptimizerSettings
from flow_opd.errors import CheckpointError, NonFiniteError
from flow_opd.layout import CHECKPOINTS
from flow_opd.processes import ALONE, Processes
from flow_opd.protocols import BatchSource, Callback, Objective
from flow_opd.training.checkpoint import (
    CheckpointFolder,
    Progress,
    Snapshot,
    optimizer_tensors,
    restore_optimizer,
    save_batch,
)
from flow_opd.training.optimizer import EMA, build_optimizer, learning_rate
from flow_opd.training.progress import ProgressBar, deferred_interrupt


@dataclass(frozen=True)
class LoopSettings:
    """How long a training runs, how it steps and how often it is saved."""

    rounds: int
    updates_per_round: int = 1
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    ema: EMASettings | None = None
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    loss_scale: float = 1.0
    """The loss times this is what is differentiated, and gradients are divided by it: small numbers would
    be lost where the network computes in float16."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.rounds * self.updates_per_round


@contextmanager
def progress_of(trainer: Trainer, title: str, show: Sequence[str]) -> Iterator[None]:
    """Shows a progress bar inside the context, on the main process, if there is anything left to do."""
    if trainer.finished or not trainer.processes.is_main:
        yield
        return
    done, total = trainer.progress.step, trainer.settings.total_steps
    bar = ProgressBar(title, total_steps=total, done=done, show=show)
    trainer.callbacks.append(bar)
    try:
        yield
    finally:
        bar.on_end()
        trainer.callbacks.remove(bar)


class Trainer:
    """Runs rounds: take batches from the source, minimise the objective, checkpoint between rounds."""

    def __init__(
        self,
        *,
        parameters: Mapping[str, Parameter],
        source: BatchSource,
        objective: Objective,
        settings: LoopSettings,
        folder: Path | None,
        identity: str,
        basis: Mapping[str, Any] | None = None,
        callbacks: Sequence[Callback] = (),
        processes: Processes = ALONE,
    ) -> None:
        """Builds the optimizer and the average; nothing runs yet.

        Args:
            parameters: what is trained, by stable names.
            source: yields updates for a round index.
            objective: loss of a micro-batch.
            settings: length, optimizer, average, checkpoints.
            folder: the run folder; checkpoints go below it. None keeps none.
            identity: fingerprint of everything that a checkpoint must agree with.
            basis: what it is the hash of, as JSON values, so that a refusal can name what differs.
            callbacks: called after each step, by the main process only.
            processes: who shares the rows of an update; the main one alone writes checkpoints.
        """
        self.parameters = dict(parameters)
        self.source = source
        self.objective = objective
        self.settings = settings
        self.folder = folder
        self.identity, self.basis = identity, dict(basis or {})
        self.callbacks, self.processes = list(callbacks), processes
        self.progress = Progress()
        self.optimizer = build_optimizer(self.parameters.values(), settings.optimizer)
        self.average = EMA(self.parameters, settings.ema) if settings.ema else None
        self.checkpoints = (
            None if folder is None else CheckpointFolder(folder / CHECKPOINTS, keep=settings.checkpoint.keep)
        )
        self._saved = time.monotonic()
        self._saved_round: int | None = None
        self._torn = False  # whether some steps of a round have been taken and others not

    def resume(self) -> bool:
        """Restores the newest checkpoint, if there is one, and says whether there was.

        Raises:
            CheckpointError: if it is damaged or of another training.
        """
        if self.checkpoints is None:
            return False
        snapshot = self.checkpoints.load(identity=self.identity, basis=self.basis)
        if snapshot is None:
            return False
        if set(snapshot.parameters) != set(self.parameters):
            raise CheckpointError(
                "the checkpoint holds other parameters",
                value=sorted(set(snapshot.parameters) ^ set(self.parameters))[:4],
                allowed="the parameters that this training trains",
                fix="use the base and adapter settings that the checkpoint was written with",
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(snapshot.parameters[name])
            if self.average:
                for name, value in self.average.average.items():
                    value.copy_(snapshot.average[name])
        restore_optimizer(self.optimizer, self.parameters, snapshot.optimizer)
        self.progress = snapshot.progress
        self._saved_round, self._torn = self.progress.round, False
        for each in self.callbacks:
            each.on_resume(self.progress.step)
        return True

    def run(self) -> None:
        """Trains until all rounds are done, from wherever `resume` left the progress."""
        while not self.finished:
            self.round()

    @property
    def finished(self) -> bool:
        """Whether all rounds are done."""
        return self.progress.round >= self.settings.rounds

    def round(self) -> dict[str, float]:
        """Trains one round and returns the metrics of its last update; a checkpoint is written if it is due.

        An interrupt (Ctrl-C, or a notebook's stop button) takes effect between two rounds: what has begun is
        finished, but for a round whose first update has not begun. Then a checkpoint is written; the training
        can go on, and what it has trained can be used. A second interrupt takes effect at once.

        Raises:
            NonFiniteError: if a loss or gradient is not finite; the batch is saved and no weight has changed.
            KeyboardInterrupt: once everything is in order.
            CheckpointError: after a second interrupt, if there is no checkpoint to go back to.
        """
        if self._torn and not self.resume():
            raise CheckpointError(
                "the training was stopped in the middle of a round, and there is no checkpoint to go back to",
                value=f"round {self.progress.round + 1}, step {self.progress.step}",
                allowed="an interrupt that is waited for, or a run folder",
                fix="start again; give the training a folder",
            )
        settings, progress = self.settings, self.progress
        started, first = time.monotonic(), progress.step
        metrics: dict[str, float] = {}
        with deferred_interrupt(alone=self.processes.count == 1) as interrupt:
            for update in self.source.round(progress.round):
                if interrupt.is_set() and progress.step == first:
                    break
                metrics = self.update(update)
            if metrics:
                taken = progress.step - first
                assert taken == settings.updates_per_round, f"{taken} updates in a round"
                progress.round += 1
                self._torn = False
                progress.seconds += time.monotonic() - started
            due = time.monotonic() - self._saved >= 60 * settings.checkpoint.every_minutes
            if due or self.finished or interrupt.is_set():
                self.save()
                self._saved = time.monotonic()
        if interrupt.is_set():
            raise KeyboardInterrupt
        if self.finished:
            for callback in self.callbacks:
                callback.on_end()
        return metrics

    def save(self) -> None:
        """Writes a checkpoint after a finished round, where there is a folder for it and none of it yet."""
        known = self._torn or self._saved_round == self.progress.round
        if self.checkpoints is None or known or not self.processes.is_main:
            return
        snapshot = Snapshot(
            progress=self.progress,
            parameters=self.parameters,
            optimizer=optimizer_tensors(self.optimizer, self.parameters),
            average=self.average.average if self.average else {},
        )
        self.checkpoints.save(snapshot, identity=self.identity, basis=self.basis)
        self._saved_round = self.progress.round

    def update(self, micro_batches: Iterable[Any]) -> dict[str, float]:
        """Takes one optimizer step and returns its metrics.

        Gradients are sums over micro-batches, divided once by the total count. Numbers
        stay on the device until all work of the update is handed to it, and are read together.
        """
        self.optimizer.zero_grad(set_to_none=True)
        names, sums = self._accumulate(micro_batches)
        gradients = self._gradients()
        assert gradients, "no gradient reached a trained parameter"
        self.processes.add_up(gradients)
        self.processes.add_up([sums])
        torch._foreach_div_(gradients, (sums[0] * self.settings.loss_scale).to(gradients[0]))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.optimizer.max_grad_norm)
        rows, total, *values, size = torch.cat([sums, norm.detach().to(sums).view(1)]).tolist()
        if not math.isfinite(total):
            self._stop("loss", micro_batches)
        if not math.isfinite(size):
            self._stop("gradient", micro_batches)
        rate = learning_rate(self.settings.optimizer, self.progress.step, self.settings.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._torn = True
        self.optimizer.step()
        self.progress.step += 1
        if self.average:
            self.average.update(self.progress.step, last=self.progress.step == self.settings.total_steps)
        metrics = {name: value / rows for name, value in zip(names, values, strict=True)}
        metrics |= {**self.source.metrics, "grad_norm": size, "learning_rate": rate, "rows": rows}
        for callback in self.callbacks:
            callback.on_update(self.progress.step, metrics)
        return metrics

    def _accumulate(self, micro_batches: Iterable[Any]) -> tuple[list[str], Tensor]:
        """Adds up gradients over the micro-batches of this process.

        Returns:
            The names of the metrics, and the sums of rows, loss and metrics, [2 + number of metrics].
        """
        names: list[str] = []
        measured: list[Tensor] = []
        rows = 0
        for batch in micro_batches:
            output = self.objective(batch)
            (output.total * self.settings.loss_scale).backward()  # type: ignore[no-untyped-call]
            rows += output.count
            names = sorted(output.metrics)
            measured.append(
                torch.stack([output.total.detach(), *(output.metrics[name].detach() for name in names)])
            )
        stacked = torch.stack(measured)
        precise = torch.float32 if stacked.device.type == "mps" else torch.float64
        sums = stacked.sum(0, dtype=precise)
        return names, torch.cat([torch.full_like(sums[:1], rows), sums])

    def _gradients(self) -> list[Tensor]:
        return [each.grad for each in self.parameters.values() if each.grad is not None]

    def _stop(self, what: str, micro_batches: Iterable[Any]) -> NoReturn:
        """Ends the training; every process does, as the sums are the same everywhere."""
        step = self.progress.step + 1
        batch = self._broken(micro_batches)
        name = f"nonfinite-step-{step}-process-{self.processes.index}.safetensors"
        file = (self.folder or Path(tempfile.mkdtemp(prefix="flow-opd-"))) / name
        saved = "by another process" if batch is None else f"to {save_batch(batch, file)}"
        raise NonFiniteError(
            f"the {what} of step {step} is not finite; the weights are unchanged",
            value=f"micro-batch saved {saved}",
            allowed="finite losses and gradients",
            fix="look at the saved batch; lower the learning rate or use bfloat16 instead of float16",
        )

    def _broken(self, micro_batches: Iterable[Any]) -> Any:
        """Returns the first micro-batch of an update whose loss or gradient broke, None if no own one did.

        All are gone through to the end, as other processes may wait for each.
        """
        broken: Any = None
        for batch in micro_batches:
            self.optimizer.zero_grad(set_to_none=True)
            total = self.objective(batch).total
            (total * self.settings.loss_scale).backward()
            numbers = [total, *self._gradients()]
            if broken is None and not all(bool(torch.isfinite(each).all()) for each in numbers):
                broken = batch
        return broken
