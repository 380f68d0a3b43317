# SPDX-License-Identifier: Apache-2.0
"""`notify`: tells somebody what came of a run, by a webhook, by mail or on stderr."""

from __future__ import annotations

import hashlib
import json
import smtplib
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from open_autoglm.errors import ConfigurationError, PipelineError
from open_autoglm.pipeline.amounts import Duration
from open_autoglm.pipeline.conditions import parse_message
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stages.guarded_http import JSON_TYPE, GuardedClient, HttpLimits, check_url
from open_autoglm.pipeline.stages.http_request import Allowed, header_key

_NAMES: Final = ("payload", "metadata")
_PORTS: Final = {"starttls": 587, "tls": 465, "none": 25}
_LONGEST_MESSAGE: Final = 100_000
_LONGEST_SUBJECT: Final = 200
_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


class WebhookConfig(BaseModel):
    """url: gets a POST with JSON: `text`, `stage`, `trace_id`, and `payload` if it is asked for."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(repr=False)
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    payload: bool = False
    allow: list[Allowed] = []
    authorities: Path | None = Field(default=None, description="Certificates to trust in place of the usual ones.")

    _is_url = field_validator("url")(check_url)


class MailConfig(BaseModel):
    """host: of the mail server. security: `starttls`, `tls` from the first byte, or `none`, with which no password is
    sent.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    host: str = Field(min_length=1)
    port: int | None = Field(default=None, ge=1, le=65535, description="587, 465 or 25 by the security if not given.")
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str | None = None
    password: str | None = Field(default=None, repr=False, description="Write ${secrets:NAME}.")
    sender: str = Field(min_length=3)
    recipients: list[str] = Field(min_length=1)
    subject: str = "Open-AutoGLM"
    authorities: Path | None = Field(default=None, description="Certificates to trust in place of the usual ones.")

    @model_validator(mode="after")
    def _is_safe(self) -> MailConfig:
        if (self.user is None) != (self.password is None):
            raise ValueError("give both user and password, or neither")
        if self.password is not None and self.security == "none":
            raise ValueError("a password is not sent without encryption; use security: starttls or tls")
        for address in (self.sender, *self.recipients):
            if "@" not in address or any(sign.isspace() or not sign.isprintable() for sign in address):
                raise ValueError(f"{address!r} is not a mail address")
        parse_message(self.subject, _NAMES)
        return self


class NotifyConfig(BaseModel):
    """message: a text in which `{{ payload.written }}` is filled in, by the language of `when`. to: one way; another
    `notify` is another stage, so that one that fails does not send the other again.
    """

    model_config = ConfigDict(extra="forbid")

    message: str = Field(min_length=1)
    to: Literal["stderr", "webhook", "mail"] = "stderr"
    webhook: WebhookConfig | None = None
    mail: MailConfig | None = None
    timeout: Duration = 30.0

    @field_validator("message")
    @classmethod
    def _is_message(cls, value: str) -> str:
        try:
            parse_message(value, _NAMES)
        except PipelineError as error:
            raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _says_where(self) -> NotifyConfig:
        for name in ("webhook", "mail"):
            if (getattr(self, name) is None) == (self.to == name):
                raise ValueError(f"to: {name} and the section {name} go together")
        return self


class Notify:
    """Sends one message for each packet, with a key by which its receiver can tell a repetition."""

    config_model = NotifyConfig

    def __init__(self, config: NotifyConfig) -> None:
        self._config = config
        self._message = parse_message(config.message, _NAMES)
        hook = config.webhook
        self._client = None
        if hook is not None:
            limits = HttpLimits(seconds=config.timeout, redirects=0, content_types=("*/*",))
            self._client = GuardedClient(limits, allow=hook.allow, authorities=hook.authorities, shows_paths=False)

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet as it came."""
        names = {"payload": packet.payload, "metadata": packet.metadata}
        text = self._message(names)[:_LONGEST_MESSAGE]
        if self._config.mail is not None:
            self._mail(self._config.mail, names, text, context)
        elif self._config.webhook is not None:
            self._call(self._config.webhook, text, packet, context)
        else:
            print(f"{context.stage}: {text.translate(_CONTROL)}", file=sys.stderr, flush=True)  # noqa: T201
        context.log.info("told by %s", self._config.to)
        return packet

    def _call(self, hook: WebhookConfig, text: str, packet: Packet, context: StageContext) -> None:
        assert self._client is not None
        body: dict[str, Any] = {"text": text, "stage": context.stage, "trace_id": context.trace_id}
        if hook.payload:
            body["payload"] = packet.payload
        headers = {
            "Content-Type": JSON_TYPE,
            "Idempotency-Key": header_key(context.idempotency_key),
            **hook.headers,
        }
        answer = self._client.request(
            "POST", hook.url, headers=headers, body=json.dumps(body, ensure_ascii=False).encode()
        )
        answer.check()

    def _mail(self, mail: MailConfig, names: dict[str, Any], text: str, context: StageContext) -> None:
        message = EmailMessage()
        message["From"], message["To"] = mail.sender, ", ".join(mail.recipients)
        subject = " ".join(parse_message(mail.subject, _NAMES)(names).translate(_CONTROL).split())
        message["Subject"] = subject[:_LONGEST_SUBJECT]
        message["Date"] = formatdate()
        key = hashlib.sha256(context.idempotency_key.encode()).hexdigest()[:32]
        message["Message-ID"] = f"<{key}@open-autoglm.invalid>"  # the same when it is sent again
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(text)
        with _explained_mail(mail), _open_mail(mail, self._config.timeout) as server:
            if mail.user is not None and mail.password is not None:
                server.login(mail.user, mail.password)
            refused = server.send_message(message, from_addr=mail.sender, to_addrs=mail.recipients)
        if refused:
            raise PipelineError(f"{mail.host} takes no mail for {', '.join(refused)}; the others have it")


def _open_mail(mail: MailConfig, seconds: float) -> smtplib.SMTP:
    try:
        context = ssl.create_default_context(cafile=mail.authorities)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{mail.authorities} holds no certificates to trust: {error}") from None
    port = mail.port or _PORTS[mail.security]
    if mail.security == "tls":
        return smtplib.SMTP_SSL(mail.host, port, timeout=seconds, context=context)
    server = smtplib.SMTP(mail.host, port, timeout=seconds)
    if mail.security == "starttls":
        try:
            server.starttls(context=context)
        except BaseException:
            server.close()
            raise
    return server


@contextmanager
def _explained_mail(mail: MailConfig) -> Iterator[None]:
    """Turn what a mail server says into our errors: what may pass is tried again, the rest is not."""
    where = f"the mail server {mail.host}"
    try:
        yield
    except smtplib.SMTPAuthenticationError as error:
        raise ConfigurationError(f"{where} does not take the user and password ({error.smtp_code})") from None
    except smtplib.SMTPNotSupportedError as error:
        raise ConfigurationError(f"{where} cannot do what the settings ask for: {error}") from None
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        kind = ConnectionError if all(400 <= code < 500 for code in codes) else PipelineError
        raise kind(f"{where} takes no mail for {', '.join(error.recipients)}") from None
    except smtplib.SMTPResponseException as error:
        told = error.smtp_error.decode(errors="replace") if isinstance(error.smtp_error, bytes) else error.smtp_error
        kind = PipelineError if error.smtp_code >= 500 else ConnectionError
        raise kind(f"{where} answered {error.smtp_code}: {told[:300]}") from None
    except ssl.SSLCertVerificationError as error:
        raise ConfigurationError(f"{where} has a certificate that is not trusted: {error.verify_message}") from None
    except (smtplib.SMTPException, OSError) as error:
        raise ConnectionError(f"{where}: {type(error).__name__}: {error}") from None
