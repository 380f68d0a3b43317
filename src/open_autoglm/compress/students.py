# SPDX-License-Identifier: Apache-2.0
"""Who learns from a teacher: a model that there is already, or a new one of a given shape with the teacher's tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from open_autoglm.compress.distil_settings import SHAPE
from open_autoglm.errors import CheckpointError, ConfigurationError
from open_autoglm.models.checkpoint import load_model
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.models.model_folder import read_config

_HEAD: Final = 64
_STEP: Final = 32
_DROPOUT: Final = 0.0


def student_config(teacher: ModelConfig, shape: str | None) -> ModelConfig:
    """The architecture of a new student, always a `GlmForCausalLM`.

    shape: `LAYERSxWIDTH` or `LAYERSxWIDTHxCHANNELS`, like 4x256; half of the teacher's layers and width if not given.
    Heads have 64 numbers where the width is a multiple of that, else 32, and one key head for all; channels are 8/3 of
    the width.
    Raises ConfigurationError for what is no shape.
    """
    if shape is None:
        layers, width, channels = max(1, teacher.num_hidden_layers // 2), teacher.hidden_size // 2, None
        width = max(_STEP, width // _STEP * _STEP)
    else:
        found = SHAPE.fullmatch(shape)
        if found is None:
            raise ConfigurationError(
                f"--student '{shape}' is neither the folder of a model nor a shape; write LAYERSxWIDTH, like 4x256"
            )
        layers, width = int(found[1]), int(found[2])
        channels = None if found[3] is None else int(found[3])
    if width % _STEP:
        raise ConfigurationError(f"--student: the width must be a multiple of {_STEP}, not {width}")
    if channels is not None and channels % _STEP:
        raise ConfigurationError(f"--student: the channels must be a multiple of {_STEP}, not {channels}")
    head = _HEAD if width % _HEAD == 0 else _STEP
    return ModelConfig(
        vocab_size=teacher.vocab_size,
        hidden_size=width,
        intermediate_size=channels or -(-8 * width // 3 // _STEP) * _STEP,
        num_hidden_layers=layers,
        num_attention_heads=width // head,
        num_key_value_heads=1,
        head_dim=head,
        max_position_embeddings=teacher.max_position_embeddings,
        attention_bias=True,
        tie_word_embeddings=teacher.tie_word_embeddings,
        eos_token_ids=teacher.eos_token_ids,
        pad_token_id=teacher.pad_token_id,
        dropout=_DROPOUT,
    )


def new_student(teacher: ModelConfig, shape: str | None, seed: int) -> GlmForCausalLM:
    """A student with random weights. Raises as `student_config` does."""
    model = GlmForCausalLM(student_config(teacher, shape))
    model.initialize(torch.Generator().manual_seed(seed))
    return model


def loaded_student(folder: Path) -> GlmForCausalLM:
    """A student that there is already, ready to be trained. Raises CheckpointError for one that is quantised."""
    if read_config(folder)[1] is not None:
        raise CheckpointError(f"{folder} is quantised, so it cannot learn; give the checkpoint that it was made from")
    model = load_model(folder)
    model.requires_grad_(True)
    model.config = replace(model.config, dropout=_DROPOUT)
    return model
