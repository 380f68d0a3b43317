# SPDX-License-Identifier: Apache-2.0
"""The training loop: packed batches, bf16 where the processor has it, AdamW, exact resume after a kill."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from open_autoglm.data import TokenizedExamples
from open_autoglm.errors import TrainingError
from open_autoglm.models.glm import GlmForCausalLM, PackedSequences
from open_autoglm.train.batches import plan_epoch
from open_autoglm.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from open_autoglm.train.settings import TrainingSettings, learning_rate_at

_STEP_SEED_STRIDE: Final = 1_000_003


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


ProgressCallback = Callable[[Progress, float], None]


class Trainer:
    """Trains one model in one folder.

    folder: `checkpoint.safetensors` is written there, and read when it exists: the run then goes on as if it had
    never stopped, since the order of samples and the dropout masks depend on seed, epoch and step alone.
    """

    def __init__(
        self,
        model: GlmForCausalLM,
        settings: TrainingSettings,
        source: ExampleSource,
        valid: TokenizedExamples,
        folder: Path,
    ) -> None:
        self.model, self.settings, self.source, self.valid, self.folder = model, settings, source, valid, folder
        self.checkpoint_path = folder / "checkpoint.safetensors"
        self.best_path = folder / "best.safetensors"
        matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": settings.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            fused=True,
        )
        self.progress = Progress()
        self._current: tuple[int, TokenizedExamples, list[np.ndarray]] | None = None
        self._last_loss = math.nan
        self._device = next(model.parameters()).device
        self._autocast = bf16_is_fast(self._device)
        if self.checkpoint_path.exists():
            self.progress = load_checkpoint(self.checkpoint_path, model, self.optimizer)

    def run(self, schedule: Schedule, on_step: ProgressCallback | None = None, *, until: int | None = None) -> Progress:
        """Train up to step `until` (the schedule's end if not given), then evaluate and write a checkpoint.

        In between, evaluations and checkpoints are made as the schedule says. on_step: called after each step with
        the progress and the step's loss.
        Raises TrainingError when the loss is not a finite number, StorageError when a checkpoint cannot be written.
        """
        progress = self.progress
        target = schedule.total_steps if until is None else min(until, schedule.total_steps)
        while progress.step < target:
            self._advance(_next_stop(progress.step, target, schedule), schedule, on_step)
            if progress.step == target or _due(progress.step, schedule.evaluate_every):
                self._evaluate()
            if progress.step == target or _due(progress.step, schedule.checkpoint_every):
                self.save()
        self.model.eval()
        return progress

    def run_steps(self, count: int, on_step: ProgressCallback | None = None) -> None:
        """Train for `count` steps and write nothing, to measure speed."""
        end = self.progress.step + count
        self._advance(end, Schedule(total_steps=end), on_step)

    def _advance(self, end: int, schedule: Schedule, on_step: ProgressCallback | None) -> None:
        progress = self.progress
        started, before = time.monotonic(), progress.seconds
        self.model.train()
        while progress.step < end:
            examples, plan = self._epoch()
            if progress.batch >= len(plan):
                progress.epoch, progress.batch = progress.epoch + 1, 0
                continue
            self._last_loss, tokens = self._step(examples, plan[progress.batch], schedule)
            progress.step += 1
            progress.batch += 1
            progress.tokens += tokens
            progress.seconds = before + time.monotonic() - started
            if on_step is not None:
                on_step(progress, self._last_loss)

    def _epoch(self) -> tuple[TokenizedExamples, list[np.ndarray]]:
        """The examples and batches of the current epoch, made once."""
        if self._current is None or self._current[0] != self.progress.epoch:
            examples = self.source.epoch(self.progress.epoch)
            plan = plan_epoch(
                examples.lengths, self.settings.tokens_per_batch, seed=self.settings.seed, epoch=self.progress.epoch
            )
            self._current = (self.progress.epoch, examples, plan)
        return self._current[1], self._current[2]

    def save(self) -> None:
        """Write the checkpoint now. Raises StorageError when the disk refuses."""
        save_checkpoint(self.checkpoint_path, self.model, self.optimizer, self.progress)

    def load_best(self) -> bool:
        """Put the weights with the lowest validation loss so far into the model; False if there are none."""
        if not self.best_path.exists():
            return False
        load_checkpoint(self.best_path, self.model, None)
        self.model.eval()
        return True

    def _step(self, examples: TokenizedExamples, chosen: np.ndarray, schedule: Schedule) -> tuple[float, int]:
        rate = learning_rate_at(
            self.progress.step,
            peak=self.settings.learning_rate,
            warmup_steps=self.settings.warmup_steps,
            decay_from=schedule.decay_from,
            total_steps=schedule.total_steps,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(self.settings.seed * _STEP_SEED_STRIDE + self.progress.step)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            total, count, tokens = answer_loss(self.model, examples, chosen)
        loss = total / max(1, count)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss became {value} at step {self.progress.step + 1} with learning rate {rate:.2g}; "
                "the data may hold extreme values, or the learning rate is too high"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value, tokens

    def _evaluate(self) -> None:
        started = time.monotonic()
        value = validation_loss(self.model, self.valid, autocast=self._autocast)
        progress = self.progress
        progress.seconds += time.monotonic() - started
        progress.curve.append(
            {
                "step": progress.step,
                "seconds": round(progress.seconds, 3),
                "tokens": progress.tokens,
                "train_loss": self._last_loss,
                "valid_loss": value,
            }
        )
        if progress.best_loss is None or value < progress.best_loss:
            progress.best_loss = value
            save_checkpoint(self.best_path, self.model, None, progress)


def _next_stop(step: int, target: int, schedule: Schedule) -> int:
    """The next step after `step` at which something besides training is due."""
    stops = [target]
    for every in (schedule.evaluate_every, schedule.checkpoint_every):
        if every > 0:
            stops.append((step // every + 1) * every)
    return min(stops)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def answer_loss(
    model: GlmForCausalLM, examples: TokenizedExamples, chosen: np.ndarray
) -> tuple[torch.Tensor, int, int]:
    """Cross-entropy summed over the tokens to learn of the chosen examples, laid end to end.

    The output matrix is applied only where a token is learnt. Returns the sum in nats, how many tokens it counts,
    and how many tokens the model saw.
    """
    device = next(model.parameters()).device
    token_ids, learn, lengths = examples.gather(chosen)
    ends = np.cumsum(lengths)
    predicts = np.zeros(len(token_ids), dtype=bool)
    predicts[:-1] = learn[1:]
    predicts[ends - 1] = False
    places = np.flatnonzero(predicts)
    ids = torch.from_numpy(token_ids.astype(np.int64)).to(device)
    hidden = model(ids, PackedSequences(torch.from_numpy(lengths).to(device)))
    at = torch.from_numpy(places).to(device)
    logits = model.logits(hidden.index_select(0, at))
    total = F.cross_entropy(logits.float(), ids[at + 1], reduction="sum")
    return total, len(places), len(token_ids)


@torch.inference_mode()
def validation_loss(
    model: GlmForCausalLM, examples: TokenizedExamples, *, autocast: bool = False, tokens_per_batch: int = 8192
) -> float:
    """Nats per example, which compares models whatever their tokenizers. The model's mode is left as it was."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total = 0.0
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        for batch in plan_epoch(examples.lengths, tokens_per_batch, seed=0, epoch=0):
            summed, _, _ = answer_loss(model, examples, batch)
            total += float(summed)
    model.train(was_training)
    return total / max(1, len(examples))


def bf16_is_fast(device: torch.device) -> bool:
    """Whether bf16 products run in hardware: on CUDA of Ampere or later, and on CPUs with AVX-512 BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    from open_autoglm.targets import cpu_features

    return bool({"avx512_bf16", "amx_bf16"} & cpu_features())
