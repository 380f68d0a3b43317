# SPDX-License-Identifier: Apache-2.0
"""Whether the model of a task reads its input twice (`chat.built.ReadTwiceFormat`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from tokenizers import Tokenizer

from open_autoglm.data.encoding import encode_examples
from open_autoglm.data.example import Example
from open_autoglm.task import Task, TaskKind

_LOOKED_AT: Final = 1000
_MOST_GROWTH: Final = 1.6
"""How many times as long examples may become when their input stands there twice."""


def reads_twice(examples: Sequence[Example], tokenizer: Tokenizer, task: Task, *, max_length: int) -> bool:
    """Whether it is worth it: for extractions whose inputs are short, so that it costs little.

    Looks at the first thousand examples. With long inputs reading again would take half of the time of training, and
    of the time to the first token.
    """
    if task.kind is not TaskKind.EXTRACTION:
        return False
    some = examples[:_LOOKED_AT]
    once, twice = (
        encode_examples(some, tokenizer, replace(task, reads_twice=doubled), max_length=max_length)
        for doubled in (False, True)
    )
    return not len(twice.shortened) and bool(twice.lengths.mean() <= _MOST_GROWTH * once.lengths.mean())
