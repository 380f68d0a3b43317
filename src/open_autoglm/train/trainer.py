# SPDX-License-Identifier: Apache-2.0
"""The training loop: packed batches, exact resume after a kill, and a way back when the loss diverges."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch

from open_autoglm.data import TokenizedExamples
from open_autoglm.errors import TrainingError
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.train.averaging import WeightAverage
from open_autoglm.train.batches import plan_epoch, split_batch
from open_autoglm.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from open_autoglm.train.curves import CurveWriter
from open_autoglm.train.divergence import MOST_RESTARTS, DivergenceWatch, explain_bad_batch
from open_autoglm.train.gradient_workers import GradientWorkers
from open_autoglm.train.loss import (
    CrossEntropy,
    Objective,
    TrainingBatch,
    answer_loss,
    bf16_is_fast,
    lay_out_batch,
    validation_loss,
    wants_autocast,
)
from open_autoglm.train.optimizers import Optimizer
from open_autoglm.train.schedules import learning_rate_at
from open_autoglm.train.settings import TrainingSettings

__all__ = [
    "ExampleSource",
    "FixedExamples",
    "ProgressCallback",
    "Schedule",
    "Trainer",
    "answer_loss",
    "bf16_is_fast",
    "validation_loss",
]

_STEP_SEED_STRIDE: Final = 1_000_003
_PART_SEED_STRIDE: Final = 1 << 40
_LOG_EVERY: Final = 10
_LAST_VALIDATED_BELOW: Final = 0.5
"""Of the peak learning rate. Above it the last weights swing around their average, which alone is validated there."""


class ExampleSource(Protocol):
    """Where each epoch's examples come from."""

    def epoch(self, number: int) -> TokenizedExamples:
        """The examples of epoch `number`, from 0: always the same for the same number."""
        ...


@dataclass(frozen=True)
class FixedExamples:
    """The same examples in each epoch."""

    examples: TokenizedExamples

    def epoch(self, number: int) -> TokenizedExamples:
        """The examples, whatever the number."""
        del number
        return self.examples


@dataclass(frozen=True)
class Schedule:
    """How far to go.

    total_steps: where the run ends. decay_from: the step at which the learning rate starts to fall; None for never.
    evaluate_every, checkpoint_every: in steps; 0 for only at the end.
    """

    total_steps: int
    decay_from: int | None = None
    evaluate_every: int = 0
    checkpoint_every: int = 0


@dataclass(frozen=True)
class _Step:
    """What one step found. loss: in nats per token, without smoothing's share taken off. tokens: non-padding."""

    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int


class _DivergedError(Exception):
    """Leaves the loop when a step must not be taken, or must not have been."""

    def __init__(self, reason: str, *, in_validation: bool = False) -> None:
        super().__init__(reason)
        self.in_validation = in_validation


ProgressCallback = Callable[[Progress, float], None]


class Trainer:
    """Trains one model in one folder: all weights that require a gradient.

    folder: `checkpoint.safetensors` is written there, and read when it exists: the run then goes on as if it had
    never stopped, since the order of samples and the dropout masks depend on seed, epoch and step alone. The weights
    with the lowest validation loss are in `best.safetensors`, the curves in `curve.jsonl`.
    events: write TensorBoard's event files too. objective: cross-entropy if not given; the validation loss always is.
    workers: threads that compute a batch together, each a part: see `workers_for`. The parts are added up in their
    order, so that the same number of workers gives the same bits.
    """

    def __init__(
        self,
        model: GlmForCausalLM,
        settings: TrainingSettings,
        source: ExampleSource,
        valid: TokenizedExamples,
        folder: Path,
        *,
        events: bool = False,
        objective: Objective | None = None,
        workers: int = 1,
    ) -> None:
        self.objective = objective or CrossEntropy(settings.label_smoothing, settings.field_tag_weight)
        self.model, self.settings, self.source, self.valid, self.folder = model, settings, source, valid, folder
        self.checkpoint_path = folder / "checkpoint.safetensors"
        self.best_path = folder / "best.safetensors"
        self.optimizer = Optimizer(model, settings)
        self.workers = GradientWorkers(self.optimizer.parameters, workers) if workers > 1 else None
        self._parts = workers * settings.accumulation_steps
        self.average = WeightAverage(model, settings.ema_decay) if settings.ema_decay > 0 else None
        self.progress = Progress()
        self._current: tuple[int, TokenizedExamples, list[np.ndarray]] | None = None
        self._last: _Step | None = None
        self.evaluation_seconds = 0.0
        """What the last evaluation took; 0 before the first."""
        self._device = next(model.parameters()).device
        self._autocast = wants_autocast(settings.precision, self._device)
        model.activation_checkpointing = settings.activation_checkpointing
        if settings.compile:
            for layer in model.model.decoder_layers():
                layer.mlp.compile(dynamic=True)
        if self.checkpoint_path.exists():
            self.progress = self._load()
        self.curves = CurveWriter(folder, self.progress.step, events=events)

    def run(self, schedule: Schedule, on_step: ProgressCallback | None = None, *, until: int | None = None) -> Progress:
        """Train up to step `until` (the schedule's end if not given), then evaluate and write a checkpoint.

        In between, evaluations and checkpoints are made as the schedule says. on_step: called after each step with
        the progress and the step's loss. When the loss is no number or rises far above what it was, the run goes back
        to the last checkpoint with half the learning rate; `progress.restarts` says so.
        Raises TrainingError when that does not help either, StorageError when a checkpoint cannot be written.
        """
        target = schedule.total_steps if until is None else min(until, schedule.total_steps)
        if self.progress.step < target and not self.checkpoint_path.exists():
            self.save()  # a place to go back to
        while self.progress.step < target:
            try:
                self._advance(_next_stop(self.progress.step, target, schedule), schedule, on_step, write=True)
                watch = DivergenceWatch(self.progress)
                if self.progress.step == target and watch.high_losses > 1:
                    raise _DivergedError(watch.rise)
                if self.progress.step == target or _due(self.progress.step, schedule.evaluate_every):
                    self._evaluate(schedule)
            except _DivergedError as divergence:
                self._go_back(str(divergence), in_validation=divergence.in_validation)
                continue
            due = _due(self.progress.step, schedule.checkpoint_every) and not watch.high_losses
            if self.progress.step == target or due:
                self.save()
        self.curves.flush()
        self.model.eval()
        return self.progress

    def run_steps(self, count: int, on_step: ProgressCallback | None = None) -> None:
        """Train for `count` steps and write nothing, to measure speed. Raises TrainingError when the loss diverges."""
        end = self.progress.step + count
        try:
            self._advance(end, Schedule(total_steps=end), on_step, write=False)
        except _DivergedError as divergence:
            raise TrainingError(
                f"{divergence} at step {self.progress.step + 1}; lower the learning rate, or look for extreme values "
                "in the base checkpoint"
            ) from None

    def save(self) -> None:
        """Write the checkpoint now. Raises StorageError when the disk refuses."""
        self.curves.flush()
        save_checkpoint(self.checkpoint_path, self.model, self.progress, optimizer=self.optimizer, average=self.average)

    def load_best(self) -> bool:
        """Put the weights with the lowest validation loss so far into the model; False if there are none."""
        if not self.best_path.exists():
            return False
        load_checkpoint(self.best_path, self.model)
        self.model.eval()
        return True

    @contextmanager
    def better_weights(self) -> Iterator[None]:
        """Inside the block, the model has the average of its weights if that had the lower loss when validated last.

        Where only the average was validated, it is the better one.
        """
        row = self.progress.curve[-1] if self.progress.curve else {}
        is_better = row.get("average_valid_loss", math.inf) < row.get("last_valid_loss", math.inf)
        with self.average.in_place() if self.average is not None and is_better else nullcontext():
            yield

    def load_last(self, *, averaged: bool = False) -> None:
        """Put the weights of the last checkpoint into the model, or their moving average.

        Raises CheckpointError when there is no checkpoint, or no average in it.
        """
        self.progress = self._load()
        if averaged and self.average is not None:
            self.average.copy_to_model()
        self.model.eval()

    def record(self, values: dict[str, float]) -> None:
        """Write numbers that were found outside, such as the task's metric, to the curves at the current step."""
        self.curves.write(self.progress.step, values)
        self.curves.flush()

    def _load(self) -> Progress:
        return load_checkpoint(self.checkpoint_path, self.model, optimizer=self.optimizer, average=self.average)

    def _advance(self, end: int, schedule: Schedule, on_step: ProgressCallback | None, *, write: bool) -> None:
        with nullcontext() if self.workers is None else self.workers.started():
            self._take_steps(end, schedule, on_step, write=write)

    def _take_steps(self, end: int, schedule: Schedule, on_step: ProgressCallback | None, *, write: bool) -> None:
        progress = self.progress
        watch = DivergenceWatch(progress)
        started, before = time.monotonic(), progress.seconds
        mark = (progress.seconds, progress.tokens)
        self.model.train()
        while progress.step < end:
            examples, plan = self._epoch()
            if progress.batch >= len(plan):
                progress.epoch, progress.batch = progress.epoch + 1, 0
                continue
            self._last = step = self._step(examples, plan[progress.batch], schedule, watch)
            if self.average is not None:
                self.average.update(progress.step)
            progress.step += 1
            progress.batch += 1
            progress.tokens += step.tokens
            progress.seconds = before + time.monotonic() - started
            if write and (progress.step % _LOG_EVERY == 0 or progress.step == end):
                seconds, tokens = progress.seconds - mark[0], progress.tokens - mark[1]
                mark = (progress.seconds, progress.tokens)
                values = {"loss": step.loss, "learning_rate": step.learning_rate, "gradient_norm": step.gradient_norm}
                self.curves.write(progress.step, {**values, "tokens_per_second": tokens / max(seconds, 1e-9)})
            if on_step is not None:
                on_step(progress, step.loss)

    def _epoch(self) -> tuple[TokenizedExamples, list[np.ndarray]]:
        """The examples and batches of the current epoch, made once."""
        if self._current is None or self._current[0] != self.progress.epoch:
            examples = self.source.epoch(self.progress.epoch)
            plan = plan_epoch(
                examples.lengths, self.settings.tokens_per_batch, seed=self.settings.seed, epoch=self.progress.epoch
            )
            self._current = (self.progress.epoch, examples, plan)
        return self._current[1], self._current[2]

    def _rate_share(self, schedule: Schedule) -> float:
        """The learning rate after the last step, as a share of its peak; one as long as it has not begun to fall."""
        step, settings = self.progress.step, self.settings
        if schedule.decay_from is None or step < settings.warmup_steps:
            return 1.0
        return self._learning_rate(schedule) / settings.learning_rate

    def _learning_rate(self, schedule: Schedule) -> float:
        settings = self.settings
        return learning_rate_at(
            self.progress.step,
            peak=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            decay_from=schedule.decay_from,
            total_steps=schedule.total_steps,
            schedule=settings.schedule,
        )

    def _step(
        self, examples: TokenizedExamples, chosen: np.ndarray, schedule: Schedule, watch: DivergenceWatch
    ) -> _Step:
        """One step, or _DivergedError before any weight is changed by it."""
        settings = self.settings
        rate = self.progress.rate_scale * self._learning_rate(schedule)
        seed = settings.seed * _STEP_SEED_STRIDE + self.progress.step
        torch.manual_seed(seed)
        batches = [
            lay_out_batch(
                examples,
                part,
                self._device,
                prompt_weight=settings.prompt_loss_weight,
                generator=None
                if self.workers is None
                else torch.Generator().manual_seed(seed + place * _PART_SEED_STRIDE),
            )
            for place, part in enumerate(split_batch(examples.lengths, chosen, self._parts))
        ]
        weight = max(sum(batch.weight for batch in batches), 1e-9)
        losses = [partial(self._loss, batch, weight) for batch in batches]
        if self.workers is not None:
            value = self.workers.backward(losses)
        else:
            value = 0.0
            for loss in losses:
                part = loss()
                part.backward()
                value += float(part.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(self.optimizer.parameters, settings.gradient_clip))
        if (trouble := watch.see(value, norm)) is not None:
            raise _DivergedError(trouble)
        self.optimizer.step(rate, self.workers)
        self.optimizer.zero_grad()
        return _Step(value, norm, rate, sum(len(batch.token_ids) for batch in batches))

    def _loss(self, batch: TrainingBatch, weight: float) -> torch.Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            return self.objective(self.model, batch) / weight

    def _go_back(self, reason: str, *, in_validation: bool) -> None:
        """Return to the last checkpoint with half the learning rate. Raises TrainingError when that is no use."""
        failed, examples_and_plan = self.progress, self._epoch()
        self.optimizer.zero_grad()
        self.progress = progress = self._load()
        examples, plan = examples_and_plan
        where = f"step {failed.step + 1}"
        fault: str | None = None
        if in_validation:
            if (fault := explain_bad_batch(self.model, self.valid, np.arange(len(self.valid)))) is not None:
                fault = f"of the validation split, {fault}"
        elif failed.batch < len(plan):
            fault = explain_bad_batch(self.model, examples, plan[failed.batch])
        if fault is not None:
            raise TrainingError(f"{reason} at {where} whatever the learning rate: {fault}")
        if len(failed.restarts) >= MOST_RESTARTS:
            raise TrainingError(
                f"{reason} at {where}, after the learning rate had been halved {MOST_RESTARTS} times from "
                f"{self.settings.learning_rate:.2g}; give a lower learning rate, or a longer warm-up"
            )
        progress.seconds = failed.seconds
        progress.rate_scale = failed.rate_scale / 2
        facts: dict[str, Any] = {
            "reason": reason,
            "failed_step": failed.step + 1,
            "continued_from": progress.step,
            "rate_scale": progress.rate_scale,
        }
        progress.restarts = [*failed.restarts, facts]
        self.save()
        self.curves.go_back(progress.step)
        self.curves.note(progress.step, "restarted", facts)

    def _evaluate(self, schedule: Schedule) -> None:
        started = time.monotonic()
        losses: dict[str, float] = {}
        if self.average is None or self._rate_share(schedule) < _LAST_VALIDATED_BELOW:
            losses["last_valid_loss"] = validation_loss(self.model, self.valid, autocast=self._autocast)
        if self.average is not None:
            with self.average.in_place():
                losses["average_valid_loss"] = validation_loss(self.model, self.valid, autocast=self._autocast)
        for loss in losses.values():
            if not math.isfinite(loss):
                raise _DivergedError(f"the validation loss became {loss}", in_validation=True)
        value, row = min(losses.values()), {} if self.average is None else losses
        progress = self.progress
        self.evaluation_seconds = time.monotonic() - started
        progress.seconds += self.evaluation_seconds
        progress.curve.append(
            {
                "step": progress.step,
                "seconds": round(progress.seconds, 3),
                "tokens": progress.tokens,
                "train_loss": math.nan if self._last is None else self._last.loss,
                "valid_loss": value,
                **row,
            }
        )
        self.curves.write(progress.step, {"valid_loss": value, **row})
        if progress.best_loss is None or value < progress.best_loss:
            progress.best_loss = value
            with self.better_weights():
                save_checkpoint(self.best_path, self.model, progress)


def _next_stop(step: int, target: int, schedule: Schedule) -> int:
    """The next step after `step` at which something besides training is due."""
    stops = [target]
    for every in (schedule.evaluate_every, schedule.checkpoint_every):
        if every > 0:
            stops.append((step // every + 1) * every)
    return min(stops)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
