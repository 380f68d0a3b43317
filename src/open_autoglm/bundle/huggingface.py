# SPDX-License-Identifier: Apache-2.0
"""The tokenizer files that make a bundle readable by transformers, vLLM and their like."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from open_autoglm.chat.messages import Role
from open_autoglm.chat.template import CHAT_TEMPLATE, CONTROL_TOKENS, END_OF_TEXT, READ_TWICE_TEMPLATE, ROLE_TOKENS
from open_autoglm.chat.tokenizer_files import read_tokenizer_json
from open_autoglm.errors import BundleError, CheckpointError
from open_autoglm.storage import write_atomic, write_json

TOKENIZER_FILE: Final = "tokenizer.json"
CHAT_TEMPLATE_FILE: Final = "chat_template.jinja"


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, max_length: int, reads_twice: bool = False) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`.

    max_length: the model's context in tokens. reads_twice: as the task says. Raises StorageError when the disk refuses.
    """
    write_atomic(folder / TOKENIZER_FILE, tokenizer.to_str())
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_length,
            "eos_token": ROLE_TOKENS[Role.USER],
            "pad_token": END_OF_TEXT,
            "additional_special_tokens": [token for token in CONTROL_TOKENS if token != END_OF_TEXT],
            "clean_up_tokenization_spaces": False,
        },
    )
    write_atomic(folder / CHAT_TEMPLATE_FILE, READ_TWICE_TEMPLATE if reads_twice else CHAT_TEMPLATE)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a bundle or checkpoint folder. Raises BundleError when there is none that can be read."""
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        raise BundleError(f"{folder} has no {TOKENIZER_FILE}; save the checkpoint with its fast tokenizer")
    try:
        return read_tokenizer_json(file)
    except CheckpointError as error:
        raise BundleError(str(error)) from None
