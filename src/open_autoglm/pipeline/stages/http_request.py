# SPDX-License-Identifier: Apache-2.0
"""`http_request`: asks a server about each record, or about the whole packet, without reaching what is not public."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.amounts import Duration, Size
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stages.address_guard import AllowRule
from open_autoglm.pipeline.stages.guarded_http import JSON_TYPE, GuardedClient, HttpLimits, check_url
from open_autoglm.pipeline.stages.record_fields import ID, name_of, records_of, with_records
from open_autoglm.spelling import did_you_mean

_PLACEHOLDER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "DELETE"})
_LONGEST_KEY: Final = 200


def _rule(text: str) -> str:
    AllowRule.parse(text)
    return text


Allowed = Annotated[str, AfterValidator(_rule)]
"""An entry of an allow-list."""


class HttpRequestConfig(BaseModel):
    """url: `{field}` in its path or query is a field of the record. per: one request for each record, or one for the
    packet. send: the fields that the JSON body has; all if not given. output: where the answer goes.

    allow: addresses, networks and hosts that are not public and may be asked all the same, such as 10.1.2.3:8080.
    on_error: an answer that is no success ends the run, or its record says so in `error`.
    """

    model_config = ConfigDict(extra="forbid")

    url: str
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    per: Literal["record", "packet"] = "record"
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    send: list[str] | None = None
    output: str = "response"
    idempotency_header: str = Field(default="Idempotency-Key", pattern=r"^[A-Za-z0-9-]+$")
    timeout: Duration = Field(default=30.0, description="For one answer, with all redirects.")
    largest: Size = Field(default=1_000_000, description="Of one answer.")
    redirects: int = Field(default=3, ge=0, le=10)
    content_types: list[str] = Field(default_factory=lambda: [JSON_TYPE, "text/*"], min_length=1)
    allow: list[Allowed] = []
    authorities: Path | None = Field(default=None, description="Certificates to trust in place of the usual ones.")
    on_error: Literal["raise", "record"] = "raise"

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        check_url(_PLACEHOLDER.sub("x", value))
        authority = value.partition("://")[2]
        authority = authority[: min((authority.find(sign) for sign in "/?#" if sign in authority), default=None)]
        if _PLACEHOLDER.search(authority) or _PLACEHOLDER.search(value.partition("://")[0]):
            raise ValueError("a record may fill in the path and the query, not which server is asked")
        return value

    @model_validator(mode="after")
    def _body_fits(self) -> HttpRequestConfig:
        if self.send is not None and self.method in _WITHOUT_BODY:
            raise ValueError(f"a {self.method} has no body, so that 'send' says nothing")
        if self.per == "packet" and self.on_error == "record":
            raise ValueError("on_error: record is for requests per record")
        return self


class HttpRequest:
    """Every request carries a key of its own that stays the same when it is tried again."""

    config_model = HttpRequestConfig

    def __init__(self, config: HttpRequestConfig) -> None:
        self._config = config
        limits = HttpLimits(config.timeout, config.largest, config.redirects, tuple(config.content_types))
        self._client = GuardedClient(limits, allow=config.allow, authorities=config.authorities)

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with the answers."""
        config = self._config
        if config.per == "packet":
            value = self._ask(packet.payload, context.idempotency_key, "the payload")
            return packet.with_payload({**packet.payload, config.output: value})
        records = [dict(record) for record in records_of(packet)]
        for index, record in enumerate(records):
            if context.cancelled():
                raise PipelineError("stopped")
            key, name = f"{context.idempotency_key}/{record.get(ID, index)}", name_of(record)
            value, error = None, None
            try:
                value = self._ask(record, key, name)
            except PipelineError as problem:
                if config.on_error == "raise":
                    raise PipelineError(f"{name}: {problem}") from None
                error = str(problem)
            record[config.output] = value
            if config.on_error == "record":
                record["error"] = error
        return with_records(packet, context, records)

    def _ask(self, values: Mapping[str, Any], key: str, name: str) -> Any:
        config = self._config
        headers = {config.idempotency_header: header_key(key), **config.headers}
        body = None
        if config.method not in _WITHOUT_BODY:
            chosen = dict(values)
            if config.send is not None:
                chosen = {field: _field(values, field, name) for field in config.send}
            body = json.dumps(chosen, ensure_ascii=False).encode()
            headers.setdefault("Content-Type", JSON_TYPE)

        def fill(found: re.Match[str]) -> str:
            value = _field(values, found[1], name)
            if isinstance(value, dict | list) or value is None:
                raise PipelineError(f"{name}: '{found[1]}' is no text or number that a URL could hold")
            return (
                quote(str(value), safe="") if str(value) not in (".", "..") else quote(str(value)).replace(".", "%2E")
            )

        answer = self._client.request(config.method, _PLACEHOLDER.sub(fill, config.url), headers=headers, body=body)
        answer.check()
        return answer.value()


def header_key(key: str) -> str:
    """An idempotency key as a header can carry it; a long one as its hash."""
    quoted = quote(key, safe="/#:._-")
    return quoted if len(quoted) <= _LONGEST_KEY else hashlib.sha256(key.encode()).hexdigest()


def _field(values: Mapping[str, Any], field: str, name: str) -> Any:
    if field not in values:
        raise PipelineError(f"{name} has no field '{field}'{did_you_mean(field, map(str, values))}")
    return values[field]
