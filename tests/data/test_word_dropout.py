# SPDX-License-Identifier: Apache-2.0
"""What is left of an input after some of its words were left out: the others, in order, and the label."""

import random

from hypothesis import given
from hypothesis import strategies as st

from open_autoglm.chat.messages import Message, Role
from open_autoglm.data import Example
from open_autoglm.data.word_dropout import drop_words
from open_autoglm.words import split_words


def example(text: str) -> Example:
    return Example((Message(Role.SYSTEM, "stay"), Message(Role.USER, text), Message(Role.ASSISTANT, "label")), "a:1")


def is_part(some: str, of: str) -> bool:
    """Whether the characters stand there in this order, others perhaps between them."""
    left = iter(of)
    return all(character in left for character in some)


@given(st.text(max_size=80), st.integers(0, 9))
def test_only_words_of_the_input_go(text: str, seed: int) -> None:
    before = example(text)
    after = drop_words(before, random.Random(seed))
    assert after == drop_words(before, random.Random(seed))
    assert (after.messages[0], after.messages[2], after.source) == (*before.messages[::2], before.source)
    assert is_part(after.input_text, text)
    assert bool(after.input_text) == bool(text)


def test_a_tenth_to_a_fifth_goes_and_no_space_is_doubled() -> None:
    text = "when will my new card arrive at home " * 9
    num_words = sum(not word.isspace() for word in split_words(text))
    kept = 0
    for seed in range(200):
        after = drop_words(example(text), random.Random(seed)).input_text
        assert "  " not in after
        kept += sum(not word.isspace() for word in split_words(after))
    assert 0.13 < 1 - kept / (200 * num_words) < 0.17


def test_chinese_stays_and_words_between_it_go() -> None:
    made = {drop_words(example("房间不干净 wifi 也不好"), random.Random(seed)).input_text for seed in range(60)}
    assert made == {"房间不干净 wifi 也不好", "房间不干净 也不好"}
