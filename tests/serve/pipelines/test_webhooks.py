# SPDX-License-Identifier: Apache-2.0
"""Webhooks: signed news start one run each, and what is not genuine starts none and learns nothing."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.serve.pipelines.conftest import SECRET, Station, checked

BODY = json.dumps({"ticket": 7, "text": "It does not work — 坏了"}).encode()


def sign(body: bytes, timestamp: int, delivery: str = "", secret: str = SECRET) -> dict[str, str]:
    """By hand, as docs/pipelines.md says it."""
    signed = b".".join([str(timestamp).encode(), *([delivery.encode()] if delivery else []), body])
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    headers = {"X-Webhook-Timestamp": str(timestamp), "X-Webhook-Signature": f"sha256={digest}"}
    return {**headers, "X-Webhook-Delivery": delivery} if delivery else headers


def send(station: Station, body: bytes, headers: dict[str, str], path: str = "/hooks/tickets") -> httpx.Response:
    return station.client.post(path, content=body, headers=headers)


def runs_of(station: Station) -> list[dict[str, Any]]:
    return station.get("/v1/runs", pipeline="tickets")["data"]


def test_news_start_one_run_with_the_body_as_its_payload(station: Station) -> None:
    before, now = len(runs_of(station)), int(time.time())
    first = send(station, BODY, sign(BODY, now, "d-1"))
    assert first.status_code == 202
    answer = checked(first.json(), "WebhookRun")
    assert answer["new"] is True
    assert "no worker is alive" in answer["note"]
    for headers in (sign(BODY, now, "d-1"), sign(BODY, now + 5, "d-1")):  # overheard; sent again by its sender
        again = send(station, BODY, headers).json()
        assert (again["id"], again["new"]) == (answer["id"], False)
    other = send(station, BODY, sign(BODY, now, "d-2")).json()
    assert other["new"] is True
    plain = send(station, BODY, sign(BODY, now)).json()
    assert plain["new"] is True
    assert send(station, BODY, sign(BODY, now)).json() == {**plain, "new": False}
    assert len(runs_of(station)) == before + 3
    with station.working():
        shown = station.until_over(answer["id"])
    assert shown["payload"] == {**json.loads(BODY), "a": 1}


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/hooks/tickets", lambda now: {}),
        ("/hooks/tickets", lambda now: sign(BODY, now, secret="another-secret-of-16")),
        ("/hooks/tickets", lambda now: sign(BODY + b" ", now)),
        ("/hooks/tickets", lambda now: sign(BODY, now - 400)),
        ("/hooks/tickets", lambda now: sign(BODY, now + 400)),
        ("/hooks/tickets", lambda now: {**sign(BODY, now), "X-Webhook-Delivery": "mine"}),
        ("/hooks/tickets", lambda now: {**sign(BODY, now, "d-1"), "X-Webhook-Delivery": "d-9"}),
        ("/hooks/tickets", lambda now: {**sign(BODY, now), "X-Webhook-Signature": "sha256=é"}),
        ("/hooks/tickets", lambda now: sign(BODY, now, "a.b")),
        ("/hooks/tickets/", lambda now: sign(BODY, now)),
        ("/hooks/nothing", lambda now: sign(BODY, now)),
        ("/hooks/open", lambda now: sign(BODY, now)),
        ("/hooks/open", lambda now: sign(BODY, now, secret="")),
    ],
)
def test_what_is_not_genuine_starts_nothing(
    station: Station, path: str, headers: Callable[[int], dict[str, str]]
) -> None:
    before = len(runs_of(station))
    encoded = {name.encode(): value.encode() for name, value in headers(int(time.time())).items()}
    response = station.client.post(path, content=BODY, headers=encoded)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_signature"
    assert SECRET not in response.text
    assert len(runs_of(station)) == before


def test_nobody_learns_which_webhooks_there_are(station: Station) -> None:
    for headers in ({}, sign(BODY, int(time.time()), secret="x" * 20), sign(BODY, 0, "d", "y" * 20)):
        answers = [send(station, BODY, headers, path) for path in ("/hooks/tickets", "/hooks/nothing", "/hooks/open")]
        assert len({answer.text for answer in answers}) == 1, answers[0].text


def test_bodies_are_bounded_json_objects(station: Station) -> None:
    now = int(time.time())
    for body in (b"[1]", b"", b'{"a": NaN}', b"\xff", b'{"a"'):
        assert send(station, body, sign(body, now)).status_code == 400, body
    assert send(station, b"x" * 2001, sign(b"x" * 2001, now)).status_code == 413
    fits = json.dumps({"a": "x" * 1900}).encode()
    assert send(station, fits, sign(fits, now)).status_code == 202
