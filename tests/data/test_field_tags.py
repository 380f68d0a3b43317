# SPDX-License-Identifier: Apache-2.0
"""Tags of inputs' words: the words that a field's tags mark are its values, whatever pieces the words are cut into."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer

from open_autoglm.chat.messages import Message, Role
from open_autoglm.data import Example, PreparedData, TokenizedExamples, encode_examples, train_tokenizer
from open_autoglm.data.bpe_dropout import Merges, drop_merges
from open_autoglm.data.encoding import UNTAGGED
from open_autoglm.data.field_tags import FieldTagger
from open_autoglm.task import Task, TaskKind

TASK = Task(TaskKind.EXTRACTION, answer_schema={"type": "object"}, reads_twice=True)
TITLES = ("winter garden", "river", "the old mill", "mill", "garden of stones", "rain")
PEOPLE = ("ann lee", "bo", "river stone", "chen 晨", "ann")


def example(text: str, answer: dict[str, object], *before: Message) -> Example:
    said = json.dumps(answer, ensure_ascii=False)
    return Example((*before, Message(Role.USER, text), Message(Role.ASSISTANT, said)), "rows:1")


def songs(count: int = 400) -> list[Example]:
    """Titles and people copied, a mood that is not; a title can be words of a person and the other way round."""
    generator = random.Random(0)
    rows: list[Example] = []
    for _ in range(count):
        title, person = generator.choice(TITLES), generator.choice(PEOPLE)
        if title in person or person in title:
            continue
        mood = generator.choice(("calm", "loud"))
        if generator.random() < 0.5:
            rows.append(example(f"play {title} by {person}", {"mood": mood, "title": title, "person": person}))
        else:
            rows.append(example(f"{person} sings {title}", {"mood": mood, "person": person, "title": title}))
    return rows


def marked(tokenizer: Tokenizer, examples: TokenizedExamples, values: np.ndarray, place: int) -> dict[int, str]:
    """The text under each pair of tags of an example."""
    start, end = examples.offsets[place : place + 2]
    tokens, tags = examples.token_ids[start:end], values[start:end]
    return {
        int(tag): tokenizer.decode(
            tokens[(tags == tag) | (tags == tag + 1)].tolist(), skip_special_tokens=False
        ).removeprefix(" ")
        for tag in np.unique(tags[tags % 2 == 1])
        if tag > 0
    }


@pytest.mark.parametrize("dropped", [0.0, 0.4])
def test_tags_mark_the_values_of_the_fields_that_copy(dropped: float) -> None:
    rows = songs()
    tokenizer = train_tokenizer(rows, TASK)
    encoded = encode_examples(rows, tokenizer, TASK, max_length=256)
    tagger = FieldTagger(tokenizer, encoded)
    if dropped:
        encoded = drop_merges(encoded, Merges.of(tokenizer), dropped, seed=1, epoch=0, max_length=256)
    tags = tagger.tag(encoded)
    assert tags.count == tagger.count == 5  # of what is not copied, of titles and of people; the mood has none
    assert tags.values.dtype == np.int32
    assert len(tags.values) == len(encoded.token_ids)
    meaning: dict[int, str] = {}
    for place, row in enumerate(rows):
        answer = json.loads(row.answer)
        found = marked(tokenizer, encoded, tags.values, place)
        assert sorted(found.values()) == sorted((answer["title"], answer["person"]))
        for tag, text in found.items():
            name = "title" if text == answer["title"] else "person"
            assert meaning.setdefault(tag, name) == name
        start, end = encoded.offsets[place : place + 2]
        known = np.flatnonzero(tags.values[start:end] != UNTAGGED)
        text = tokenizer.decode(encoded.token_ids[start:end][known].tolist(), skip_special_tokens=False)
        assert text == row.messages[0].content  # all of the second reading, and nothing else
        assert not encoded.learn[start:end][known].any()


def test_nothing_is_said_where_it_is_not_known() -> None:
    rows = songs()
    odd = [
        example("play x by bo", {"mood": "calm", "title": "rain", "person": "bo"}),  # a title that is not there
        example("bo sings rain", {"mood": "calm", "person": "bo", "title": "rain"}, Message(Role.SYSTEM, "be brief")),
        example("two\nlines of rain", {"mood": "calm", "title": "lines of rain", "person": "two"}),
    ]
    tokenizer = train_tokenizer([*rows, *odd], TASK)
    encoded = encode_examples([*rows, *odd], tokenizer, TASK, max_length=256)
    tagger = FieldTagger(tokenizer, encoded)
    tags = tagger.tag(encoded).values
    count = len(rows)
    assert list(marked(tokenizer, encoded, tags, count).values()) == ["bo"]
    start, end = encoded.offsets[count : count + 2]
    assert 0 not in tags[start:end]
    assert sorted(marked(tokenizer, encoded, tags, count + 1).values()) == ["bo", "rain"]
    assert sorted(marked(tokenizer, encoded, tags, count + 2).values()) == ["lines of rain", "two"]
    once = encode_examples(rows, tokenizer, replace(TASK, reads_twice=False), max_length=256)
    assert (tagger.tag(once).values == UNTAGGED).all()
    cut = encode_examples(rows, tokenizer, TASK, max_length=24)
    assert len(cut.shortened)
    short = tagger.tag(cut).values
    for place in cut.shortened:  # the first reading is gone
        assert (short[cut.offsets[place] : cut.offsets[place + 1]] == UNTAGGED).all()


def test_lists_of_values_are_tagged_one_by_one() -> None:
    rows = [
        example(f"buy {a} and {b}", {"things": [a, b]})
        for a in ("milk", "bread", "red apples")
        for b in ("tea", "salt", "green tea")
    ] * 9
    tokenizer = train_tokenizer(rows, TASK)
    encoded = encode_examples(rows, tokenizer, TASK, max_length=128)
    tags = FieldTagger(tokenizer, encoded).tag(encoded)
    assert tags.count == 3
    start, end = encoded.offsets[8:10]
    assert (tags.values[start:end] == 1).sum() == 2  # each value begins with the tag of a beginning
    assert marked(tokenizer, encoded, tags.values, 8)[1].split() == ["red", "apples", "green", "tea"]


def test_most_words_of_real_data_are_told(snips: PreparedData) -> None:
    rows = snips.train[:3000]
    task = replace(snips.task, reads_twice=True)
    tokenizer = train_tokenizer(rows, task)
    encoded = encode_examples(rows, tokenizer, task, max_length=256)
    tags = FieldTagger(tokenizer, encoded).tag(encoded).values
    owners = np.repeat(np.arange(len(rows)), encoded.lengths)
    assert len(np.unique(owners[tags != UNTAGGED])) == len(rows)
    told = 0
    for place, row in enumerate(rows):
        slots = json.loads(row.answer)["slots"]
        values = [value for value in slots.values() if isinstance(value, str)]
        start, end = encoded.offsets[place : place + 2]
        told += ((tags[start:end] > 0) & (tags[start:end] % 2 == 1)).sum() >= len(values)
    assert told > 0.95 * len(rows)
