# SPDX-License-Identifier: Apache-2.0
"""Many texts screened at once are ruled out as each is by itself, and none that holds something private."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from open_autoglm.data.privacy import find_private, is_worth_a_look
from open_autoglm.data.privacy_screen import places_worth_a_look

PARTS = [
    "write to ann@example.com", "call 13812345678", "(415) 555-0132", "8.8.8.8", "version 1.2.3", "at 5:30", "a:b:c:1",
    "2001:4860:4860::8888", "AKIAABCDEFGHIJKLMNOP", "sk-abcdefghijklmnopqrstuv", "ghp_" + "a1" * 20,
    "SearchScreeningEvent", "search_screening_events_now", "0f3a9b7c1d5e8f2a4b6c", "rapid api key: zzz999zzz",
    "密码: abc123!x", "１３８１２３４５６７８", "电话 13812345678", "-----BEGIN PRIVATE KEY-----", "Password: hunter22",
    "GB82 WEST 1234 5698 7654 32", "API-KEY",
    "play a song", "", "\n", "x", '{"intent": "PlayMusic", "slots": {"artist": "nobody"}}', "1 2 3 4 5 6 7", "1.2.3",
]  # fmt: skip


@settings(max_examples=200)
@given(st.lists(st.lists(st.sampled_from(PARTS) | st.text(max_size=8), max_size=4).map(" ".join), max_size=12))
def test_nothing_private_is_ruled_out(texts: list[str]) -> None:
    assert places_worth_a_look(texts) == [place for place, text in enumerate(texts) if is_worth_a_look(text)]
    assert all(is_worth_a_look(text) for text in texts if find_private(text))


def test_usual_texts_are_ruled_out() -> None:
    generator = random.Random(0)
    words = ["please", "book", "the", "table", "for", "two", "at", "noon", "and", "play", "some", "music", "room"]
    texts = [" ".join(generator.choices(words, k=20)) + ' 12 {"intent": "BookRestaurant"}' for _ in range(2000)]
    texts[7] += " 13812345678"
    texts[1999] += " ann@example.com"
    assert places_worth_a_look(texts) == [7, 1999]
