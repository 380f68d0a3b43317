# SPDX-License-Identifier: Apache-2.0
"""What `trigger.queue` says: `redis://HOST:PORT/STREAM?group=NAME`, `nats://...`, `kafka://...`, or a plugin's."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from open_autoglm.errors import ConfigurationError
from open_autoglm.pipeline.amounts import seconds_of
from open_autoglm.plugins.interfaces import Queue
from open_autoglm.plugins.registry import PluginRegistry
from open_autoglm.spelling import did_you_mean

DEFAULT_GROUP: Final = "open-autoglm"
DEFAULT_IDLE: Final = 60.0
DEFAULT_DELIVERIES: Final = 5
_SCHEME: Final = re.compile(r"[a-z][a-z0-9_+.-]{0,63}")
_BUILT_IN: Final = {
    "redis": "redis_stream:RedisStream",
    "rediss": "redis_stream:RedisStream",
    "nats": "nats_stream:NatsStream",
    "kafka": "kafka_topic:KafkaTopic",
    "kafkas": "kafka_topic:KafkaTopic",
}

_OF_SEVERAL_HOSTS: Final = ("kafka", "kafkas")


@dataclass(frozen=True)
class QueueAddress:
    """A queue's URL, taken apart.

    server: scheme, user and host. path: what follows, decoded. group: workers of one group share the messages.
    idle_seconds: a message that a worker took and did not acknowledge goes to another one after so long.
    deliveries: of one message at most, before it is put aside. options: what else the URL says.
    """

    scheme: str
    server: str = field(repr=False)
    path: tuple[str, ...]
    group: str = DEFAULT_GROUP
    idle_seconds: float = DEFAULT_IDLE
    deliveries: int = DEFAULT_DELIVERIES
    options: dict[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The URL without a password."""
        return f"{self.scheme}://{self.server.rpartition('@')[2].rpartition('//')[2]}/{'/'.join(self.path)}"

    def to_dict(self) -> dict[str, Any]:
        """What a `Queue` is connected with."""
        return {
            "server": self.server,
            "path": list(self.path),
            "group": self.group,
            "idle_seconds": self.idle_seconds,
            "options": self.options,
        }


def parse_address(url: str) -> QueueAddress:
    """Raises ConfigurationError for a URL that names no queue, without showing what may be a password."""
    scheme, _, rest = url.partition("://")
    try:
        parts = urlsplit(f"queue://{rest}")  # a plugin's name may have an underscore, which no scheme has
        for host in parts.netloc.rpartition("@")[2].split(",") if scheme in _OF_SEVERAL_HOSTS else [parts.netloc]:
            _ = urlsplit(f"//{host}").port
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        parts, options, rest = urlsplit(""), {}, ""
    if not _SCHEME.fullmatch(scheme) or not rest:
        raise ConfigurationError("the queue is no URL; write it like redis://localhost/tickets?group=answers")
    path = tuple(unquote(part) for part in parts.path.split("/") if part)
    values: dict[str, Any] = {"group": options.pop("group", DEFAULT_GROUP)}
    if not values["group"]:
        raise ConfigurationError("the queue's group has no name")
    try:
        values["idle_seconds"] = seconds_of(options.pop("idle", DEFAULT_IDLE))
    except ValueError as error:
        raise ConfigurationError(f"the queue's idle: {error}") from None
    deliveries = options.pop("deliveries", str(DEFAULT_DELIVERIES))
    if not (deliveries.isascii() and deliveries.isdigit() and 1 <= int(deliveries) <= 1000):
        raise ConfigurationError(f"the queue's deliveries must be a whole number from 1 to 1000, not '{deliveries}'")
    values["deliveries"] = int(deliveries)
    return QueueAddress(scheme, f"{scheme}://{parts.netloc}", path, options=options, **values)


def connect(address: QueueAddress) -> Queue:
    """The queue, ready to be asked; nothing is sent to it yet by those that are built in.

    Raises ConfigurationError for a scheme that neither we nor a plugin know, an address that the queue does not
    understand, and a library that is missing.
    """
    queue: Queue
    if address.scheme in _BUILT_IN:
        module, _, name = _BUILT_IN[address.scheme].partition(":")
        queue = getattr(importlib.import_module(f"open_autoglm.pipeline.triggers.queues.{module}"), name)()
    else:
        check_scheme(address.scheme)
        queue = PluginRegistry().load("queue", address.scheme)()
    queue.connect(address.to_dict())
    return queue


def check_scheme(scheme: str) -> None:
    """Raises ConfigurationError, with what was probably meant, for a scheme that nobody knows."""
    if scheme in _BUILT_IN:
        return
    known = PluginRegistry().enabled("queue")
    if scheme not in known:
        names = (*_BUILT_IN, *known)
        raise ConfigurationError(
            f"no queue is known as {scheme}://{did_you_mean(scheme, names)} "
            f"(there are {', '.join(names)}; a plugin of the kind queue adds another)"
        )


def check_options(address: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raises ConfigurationError for an option that the queue does not know."""
    for name in address["options"]:
        if name not in known:
            names = ("group", "idle", "deliveries", *known)
            raise ConfigurationError(f"the queue's URL has the unknown option '{name}'{did_you_mean(name, names)}")
