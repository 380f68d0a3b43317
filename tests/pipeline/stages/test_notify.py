# SPDX-License-Identifier: Apache-2.0
"""`notify` with a real mail server, a real HTTP server, and the terminal."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from pydantic import ValidationError
from tests.pipeline.stages.http_server import as_json, site
from tests.serve.test_transport_security import make_pair

from open_autoglm.errors import ConfigurationError, PipelineError

Invoke = Callable[..., dict[str, Any]]
MAIL = {"host": "127.0.0.1", "sender": "runs@example.com", "recipients": ["team@example.com"]}


@dataclass
class Inbox:
    """What came in. refuse: what it says to some recipients."""

    letters: list[Envelope] = field(default_factory=list)
    refuse: dict[str, str] = field(default_factory=dict)

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, _: list[str]
    ) -> str:
        if address in self.refuse:
            return self.refuse[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.letters.append(envelope)
        return "250 taken"


@pytest.fixture
def mail_server() -> Iterator[Callable[..., tuple[Inbox, int]]]:
    running: list[Controller] = []

    def start(**options: Any) -> tuple[Inbox, int]:
        inbox = Inbox()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]  # aiosmtpd asks itself at the port that it was given, so 0 will not do
        controller = Controller(inbox, hostname="127.0.0.1", port=port, **options)
        controller.start()
        running.append(controller)
        return inbox, port

    yield start
    for controller in running:
        controller.stop()


def test_a_letter_arrives_as_it_was_written(invoke: Invoke, mail_server: Any) -> None:
    inbox, port = mail_server()
    mail = {**MAIL, "port": port, "security": "none", "subject": "{{ payload.written }} 张\r\nBcc: x@example.com"}
    config = {"to": "mail", "message": "已回答 {{ payload.records|length }}: {{ payload.more }}", "mail": mail}
    payload = {"records": [{"id": 1}], "written": 7, "more": {"a": "中"}}
    for _ in range(2):
        assert invoke("notify", config, payload) == payload
    first, second = (message_from_bytes(one.content, policy=policy.default) for one in inbox.letters)
    assert inbox.letters[0].rcpt_tos == ["team@example.com"]
    assert first["Subject"].startswith("7 张")
    assert first["Bcc"] is None
    assert first.get_content().strip() == '已回答 1: {"a": "中"}'
    assert first["Message-ID"] == second["Message-ID"]


def test_passwords_go_over_encryption_only_and_are_in_no_message(
    invoke: Invoke, mail_server: Any, tmp_path: Path
) -> None:
    pair = make_pair(tmp_path, "mail")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)

    def check(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        good = isinstance(data, LoginPassword) and data.password == b"pass-word"
        return AuthResult(success=good, handled=False)

    inbox, port = mail_server(tls_context=context, require_starttls=True, authenticator=check, auth_require_tls=True)
    mail = {**MAIL, "port": port, "user": "me", "password": "pass-word"}
    config = {"to": "mail", "message": "x", "mail": mail}
    with pytest.raises(ConfigurationError, match="not trusted"):
        invoke("notify", config, {})
    mail["authorities"] = str(pair.certificate)
    invoke("notify", config, {})
    assert len(inbox.letters) == 1
    with pytest.raises(ConfigurationError, match="does not take the user") as caught:
        invoke("notify", {**config, "mail": {**mail, "password": "other-word"}}, {})
    assert "other-word" not in str(caught.value)
    with pytest.raises(ValidationError, match="not sent without encryption"):
        invoke("notify", {**config, "mail": {**mail, "security": "none"}}, {})


def test_what_may_pass_is_told_apart_from_what_does_not(invoke: Invoke, mail_server: Any) -> None:
    inbox, port = mail_server()
    mail = {**MAIL, "port": port, "security": "none"}
    inbox.refuse["team@example.com"] = "450 later"
    with pytest.raises(ConnectionError, match="takes no mail for team@example"):
        invoke("notify", {"to": "mail", "message": "x", "mail": mail}, {})
    inbox.refuse["team@example.com"] = "550 unknown"
    with pytest.raises(PipelineError, match="takes no mail"):
        invoke("notify", {"to": "mail", "message": "x", "mail": mail}, {})
    mail["recipients"] = ["team@example.com", "b@example.com"]
    with pytest.raises(PipelineError, match=r"for team@example\.com; the others have it"):
        invoke("notify", {"to": "mail", "message": "x", "mail": mail}, {})
    assert [one.rcpt_tos for one in inbox.letters] == [["b@example.com"]]


def test_a_webhook_is_called_once_by_its_key(invoke: Invoke) -> None:
    with site(lambda _: as_json({"ok": True})) as server:
        hook = {"url": server.url + "/hook?token=abc", "headers": {"Authorization": "Bearer t"}, "payload": True}
        config = {"to": "webhook", "message": "{{ payload.n }} done", "webhook": {**hook, "allow": ["127.0.0.1"]}}
        invoke("notify", config, {"n": 3})
        asked = server.asked[0]
        body = asked.json()
        assert (body["text"], body["stage"], body["payload"]) == ("3 done", "stage", {"n": 3})
        assert asked.headers["Idempotency-Key"] == "run/stage/0"
        server.answer = lambda _: as_json({"error": "no"}, 403)
        with pytest.raises(PipelineError, match="answered 403") as caught:
            invoke("notify", config, {"n": 3})
        assert "token" not in str(caught.value)
        assert "/hook" not in str(caught.value), "the path of a hook is often its secret"
        with pytest.raises(PipelineError, match="not a public address"):
            invoke("notify", {**config, "webhook": hook}, {"n": 3})


def test_the_terminal_gets_no_control_characters(invoke: Invoke, capfd: pytest.CaptureFixture[str]) -> None:
    invoke("notify", {"message": "a {{ payload.x }}"}, {"x": "b\x1b[2J"})
    assert capfd.readouterr().err == "stage: a b\\x1b[2J\n"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"message": "{{ payload.x() }}"}, "cannot hold a call"),
        ({"message": "{{ paylod.x }}"}, "did you mean 'payload'"),
        ({"message": "x", "to": "mail"}, "go together"),
        ({"message": "x", "mail": {**MAIL}}, "go together"),
        ({"message": "x", "to": "mail", "mail": {**MAIL, "recipients": ["a\r\nb@c"]}}, "not a mail address"),
        ({"message": "x", "to": "mail", "mail": {**MAIL, "user": "a"}}, "both user and password"),
    ],
)
def test_settings_with_a_fault_are_refused(invoke: Invoke, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        invoke("notify", config, {})
    with pytest.raises(PipelineError, match="lacks"):
        invoke("notify", {"message": "{{ payload.none }}"}, {})
