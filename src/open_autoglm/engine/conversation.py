# SPDX-License-Identifier: Apache-2.0
"""What callers write as messages, turned into `Message`s and prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from open_autoglm.chat.detection import BUILT_FORMAT
from open_autoglm.chat.format import DEFAULT_OPTIONS, ChatFormat, ChatOptions
from open_autoglm.chat.messages import Message, Role
from open_autoglm.chat.segments import PromptEncoder
from open_autoglm.chat.template import BEGIN_MASK, BEGIN_SEQUENCE
from open_autoglm.chat.tools import Tool, check_tools, read_tools
from open_autoglm.errors import DataError, RequestError

_FIELDS: Final = frozenset({"role", "content", "metadata"})
_FIELDS_OF: Final = {
    Role.ASSISTANT: frozenset({"reasoning_content", "tool_calls"}),
    Role.OBSERVATION: frozenset({"tool_call_id"}),
}

_MEDIA: Final = {
    **dict.fromkeys(("image", "image_url", "input_image"), "an image"),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), "a sound"),
    **dict.fromkeys(("video", "video_url", "input_video"), "a video"),
    **dict.fromkeys(("file", "input_file"), "a file"),
}
"""Kinds of parts that models of other families read."""

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
        messages.append(_read(item, place))
    return messages


def _read(item: Mapping[str, Any], place: str) -> Message:
    try:
        role = Role.of(str(item.get("role", "")))
    except DataError as error:
        raise RequestError(f"{place}.role: {error}", f"{place}.role") from None
    if unknown := sorted(set(item) - _FIELDS - _FIELDS_OF.get(role, frozenset())):
        raise RequestError(f"{place}.{unknown[0]} is not supported", f"{place}.{unknown[0]}")
    values = dict(item)
    calls = item.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise RequestError(f"{place}.tool_calls must be a list of calls", f"{place}.tool_calls")
    for field in ("content", "metadata", "reasoning_content", "tool_call_id"):
        if field in item or field == "content":
            value = _joined(item.get(field), f"{place}.{field}")
            if value is None and (field == "reasoning_content" or (field == "content" and calls)):
                value = ""  # OpenAI's clients send null for what is not there
            values[field] = check_text(value, f"{place}.{field}")
    try:
        message = Message.from_openai(values)
    except DataError as error:
        raise RequestError(f"{place}.tool_calls: {error}", f"{place}.tool_calls") from None
    for number, call in enumerate(message.tool_calls):
        check_text(call.name + call.arguments, f"{place}.tool_calls[{number}]")
    return message


def prompt_token_ids(
    messages: Sequence[Message],
    encoder: PromptEncoder,
    *,
    open_answer: bool,
    chat_format: ChatFormat = BUILT_FORMAT,
    tools: Sequence[Tool] = (),
    options: ChatOptions = DEFAULT_OPTIONS,
) -> list[int]:
    """The prompt for the assistant's next turn.

    open_answer: also write what every answer begins with, so that generation starts at its first character.
    chat_format: the model's; that of the models built by us if not given.
    Raises RequestError for messages that the format cannot express.
    """
    try:
        segments = chat_format.prompt(messages, tools, options, open_answer=open_answer)
    except DataError as error:
        raise RequestError(f"messages: {error}", "messages") from None
    return encoder.encode(segments)[0]


def to_tools(value: Any) -> tuple[Tool, ...]:
    """The tools of a request, in OpenAI's shape, checked; a `Tool` is taken as it is, such as those of training data.

    Raises RequestError, with the tool's place.
    """
    try:
        tools = read_tools(value)
        if any(not isinstance(item, Tool) for item in value or ()):
            check_tools(tools)
    except DataError as error:
        raise RequestError(str(error), "tools") from None
    return tools


def to_options(value: Any) -> ChatOptions:
    """The options of a prompt from `chat_template_kwargs`. Raises RequestError for a key that is not on the list."""
    if value is not None and not isinstance(value, Mapping):
        raise RequestError("chat_template_kwargs must be an object", "chat_template_kwargs")
    try:
        return ChatOptions.of(value)
    except DataError as error:
        raise RequestError(f"chat_template_kwargs: {error}", "chat_template_kwargs") from None


def text_token_ids(text: str, encoder: PromptEncoder) -> list[int]:
    """The prompt for the continuation of a plain text: GLM's begin tokens, where the tokenizer has them, and the text.

    Control tokens typed in the text are text.
    """
    begin = (encoder.token_id(token) for token in (BEGIN_MASK, BEGIN_SEQUENCE))
    return [token_id for token_id in begin if token_id is not None] + encoder.encode_text(text)


def conversations_of(messages: Conversation | Sequence[Conversation]) -> tuple[list[Conversation], bool]:
    """One conversation or a list of them as a list, and whether it was one. Raises RequestError when there is none."""
    if isinstance(messages, str):
        return [messages], False
    if not messages:
        raise RequestError("messages must have at least one message", "messages")
    if all(isinstance(item, Message | Mapping) for item in messages):
        return [messages], False  # pyright: ignore[reportReturnType]
    return list(messages), True  # pyright: ignore[reportReturnType]


def token_rows(value: Sequence[int] | Sequence[Sequence[int]]) -> list[list[int]]:
    """One prompt in token ids or a list of them as a list. Raises RequestError for what are no whole numbers."""
    is_one = len(value) > 0 and not isinstance(value[0], Sequence)
    rows: list[Any] = [value] if is_one else list(value)
    for row in rows:
        if not all(isinstance(token_id, int) and not isinstance(token_id, bool) for token_id in row):
            raise RequestError("prompt_token_ids must be whole numbers", "prompt_token_ids")
    return [list(row) for row in rows]


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


def _refused_part(part: Any, place: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(kind, str) and kind in _MEDIA:
        return f"{place} is {_MEDIA[kind]}; the model reads text only, and no address is fetched: leave it out"
    return f'{place} must be a text part, {{"type": "text", "text": ...}}; other kinds are not supported'


def _joined(content: Any, place: str) -> Any:
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for index, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or set(part) != {"type", "text"}:
            raise RequestError(_refused_part(part, f"{place}[{index}]"), place)
        texts.append(check_text(part["text"], f"{place}[{index}].text"))
    return "".join(texts)
