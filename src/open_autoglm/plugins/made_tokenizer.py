# SPDX-License-Identifier: Apache-2.0
"""The tokenizer that a plugin made, read and held to its promise: every text comes back as it was."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from open_autoglm.errors import ConfigurationError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

AWKWARD: Final = (
    "a  b\n\n\tc ",
    " lead",
    "naïve café",
    "订单 12345，谢谢",
    "😀\u200d🚀",
    '{"a": ["é", 1.5e-3]}',
    "\x00\x7f",
)
"""Texts that tokenizers lose parts of: spaces, accents, scripts, emoji, control characters."""


def read_made_tokenizer(made: object, vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`.

    made: what the plugin gave. vocab_size: the most tokens that were asked for. texts: that it must give back, with
    `AWKWARD`. Raises ConfigurationError that says what is wrong with it.
    """
    from tokenizers import Tokenizer

    if not isinstance(made, str):
        raise ConfigurationError(f"train gave a {type(made).__name__}, not the text of a tokenizer.json")
    try:
        tokenizer = Tokenizer.from_str(made)
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise ConfigurationError(f"train gave no tokenizer.json: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if not 0 < tokenizer.get_vocab_size() <= vocab_size:
        raise ConfigurationError(
            f"train gave {tokenizer.get_vocab_size()} tokens where at most {vocab_size} were asked for"
        )
    for text in (*AWKWARD, *texts):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        back = tokenizer.decode(ids, skip_special_tokens=False)
        if back != text:
            raise ConfigurationError(f"the tokenizer gives {back[:60]!r} back for {text[:60]!r}")
    return tokenizer
