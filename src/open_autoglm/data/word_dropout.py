# SPDX-License-Identifier: Apache-2.0
"""New classification examples from old ones: some words of the input left out, the label as it was."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Final

from open_autoglm.chat.messages import Role
from open_autoglm.data.example import Example
from open_autoglm.words import is_spaceless, split_words

_SHARES: Final = (0.1, 0.2)
"""Of the words, that are left out of one example."""


def drop_words(example: Example, generator: random.Random) -> Example:
    """The example with about a tenth or a fifth of the words of its last user message left out.

    A model then learns the label from all words that tell it and not by heart from one rare word (Wei and Zou, EDA,
    2019, arXiv:1901.11196, section 2). A word goes with the space before it. Signs stay, and so do characters of
    scripts without spaces, such as Chinese: one of those may turn a sentence round. A text of which nothing would be
    left stays as it is. Deterministic given the generator.
    """
    place = max((index for index, message in enumerate(example.prompt) if message.role is Role.USER), default=None)
    if place is None:
        return example
    share = generator.choice(_SHARES)
    kept: list[str] = []
    for word in split_words(example.messages[place].content):
        if not word[0].isalnum() or is_spaceless(word[0]) or generator.random() >= share:
            kept.append(word)
        elif kept and kept[-1].isspace():
            kept.pop()
    text = "".join(kept).strip()
    if not text:
        return example
    messages = list(example.messages)
    messages[place] = replace(messages[place], content=text)
    return replace(example, messages=tuple(messages))
