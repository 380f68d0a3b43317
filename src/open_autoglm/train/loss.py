# SPDX-License-Identifier: Apache-2.0
"""The loss of a batch: cross-entropy of the tokens to learn, of sequences laid end to end."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from open_autoglm.data import TokenizedExamples
from open_autoglm.data.encoding import TokenTags
from open_autoglm.models.glm import GlmForCausalLM, PackedSequences
from open_autoglm.train.batches import plan_epoch

_VALIDATION_TOKENS: Final = 8192


@dataclass(frozen=True)
class TrainingBatch:
    """Whole sequences laid end to end.

    token_ids: int64[total]. lengths: int64[k]. places: int64[n], the tokens after which a token counts.
    weights: float32[n], what each of these counts; None when each counts one. chosen: int64[k], the sequences' indices
    among the examples. generator: draws what dropout leaves out; PyTorch's own if None. tags: of the tokens, if they
    have any.
    """

    token_ids: Tensor
    lengths: Tensor
    places: Tensor
    weights: Tensor | None
    chosen: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    generator: torch.Generator | None = None
    tags: TokenTags | None = None

    @cached_property
    def weight(self) -> float:
        """What all tokens to learn count together."""
        return float(len(self.places)) if self.weights is None else float(self.weights.sum())


def lay_out_batch(
    examples: TokenizedExamples,
    chosen: np.ndarray,
    device: torch.device,
    *,
    prompt_weight: float = 0.0,
    generator: torch.Generator | None = None,
) -> TrainingBatch:
    """The chosen examples as a batch.

    chosen: int64[k], indices. prompt_weight: what a token counts that is not to learn, beside one that is; see
    `counted_places`. generator: as `TrainingBatch` says.
    """
    token_ids, learn, lengths = examples.gather(chosen)
    places = counted_places(token_ids, learn, lengths, prompts=prompt_weight > 0)
    weights = None
    if prompt_weight > 0:
        weights = torch.from_numpy(np.where(learn[places + 1], 1.0, prompt_weight).astype(np.float32)).to(device)
    return TrainingBatch(
        torch.from_numpy(token_ids.astype(np.int64)).to(device),
        torch.from_numpy(lengths).to(device),
        torch.from_numpy(places).to(device),
        weights,
        np.asarray(chosen),
        generator,
        examples.gather_tags(chosen),
    )


def counted_places(token_ids: np.ndarray, learn: np.ndarray, lengths: np.ndarray, *, prompts: bool) -> np.ndarray:
    """int64[n]: the places of sequences laid end to end after which a token counts.

    token_ids: int[total]. learn: bool[total]. lengths: int64[k]. The first token of a sequence never counts, for
    nothing comes before it. prompts: tokens that are not to learn count too, but for those that follow the same token
    as earlier in their sequence: an input that is read twice would be learnt twice, by copying.
    """
    total = len(token_ids)
    follows = np.ones(total, dtype=bool)
    follows[np.cumsum(lengths) - 1] = False
    counts = np.zeros(total, dtype=bool)
    counts[:-1] = learn[1:]
    if prompts:
        owner = np.repeat(np.arange(len(lengths)), lengths)[:-1]
        base = int(token_ids.max(initial=0)) + 1
        pairs = (owner * base + token_ids[:-1]) * base + token_ids[1:]
        counts[np.unique(pairs, return_index=True)[1]] = True
    return np.flatnonzero(follows & counts)


class Objective(Protocol):
    """What a training run makes smaller."""

    def __call__(self, model: GlmForCausalLM, batch: TrainingBatch) -> Tensor:
        """The loss of a batch as a scalar in float32: a sum, in which each token counts by its weight."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """The usual objective: `batch_loss`, and the tags of tokens that have some, each of which counts `tag_weight`."""

    label_smoothing: float = 0.0
    tag_weight: float = 0.0

    def __call__(self, model: GlmForCausalLM, batch: TrainingBatch) -> Tensor:
        """A scalar in float32, in nats."""
        outputs: list[Tensor] = []
        loss = batch_loss(model, batch, label_smoothing=self.label_smoothing, outputs=outputs)
        if batch.tags is None or not self.tag_weight or model.tag_head is None:
            return loss
        return loss + self.tag_weight * tag_loss(model.tag_head, outputs[-2], batch.tags)


def batch_loss(
    model: GlmForCausalLM,
    batch: TrainingBatch,
    *,
    label_smoothing: float = 0.0,
    outputs: list[Tensor] | None = None,
) -> Tensor:
    """The weighted sum of the cross-entropy, in nats, a scalar in float32. outputs: as `GlmForCausalLM.forward` says.

    The output matrix is applied only where a token is learnt, and so is the last layer's feed-forward block.
    """
    hidden = model(batch.token_ids, PackedSequences(batch.lengths, batch.generator), batch.places, outputs)
    logits = model.logits(hidden).float()
    targets = batch.token_ids[batch.places + 1]
    if batch.weights is None:
        return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    return losses.dot(batch.weights)


def tag_loss(head: nn.Linear, hidden: Tensor, tags: TokenTags) -> Tensor:
    """The cross-entropy of tokens' tags, summed over those that have one, in nats, a scalar in float32.

    hidden: float[total, width], what the layer before the last says of the tokens: that is what an answer's tokens look
    at in the last. It is normalised as the layers' own inputs are.
    Source: Lee et al. 2015 (Deeply-Supervised Nets: losses of inner layers).
    """
    places = np.flatnonzero(tags.values >= 0)
    chosen = torch.from_numpy(places).to(hidden.device)
    told = F.rms_norm(hidden.index_select(0, chosen).float(), hidden.shape[-1:])
    wanted = torch.from_numpy(tags.values[places].astype(np.int64)).to(hidden.device)
    return F.cross_entropy(head(told).float(), wanted, reduction="sum")


def answer_loss(model: GlmForCausalLM, examples: TokenizedExamples, chosen: np.ndarray) -> tuple[Tensor, int, int]:
    """Cross-entropy summed over the tokens to learn of the chosen examples, each of which counts one.

    Returns the sum in nats, how many tokens it counts, and how many tokens the model saw.
    """
    batch = lay_out_batch(examples, chosen, next(model.parameters()).device)
    return batch_loss(model, batch), len(batch.places), len(batch.token_ids)


@torch.no_grad()
def validation_loss(
    model: GlmForCausalLM,
    examples: TokenizedExamples,
    *,
    autocast: bool = False,
    tokens_per_batch: int = _VALIDATION_TOKENS,
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


def wants_autocast(precision: str, device: torch.device) -> bool:
    """Whether matrix products run in bfloat16: as `TrainingSettings.precision` says, `auto` where it is fast."""
    return bf16_is_fast(device) if precision == "auto" else precision == "bfloat16"
