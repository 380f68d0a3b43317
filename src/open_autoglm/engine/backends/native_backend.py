# SPDX-License-Identifier: Apache-2.0
"""The native backend: the C++ engine in `csrc/`, without PyTorch. One call computes a whole batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from open_autoglm.engine import _native
from open_autoglm.engine.backends.native_weights import PackedWeights, Packer, layer_parts
from open_autoglm.engine.backends.packed_file import read_packed
from open_autoglm.engine.backends.random_weights import RANDOM_TOKENS, RandomWeights
from open_autoglm.engine.batch import Batch
from open_autoglm.engine.memory import MAX_BATCH_TOKENS, available_memory
from open_autoglm.errors import EngineError
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.model_folder import read_config
from open_autoglm.models.rotary import rotary_frequencies
from open_autoglm.models.weights import open_weights
from open_autoglm.targets import usable_cores

INSTRUCTION_SET_VARIABLE: Final = "OPEN_AUTOGLM_INSTRUCTION_SET"
"""Environment variable that names the instruction set to use instead of the best."""


def availability() -> tuple[bool, str]:
    """Whether the engine runs on this processor, and with which instructions, or else why not."""
    try:
        name = _instruction_set()
    except EngineError as error:
        return False, str(error)
    return True, f"{name} instructions, {usable_cores()} threads"


def load(folder: Path, *, weights: str, dtype: str, kv_dtype: str, threads: int | None) -> NativeBackend:
    """Load a checkpoint, packing its weights for this engine.

    weights: `float32`, or `int8` or `int4` to round to. dtype: of weights that are not rounded. A checkpoint whose
    layers are in 4 bits already keeps them.
    Raises CheckpointError for the model, EngineError for settings that do not go together.
    """
    if dtype != "float32" and weights != "float32":
        raise EngineError(f"{weights} weights are computed as they are; leave out --dtype or --quantize")
    name = _instruction_set()
    team = _native.Team(threads or usable_cores())
    form = dtype if weights == "float32" else weights
    config, layout = read_config(folder)
    packed = read_packed(folder, form) or pack_weights(folder, form, instruction_set=name, team=team)
    if layout is not None and weights == "float32":
        form = f"int{layout.bits} as stored"
    if kv_dtype == "auto":
        kv_dtype = "float32" if form == "float32" else "bfloat16"
    return NativeBackend(config, packed, form=form, kv_dtype=kv_dtype, instruction_set=name, team=team)


def pack_weights(
    folder: Path, form: str, *, instruction_set: str | None = None, team: _native.Team | None = None
) -> PackedWeights:
    """Read a checkpoint and pack it. form: `float32`, `bfloat16`, `int8` or `int4`.

    Raises CheckpointError for the model.
    """
    with open_weights(folder, int8=form == "int8", int4=form == "int4") as reader:
        packed = Packer(
            reader, form, instruction_set or _instruction_set(), team or _native.Team(usable_cores())
        ).pack()
        # An embedding table that stays a view of its file keeps the whole file mapped: without this a process holds
        # each weight twice, packed and as it was read.
        reader.forget_pages()
        return packed


def load_random(
    config: ModelConfig,
    *,
    form: str,
    kv_dtype: str,
    threads: int | None,
    expert_bytes: int,
    layers: Sequence[int] | None = None,
) -> list[RandomBackend]:
    """A model of this shape with random weights, as fast as a real one: for timing. No file is read.

    form: `float32`, `bfloat16`, `int8` or `int4`. expert_bytes: see `RandomWeights`. layers: of several models, which
    share their weights; the configuration's if not given.
    """
    name = _instruction_set()
    team = _native.Team(threads or usable_cores())
    shapes = [replace(config, num_hidden_layers=count) for count in layers or (config.num_hidden_layers,)]
    deepest = max(shapes, key=lambda shape: shape.num_hidden_layers)
    packed = RandomWeights(deepest, form, name, team, expert_bytes=expert_bytes).pack()
    return [
        RandomBackend(shape, packed, form=form, kv_dtype=kv_dtype, instruction_set=name, team=team) for shape in shapes
    ]


class NativeBackend:
    """A model in the C++ engine."""

    name: Final = "native"

    def __init__(
        self,
        config: ModelConfig,
        packed: PackedWeights,
        *,
        form: str,
        kv_dtype: str,
        instruction_set: str,
        team: _native.Team,
    ) -> None:
        self._config, self._kv_dtype = config, kv_dtype
        self._description = f"{instruction_set}, {form} weights, {kv_dtype} KV cache"
        self._num_bytes = packed.num_bytes
        frequencies, factor = rotary_frequencies(config)
        scaling = config.rope_scaling
        is_dynamic = scaling is not None and scaling.rope_type == "dynamic"
        self._model = _native.Model(
            shape=_shape(config),
            frequencies=np.ascontiguousarray(frequencies, dtype=np.float32),
            rotary_factor=factor,
            dynamic_limit=config.max_position_embeddings if is_dynamic else 0,
            dynamic_factor=scaling.factor if scaling is not None and is_dynamic else 1.0,
            theta=config.rope_theta,
            instruction_set=instruction_set,
            team=team,
        )
        for index in range(config.num_hidden_layers):
            self._model.set_layer(index, layer_parts(packed, index, config.num_experts))
        arrays = packed.arrays
        self._model.set_ends(
            arrays["final_norm"], packed.matrices["output"], arrays.get("embedding"), arrays.get("embedding_scales")
        )

    @property
    def description(self) -> str:
        """Instruction set and number formats."""
        return self._description

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._config.vocab_size

    @property
    def hidden_size(self) -> int:
        """Numbers of one hidden state."""
        return self._config.hidden_size

    @property
    def max_positions(self) -> int:
        """The longest context, in tokens."""
        return self._config.max_context

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The ends of an answer that the configuration names."""
        return self._config.eos_token_ids

    @property
    def position_independent_keys(self) -> bool:
        """False with dynamic NTK scaling, where keys depend on the length of the sequence."""
        scaling = self._config.rope_scaling
        return scaling is None or scaling.rope_type != "dynamic"

    @property
    def num_weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._num_bytes

    def bytes_per_block(self, block_size: int) -> int:
        """Memory of one KV block over all layers."""
        with _explained():
            return self._model.bytes_per_block(self._kv_dtype, block_size)

    def free_memory(self) -> int:
        """Bytes that the KV cache could take."""
        return available_memory()

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Make the KV cache. Raises EngineError unless block_size is a multiple of 16, or when memory is refused."""
        with _explained():
            self._model.allocate(self._kv_dtype, num_blocks, block_size)

    def step(self, batch: Batch) -> np.ndarray:
        """Compute a batch and store its keys and values. Returns float32[num_outputs, vocab_size]."""
        logits = np.empty((len(batch.output_indices), self.vocab_size), dtype=np.float32)
        trees, has_states = batch.trees, len(batch.state_indices) > 0
        with _explained():
            self._model.step(
                batch.token_ids,
                batch.positions,
                batch.offsets,
                batch.context_lengths,
                batch.sequence_lengths,
                batch.block_tables,
                batch.output_indices,
                logits,
                batch.state_indices if has_states else None,
                batch.states if has_states else None,
                *(() if trees is None else (trees.rotary_positions, trees.starts, trees.visible_at, trees.visible)),
            )
        return logits

    def set_profiling(self, on: bool) -> None:
        """Count the seconds of each kind of work in a step, from zero."""
        self._model.set_profiling(on)

    def profile(self) -> dict[str, float]:
        """Seconds per kind of work since the last call, with `total` and the number of `steps`."""
        return self._model.profile()

    def close(self) -> None:
        """Let the KV cache go."""
        self._model.release()


class RandomBackend(NativeBackend):
    """A model with random weights, which computes random tokens, whatever it is given.

    A random model answers all prompts alike after a few tokens: its sequences would choose the same experts.
    skims: while it is set, a step computes one token of each page that it is to fill. The pages then lie in memory,
    as if they had been filled, at a sixteenth of the time; memory that nobody wrote to would be read from one page of
    zeros that never leaves the cache.
    """

    skims: bool = False

    def __init__(self, config: ModelConfig, packed: PackedWeights, **settings: Any) -> None:
        super().__init__(config, packed, **settings)
        highest = min(RANDOM_TOKENS, config.vocab_size)
        self._tokens = np.random.default_rng(0).integers(0, highest, 2 * MAX_BATCH_TOKENS)
        self._next = 0

    def step(self, batch: Batch) -> np.ndarray:
        """As the model's, with other tokens. Returns zeros while it skims."""
        if self.skims:
            super().step(self._with_other_tokens(_one_token_of_each_page(batch)))
            return np.zeros((len(batch.output_indices), self.vocab_size), dtype=np.float32)
        return super().step(self._with_other_tokens(batch))

    def _with_other_tokens(self, batch: Batch) -> Batch:
        wanted = len(batch.token_ids)
        if wanted > len(self._tokens) - self._next:
            self._next = 0
        batch.token_ids[:] = self._tokens[self._next : self._next + wanted]
        self._next += wanted
        return batch


def _one_token_of_each_page(batch: Batch) -> Batch:
    """A batch of sequences of one token, each on a page of its own, in the place of one that writes to these pages."""
    pages = np.unique(batch.slot_mapping // batch.block_size)
    count, one = len(pages), np.ones(len(pages), dtype=np.int64)
    return Batch(
        token_ids=np.zeros(count, dtype=np.int64),
        positions=np.zeros(count, dtype=np.int64),
        slot_mapping=pages * batch.block_size,
        offsets=np.arange(count + 1),
        context_lengths=one,
        sequence_lengths=one,
        block_tables=pages[:, None].copy(),
        output_indices=np.zeros(0, dtype=np.int64),
        block_size=batch.block_size,
    )


class _explained:  # noqa: N801 - reads as the sentence that it is
    """Turns the extension's complaints into EngineError; a class, because a step enters it thousands of times."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, MemoryError):
            raise EngineError("the memory for the KV cache was refused; use fewer blocks (--kv-blocks)") from None
        if isinstance(error, ValueError):
            raise EngineError(f"the native engine: {error}") from None


def _instruction_set() -> str:
    """The instruction set to use. Raises EngineError when the environment names one that is not there."""
    known = _native.instruction_sets()
    wanted = os.environ.get(INSTRUCTION_SET_VARIABLE)
    if wanted and wanted not in known:
        raise EngineError(f"{INSTRUCTION_SET_VARIABLE} is '{wanted}'; this machine has: {', '.join(known)}")
    return wanted or known[0]


def _shape(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "epsilon": config.rms_norm_eps,
        "interleaved_rotary": config.interleaved_rotary,
        "num_experts": config.num_experts,
        "experts_per_token": config.num_experts_per_tok,
        "expert_groups": config.num_expert_groups,
        "groups_per_token": config.topk_group,
        "expert_size": config.moe_intermediate_size,
        "shared_expert_size": config.num_shared_experts * config.moe_intermediate_size,
        "normalize_expert_weights": config.norm_topk_prob,
        "expert_factor": config.routed_scaling_factor,
    }
