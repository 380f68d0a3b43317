# SPDX-License-Identifier: Apache-2.0
"""A model as one GGUF file for llama.cpp: `chatglm` for Glm, `glm4` for Glm4; tensor after tensor, without PyTorch.

Both architectures of llama.cpp turn neighbouring numbers of a head by RoPE, and the first `rope.dimension_count` of
them only, as these models do, so no row is moved.
Source: the GGUF specification, and the tensor names that llama.cpp's loader asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from open_autoglm.errors import CheckpointError, ConfigurationError
from open_autoglm.export.destination import new_file
from open_autoglm.export.gguf_vocabulary import GgufVocabulary, read_vocabulary
from open_autoglm.export.source import Source
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.weights import WeightReader, open_weights

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q4_0")
TOKENIZERS: Final = ("exact", "nearest", "none")
_FILE_TYPES: Final = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}
_ARCHITECTURES: Final = {"GlmForCausalLM": "chatglm", "Glm4ForCausalLM": "glm4"}
_BLOCK: Final = 32
"""Numbers that share a scale in Q8_0 and Q4_0."""

_LARGEST_FLOAT16: Final = 65504.0

_NORMS: Final = {
    "chatglm": {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"},
    "glm4": {
        "input_layernorm": "attn_norm",
        "post_self_attn_layernorm": "post_attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "post_mlp_layernorm": "post_ffw_norm",
    },
}
_MATRICES: Final = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the file. source: transformers' name, with `.weight` or `.bias`."""

    name: str
    source: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType


def export_gguf(
    source: Source,
    out: Path,
    *,
    kind: str = "f16",
    tokenizer: str = "exact",
    force: bool = False,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the model as the file `out` and return what was written, JSON-ready.

    kind: of the matrices, one of `TYPES`; norms and biases are float32. With `q4_0` the embedding and the output matrix
    are Q8_0, as they are the most sensitive; a matrix whose rows are no whole blocks of 32 is float16.
    tokenizer: `exact` refuses a tokenizer whose token ids llama.cpp would not give, `nearest` takes the closest that it
    knows, `none` writes the weights alone. on_progress: told how many of how many tensors are written.
    Raises ConfigurationError for `out` or another argument, CheckpointError for a model that llama.cpp cannot run as
    it is, StorageError when the disk refuses.
    """
    gguf = _library()
    if kind not in TYPES:
        raise ConfigurationError(f"unknown GGUF type '{kind}'; choose one of: {', '.join(TYPES)}")
    if tokenizer not in TOKENIZERS:
        raise ConfigurationError(f"unknown --tokenizer '{tokenizer}'; choose one of: {', '.join(TOKENIZERS)}")
    config = source.config
    _check_model(source)
    vocabulary = None if tokenizer == "none" else read_vocabulary(source, nearest=tokenizer == "nearest")
    with open_weights(source.folder) as reader:
        tensors = list(_tensors(reader, kind))
        size = sum(_bytes_of(item) for item in tensors)
        with new_file(out, source.folder, size, force=force) as temporary:
            writer = gguf.GGUFWriter(temporary, _ARCHITECTURES[config.architecture])
            try:
                _describe(writer, source, kind, vocabulary)
                for item in tensors:
                    writer.add_tensor_info(
                        item.name, item.shape, np.dtype(np.float32), _bytes_of(item), raw_dtype=item.kind
                    )
                writer.write_header_to_file()
                writer.write_kv_data_to_file()
                writer.write_ti_data_to_file()
                for done, item in enumerate(tensors, start=1):
                    writer.write_tensor_data(_encode(_read(reader, item.source), item))
                    reader.forget_pages()
                    if on_progress is not None:
                        on_progress(done, len(tensors))
            finally:
                writer.close()
    notes = [] if vocabulary is None else list(vocabulary.notes)
    kept = [item.name for item in tensors if item.kind == gguf.GGMLQuantizationType.F16]
    if kept and kind != "f16":
        notes.append(f"rows that are no multiple of {_BLOCK} cannot be {kind}: {len(kept)} matrices are f16")
    return {
        "format": "gguf",
        "file": str(out),
        "type": kind,
        "architecture": _ARCHITECTURES[config.architecture],
        "tensors": len(tensors),
        "bytes": out.stat().st_size,
        "tokenizer": None if vocabulary is None else _said(vocabulary),
        "notes": notes,
    }


def _library() -> Any:
    try:
        import gguf
    except ModuleNotFoundError:
        raise ConfigurationError(
            "GGUF is written by the library gguf, which is not installed; run: pip install 'open-autoglm[gguf]'"
        ) from None
    return gguf


def _check_model(source: Source) -> None:
    config, where = source.config, source.folder
    if config.architecture not in _ARCHITECTURES:
        raise CheckpointError(
            f"{where}: {config.architecture} is not exported to GGUF; {' and '.join(_ARCHITECTURES)} are. "
            "--format huggingface takes it"
        )
    heads = config.num_attention_heads * config.head_dim
    if config.architecture == "GlmForCausalLM" and heads != config.hidden_size:
        raise CheckpointError(
            f"{where}: llama.cpp takes a Glm only if its heads together are as wide as its hidden state "
            f"({config.hidden_size}), not {config.num_attention_heads} x {config.head_dim}; --format huggingface takes "
            "it"
        )
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type == "linear":
        return
    if scaling.rope_type == "dynamic":
        raise CheckpointError(
            f"{where}: llama.cpp has no RoPE scaling of type 'dynamic'; --format huggingface keeps it"
        )
    usual = scaling.attention_factor is None and scaling.mscale is None and scaling.mscale_all_dim is None
    if not usual or not scaling.truncate:
        raise CheckpointError(
            f"{where}: llama.cpp computes YaRN only with its usual attention factor and truncated bounds; config.json "
            "sets attention_factor, mscale, mscale_all_dim or truncate, which --format huggingface keeps"
        )


def _describe(writer: GGUFWriter, source: Source, kind: str, vocabulary: GgufVocabulary | None) -> None:
    import gguf

    config = source.config
    writer.add_name(source.name)
    if source.licence:
        writer.add_license(source.licence)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _describe_rope(writer, config)
    if vocabulary is None:
        writer.add_tokenizer_model("none")
    else:
        vocabulary.add_to(writer)


def _describe_rope(writer: GGUFWriter, config: ModelConfig) -> None:
    import gguf

    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_theta)
    scaling = config.rope_scaling
    if scaling is None:
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.rope_type))
    writer.add_rope_scaling_factor(scaling.factor)
    if scaling.rope_type == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings or config.max_position_embeddings)
        writer.add_rope_scaling_yarn_beta_fast(scaling.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(scaling.beta_slow)


def _tensors(reader: WeightReader, kind: str) -> Iterator[_Tensor]:
    """Every tensor of the file, in the order in which the layers are computed."""
    from gguf import GGMLQuantizationType as Kind

    config, exact = reader.config, Kind.F32
    arch, hidden = _ARCHITECTURES[config.architecture], config.hidden_size
    edges = "q8_0" if kind == "q4_0" else kind
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    shapes = {
        "attn_q": (heads * head_dim, hidden),
        "attn_k": (kv_heads * head_dim, hidden),
        "attn_v": (kv_heads * head_dim, hidden),
        "attn_output": (hidden, heads * head_dim),
        "ffn_up": (2 * config.intermediate_size, hidden),
        "ffn_down": (hidden, config.intermediate_size),
    }
    table = (config.vocab_size, hidden)
    yield _Tensor("token_embd.weight", "model.embed_tokens.weight", table, _kind_of(table, edges))
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"model.layers.{layer}", f"blk.{layer}"
        for module, name in _NORMS[arch].items():
            yield _Tensor(f"{theirs}.{name}.weight", f"{ours}.{module}.weight", (hidden,), exact)
        for module, name in _MATRICES.items():
            shape = shapes[name]
            yield _Tensor(f"{theirs}.{name}.weight", f"{ours}.{module}.weight", shape, _kind_of(shape, kind))
            if reader.has(f"{ours}.{module}.bias"):
                yield _Tensor(f"{theirs}.{name}.bias", f"{ours}.{module}.bias", shape[:1], exact)
    yield _Tensor("output_norm.weight", "model.norm.weight", (hidden,), exact)
    if not config.tie_word_embeddings:
        yield _Tensor("output.weight", "lm_head.weight", table, _kind_of(table, edges))


def _kind_of(shape: tuple[int, ...], kind: str) -> GGMLQuantizationType:
    from gguf import GGMLQuantizationType as Kind

    if kind in ("q8_0", "q4_0") and shape[-1] % _BLOCK:
        return Kind.F16
    return Kind[kind.upper()]


def _bytes_of(item: _Tensor) -> int:
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[item.kind]
    count = 1
    for extent in item.shape:
        count *= extent
    return count // block * size


def _read(reader: WeightReader, name: str) -> np.ndarray:
    """float32, whatever the checkpoint has it in."""
    if name.endswith(".weight") and "norm" not in name:
        return reader.linear(name.removesuffix(".weight")).float32()
    return reader.dense(name).float32()


def _encode(values: np.ndarray, item: _Tensor) -> np.ndarray:
    from gguf import GGMLQuantizationType as Kind
    from gguf import quants

    # Blocks have a float16 scale, which a block of huge numbers would overflow as well.
    largest = float(np.abs(values).max(initial=0.0))
    if item.kind not in (Kind.F32, Kind.BF16) and not largest <= _LARGEST_FLOAT16:
        raise CheckpointError(f"{item.source} holds numbers that are too large for float16; use --type bf16 or f32")
    return np.ascontiguousarray(quants.quantize(np.ascontiguousarray(values), item.kind))


def _said(vocabulary: GgufVocabulary) -> dict[str, Any]:
    choice = vocabulary.choice
    return {
        "pre_tokenizer": choice.name,
        "exact": choice.is_exact,
        "sample_texts": choice.texts,
        "same_token_ids": choice.agreeing,
    }
