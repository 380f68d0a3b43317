# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints with tokenizers of several kinds, for the tests of exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel

from open_autoglm.bundle.huggingface import write_tokenizer
from open_autoglm.chat.template import CONTROL_TOKENS
from open_autoglm.export.sample_texts import sample_texts
from tests.models.random_checkpoints import save_chatglm_checkpoint, save_random_checkpoint

VOCABULARY = 512
ENDS = [0, 4, 6]
GLM4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
WORDS = r"[\p{L}\p{M}_]+|\p{N}{1,3}|[^\p{L}\p{M}\p{N}_]+"


def byte_level_tokenizer(*expressions: str, added: tuple[str, ...] = (), size: int = VOCABULARY - 8) -> Tokenizer:
    """A byte-level BPE that cuts by these expressions, trained on the sample texts; control tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.Split(Regex(item), "isolated") for item in expressions]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample_texts(), trainer)
    tokenizer.add_tokens([AddedToken(item, normalized=False, special=False) for item in added])
    return tokenizer


def save_checkpoint(
    folder: Path, architecture: str, tokenizer: Tokenizer | None = None, **overrides: Any
) -> PreTrainedModel:
    """A random checkpoint with a tokenizer, GLM-4's kind if none is given. `ChatGLM` is the layout of that name."""
    fields = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "eos_token_id": ENDS, **overrides}
    if architecture == "ChatGLM":
        model = save_chatglm_checkpoint(folder, **fields)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": ENDS}))
    else:
        model = save_random_checkpoint(folder, architecture, **fields)
    write_tokenizer(tokenizer or byte_level_tokenizer(GLM4), folder, max_length=256)
    return model
