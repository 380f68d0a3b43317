# SPDX-License-Identifier: Apache-2.0
"""Tiny real models for the tests of engine and serve: a tokenizer trained on a few lines, random weights, a bundle."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from open_autoglm.bundle import BundleManifest, write_bundle
from open_autoglm.bundle.huggingface import write_tokenizer
from open_autoglm.chat.template import CONTROL_TOKENS, stop_token_ids
from open_autoglm.models.checkpoint import save_model
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.task import Task, TaskKind

LINES = [
    "play the song yesterday by the beatles on google music",
    "book a table for two at a cafe in paris tomorrow",
    "今天北京的天气怎么样，明天会下雨吗？",
    "请播放周杰伦的歌曲《晴天》。",
    'she said "yes" \\ no',
    '{"intent": "PlayMusic", "slots": {"artist": "the beatles", "track": "yesterday"}}',
    '{"intent": "GetWeather", "slots": {"city": "北京"}}',
]

EXTRACTION = Task(
    TaskKind.EXTRACTION,
    answer_schema={
        "type": "object",
        "properties": {
            "intent": {"type": "string", "enum": ["PlayMusic", "GetWeather"]},
            "slots": {
                "type": "object",
                "properties": {name: {"type": "string", "x-copied": True} for name in ("artist", "track", "city")},
                "required": [],
                "additionalProperties": False,
                "x-free-order": True,
            },
        },
        "required": ["intent", "slots"],
        "additionalProperties": False,
    },
)
CLASSIFICATION = Task(TaskKind.CLASSIFICATION, labels=("card lost", "card", "余额", 'say "hi"'))
DIALOGUE = Task(TaskKind.DIALOGUE)


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE of about 400 tokens, two pieces of JSON among them, as the data step makes them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{L}\p{M}_]+|\p{N}{1,3}|[^\p{L}\p{M}\p{N}_]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES * 5, trainer)
    pieces = ('{"intent": "', '", "slots": {"')
    tokenizer.add_tokens([AddedToken(piece, normalized=False, special=False) for piece in pieces])
    return tokenizer


def make_config(tokenizer: Tokenizer | None = None, **changes: Any) -> ModelConfig:
    """A model of two layers; its vocabulary is a little larger than the tokenizer's."""
    size = 448 if tokenizer is None else -(-(tokenizer.get_vocab_size() + 1) // 32) * 32
    values: dict[str, Any] = {
        "vocab_size": size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "eos_token_ids": () if tokenizer is None else stop_token_ids(tokenizer),
        "pad_token_id": 0,
    }
    return ModelConfig(**{**values, **changes})


def make_model(config: ModelConfig, seed: int = 0) -> GlmForCausalLM:
    """Random weights; the embeddings are larger than in training so that the likeliest token stands out."""
    model = GlmForCausalLM(config)
    model.initialize(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(10)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(seed + 1))
    return model.eval()


def make_bundle(folder: Path, task: Task = EXTRACTION, *, name: str = "tiny", **changes: Any) -> Path:
    """A bundle folder with real files, its weights random. changes: to the configuration."""
    tokenizer = make_tokenizer()
    config = make_config(tokenizer, **changes)
    model = make_model(config)
    staging = folder / "staging"
    staging.mkdir(parents=True)
    save_model(model, staging)
    write_tokenizer(tokenizer, staging, max_length=config.max_position_embeddings)
    manifest = BundleManifest(
        name=name, task=task.to_dict(), architecture=config.architecture, parameters=config.num_parameters()
    )
    write_bundle(folder / "bundle", staging, manifest)
    return folder / "bundle"
