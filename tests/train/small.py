# SPDX-License-Identifier: Apache-2.0
"""A small model and examples that the tests of training share."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from open_autoglm.data import TokenizedExamples
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.train.settings import TrainingSettings
from open_autoglm.train.trainer import FixedExamples, Trainer


def make_examples(count: int = 60, *, seed: int = 0, vocabulary: int = 50) -> TokenizedExamples:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(4, 20, count)
    learn = np.concatenate([np.arange(n) >= n // 2 for n in lengths])
    return TokenizedExamples(
        generator.integers(0, vocabulary, lengths.sum()).astype(np.int32),
        learn,
        np.concatenate([[0], np.cumsum(lengths)]),
    )


def make_model(dropout: float = 0.0, **changes: Any) -> GlmForCausalLM:
    config = ModelConfig(**{
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "dropout": dropout, **changes,
    })  # fmt: skip
    model = GlmForCausalLM(config)
    model.initialize(torch.Generator().manual_seed(0))
    return model


def make_trainer(folder: Path, model: GlmForCausalLM | None = None, **settings: Any) -> Trainer:
    torch.set_num_threads(1)
    examples = make_examples()
    # Float32 whatever the processor has, so that these runs take the same course everywhere.
    usual = {"tokens_per_batch": 120, "warmup_steps": 5, "seed": 3, "dropout": 0.0, "precision": "float32"}
    chosen = TrainingSettings(**{**usual, **settings})
    return Trainer(model or make_model(), chosen, FixedExamples(examples), examples, folder)


def weights_of(model: GlmForCausalLM) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
