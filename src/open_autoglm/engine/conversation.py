# SPDX-License-Identifier: Apache-2.0
"""What callers write as messages, turned into `Message`s and prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from open_autoglm.chat.messages import Message, Role
from open_autoglm.chat.template import ANSWER_PREFIX, BEGIN_MASK, BEGIN_SEQUENCE, encode, encode_text, render
from open_autoglm.errors import DataError, RequestError

MessageLike = Message | Mapping[str, Any]
Conversation = str | Sequence[MessageLike]


def to_messages(conversation: Conversation) -> list[Message]:
    """A conversation from a user's text, dictionaries `{"role", "content"}`, or messages.

    A content may also be a list of parts `{"type": "text", "text": ...}`.
    Raises RequestError, with the message's place, for anything else.
    """
    if isinstance(conversation, str):
        return [Message(Role.USER, check_text(conversation, "messages"))]
    if not conversation:
        raise RequestError("messages must have at least one message", "messages")
    messages: list[Message] = []
    for index, item in enumerate(conversation):
        place = f"messages[{index}]"
        if isinstance(item, Message):
            check_text(item.content, f"{place}.content")
            messages.append(item)
            continue
        if not isinstance(item, Mapping):
            raise RequestError(f"{place} must be an object with 'role' and 'content'", place)
        if unknown := sorted(set(item) - {"role", "content", "metadata"}):
            raise RequestError(f"{place}.{unknown[0]} is not supported", f"{place}.{unknown[0]}")
        try:
            role = Role.of(str(item.get("role", "")))
        except DataError as error:
            raise RequestError(f"{place}.role: {error}", f"{place}.role") from None
        content = check_text(_joined(item.get("content"), f"{place}.content"), f"{place}.content")
        metadata = check_text(item.get("metadata", ""), f"{place}.metadata")
        messages.append(Message(role, content, metadata))
    return messages


def prompt_token_ids(messages: Sequence[Message], tokenizer: Tokenizer, *, open_answer: bool) -> list[int]:
    """The prompt for the assistant's next turn.

    open_answer: also write what every answer begins with, so that generation starts at its first character.
    """
    token_ids, _ = encode(render(messages, add_generation_prompt=True), tokenizer)
    return token_ids + encode_text(ANSWER_PREFIX, tokenizer) if open_answer else token_ids


def text_token_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """The prompt for the continuation of a plain text: GLM's begin tokens, where the tokenizer has them, and the text.

    Control tokens typed in the text are text.
    """
    begin = (tokenizer.token_to_id(token) for token in (BEGIN_MASK, BEGIN_SEQUENCE))
    return [token_id for token_id in begin if token_id is not None] + encode_text(text, tokenizer)


def input_text(messages: Sequence[Message]) -> str:
    """The last user message, or nothing."""
    return next((message.content for message in reversed(messages) if message.role is Role.USER), "")


def check_text(text: Any, parameter: str) -> str:
    """A string that can be written as UTF-8. Raises RequestError, naming the field."""
    if not isinstance(text, str):
        raise RequestError(f"{parameter} must be a string", parameter)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{parameter} has half of a surrogate pair at character {error.start}, which is not text", parameter
        ) from None
    return text


def _joined(content: Any, place: str) -> Any:
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for index, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or set(part) != {"type", "text"}:
            raise RequestError(f"{place}[{index}] must be a text part; other kinds are not supported", place)
        texts.append(check_text(part["text"], f"{place}[{index}].text"))
    return "".join(texts)
