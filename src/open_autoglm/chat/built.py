# SPDX-License-Identifier: Apache-2.0
"""The chat format of the models built by us: the turns of glm-4-9b-chat, the tools of 0414, the reasoning of GLM-Z1.

Without tools and reasoning it is glm-4-9b-chat byte for byte. Tools are listed as 0414 does, since glm-4-9b-chat lists
them below words that introduce the model as ChatGLM, which a model of ours is not. Reasoning stands before the content
of its turn as in GLM-Z1, but is learnt from its first tag on: the data says when to think, so the model says it too.
A call is a turn of its own (`<|assistant|>name`, a newline, its arguments), as in both. `template.CHAT_TEMPLATE` is the
same format in Jinja.

`ReadTwiceFormat` is the same, but writes what users say twice. A model that reads from left to right knows nothing of
what follows when it reads a word for the first time, and all of it at the second: a song's title is told from an
artist by the words after it. Small models that copy fields out of short texts learn faster and further so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from open_autoglm.chat.format import DEFAULT_OPTIONS, ChatFormat, ChatOptions, Turn, last_user, lay_out, openai_message
from open_autoglm.chat.messages import END_THINK, THINK, Message, Role
from open_autoglm.chat.parsing_lines import LinesParser
from open_autoglm.chat.segments import Segment
from open_autoglm.chat.template import ANSWER_PREFIX, ROLE_TOKENS
from open_autoglm.chat.tools import Tool
from open_autoglm.chat.wording import list_tools_0414

_ASSISTANT = Segment(ROLE_TOKENS[Role.ASSISTANT], control=True)


class BuiltFormat(ChatFormat):
    """A model thinks where its data does: `enable_thinking` changes nothing here.

    The reasoning of turns before the last user message is left out, unless `clear_thinking` is off.
    """

    name = "open-autoglm"
    answer_prefix = ANSWER_PREFIX
    thinks = True
    tags = (THINK, END_THINK)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        options: ChatOptions = DEFAULT_OPTIONS,
        *,
        add_generation_prompt: bool = False,
    ) -> list[Segment]:
        """See `ChatFormat.render`."""
        turns = [Turn(Role.SYSTEM, [Segment(f"\n{list_tools_0414(tools)}")])] if tools else []
        last = last_user(messages)
        for place, message in enumerate(messages):
            turns += self._turns(message, thoughts=place > last or not options.clear_thinking)
        return lay_out(turns, self.generation_prompt(options) if add_generation_prompt else None)

    def generation_prompt(self, options: ChatOptions = DEFAULT_OPTIONS, *, open_answer: bool = False) -> list[Segment]:
        """See `ChatFormat.generation_prompt`. An opened answer may still begin with its reasoning."""
        return [_ASSISTANT, Segment(ANSWER_PREFIX)] if open_answer else [_ASSISTANT]

    def keeps_reasoning(self, messages: Sequence[Message], place: int, options: ChatOptions = DEFAULT_OPTIONS) -> bool:
        """See `ChatFormat.keeps_reasoning`."""
        return not options.clear_thinking or super().keeps_reasoning(messages, place, options)

    def parser(
        self,
        tools: Sequence[Tool] | None = None,
        options: ChatOptions = DEFAULT_OPTIONS,
        *,
        open_answer: bool = False,
        tokens: bool = False,
    ) -> LinesParser:
        """See `ChatFormat.parser`."""
        return LinesParser(tools, may_think=True, open_answer=open_answer, tokens=tokens)

    def template_messages(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """See `ChatFormat.template_messages`; the arguments of calls as they were written."""
        given = [openai_message(message) for message in messages]
        for values, message in zip(given, messages, strict=True):
            for call, written in zip(values.get("tool_calls", ()), message.tool_calls, strict=True):
                call["function"]["arguments"] = written.arguments
        return given

    def _content(self, message: Message) -> str:
        """What a message says, as the model reads it."""
        return message.content

    def _turns(self, message: Message, *, thoughts: bool) -> list[Turn]:
        learn = message.role is Role.ASSISTANT and message.learn
        reasoning = message.reasoning.strip() if thoughts and message.role is Role.ASSISTANT else ""
        turns: list[Turn] = []
        if reasoning:
            segments = [
                Segment("\n", learn=learn),
                Segment(THINK, learn=learn, tag=True),
                Segment(f"\n{reasoning}\n", learn=learn),
                Segment(END_THINK, learn=learn, tag=True),
                Segment(f"\n{message.content}", learn=learn),
            ]
            turns.append(Turn(message.role, segments, learn))
        elif message.content or not message.tool_calls:
            content = Segment(f"{message.metadata}\n{self._content(message)}", learn=learn)
            turns.append(Turn(message.role, [content], learn, message.calls))
        for call in message.tool_calls:
            said = Segment(f"{call.name}\n{call.arguments}", learn=learn)
            turns.append(Turn(Role.ASSISTANT, [said], learn, calls=True))
        return turns


class ReadTwiceFormat(BuiltFormat):
    """Our format, in which the content of a user's message stands twice, on lines of its own."""

    name = "open-autoglm-read-twice"

    def _content(self, message: Message) -> str:
        if message.role is not Role.USER or not message.content:
            return message.content
        return f"{message.content}\n{message.content}"
