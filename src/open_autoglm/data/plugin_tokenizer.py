# SPDX-License-Identifier: Apache-2.0
"""Tokenizers that a plugin of the kind tokenizer makes from the training split, in place of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tokenizers import Tokenizer

from open_autoglm.chat.template import CONTROL_TOKENS
from open_autoglm.data.example import Example
from open_autoglm.data.tokenizer import choose_vocab_size
from open_autoglm.errors import ConfigurationError
from open_autoglm.plugins.made_tokenizer import read_made_tokenizer
from open_autoglm.plugins.registry import PluginRegistry

_CHECKED: Final = 500


def train_plugin_tokenizer(name: str, examples: Sequence[Example]) -> Tokenizer:
    """Have the plugin of this name make a tokenizer of the examples' texts; the control tokens are added to it.

    Raises ConfigurationError, naming the plugin, where it fails, gives no tokenizer, or one that loses text.
    """
    plugin = PluginRegistry().make("tokenizer", name)
    texts = [message.content for example in examples for message in example.messages if message.content]
    room = choose_vocab_size(sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)) - len(CONTROL_TOKENS)
    try:
        made = plugin.train(list(texts), room)
    except Exception as error:
        raise ConfigurationError(
            f"the tokenizer '{name}', a plugin, failed: {type(error).__name__}: {error}"
        ) from error
    try:
        tokenizer = read_made_tokenizer(made, room, texts[:: max(1, len(texts) // _CHECKED)])
    except ConfigurationError as error:
        raise ConfigurationError(f"the tokenizer '{name}', a plugin: {error}") from None
    tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    return tokenizer
