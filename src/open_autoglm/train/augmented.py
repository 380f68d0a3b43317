# SPDX-License-Identifier: Apache-2.0
"""Training examples that change from epoch to epoch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from open_autoglm.data import Example, TokenizedExamples, encode_examples
from open_autoglm.data.bpe_dropout import Merges, drop_merges
from open_autoglm.data.field_tags import FieldTagger
from open_autoglm.task import Task
from open_autoglm.train.trainer import ExampleSource


@dataclass(frozen=True)
class AugmentedExamples:
    """Each epoch, a share of the examples is changed, such as by other slot values in the input and the answer.

    change: an example -> another that is as true, by a generator alone. share: between 0 and 1.
    """

    examples: Sequence[Example]
    change: Callable[[Example, random.Random], Example]
    task: Task
    tokenizer: Tokenizer
    share: float
    seed: int
    max_length: int

    def epoch(self, number: int) -> TokenizedExamples:
        """The examples of epoch `number`: a pure function of the seed and the number."""
        generator = random.Random(f"{self.seed}:{number}")
        changed = (
            self.change(example, generator) if generator.random() < self.share else example for example in self.examples
        )
        return encode_examples(changed, self.tokenizer, self.task, max_length=self.max_length)


@dataclass(frozen=True)
class OtherPieces:
    """Each epoch, words are cut into other pieces: see `data/bpe_dropout.py`.

    source: whose examples these are. share: of merges undone, between 0 and 1.
    """

    source: ExampleSource
    merges: Merges
    share: float
    seed: int
    max_length: int

    def epoch(self, number: int) -> TokenizedExamples:
        """The examples of epoch `number`: a pure function of the source, the seed and the number."""
        whole = self.source.epoch(number)
        return drop_merges(whole, self.merges, self.share, seed=self.seed, epoch=number, max_length=self.max_length)


@dataclass(frozen=True)
class TaggedExamples:
    """Each word of an input has the field of the answer that it is copied to as a tag: see `data/field_tags.py`."""

    source: ExampleSource
    tagger: FieldTagger

    def epoch(self, number: int) -> TokenizedExamples:
        """The examples of epoch `number` of the source, with tags."""
        examples = self.source.epoch(number)
        return replace(examples, tags=self.tagger.tag(examples))
