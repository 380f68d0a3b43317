# SPDX-License-Identifier: Apache-2.0
"""The torch backend: a GLM in PyTorch over a paged KV cache, on the CPU or on CUDA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from open_autoglm.engine.batch import Batch, hide_branches
from open_autoglm.engine.memory import available_memory
from open_autoglm.errors import EngineError
from open_autoglm.models.checkpoint import load_model
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.models.size import kv_numbers_per_token

_WASTE: Final = 4
"""Sequences share one padded attention call while none needs less than this fraction of the largest's work."""

_MAX_CELLS: Final = 1 << 24
"""The most query-key pairs of one padded call, which bounds the memory of its mask."""


_KV_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def availability() -> tuple[bool, str]:
    """That this backend runs here, and on what."""
    threads = torch.get_num_threads()
    where = cuda_device() or f"{threads} thread{'s' if threads > 1 else ''}"
    return True, f"PyTorch {torch.__version__}, {where}"


def cuda_device() -> str | None:
    """The name of the GPU that computes float32 weights; nothing without one."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def load(folder: Path, *, weights: str, dtype: str, kv_dtype: str, threads: int | None) -> TorchBackend:
    """Load a checkpoint for serving. weights: also `int8-dynamic`, which torchao rounds.

    Raises CheckpointError for the model, EngineError for a dtype that does not go with the weights, and for a KV
    cache in int8.
    """
    if dtype != "float32" and weights != "float32":
        raise EngineError(f"{weights} weights are computed in float32; leave out --dtype or --quantize")
    if kv_dtype not in ("auto", *_KV_DTYPES):
        raise EngineError(f"the torch backend has no {kv_dtype} KV cache; choose float32 or bfloat16")
    if threads is not None:
        torch.set_num_threads(threads)
    is_dynamic = weights == "int8-dynamic"
    model = load_model(folder, weights="float32" if is_dynamic else weights)
    if dtype == "bfloat16":
        model = model.to(torch.bfloat16)
    if torch.cuda.is_available() and (is_dynamic or weights == "float32"):
        model = model.to("cuda")
    if is_dynamic:
        from open_autoglm.models.dynamic_int8 import round_dynamically

        round_dynamically(model)
    return TorchBackend(model, kv_dtype=kv_dtype)


class TorchBackend:
    """Runs a `GlmForCausalLM` that the caller keeps; `close` gives it back in the mode in which it came.

    kv_dtype: `float32` or `bfloat16` of the KV cache; that of the model with `auto`.
    """

    def __init__(self, model: GlmForCausalLM, *, kv_dtype: str = "auto") -> None:
        self._model = model
        self._was_training = model.training
        model.eval()
        norm = model.model.norm.weight
        self._device, self._dtype = norm.device, norm.dtype
        self._kv_dtype = _KV_DTYPES.get(kv_dtype, self._dtype)
        self._cache: list[tuple[Tensor, Tensor]] = []

    @property
    def name(self) -> str:
        """Which backend this is."""
        return "torch"

    @property
    def description(self) -> str:
        """What computes, in which number formats."""
        formats = [str(dtype).removeprefix("torch.") for dtype in (self._dtype, self._kv_dtype)]
        return f"PyTorch {torch.__version__} on {self._device.type}, {formats[0]}, KV cache in {formats[1]}"

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._model.config.vocab_size

    @property
    def hidden_size(self) -> int:
        """Numbers of one hidden state."""
        return self._model.config.hidden_size

    @property
    def max_positions(self) -> int:
        """The longest context, in tokens."""
        return self._model.config.max_context

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The ends of an answer that `config.json` names."""
        return self._model.config.eos_token_ids

    @property
    def position_independent_keys(self) -> bool:
        """Whether sequences may share blocks."""
        return True

    def bytes_per_block(self, block_size: int) -> int:
        """Memory of one KV block over all layers."""
        return block_size * kv_numbers_per_token(self._model.config) * self._kv_dtype.itemsize

    def free_memory(self) -> int:
        """Bytes that the KV cache could take, on the model's device."""
        if self._device.type == "cuda":
            return torch.cuda.mem_get_info(self._device)[0]
        return available_memory()

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Make the KV cache: two float[num_blocks * block_size, kv_heads, head_dim] per layer.

        Raises EngineError when the memory is refused.
        """
        config = self._model.config
        shape = (num_blocks * block_size, config.num_key_value_heads, config.head_dim)
        try:
            self._cache = [
                (
                    torch.zeros(shape, dtype=self._kv_dtype, device=self._device),
                    torch.zeros(shape, dtype=self._kv_dtype, device=self._device),
                )
                for _ in range(config.num_hidden_layers)
            ]
        except RuntimeError as error:
            raise EngineError(f"cannot allocate {num_blocks} KV blocks: {error}; use fewer (--kv-blocks)") from None

    def step(self, batch: Batch) -> np.ndarray:
        """Compute a batch and store its keys and values. Returns float32[num_outputs, vocab_size]."""
        with torch.inference_mode():
            attention = PagedAttention(batch, self._cache, self._device)
            hidden = self._model(self._to_device(batch.token_ids), attention)
            if len(batch.state_indices):
                states = hidden.index_select(0, self._to_device(batch.state_indices))
                batch.states[:] = states.float().cpu().numpy()
            if not len(batch.output_indices):
                return np.empty((0, self.vocab_size), dtype=np.float32)
            hidden = hidden.index_select(0, self._to_device(batch.output_indices))
            return self._model.logits(hidden).float().cpu().numpy()

    def close(self) -> None:
        """Let the KV cache go, and put the model back into the mode in which it came."""
        self._cache = []
        self._model.train(self._was_training)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


@dataclass(frozen=True)
class _Group:
    """Sequences whose attention is one padded call.

    query_rows: int64[sequences * longest_query], rows of the flat batch; padding repeats a sequence's first.
    key_slots: int64[sequences * longest_context]; padding repeats a sequence's first slot.
    mask: bool[sequences, 1, longest_query, longest_context], true where a query sees a key.
    filled: which of `query_rows` are not padding, or None for all. in_order: the group is the whole batch as it lies.
    """

    sequences: int
    query_rows: Tensor
    key_slots: Tensor
    mask: Tensor
    filled: Tensor | None
    in_order: bool


class PagedAttention:
    """`models.glm.Attention` over the KV cache, for chunks of prefill and single decode tokens in one batch.

    All indices are computed once per step; each layer then does one gather and one attention call per group, and
    a decode-only batch of sequences of like length is a single group.
    """

    def __init__(self, batch: Batch, cache: list[tuple[Tensor, Tensor]], device: torch.device) -> None:
        self.positions = torch.from_numpy(batch.rotary_positions).to(device)
        self.lengths = torch.from_numpy(np.repeat(batch.sequence_lengths, batch.query_lengths)).to(device)
        self._cache = cache
        self._slots = torch.from_numpy(batch.slot_mapping).to(device)
        members = _partition(batch.query_lengths, batch.context_lengths)
        self._groups = [_make_group(batch, rows, device) for rows in members]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store keys and values, and attend to all that each sequence has stored; shapes as `Attention` says."""
        keys, values = self._cache[layer]
        keys.index_copy_(0, self._slots, key.to(keys.dtype))
        values.index_copy_(0, self._slots, value.to(values.dtype))
        if len(self._groups) == 1 and self._groups[0].in_order:
            return _attend(self._groups[0], query, keys, values)
        output = torch.empty_like(query)
        for group in self._groups:
            mixed = _attend(group, query.index_select(0, group.query_rows), keys, values)
            if group.filled is None:
                output.index_copy_(0, group.query_rows, mixed)
            else:
                output.index_copy_(0, group.query_rows[group.filled], mixed[group.filled])
        return output


def _attend(group: _Group, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """query: float[sequences * longest_query, heads, head_dim]. Returns the same shape.

    The heads that share a key head are laid out as further queries of it, so that no key is copied.
    """
    sequences, heads, kv_heads = group.sequences, query.shape[1], keys.shape[1]
    longest_query, head_dim = group.mask.shape[2], query.shape[2]
    shared = heads // kv_heads
    gathered_keys = keys.index_select(0, group.key_slots).to(query.dtype)
    gathered_values = values.index_select(0, group.key_slots).to(query.dtype)
    gathered_keys = gathered_keys.unflatten(0, (sequences, -1)).transpose(1, 2)
    gathered_values = gathered_values.unflatten(0, (sequences, -1)).transpose(1, 2)
    folded = query.view(sequences, longest_query, kv_heads, shared, head_dim).permute(0, 2, 3, 1, 4)
    folded = folded.reshape(sequences, kv_heads, shared * longest_query, head_dim)
    mask = group.mask if longest_query == 1 or shared == 1 else group.mask.repeat(1, 1, shared, 1)
    mixed = F.scaled_dot_product_attention(folded, gathered_keys, gathered_values, attn_mask=mask)
    mixed = mixed.view(sequences, kv_heads, shared, longest_query, head_dim).permute(0, 3, 1, 2, 4)
    return mixed.reshape(sequences * longest_query, heads, head_dim)


def _partition(query_lengths: np.ndarray, context_lengths: np.ndarray) -> list[np.ndarray]:
    """Split a batch into groups of like size. Returns the sequence numbers of each group."""
    groups: list[np.ndarray] = []
    for members in (np.flatnonzero(query_lengths == 1), np.flatnonzero(query_lengths > 1)):
        work = query_lengths[members] * context_lengths[members]
        order = np.argsort(-work, kind="stable")
        start = 0
        while start < len(order):
            rest = order[start:]
            longest_query = np.maximum.accumulate(query_lengths[members[rest]])
            longest_context = np.maximum.accumulate(context_lengths[members[rest]])
            cells = longest_query * longest_context
            fits = (work[rest] * _WASTE >= cells) & (cells * np.arange(1, len(rest) + 1) <= _MAX_CELLS)
            count = max(1, int(np.argmin(fits)) if not fits.all() else len(rest))
            groups.append(np.sort(members[rest[:count]]))
            start += count
    return groups


def _make_group(batch: Batch, members: np.ndarray, device: torch.device) -> _Group:
    query_lengths, contexts = batch.query_lengths[members], batch.context_lengths[members]
    first_rows = batch.offsets[:-1][members]
    queries = np.arange(int(query_lengths.max()))
    keys = np.arange(int(contexts.max()))
    tables = batch.block_tables[members]
    slots = tables[:, keys // batch.block_size] * batch.block_size + keys % batch.block_size
    slots = np.where(keys < contexts[:, None], slots, tables[:, :1] * batch.block_size)
    filled = queries < query_lengths[:, None]
    rows = first_rows[:, None] + np.where(filled, queries, 0)
    # A padded query sees what its place would see, which is never nothing: softmax over nothing is not a number.
    last_seen = (contexts - query_lengths)[:, None] + queries
    mask = keys <= np.minimum(last_seen, contexts[:, None] - 1)[:, :, None]
    if batch.trees is not None:
        hide_branches(batch, members, first_rows, first_rows + query_lengths, mask)
    whole = bool(filled.all())
    return _Group(
        sequences=len(members),
        query_rows=torch.from_numpy(rows.ravel()).to(device),
        key_slots=torch.from_numpy(slots.ravel()).to(device),
        mask=torch.from_numpy(mask[:, None]).to(device),
        filled=None if whole else torch.from_numpy(np.flatnonzero(filled)).to(device),
        in_order=whole and rows.size == len(batch.token_ids),
    )
