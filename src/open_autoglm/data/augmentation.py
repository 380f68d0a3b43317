# SPDX-License-Identifier: Apache-2.0
"""New extraction examples from old ones: slot values swapped in the input and in the answer at once."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from open_autoglm.chat.messages import Role
from open_autoglm.data.answers import dump_answer
from open_autoglm.data.example import Example
from open_autoglm.words import find_whole_words, is_copied

_SWAP_PROBABILITY = 0.5
_SLOT_SHARE = 0.9
_KEPT_ROWS = 100_000
_SHARE_IN_COMMON = 0.1
_FEWEST_IN_COMMON = 5
"""Of the values beside one set of strings so many, and so large a share, must stand beside another one too."""
_WHOLE_WORDS_SHARE = 0.5
"""Of the values that are made of two so many are made of whole words where both have several."""
_FEWEST_TO_TELL = 20
"""Of fewer values than this nothing is said about how often a new one comes."""


@dataclass(frozen=True)
class _Slot:
    """A string in an answer. path: keys and places that lead to it. span: where it stands in the input, if once."""

    path: tuple[str | int, ...]
    value: str
    copied: bool
    span: tuple[int, int] | None


class SlotValues(dict[str, list[str]]):
    """The different values that may stand for each other, sorted, by an opaque key.

    fixed: places of the answers that hold no slots although their strings may stand in the input by chance, as the
    intent `播放` does in `请播放晴天`.
    unseen: by key, how likely the next value is one that no example has: the share of the values so far that came once
    (Good 1953). Close to 1 for titles and names of persons, 0 for months.
    """

    fixed: frozenset[str] = frozenset()
    unseen: Mapping[str, float] = MappingProxyType({})


def values_by_key(examples: Sequence[Example]) -> SlotValues:
    """What may stand for what.

    Values share a key when they stand at the same place of the answer, and all strings of the answer that are not
    words of the input (such as the intent) are the same too: a book is no substitute for a film there. Beside other
    such strings the values at a place may stand as well where many are the same: countries are countries in a booking
    and in a question about the weather. A place where less than nine tenths of the strings are words of their inputs
    has no slots.
    Raises ValueError for an answer that is not JSON.
    """
    seen: Counter[str] = Counter()
    copied: Counter[str] = Counter()
    # Of many examples the slots do not stay in memory: they are read twice instead.
    rows = list(_slots_of(examples)) if len(examples) <= _KEPT_ROWS else None
    for slots in _slots_of(examples) if rows is None else rows:
        for slot in slots:
            seen[_place(slot.path)] += 1
            copied[_place(slot.path)] += slot.copied
    fixed = frozenset(place for place, count in seen.items() if copied[place] < _SLOT_SHARE * count)
    counts: dict[str, dict[str, Counter[str]]] = {}
    for slots in (_without(row, fixed) for row in (_slots_of(examples) if rows is None else rows)):
        context = _context(slots)
        for slot in slots:
            if slot.span is not None:
                by_key = counts.setdefault(_place(slot.path), {})
                by_key.setdefault(_key(context, slot.path), Counter())[slot.value] += 1
    made, unseen = SlotValues(), dict[str, float]()
    for by_key in counts.values():
        for keys, found in _of_one_kind({key: set(count) for key, count in by_key.items()}):
            made.update(dict.fromkeys(keys, sorted(found)))
            unseen.update(dict.fromkeys(keys, _unseen_share(by_key[key] for key in keys)))
    made.fixed, made.unseen = fixed, unseen
    return made


def _unseen_share(counts: Iterable[Counter[str]]) -> float:
    """The share of a kind's values that came once; 0 where there are too few to tell."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    size = total.total()
    return sum(times == 1 for times in total.values()) / size if size >= _FEWEST_TO_TELL else 0.0


def _of_one_kind(by_key: Mapping[str, set[str]]) -> Iterator[tuple[list[str], set[str]]]:
    """Keys whose values are of one kind, as those that they have in common say, and all of their values."""
    kinds: dict[str, tuple[list[str], set[str]]] = {}
    kinds_of: dict[str, set[str]] = {}
    # The largest first, so that each is compared with at least as many values as it has.
    for key in sorted(by_key, key=lambda key: (-len(by_key[key]), key)):
        mine = by_key[key]
        common = Counter(kind for value in mine for kind in kinds_of.get(value, ()))
        enough = max(_FEWEST_IN_COMMON, _SHARE_IN_COMMON * len(mine))
        keys, values = [key], set(mine)
        for kind in sorted(kind for kind, count in common.items() if count >= enough):
            other_keys, others = kinds.pop(kind)
            keys, values = other_keys + keys, values | others
            for value in others:
                kinds_of[value].remove(kind)
        kinds[key] = keys, values
        for value in values:
            kinds_of.setdefault(value, set()).add(key)
    yield from kinds.values()


def swap_slot_values(example: Example, values: SlotValues, generator: random.Random) -> Example:
    """The example with each slot value that is words of the input replaced, with probability one half, by another.

    As many of the new values as in real inputs (`SlotValues.unseen`) are ones that nobody has seen, made of two that
    are known: a model shall tell where a title begins and ends from what stands around it, and not from a list that it
    has learnt by heart; but it may learn the months so.
    values: `values_by_key` of the training split. A value is replaced where it occurs exactly once in the input; if the
    result would leave a value of the answer without its words in the input, the example comes back unchanged.
    Deterministic given the generator. Raises ValueError for an answer that is not JSON.
    """
    text = example.input_text
    answer = json.loads(example.answer)
    slots = _without(_read_slots(answer, text), values.fixed)
    context = _context(slots)
    swaps: list[tuple[tuple[int, int], _Slot, str]] = []
    taken: list[tuple[int, int]] = [slot.span for slot in slots if slot.span is not None]
    for slot in slots:
        if slot.span is None or generator.random() >= _SWAP_PROBABILITY:
            continue
        key = _key(context, slot.path)
        choices = values.get(key, ())
        start, end = slot.span
        if len(choices) < 2 or sum(first < end and start < last for first, last in taken) > 1:
            continue
        swaps.append((slot.span, slot, _some_value(choices, values.unseen.get(key, 0.0), generator)))
    if not swaps:
        return example
    changed = text
    for (start, end), _, value in sorted(swaps, key=lambda swap: swap[0], reverse=True):
        changed = changed[:start] + value + changed[end:]
    for _, slot, value in swaps:
        _replace(answer, slot.path, value)
    copied = {slot.path for slot in slots if slot.copied}
    if not all(is_copied(slot.value, changed) for slot in _read_slots(answer, changed) if slot.path in copied):
        return example
    place = max(index for index, message in enumerate(example.prompt) if message.role is Role.USER)
    messages = list(example.messages)
    messages[place] = replace(messages[place], content=changed)
    messages[-1] = replace(messages[-1], content=dump_answer(answer))
    return replace(example, messages=tuple(messages))


def _some_value(choices: Sequence[str], unseen: float, generator: random.Random) -> str:
    """One of the values or, with the probability `unseen`, one made of two."""
    value = choices[generator.randrange(len(choices))]
    if generator.random() >= unseen:
        return value
    words, others = value.split(" "), choices[generator.randrange(len(choices))].split(" ")
    if len(words) > 1 and len(others) > 1 and generator.random() < _WHOLE_WORDS_SHARE:
        kept = generator.randint(1, len(words) - 1)
        return " ".join(words[:kept] + others[generator.randint(1, len(others) - 1) :])
    if len(words) == 1:
        return _new_word(value, others, generator)
    return " ".join(_new_word(word, others, generator) if generator.random() < 0.5 else word for word in words)


def _new_word(word: str, others: Sequence[str], generator: random.Random) -> str:
    """The beginning of a word with the end of one of the others, as a name that is new is made of known syllables."""
    other = others[generator.randrange(len(others))]
    if min(len(word), len(other)) < 2:
        return word
    return word[: generator.randint(1, len(word) - 1)] + other[generator.randint(1, len(other) - 1) :]


def _slots_of(examples: Sequence[Example]) -> Iterator[list[_Slot]]:
    return (_read_slots(json.loads(example.answer), example.input_text) for example in examples)


def _read_slots(value: Any, text: str, path: tuple[str | int, ...] = ()) -> list[_Slot]:
    if isinstance(value, dict):
        return [slot for key, inner in value.items() for slot in _read_slots(inner, text, (*path, key))]
    if isinstance(value, list):
        return [slot for place, inner in enumerate(value) for slot in _read_slots(inner, text, (*path, place))]
    if not isinstance(value, str):
        return []
    spans = list(find_whole_words(value, text))
    return [_Slot(path, value, bool(spans), spans[0] if len(spans) == 1 else None)]


def _without(slots: Sequence[_Slot], fixed: frozenset[str]) -> list[_Slot]:
    """The strings of an answer; those at fixed places are no slots."""
    if not fixed:
        return list(slots)
    return [replace(slot, copied=False, span=None) if _place(slot.path) in fixed else slot for slot in slots]


def _place(path: Sequence[str | int]) -> str:
    return dump_answer(["[]" if isinstance(step, int) else step for step in path])


def _context(slots: Sequence[_Slot]) -> str:
    return dump_answer([[*map(str, slot.path), slot.value] for slot in slots if not slot.copied])


def _key(context: str, path: tuple[str | int, ...]) -> str:
    return f"{_place(path)} in {context}"


def _replace(answer: Any, path: tuple[str | int, ...], value: str) -> None:
    for step in path[:-1]:
        answer = answer[step]
    answer[path[-1]] = value
