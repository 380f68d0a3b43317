# SPDX-License-Identifier: Apache-2.0
"""Merges undone at random: the same text in other pieces, alike within an example, and a pure function of its seed."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from open_autoglm.chat.messages import Message, Role
from open_autoglm.data import Example, TokenizedExamples, encode_examples, train_tokenizer
from open_autoglm.data.bpe_dropout import Merges, drop_merges
from open_autoglm.task import Task, TaskKind

WORDS = ("play", "some", "winter", "garden", "music", "tomorrow", "by", "the", "river")


def examples() -> list[Example]:
    rows: list[Example] = []
    for number in range(60):
        words = [WORDS[(number * step) % len(WORDS)] for step in (1, 2, 4, 5)]
        answer = json.dumps({"title": " ".join(words[1:3])})
        rows.append(Example((Message(Role.USER, " ".join(words)), Message(Role.ASSISTANT, answer)), f"a:{number}"))
    return rows


@pytest.fixture(scope="module", params=[TaskKind.EXTRACTION, TaskKind.INSTRUCTION])
def data(request: pytest.FixtureRequest) -> tuple[Tokenizer, TokenizedExamples]:
    task = Task(request.param, answer_schema={"type": "object"} if request.param is TaskKind.EXTRACTION else None)
    tokenizer = train_tokenizer(examples(), task, vocab_size=400)
    return tokenizer, encode_examples(examples(), tokenizer, task, max_length=128)


def rows_of(tokens: TokenizedExamples) -> list[list[int]]:
    return [part.tolist() for part in np.split(tokens.token_ids, tokens.offsets[1:-1])]


def learnt_text(tokenizer: Tokenizer, tokens: TokenizedExamples, place: int) -> str:
    start, end = tokens.offsets[place : place + 2]
    row, learn = tokens.token_ids[start:end], tokens.learn[start:end]
    return tokenizer.decode(row[learn].tolist(), skip_special_tokens=False)


def test_the_text_stays_and_so_does_what_of_it_is_learnt(data: tuple[Tokenizer, TokenizedExamples]) -> None:
    tokenizer, whole = data
    cut = drop_merges(whole, Merges.of(tokenizer), 0.5, seed=3, epoch=1, max_length=128)
    assert cut.token_ids.dtype == whole.token_ids.dtype
    assert len(cut.token_ids) > 1.3 * len(whole.token_ids)
    for place, (before, after) in enumerate(zip(rows_of(whole), rows_of(cut), strict=True)):
        assert tokenizer.decode(before, skip_special_tokens=False) == tokenizer.decode(after, skip_special_tokens=False)
        assert learnt_text(tokenizer, whole, place) == learnt_text(tokenizer, cut, place)


def test_all_merges_undone_leave_bytes_and_none_leaves_the_examples(data: tuple[Tokenizer, TokenizedExamples]) -> None:
    tokenizer, whole = data
    merges = Merges.of(tokenizer)
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    added = set(tokenizer.get_added_tokens_decoder())
    bytes_only = drop_merges(whole, merges, 1.0, seed=0, epoch=0, max_length=1024)
    assert all(token in added or tokenizer.id_to_token(token) in alphabet for token in bytes_only.token_ids.tolist())
    assert rows_of(drop_merges(whole, merges, 0.0, seed=0, epoch=0, max_length=128)) == rows_of(whole)
    # An example that would become too long is not touched.
    assert rows_of(drop_merges(whole, merges, 1.0, seed=0, epoch=0, max_length=16)) == rows_of(whole)


def test_a_word_is_cut_alike_wherever_it_stands_in_an_example() -> None:
    """In the input after a space, and at the beginning of a copied string without one."""
    task = Task(TaskKind.EXTRACTION, answer_schema={"type": "object"})
    tokenizer = train_tokenizer(examples(), task)
    answer = json.dumps({"title": "winter garden"})
    row = Example((Message(Role.USER, "play winter garden"), Message(Role.ASSISTANT, answer)), "a:0")
    whole = encode_examples([row] * 200, tokenizer, task, max_length=128)
    cut = drop_merges(whole, Merges.of(tokenizer), 0.3, seed=0, epoch=0, max_length=128)
    seen: set[tuple[str, ...]] = set()
    for tokens in rows_of(cut):
        pieces = [tokenizer.id_to_token(token).replace("Ġ", "|Ġ") for token in tokens]
        start, end, _ = (place for place, piece in enumerate(pieces) if piece in ("<|user|>", "<|assistant|>"))
        asked = "/".join(pieces[start + 1 : end]).replace("|Ġ/", "|").replace("|Ġ", "|")
        said = "/".join(pieces[end + 1 :])
        first = asked.split("|")[1].rstrip("/")
        assert f"/{first}/" in said.replace("|Ġ", "/"), (asked, said)
        seen.add(tuple(first.split("/")))
    assert len(seen) > 3


def test_epochs_and_seeds_differ_and_repeat(data: tuple[Tokenizer, TokenizedExamples]) -> None:
    tokenizer, whole = data
    merges = Merges.of(tokenizer)

    def made(seed: int, epoch: int) -> list[list[int]]:
        return rows_of(drop_merges(whole, merges, 0.2, seed=seed, epoch=epoch, max_length=128))

    assert made(1, 1) == made(1, 1)
    assert made(1, 1) != made(1, 2)
    assert made(1, 1) != made(2, 1)


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_so_many_merges_go_as_asked(share: float) -> None:
    """Of a token of two bytes, which can only be cut or not."""
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    many = TokenizedExamples(
        np.full(20_000, 2, dtype=np.int32), np.ones(20_000, dtype=np.bool_), np.arange(20_001, dtype=np.int64)
    )
    cut = drop_merges(many, Merges.of(tokenizer), share, seed=0, epoch=0, max_length=8)
    assert abs((len(cut.token_ids) - 20_000) / 20_000 - share) < 0.02


def test_other_tokenizers_have_no_merges() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    assert (Merges.of(tokenizer).left == -1).all()
