# SPDX-License-Identifier: Apache-2.0
"""Files that arrive, each once and whole; webhooks that are signed, and those that are not."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest

from open_autoglm.errors import ConfigurationError, RequestError
from open_autoglm.pipeline.triggers.file_arrival import FileArrival
from open_autoglm.pipeline.triggers.webhook_signature import check_webhook, sign_webhook

SECRET = "a secret of some length"


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_a_file_is_taken_when_it_has_stopped_growing_and_once(tmp_path: Path) -> None:
    clock = Clock()
    first, second = (FileArrival(f"{tmp_path}/inbox/*.jsonl", clock=clock) for _ in range(2))
    assert list(first.poll()) == []
    (tmp_path / "inbox").mkdir()
    path = tmp_path / "inbox" / "a.jsonl"
    path.write_text("1\n")
    (tmp_path / "inbox" / "b.other").write_text("x")
    assert list(first.poll()) == list(second.poll()) == []
    clock.seconds = 3
    path.write_text("1\n2\n")
    assert list(first.poll()) == [], "it grew"
    clock.seconds = 4
    assert list(first.poll()) == []
    clock.seconds = 6
    (arrival,) = first.poll()
    assert list(second.poll()) == [arrival], "not acknowledged: whoever asks gets it, under the same key"
    assert Path(arrival.payload["files"][0]).read_text() == "1\n2\n"
    assert not path.exists()
    first.acknowledge(arrival)
    assert list(first.poll()) == list(second.poll()) == []
    path.write_text("3\n")
    for seconds in (7, 10):
        clock.seconds = seconds
        found = list(second.poll())
    assert len(found) == 1
    assert found[0].key != arrival.key


def test_a_worker_that_dies_leaves_the_file_to_the_next(tmp_path: Path) -> None:
    clock = Clock()
    dying = FileArrival(f"{tmp_path}/*.txt", clock=clock)
    (tmp_path / "a.txt").write_text("x")
    list(dying.poll())
    clock.seconds = 5
    (arrival,) = dying.poll()
    assert list(FileArrival(f"{tmp_path}/*.txt").poll()) == [arrival]


def test_a_link_and_a_pattern_of_folders_are_not_taken(tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / "a.txt").symlink_to("/etc/passwd")
    source = FileArrival(f"{tmp_path}/*.txt", clock=clock)
    list(source.poll())
    clock.seconds = 5
    assert list(source.poll()) == []
    with pytest.raises(ConfigurationError, match="only the last part"):
        FileArrival("in*/x.txt")


def test_a_genuine_webhook_has_a_key_of_its_own() -> None:
    body = '{"text": "北京"}'.encode()
    by_hand = "sha256=" + hmac.new(SECRET.encode(), b"1000." + body, hashlib.sha256).hexdigest()
    assert sign_webhook(SECRET, 1000, body) == by_hand
    key = check_webhook(SECRET, "1000", by_hand, body, 1100.0)
    assert key == check_webhook(SECRET, "1000", by_hand, body, 1200.0)
    assert key != check_webhook(SECRET, "1001", sign_webhook(SECRET, 1001, body), body, 1200.0)


@pytest.mark.parametrize(
    ("timestamp", "signature", "body", "now", "message"),
    [
        ("1000", sign_webhook(SECRET, 1000, b"a"), b"b", 1000.0, "signature is wrong"),
        ("1001", sign_webhook(SECRET, 1000, b"a"), b"a", 1000.0, "signature is wrong"),
        ("1000", sign_webhook("another secret of it", 1000, b"a"), b"a", 1000.0, "signature is wrong"),
        ("1000", "", b"a", 1000.0, "signature is wrong"),
        ("1000", "sha256=ü", b"a", 1000.0, "signature is wrong"),
        ("1000", sign_webhook(SECRET, 1000, b"a"), b"a", 1301.0, "more than 300 s"),
        ("1000", sign_webhook(SECRET, 1000, b"a"), b"a", 699.0, "more than 300 s"),
        ("-5", "x", b"a", 0.0, "seconds since 1970"),
        ("٣", "x", b"a", 0.0, "seconds since 1970"),
    ],
)
def test_other_webhooks_are_refused(timestamp: str, signature: str, body: bytes, now: float, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_webhook(SECRET, timestamp, signature, body, now)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(RequestError, match="less than 16"):
        check_webhook("short", "1", "x", b"", 1.0)
