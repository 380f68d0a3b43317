# SPDX-License-Identifier: Apache-2.0
"""Text grows from tokens without broken characters, and ends where a stop string begins."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer
from tokenizers import Tokenizer

from open_autoglm.chat.template import encode_text
from open_autoglm.engine.detokenizer import Detokenizer, Vocabulary
from tests.engine.tiny_bundle import LINES

TEXT = st.one_of(st.text(max_size=40), st.lists(st.sampled_from([*LINES, "😀🇩🇪", "é", "晴"]), max_size=4).map("".join))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer, LLTokenizer(tokenizer.to_str()))


@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_pieces_join_to_the_text_and_no_piece_has_half_a_character(
    tokenizer: Tokenizer, vocabulary: Vocabulary, text: str
) -> None:
    detokenizer = Detokenizer(vocabulary)
    pieces = [detokenizer.push(token_id) for token_id in encode_text(text, tokenizer)]
    assert "".join(pieces) == text  # nothing was held back at the end of a whole text
    assert detokenizer.finish() == ""
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_chinese_comes_in_characters_although_tokens_are_bytes(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    token_ids = encode_text("龘靐", tokenizer)
    assert len(token_ids) == 6
    detokenizer = Detokenizer(vocabulary)
    assert [detokenizer.push(token_id) for token_id in token_ids] == ["", "", "龘", "", "", "靐"]
    detokenizer = Detokenizer(vocabulary)
    assert "".join(detokenizer.push(token_id) for token_id in token_ids[:4]) == "龘"
    assert detokenizer.finish() == "\ufffd"


@settings(max_examples=200, deadline=None)
@given(data=st.data(), text=TEXT)
def test_the_text_ends_where_the_first_stop_string_begins(
    tokenizer: Tokenizer, vocabulary: Vocabulary, data: st.DataObject, text: str
) -> None:
    inside = st.integers(0, max(0, len(text) - 1)).flatmap(
        lambda start: st.integers(1, 6).map(lambda length: text[start : start + length])
    )
    stops = data.draw(st.lists(inside.filter(bool) if text else st.just("x"), max_size=3))
    stops += data.draw(st.lists(st.sampled_from(["zzz", "aab", "，明天", "\n"]), max_size=2))
    detokenizer = Detokenizer(vocabulary, stops)
    released = ""
    for token_id in encode_text(text, tokenizer):
        released += detokenizer.push(token_id)
        if detokenizer.stopped:
            break
    released += detokenizer.finish()
    ends = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    if not ends:
        assert released == text
        return
    # Released text is always a beginning of the answer without any stop string in it, up to one that is there.
    assert detokenizer.stopped
    assert text.startswith(released)
    assert not any(stop in released for stop in stops)
    assert any(text.startswith(stop, len(released)) for stop in stops)


@pytest.mark.parametrize(
    ("text", "released"), [("\nhello", "hello"), ("hello", "hello"), ("\n\nx", "\nx"), ("\n", ""), ("", "")]
)
def test_one_prefix_is_dropped(tokenizer: Tokenizer, vocabulary: Vocabulary, text: str, released: str) -> None:
    detokenizer = Detokenizer(vocabulary, drop_prefix="\n")
    pieces = [detokenizer.push(token_id) for token_id in encode_text(text, tokenizer)]
    assert "".join(pieces) + detokenizer.finish() == released


def test_control_tokens_and_ids_past_the_end_have_no_text(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    assert vocabulary.bytes_of(tokenizer.token_to_id("<|user|>")) == b""
    assert vocabulary.bytes_of(vocabulary.size) == vocabulary.bytes_of(10**9) == vocabulary.bytes_of(-1) == b""
    for token_id in range(7, vocabulary.size):
        text = tokenizer.decode([token_id], skip_special_tokens=False)
        if "\ufffd" not in text:
            assert vocabulary.bytes_of(token_id).decode() == text
    assert vocabulary.longest >= max(len(vocabulary.bytes_of(token_id)) for token_id in range(vocabulary.size))
