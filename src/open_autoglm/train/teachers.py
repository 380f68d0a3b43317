# SPDX-License-Identifier: Apache-2.0
"""Teachers of a distillation: models that answer as the student trains, or what they answered once, from disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch.nn import functional as F

from open_autoglm.data import TokenizedExamples
from open_autoglm.models.glm import GlmForCausalLM, PackedSequences
from open_autoglm.storage import explained, read_json, write_json
from open_autoglm.train.distillation import SoftTargets, Teacher
from open_autoglm.train.loss import TrainingBatch, counted_places, lay_out_batch

_PASS_TOKENS: Final = 4096
_STATE: Final = "cache.json"


class TeacherModels:
    """Models that are asked at each step; of several, the mean of their probabilities.

    models: in evaluation mode. vocabulary: tokens of the tokenizer that they share. watched: layers of the first one
    whose outputs the student is to match.
    """

    def __init__(
        self, models: Sequence[GlmForCausalLM], temperature: float, vocabulary: int, watched: Sequence[int] = ()
    ) -> None:
        self._models, self._temperature, self._vocabulary = list(models), temperature, vocabulary
        self._watched = tuple(watched)

    @torch.no_grad()
    def __call__(self, batch: TrainingBatch) -> SoftTargets:
        """The targets of a batch."""
        found: list[torch.Tensor] = []
        hidden: tuple[torch.Tensor, ...] = ()
        for place, model in enumerate(self._models):
            states: list[torch.Tensor] | None = None if place else []
            last = model(batch.token_ids, PackedSequences(batch.lengths), batch.places, states)
            logits = model.logits(last).float()[:, : self._vocabulary]
            found.append(F.log_softmax(logits / self._temperature, dim=-1))
            if states:
                hidden = tuple(states[index] for index in self._watched)
        mean = found[0] if len(found) == 1 else torch.logsumexp(torch.stack(found), dim=0) - math.log(len(found))
        return SoftTargets(mean, None, hidden)


class CachedTeacher:
    """The likeliest tokens of a teacher and their probabilities, read from files for the examples that they are of."""

    def __init__(self, folder: Path) -> None:
        with explained(folder, "read"):
            self._tokens = np.load(folder / "token_ids.npy", mmap_mode="r", allow_pickle=False)
            self._values = np.load(folder / "log_probabilities.npy", mmap_mode="r", allow_pickle=False)
            self._starts = np.load(folder / "starts.npy", allow_pickle=False)

    def __call__(self, batch: TrainingBatch) -> SoftTargets:
        """The targets of a batch, by the numbers of its examples."""
        parts = [np.arange(self._starts[index], self._starts[index + 1]) for index in batch.chosen]
        rows = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        device = batch.token_ids.device
        tokens = torch.from_numpy(self._tokens[rows].astype(np.int64)).to(device)
        return SoftTargets(torch.from_numpy(self._values[rows].astype(np.float32)).to(device), tokens)


def cache_targets(
    teacher: Teacher,
    examples: TokenizedExamples,
    folder: Path,
    *,
    top: int,
    state: str,
    prompt_weight: float = 0.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> CachedTeacher:
    """Ask a teacher of all examples once, and keep its `top` likeliest tokens at each place in files.

    state: a digest of whatever decides the answers; files of the same are used again. on_progress: called with how many
    examples are done, and how many there are. Raises StorageError when the disk refuses.
    """
    with explained(folder, "write"):
        folder.mkdir(parents=True, exist_ok=True)
        known = read_json(folder / _STATE) if (folder / _STATE).is_file() else None
    wanted = {"state": state, "top": top, "examples": len(examples)}
    if known != wanted:
        (folder / _STATE).unlink(missing_ok=True)
        with explained(folder, "write"):
            _write_targets(teacher, examples, folder, top, prompt_weight, on_progress)
        write_json(folder / _STATE, wanted)
    return CachedTeacher(folder)


def _write_targets(  # noqa: PLR0917
    teacher: Teacher,
    examples: TokenizedExamples,
    folder: Path,
    top: int,
    prompt_weight: float,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    counts = _places(examples, prompt_weight)
    starts = np.concatenate([[0], np.cumsum(counts)])
    np.save(folder / "starts.npy", starts, allow_pickle=False)
    shape = (int(starts[-1]), top)
    tokens = np.lib.format.open_memmap(folder / "token_ids.npy", "w+", np.dtype(np.int32), shape)
    values = np.lib.format.open_memmap(folder / "log_probabilities.npy", "w+", np.dtype(np.float32), shape)
    ends = np.cumsum(examples.lengths)
    first = 0
    while first < len(examples):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + _PASS_TOKENS)))
        batch = lay_out_batch(examples, np.arange(first, last), torch.device("cpu"), prompt_weight=prompt_weight)
        targets = teacher(batch)
        found = torch.topk(targets.log_probabilities, top, dim=-1)
        tokens[starts[first] : starts[last]] = found.indices.numpy()
        values[starts[first] : starts[last]] = found.values.numpy()
        first = last
        if on_progress is not None:
            on_progress(first, len(examples))
    tokens.flush()
    values.flush()


def _places(examples: TokenizedExamples, prompt_weight: float) -> np.ndarray:
    """int64[n]: how many tokens count in each example."""
    tokens, learn = np.asarray(examples.token_ids), np.asarray(examples.learn)
    places = counted_places(tokens, learn, examples.lengths, prompts=prompt_weight > 0)
    return np.diff(np.searchsorted(places, np.asarray(examples.offsets)))
