# SPDX-License-Identifier: Apache-2.0
"""Data that does not fit into memory gives what it would give if it did, and leaves nothing behind."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_autoglm.chat.messages import Message, Role, ToolCall
from open_autoglm.data import Example, PreparedData, prepare
from open_autoglm.data.example import Media
from open_autoglm.data.example_store import ExampleStore, SavedExamples, StoredExamples
from open_autoglm.data.keys import count_distinct, first_places
from open_autoglm.data.line_file import LineFile
from open_autoglm.data.reading import RowSample
from open_autoglm.data.rows import Row
from open_autoglm.errors import DataError, StorageError

WORDS = [
    "river", "stone", "window", "garden", "letter", "music", "yellow", "basket", "morning", "paper", "silver",
    "mountain", "doctor", "table", "orange", "castle", "winter", "pencil", "harbour", "engine", "ladder", "forest",
]  # fmt: skip


def sentence(seed: int, count: int = 9) -> str:
    return " ".join(random.Random(seed).sample(WORDS, count))


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def labelled() -> list[Any]:
    rows = [{"text": sentence(n), "label": ["good", "bad"][n % 2]} for n in range(300)]
    rows += [{"text": "cafe\u0301 " + sentence(n), "label": "good"} for n in range(400, 404)]
    rows += [dict(rows[4]), {"text": rows[5]["text"].upper() + "!", "label": "bad"}, {"text": "x", "label": "\u200b"}]
    return [
        *rows,
        {"text": f"{sentence(900)} call 13812345678", "label": "good"},
        {"text": rows[7]["text"], "label": "?"},
    ]


def commands() -> list[Any]:
    return [
        {
            "prompt": f"{sentence(n, 5)} number {n}",
            "response": json.dumps({"n": n, "intent": "ab"[n % 2], "s": [sentence(n, 5)]}),
        }
        for n in range(200)
    ]


def dialogues() -> list[Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    return [
        {
            "messages": [
                {"role": "user", "content": sentence(n)},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": str(n), "tool_call_id": "c1"},
                {"role": "assistant", "content": f"It is {n}.", "weight": n % 2},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        }
        for n in range(60)
    ]


def preferences() -> list[Any]:
    return [{"prompt": sentence(n), "chosen": f"Yes, {n}.", "rejected": f"No, {n}."} for n in range(60)]


def dated() -> list[Any]:
    return [
        {
            "question": f"{sentence(n)}?",
            "answer": f"{sentence(n + 500, 4)}.",
            "date": f"2021-{n % 12 + 1:02}-{n % 28 + 1:02}",
        }
        for n in range(120)
    ]


@pytest.mark.parametrize("make", [labelled, commands, dialogues, preferences, dated])
@pytest.mark.parametrize("clean", [False, True])
def test_on_disk_is_as_in_memory(tmp_path: Path, make: Any, clean: bool) -> None:
    path = write(tmp_path / "a.jsonl", make())
    scratch = tmp_path / "scratch"
    settings: dict[str, Any] = {"mask_pii": clean, "remove_near_duplicates": clean, "seed": 3}
    small = prepare(path, **settings)
    large = prepare(path, scratch=scratch, in_memory=2000, **settings)
    assert isinstance(small.train, StoredExamples) and isinstance(large.train, StoredExamples)
    assert large.train.store.is_on_disk and not small.train.store.is_on_disk
    assert (large, large.digest(), large.report) == (small, small.digest(), small.report)
    assert list(large.changes) == list(small.changes)
    assert list(scratch.iterdir()) == []
    small.save(tmp_path / "small")
    large.save(tmp_path / "large")
    for name in ("train.jsonl", "valid.jsonl", "test.jsonl", "task.json", "report.json", "changes.jsonl"):
        assert (tmp_path / "small" / name).read_bytes() == (tmp_path / "large" / name).read_bytes()
    loaded = PreparedData.load(tmp_path / "large", in_memory=100)
    assert isinstance(loaded.train, SavedExamples)
    assert (loaded, loaded.digest()) == (small, small.digest())


def test_given_files_and_plain_text_too(tmp_path: Path) -> None:
    rows = labelled()
    paths = {"valid": write(tmp_path / "v.jsonl", rows[3:30]), "test": write(tmp_path / "t.jsonl", rows[200:230])}
    small = prepare(write(tmp_path / "a.jsonl", rows), **paths)
    large = prepare(tmp_path / "a.jsonl", **paths, in_memory=0)
    assert (large, list(large.changes)) == (small, list(small.changes))
    text = tmp_path / "a.txt"
    text.write_text("\n\n".join(f"{sentence(n, 20)}." * 5 for n in range(300)), encoding="utf-8")
    assert prepare(text, in_memory=0) == prepare(text)


TEXT = st.text(st.characters(), max_size=30)
CALLS = st.lists(st.builds(ToolCall, st.text("ab", min_size=1), st.just('{"x": "\u4f60"}'), TEXT), max_size=2).map(
    tuple
)
MESSAGES = st.builds(Message, st.sampled_from(Role), TEXT, TEXT, st.booleans(), TEXT, CALLS, TEXT)
PLAIN = st.builds(Message, st.sampled_from(Role), TEXT)
EXAMPLES = st.builds(
    Example,
    st.lists(MESSAGES | PLAIN, min_size=1, max_size=4).map(tuple),
    TEXT,
    st.just(()) | st.just(({"type": "function", "function": {"name": "f"}},)),
    st.lists(PLAIN, max_size=2).map(tuple),
    st.sampled_from([None, True, False]),
    st.lists(st.builds(Media, st.just("image"), TEXT), max_size=1).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(EXAMPLES, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_whatever_is_stored_comes_back(examples: list[Example], generator: random.Random) -> None:
    store = ExampleStore(in_memory=generator.choice([0, 2500]))
    records = np.array([store.add(example) for example in examples])
    stored = StoredExamples(store, records, np.arange(len(examples)))
    assert stored == examples and examples == stored
    places = [generator.randrange(len(examples)) for _ in range(20)]
    assert list(stored.take(np.array(places))) == [examples[place] for place in places]
    assert stored[-1] == examples[-1] and list(stored[::2]) == examples[::2]
    assert stored.answer_lengths.tolist() == [len(example.messages[-1].readable) for example in examples]


def test_a_changed_example_takes_the_place_of_the_old_one() -> None:
    examples = [Example((Message(Role.USER, str(n)), Message(Role.ASSISTANT, "a")), f"f:{n}") for n in range(3000)]
    for in_memory in (0, 1 << 30):
        store = ExampleStore(in_memory=in_memory)
        stored = StoredExamples(store, np.array([store.add(e) for e in examples]), np.arange(3000))
        changed = stored.mapped(lambda e: Example(e.messages[1:], e.source) if e.source.endswith("7") else e)
        assert [len(e.messages) for e in changed] == [1 if n % 10 == 7 else 2 for n in range(3000)]
        assert [e.source for e in changed] == [f"f:{n}" for n in range(3000)]
        assert list(stored) == examples and changed.origins.tolist() == list(range(3000))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=30))
def test_numbers_of_equal_rows_are_those_of_the_first(rows: list[tuple[int, int]]) -> None:
    table = np.array(rows, dtype=np.uint64).reshape(-1, 2)
    assert first_places(table).tolist() == [rows.index(row) for row in rows]
    groups = first_places(table[:, :1])
    wanted = [len({b for a, b in rows if a == first}) for first, _ in rows]
    assert count_distinct(groups, table[:, 1:]).tolist() == wanted


def test_a_file_of_lines_that_somebody_broke_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "a"}], "source": "x:1"}\n[1]\n{"a": \n')
    broken = SavedExamples(path)
    assert broken[0].source == "x:1"
    for place in (1, 2):
        with pytest.raises(StorageError, match="does not hold prepared data"):
            _ = broken[place]
    (tmp_path / "b.jsonl").write_text("[1]\n[2]")
    lines = LineFile.existing(tmp_path / "b.jsonl")
    assert list(lines.read(np.array([1, 0]))) == [[2], [1]]


def test_samples_are_spread_over_all_rows() -> None:
    sample = RowSample()
    for number in range(100_000):
        sample.add(Row(number, "x"))
    numbers = [row.number for row in sample.rows]
    assert 4000 <= len(numbers) < 8000 and numbers[0] == 0
    assert len(set(np.diff(numbers).tolist())) == 1 and numbers[-1] > 99_900
    long = RowSample()
    for number in range(100):
        long.add(Row(number, "x" * (1 << 20)))
    assert 1 <= len(long.rows) <= 32


def test_a_file_whose_beginning_says_too_little_is_read_by_all_of_it(tmp_path: Path) -> None:
    head = [{"a": f"{sentence(n)} {n}", "b": "good"} for n in range(20_050)]
    tail = [{"a": f"{sentence(n)} {n}", "b": "bad"} for n in range(20_050, 22_000)]
    prepared = prepare(write(tmp_path / "a.jsonl", head + tail), in_memory=1 << 20)
    assert set(prepared.task.labels) == {"good", "bad"}
    with pytest.raises(DataError):
        prepare(write(tmp_path / "b.jsonl", head))


@pytest.mark.thorough
def test_memory_does_not_follow_the_size_of_the_texts(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from open_autoglm.data import prepare;"
        "prepare(pathlib.Path(sys.argv[1]), scratch=pathlib.Path(sys.argv[2]), in_memory=1 << 20, task='instruction');"
        "print([int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM')][0])"
    )
    peaks: list[int] = []
    sentences = [sentence(n, 20) for n in range(500)]
    for count in (6000, 16_000):
        rows = [
            {"prompt": f"{n} {sentence(n)}", "response": f"{n} " + " ".join(random.Random(n).choices(sentences, k=45))}
            for n in range(count)
        ]
        path = write(tmp_path / f"{count}.jsonl", rows)
        done = subprocess.run(
            [sys.executable, "-c", program, str(path), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(done.stdout) << 10)
    assert peaks[1] - peaks[0] < 0.6 * (16_000 - 6000) * 6000


def test_stopping_leaves_one_line_and_no_files(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        sentences = [sentence(n) for n in range(997)]
        for n in range(40_000):
            row = {"prompt": f"{sentences[n % 997]} {n}", "response": f"{sentences[n % 991]} {n}."}
            file.write(json.dumps(row) + "\n")
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "open_autoglm", "data", str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while process.poll() is None and not holds(process.pid, "large.jsonl"):
            time.sleep(0.05)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert error.splitlines()[-1] == "stopped" and "Traceback" not in error
    assert list(scratch.iterdir()) == []


def holds(pid: int, name: str) -> bool:
    """Whether a process has a file of that name open."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if descriptor.readlink().name == name:
                return True
        except OSError:
            pass
    return False


def test_whoever_waits_is_told_what_is_done_and_how_much_of_it(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    rows = [{"prompt": f"{sentence(n)} {n}", "response": f"{sentence(n, 5)}."} for n in range(6000)]
    path = write(tmp_path / "a.jsonl", rows)
    prepare(path, in_memory=1 << 20, on_progress=lambda title, share: told.append((title, share)))
    titles = list(dict.fromkeys(title for title, _ in told))
    assert titles[0] == "reading a.jsonl" and "looking for near-duplicates" in titles
    for title in titles:
        shares = [share for other, share in told if other == title]
        assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] <= 1
    assert max(share for title, share in told if title == titles[0]) > 0.5
