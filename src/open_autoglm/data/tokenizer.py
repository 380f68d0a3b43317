# SPDX-License-Identifier: Apache-2.0
"""A byte-level BPE tokenizer trained on the data, with the skeleton of JSON answers as tokens of their own."""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from open_autoglm.chat.detection import BUILT_FORMAT
from open_autoglm.chat.segments import Segment
from open_autoglm.chat.template import CONTROL_TOKENS
from open_autoglm.chat.tools import read_tools
from open_autoglm.data.answers import dump_answer
from open_autoglm.data.example import Example
from open_autoglm.errors import ConfigurationError
from open_autoglm.task import Task, TaskKind

_CUTS: Final = r"'s|'t|'re|'ve|'m|'ll|'d|{space}{letter}+|{space}\p{{N}}+|{space}[^\s{letters}\p{{N}}]+|\s+(?!\S)"
"""GPT-2's expression, which every engine knows. Radford et al. 2019."""

_SPACED_WORDS: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES: Final = 256
_STEP: Final = 64
_LARGEST: Final = 32_768
_GROWTH: Final = 0.082
_EXPONENT: Final = 0.7
_LETTER_LEAST: Final = 20
_CHUNK: Final = 4096
_SKELETON_LEAST: Final = 20
_SKELETON_MOST: Final = 256
_SAMPLE_LEAST: Final = 10_000
_SAMPLE_CHARACTERS: Final = 1 << 27
_LEAF: Final = "\0"
_SPACE: Final = "\u0120"
"""How byte-level BPE spells a space."""

_SPACED_LEAST: Final = 10
_SPACED_SHARE: Final = 0.35
"""Of a vocabulary whose size is given: tokens that are another one with its space."""


def train_tokenizer(examples: Sequence[Example], task: Task, vocab_size: int | None = None) -> Tokenizer:
    """Train on the texts of `examples`; the same examples give the same tokenizer.

    Control tokens have the ids from 0 on. An extraction's words are cut so that a word has the same pieces in the
    input and inside a JSON answer; the first of them has a twin with the space before it if it occurs ten times after
    one. The parts of its answers between the strings, such as `{"intent": "`, are tokens of their own if they occur 20
    times (at most 256 of them). Other tasks keep a space with its word, and have `<think>` and its end as tokens where
    the examples hold reasoning. The texts are those of the chat format.
    vocab_size: all tokens together; `choose_vocab_size` of the data if None.
    Of very many examples an even sample is looked at.
    Raises ConfigurationError for a vocab_size that has no room for the 256 bytes and the control tokens.
    """
    least = _BYTES + len(CONTROL_TOKENS)
    if vocab_size is not None and vocab_size < least:
        raise ConfigurationError(
            f"a vocabulary of {vocab_size} tokens has no room for bytes and control tokens ({least})"
        )
    is_extraction = task.kind is TaskKind.EXTRACTION
    examples = _sample(examples)
    skeleton = find_skeleton(examples) if is_extraction else []
    texts = list(_texts(examples, set(skeleton), is_extraction))
    size = vocab_size or choose_vocab_size(sum(len(text.encode()) for text in texts), _count_letters(texts))
    thinks = not is_extraction and any(message.reasoning for example in examples for message in example.messages)
    tags = list(BUILT_FORMAT.tags) if thinks and size >= least + len(BUILT_FORMAT.tags) else []
    skeleton = skeleton[: max(0, size - least)]
    room = int(_SPACED_SHARE * (size - least - len(skeleton))) if is_extraction and vocab_size is not None else 0
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_cuts(texts, "") if is_extraction else _SPACED_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(skeleton) - len(tags) - room,
        min_frequency=2,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if is_extraction:
        tokenizer = _with_spaces(tokenizer, texts, room if vocab_size is not None else None)
    tokenizer.add_tokens([AddedToken(piece, normalized=False, special=False) for piece in (*skeleton, *tags)])
    return tokenizer


def spaced_twins(tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """The tokens that are another one with a space before it: (id with the space, id without), by id."""
    ids = tokenizer.get_vocab()
    return sorted((ids[token], ids[token[1:]]) for token in ids if token[:1] == _SPACE and token[1:] in ids)


def _with_spaces(tokenizer: Tokenizer, texts: Sequence[str], most: int | None) -> Tokenizer:
    """The tokenizer with words that take the space before them, as the last merge, so that their pieces stay.

    most: how many tokens may be added, None for all that occur often enough.
    """
    description = json.loads(tokenizer.to_str())
    description["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": _cuts(texts, " ?")}
    cutting = Tokenizer.from_str(json.dumps(description))
    counts: Counter[str] = Counter()
    for start in range(0, len(texts), _CHUNK):
        for encoding in cutting.encode_batch(list(texts[start : start + _CHUNK]), add_special_tokens=False):
            tokens = encoding.tokens
            counts.update(after for before, after in itertools.pairwise(tokens) if before == _SPACE)
    vocabulary, merges = description["model"]["vocab"], description["model"]["merges"]
    often = sorted((-seen, token) for token, seen in counts.items() if seen >= _SPACED_LEAST)
    wanted = [token for _, token in often if token in vocabulary and _SPACE + token not in vocabulary]
    for token in wanted[:most]:
        vocabulary[_SPACE + token] = len(vocabulary)
        merges.append([_SPACE, token])
    return Tokenizer.from_str(json.dumps(description))


def _cuts(texts: Sequence[str], space: str) -> str:
    """How an extraction's texts are cut into words. space: what may go before a word and belong to it.

    Marks, as Hindi has them within its words, count as letters where the texts have any.
    """
    marked = any(unicodedata.category(letter).startswith("M") for letter in set().union(*texts))
    letters = r"\p{L}\p{M}" if marked else r"\p{L}"
    return _CUTS.format(space=space, letter=f"[{letters}]" if marked else letters, letters=letters)


def _sample(examples: Sequence[Example]) -> Sequence[Example]:
    """The examples, or every so manyth if they have more than about 128 million characters.

    So much is far beyond what the largest vocabulary can tell apart, and stays in memory while it is counted.
    """
    if len(examples) <= _SAMPLE_LEAST:
        return examples
    some = examples[:: len(examples) // _SAMPLE_LEAST]
    mean = sum(len(message.content) for example in some for message in example.messages) / len(some)
    return examples[:: max(1, round(mean * len(examples) / _SAMPLE_CHARACTERS))]


def choose_vocab_size(text_bytes: int, letters: int = 0) -> int:
    """Tokens for so many bytes of text: 263 + letters + 0.082 x bytes^0.7, in steps of 64, at most 32,768.

    letters: how many different non-ASCII characters occur 20 times or more; each deserves a token, which is what
    makes the size right for Chinese.
    About 1,500 for 900 kB of English and 8,000 for 12 MB: each token then occurs often enough to be learnt.
    """
    wanted = _BYTES + len(CONTROL_TOKENS) + letters + _GROWTH * text_bytes**_EXPONENT
    return min(_LARGEST, -(-int(wanted) // _STEP) * _STEP)


def _count_letters(texts: Sequence[str]) -> int:
    counts: Counter[str] = Counter()
    for text in texts:
        if not text.isascii():
            counts.update(text)
    return sum(seen >= _LETTER_LEAST and not character.isascii() for character, seen in counts.items())


def find_skeleton(examples: Sequence[Example]) -> list[str]:
    """The pieces of JSON answers between their strings, most frequent first."""
    counts: Counter[str] = Counter()
    for example in examples:
        counts.update(piece for piece, is_leaf in _pieces(example.answer) if not is_leaf)
    common = [(piece, seen) for piece, seen in counts.items() if seen >= _SKELETON_LEAST and len(piece) > 1]
    common.sort(key=lambda item: (-item[1], item[0]))
    return [piece for piece, _ in common[:_SKELETON_MOST]]


def _texts(examples: Sequence[Example], skeleton: set[str], is_extraction: bool) -> Iterator[str]:
    for example in examples:
        said = BUILT_FORMAT.render(example.prompt if is_extraction else example.messages, read_tools(example.tools))
        yield from _stretches(said)
        if is_extraction:
            yield from (piece for piece, _ in _pieces(example.answer) if piece not in skeleton)


def _stretches(segments: Sequence[Segment]) -> Iterator[str]:
    """What stands between two control tokens or tags."""
    text = ""
    for segment in segments:
        if segment.control or segment.tag:
            if text:
                yield text
            text = ""
        else:
            text += segment.text
    if text:
        yield text


def _pieces(answer: str) -> Iterator[tuple[str, bool]]:
    """Cut a canonical JSON answer at its strings -> (piece, whether it is the inside of a string)."""
    leaves: list[str] = []
    skeleton = dump_answer(_without_leaves(json.loads(answer), leaves))
    # Keys hold no NUL in readable data, so the escaped mark is found at leaves only.
    parts = skeleton.split(json.dumps(_LEAF)[1:-1])
    for place, part in enumerate(parts):
        yield part, False
        if place < len(leaves):
            yield leaves[place], True


def _without_leaves(value: Any, leaves: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without_leaves(inner, leaves) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_leaves(inner, leaves) for inner in value]
    if isinstance(value, str):
        leaves.append(dump_answer(value)[1:-1])
        return _LEAF
    return value
