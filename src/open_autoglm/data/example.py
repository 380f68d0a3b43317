# SPDX-License-Identifier: Apache-2.0
"""`Example`: the one shape into which every file shape is read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, Final

from open_autoglm.chat.messages import Message, Role


@dataclass(frozen=True)
class Media:
    """An image, video or audio that belongs to an example.

    kind: as in its placeholder, `<image>`, `<video>` or `<audio>`; the placeholders of an example stand for its media
    in order. reference: a path or address as the file has it; nothing is opened.
    """

    kind: str
    reference: str


@dataclass(frozen=True)
class Example:
    """A dialogue to learn from, or a piece of plain text (one assistant message, no user message).

    messages: in order; the last one is the answer to learn.
    source: where it came from, as `FILE:ROW`, rows counted from 1 as an editor counts lines.
    tools: the functions that the assistant may call, as OpenAI describes them; a chat format lists them in the prompt.
    rejected: what should not be answered after the same prompt, of a preference pair.
    desirable: whether the answer is a good one, of a data set that says so for each (KTO).
    """

    messages: tuple[Message, ...]
    source: str = ""
    tools: tuple[dict[str, Any], ...] = field(default=(), hash=False)
    rejected: tuple[Message, ...] = ()
    desirable: bool | None = None
    media: tuple[Media, ...] = ()

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All messages before the answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """What the model should say."""
        return self.messages[-1].content

    @property
    def input_text(self) -> str:
        """The last user message, or nothing for plain text."""
        for message in reversed(self.prompt):
            if message.role is Role.USER:
                return message.content
        return ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        values: dict[str, Any] = {
            "messages": [message.to_dict() for message in self.messages],
            "source": self.source,
        }
        if self.tools:
            values["tools"] = list(self.tools)
        if self.rejected:
            values["rejected"] = [message.to_dict() for message in self.rejected]
        if self.desirable is not None:
            values["desirable"] = self.desirable
        if self.media:
            values["media"] = [{"kind": media.kind, "reference": media.reference} for media in self.media]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Example:
        """The inverse of `to_dict`."""
        return cls(
            tuple(Message.from_dict(message) for message in values["messages"]),
            values.get("source", ""),
            tuple(values.get("tools", ())),
            tuple(Message.from_dict(message) for message in values.get("rejected", ())),
            values.get("desirable"),
            tuple(Media(media["kind"], media["reference"]) for media in values.get("media", ())),
        )


PlainExample = Sequence[str]
"""An example of nothing but a source, roles and texts: `(source, role, text, role, text, ...)`, the answer last.

Most examples are; so they take a fifth of the memory, and a fraction of the time to make.
"""


def unpack_plain(plain: PlainExample) -> Example:
    """The `Example` that it stands for."""
    parts = iter(plain)
    source = next(parts)
    example = _new(Example)
    _set(example, "messages", tuple([_say(role, text) for role, text in zip(parts, parts, strict=True)]))
    _set(example, "source", source)
    return example


def pack_plain(example: Example) -> PlainExample | None:
    """What `unpack_plain` undoes; None where there is more to the example than that."""
    if _example_rest(example) != _EXAMPLE_REST or any(_message_rest(m) != _MESSAGE_REST for m in example.messages):
        return None
    return (example.source, *itertools.chain.from_iterable([(m.role.value, m.content) for m in example.messages]))


def _say(role: str, text: str) -> Message:
    message = _new(Message)
    _set(message, "role", _ROLES[role])
    _set(message, "content", text)
    return message


# An initialiser sets every field, one by one; what is not set has the default of its class.
_new: Final = object.__new__
_set: Final = object.__setattr__
_ROLES: Final = {role.value: role for role in Role}
_message_rest: Final = attrgetter(*(f.name for f in fields(Message) if f.name not in ("role", "content")))
_example_rest: Final = attrgetter(*(f.name for f in fields(Example) if f.name not in ("messages", "source")))
_MESSAGE_REST: Final = _message_rest(Message(Role.USER, ""))
_EXAMPLE_REST: Final = _example_rest(Example(()))
