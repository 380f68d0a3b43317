# SPDX-License-Identifier: Apache-2.0
"""Tokenizer and encoding: any text comes back, the skeleton is few tokens, and the loss mask is exact."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from open_autoglm.chat.detection import BUILT_FORMAT
from open_autoglm.chat.messages import Message, Role
from open_autoglm.chat.template import CONTROL_TOKENS, encode
from open_autoglm.data import (
    Example,
    FindingKind,
    PreparedData,
    TokenizedExamples,
    choose_vocab_size,
    encode_examples,
    spaced_twins,
    train_tokenizer,
)
from open_autoglm.errors import CheckpointError, ConfigurationError, StorageError
from open_autoglm.task import Task, TaskKind

SNIPS = Path(__file__).parents[2] / "examples" / "snips"
INSTRUCTION, PLAIN = Task(TaskKind.INSTRUCTION), Task(TaskKind.PLAIN_TEXT)
ANSWER = '{"artist": "周杰伦", "n": 3, "tags": ["a", "b"]}'
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def pair(question: str, answer: str) -> Example:
    return Example((Message(Role.USER, question), Message(Role.ASSISTANT, answer)), "a.jsonl:1")


@cache
def tokenizer(task: TaskKind) -> Tokenizer:
    rows = [pair(f"play 周杰伦 number {n} now", ANSWER) for n in range(30)]
    return train_tokenizer(rows, Task(task), 420)


@settings(max_examples=200, deadline=None)
@given(TEXT | st.sampled_from([ANSWER, *CONTROL_TOKENS]), st.sampled_from([TaskKind.EXTRACTION, TaskKind.DIALOGUE]))
def test_any_text_comes_back_from_its_tokens(text: str, kind: TaskKind) -> None:
    made = tokenizer(kind)
    ids = made.encode(text, add_special_tokens=False).ids
    assert made.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", [TaskKind.EXTRACTION, TaskKind.DIALOGUE])
def test_control_tokens_come_first_and_survive_saving(tmp_path: Path, kind: TaskKind) -> None:
    made = tokenizer(kind)
    assert [made.token_to_id(token) for token in CONTROL_TOKENS] == list(range(len(CONTROL_TOKENS)))
    made.save(str(tmp_path / "tokenizer.json"))
    read = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = f"play {ANSWER} <|user|>"
    assert read.encode(text).ids == made.encode(text).ids
    assert read.get_vocab() == made.get_vocab()


def test_the_skeleton_of_answers_is_a_token_each_and_words_have_the_same_pieces_in_prompt_and_answer() -> None:
    made = tokenizer(TaskKind.EXTRACTION)
    tokens = [made.decode([i], skip_special_tokens=False) for i in made.encode(ANSWER).ids]
    assert tokens[0] == '{"artist": "'
    assert {'", "n": 3, "tags": ["', '", "', '"]}'} <= set(tokens)
    word = made.encode("周杰伦").tokens
    for text in ("play 周杰伦 now", ANSWER):
        tokens = [token.removeprefix("Ġ") for token in made.encode(text).tokens]
        assert any(tokens[start : start + len(word)] == word for start in range(len(tokens)))


@pytest.fixture(scope="module")
def of_snips(snips: PreparedData) -> Tokenizer:
    return train_tokenizer(snips.train, snips.task)


def test_a_word_takes_the_space_before_it_and_keeps_its_pieces(snips: PreparedData, of_snips: Tokenizer) -> None:
    made = of_snips
    twins = spaced_twins(made)
    assert len(twins) > 500
    for spaced, bare in twins:
        assert made.decode([spaced], skip_special_tokens=False) == " " + made.decode([bare], skip_special_tokens=False)
    alone = 0
    for example in snips.test:
        for word in example.input_text.split(" "):
            pieces = made.encode(word).tokens
            after = made.encode("to " + word).tokens[1:]
            alone += after[0] == "Ġ"
            assert after in (["Ġ" + pieces[0], *pieces[1:]], ["Ġ", *pieces])
    assert alone < 0.01 * sum(example.input_text.count(" ") for example in snips.test)


def test_snips_answers_take_about_sixteen_tokens(snips: PreparedData, of_snips: Tokenizer) -> None:
    made = of_snips
    assert 2200 <= made.get_vocab_size() <= 2800
    lengths = [len(encoding.ids) for encoding in made.encode_batch([e.answer for e in snips.test])]
    assert sum(lengths) / len(lengths) < 16.5
    assert made.to_str() == train_tokenizer(snips.train, snips.task).to_str()


def test_nothing_depends_on_the_hash_seed() -> None:
    program = (
        "import sys, hashlib, pathlib; from open_autoglm.data import prepare, train_tokenizer;"
        "made = prepare(pathlib.Path(sys.argv[1])); text = train_tokenizer(made.train, made.task).to_str();"
        "print(made.digest(), made.task.answer_schema, hashlib.sha256(text.encode()).hexdigest())"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", program, str(SNIPS / "valid.jsonl")],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(results) == 1


def test_the_vocabulary_grows_with_the_data() -> None:
    sizes = [choose_vocab_size(size) for size in (0, 1000, 900_000, 12_000_000, 10**10)]
    assert sizes == sorted(sizes)
    assert sizes[0] >= 256 + len(CONTROL_TOKENS)
    assert 1400 <= sizes[2] <= 1600
    assert 7500 <= sizes[3] <= 8500
    assert sizes[4] == 32_768
    assert choose_vocab_size(900_000, letters=2000) == pytest.approx(sizes[2] + 2000, abs=64)
    with pytest.raises(ConfigurationError, match="no room for bytes and control tokens"):
        train_tokenizer([pair("q", "a")], INSTRUCTION, 100)


DIALOGUES = st.lists(
    st.builds(Message, st.sampled_from(Role), TEXT, st.sampled_from(["", "tool"]), st.booleans()),
    min_size=1,
    max_size=5,
).map(lambda messages: Example((*messages, Message(Role.ASSISTANT, "the answer"))))


@settings(max_examples=60, deadline=None)
@given(st.lists(DIALOGUES, max_size=4))
def test_encoding_is_that_of_the_chat_template(examples: list[Example]) -> None:
    made = tokenizer(TaskKind.DIALOGUE)
    encoded = encode_examples(examples, made, INSTRUCTION, max_length=10_000)
    assert len(encoded) == len(examples)
    for index, example in enumerate(examples):
        token_ids, learn, lengths = encoded.gather(np.array([index]))
        expected = encode(BUILT_FORMAT.render(example.messages), made)
        assert (token_ids.tolist(), learn.tolist()) == expected
        assert lengths.tolist() == [len(expected[0])]


def test_plain_text_is_learnt_whole_between_begin_and_end() -> None:
    made = tokenizer(TaskKind.DIALOGUE)
    example = Example((Message(Role.ASSISTANT, "play <|user|> now"),))
    encoded = encode_examples([example], made, PLAIN, max_length=100)
    shown = made.decode(encoded.token_ids.tolist(), skip_special_tokens=False)
    assert shown == "[gMASK]<sop>play <|user|> now<|endoftext|>"
    assert encoded.learn.tolist() == [False, False, *[True] * (len(encoded.token_ids) - 2)]
    assert made.token_to_id("<|user|>") not in encoded.token_ids


def test_long_examples_lose_the_start_of_the_prompt_and_keep_the_answer() -> None:
    made = tokenizer(TaskKind.DIALOGUE)
    long = pair("word " * 200 + "the end", "short answer")
    whole = encode_examples([long], made, INSTRUCTION, max_length=10_000)
    answer = int(whole.learn.sum())
    cut = encode_examples([long, pair("q", "a")], made, INSTRUCTION, max_length=64)
    assert cut.lengths.tolist()[0] == 64
    assert cut.shortened.tolist() == [0]
    first = cut.token_ids[:64]
    assert first[:2].tolist() == whole.token_ids[:2].tolist()
    assert first[2:].tolist() == whole.token_ids[-62:].tolist()
    assert int(cut.learn[:64].sum()) == answer
    huge = encode_examples([pair("q", "word " * 200)], made, INSTRUCTION, max_length=64)
    assert len(huge.token_ids) == 64
    assert huge.token_ids[2] == made.token_to_id("<|assistant|>")
    assert huge.learn.tolist() == [False, False, False, *[True] * 61]
    with pytest.raises(ConfigurationError, match="max_length 3 is too short"):
        encode_examples([long], made, INSTRUCTION, max_length=3)


def test_a_foreign_tokenizer_without_control_tokens_is_refused() -> None:
    with pytest.raises(CheckpointError, match="gMASK"):
        encode_examples([pair("q", "a")], Tokenizer(models.BPE()), INSTRUCTION, max_length=64)


def test_tokens_are_saved_mapped_and_gathered(tmp_path: Path) -> None:
    made = tokenizer(TaskKind.DIALOGUE)
    examples = [pair("word " * n, f"answer {n}") for n in range(20)]
    encoded = encode_examples(examples, made, INSTRUCTION, max_length=40)
    encoded.save(tmp_path / "tokens")
    loaded = TokenizedExamples.load(tmp_path / "tokens")
    assert isinstance(loaded.token_ids, np.memmap)
    assert loaded.token_ids.dtype == np.int32
    for name in ("token_ids", "learn", "offsets", "shortened"):
        assert np.array_equal(getattr(loaded, name), getattr(encoded, name))
    chosen = np.array([7, 0, 7, 19])
    token_ids, learn, lengths = loaded.gather(chosen)
    spans = [slice(int(encoded.offsets[i]), int(encoded.offsets[i + 1])) for i in chosen]
    assert token_ids.tolist() == [t for span in spans for t in encoded.token_ids[span]]
    assert learn.tolist() == [t for span in spans for t in encoded.learn[span]]
    assert lengths.tolist() == [span.stop - span.start for span in spans]


def test_the_first_examples_are_what_they_are_alone(snips: PreparedData) -> None:
    made = tokenizer(TaskKind.EXTRACTION)
    whole = encode_examples(snips.valid[:50], made, snips.task, max_length=64)
    for count in (0, 1, 20, 50):
        first, alone = whole.first(count), encode_examples(snips.valid[:count], made, snips.task, max_length=64)
        assert len(first) == count
        for name in ("token_ids", "learn", "offsets", "shortened"):
            np.testing.assert_array_equal(getattr(first, name), getattr(alone, name))


def test_no_examples_are_saved_and_loaded_too(tmp_path: Path) -> None:
    encode_examples([], tokenizer(TaskKind.DIALOGUE), INSTRUCTION, max_length=40).save(tmp_path)
    assert len(TokenizedExamples.load(tmp_path)) == 0


def test_folders_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    encoded = encode_examples([pair("q", "a")], tokenizer(TaskKind.DIALOGUE), INSTRUCTION, max_length=40)
    with pytest.raises(StorageError, match=r"token_ids\.npy"):
        TokenizedExamples.load(tmp_path)
    encoded.save(tmp_path)
    np.save(tmp_path / "offsets.npy", np.array([0, 3], dtype=np.int64))
    with pytest.raises(StorageError, match="do not belong together"):
        TokenizedExamples.load(tmp_path)
    encoded.save(tmp_path)
    np.save(tmp_path / "learn.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(StorageError, match=r"learn\.npy"):
        TokenizedExamples.load(tmp_path)
    (tmp_path / "learn.npy").write_bytes(b"no array")
    with pytest.raises(StorageError, match=r"learn\.npy"):
        TokenizedExamples.load(tmp_path)


def test_shortened_examples_are_in_the_report(snips: PreparedData) -> None:
    made = tokenizer(TaskKind.EXTRACTION)
    tokens = encode_examples(snips.valid, made, snips.task, max_length=64)
    assert 0 < len(tokens.shortened) < 700
    findings = snips.with_shortened({"valid": tokens}).report.of_kind(FindingKind.SHORTENED)
    assert [finding.count for finding in findings] == [len(tokens.shortened)]
    assert snips.valid[tokens.shortened[0]].source.split(":")[1] in findings[0].rows["valid.jsonl"]
