# SPDX-License-Identifier: Apache-2.0
"""Chat orders -> engine requests: tools, thinking, the form of the answer, and how the answer is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from open_autoglm.chat.format import ChatOptions
from open_autoglm.chat.messages import Message, Role
from open_autoglm.chat.parsing_tagged import CALL, END_CALL, END_THINK, THINK
from open_autoglm.chat.segments import Segment
from open_autoglm.chat.template import ROLE_TOKENS
from open_autoglm.chat.tools import Tool
from open_autoglm.engine.call_grammar import CallForm, call_grammar, is_lines_format, strict_names
from open_autoglm.engine.conversation import input_text, to_messages, to_options, to_tools
from open_autoglm.engine.guides import Guide, GuideSpec
from open_autoglm.engine.llm import LLM
from open_autoglm.engine.options import guide_of_options
from open_autoglm.engine.orders import ChatOrder, TextOrder, TokenizeOrder
from open_autoglm.engine.piece_reader import PieceReader
from open_autoglm.engine.request import Request, SamplingParams
from open_autoglm.engine.response_format import guide_of_response_format
from open_autoglm.engine.task_grammar import has_task_guide
from open_autoglm.errors import RequestError

MOST_TOOLS: Final = 128
"""Tools of one request."""
_MOST_DEFINITIONS: Final = 256 * 1024
_NEVER: Final = -100.0
_EFFORTS: Final = {
    **dict.fromkeys(("none", "minimal"), False),
    **dict.fromkeys(("low", "medium", "high", "xhigh", "max"), True),
}
_NULLABLE: Final = frozenset(
    ("annotations", "audio", "content", "function_call", "metadata", "name", "reasoning_content", "refusal",
     "tool_call_id", "tool_calls")
)  # fmt: skip
"""Fields of a message that clients send as null for what is not there."""


class ChatDesk:
    """Checks chat orders for one model."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        tokenizer, chat_format = llm.tokenizer, llm.chat_format
        self._has_tag_tokens = tokenizer is not None and chat_format.has_tag_tokens(tokenizer)
        marks = {} if tokenizer is None else chat_format.marks(tokenizer)
        as_text = frozenset[str]() if self._has_tag_tokens else frozenset(chat_format.tags)
        self._marks = {token_id: mark for token_id, mark in marks.items() if mark not in as_text}
        self._ids = {mark: token_id for token_id, mark in self._marks.items()}

    def request(self, order: ChatOrder, params: SamplingParams) -> Request:
        """The request of an order's first choice. Raises RequestError, naming the field."""
        messages = read_messages(order.messages)
        tools, options = read_order_tools(order), self.options(order)
        wanted = order_guide(order, input_text(messages))
        if order.tool_choice == "none":
            params, tools = self._without_calls(params) if tools else params, ()
        if tools:
            return self._with_tools(order, messages, params, tools=tools, options=options, wanted=wanted)
        if order.tool_choice in ("required", "named"):
            raise RequestError("tool_choice asks for a call, and there are no tools", "tool_choice")
        guide: GuideSpec | Literal["task"] | None = wanted
        if guide is None and order.response_format is None and order.guide_by_task and has_task_guide(self._llm.task):
            guide = "task"
        request = self._llm.chat_request(
            messages, params, guide, tools=self._own_tools(order), chat_template_kwargs=_kwargs(options)
        )
        return self._placed(order, request, options)

    def reader(self, request: Request) -> PieceReader | None:
        """What reads one choice's answer; nothing where the engine's text is the content and no scores are wanted."""
        answer, vocabulary = self._llm.reader(request), self._llm.vocabulary
        if vocabulary is None or (answer is None and request.params.logprobs is None):
            return None
        marks = {} if answer is None else self._marks
        params = request.params
        return PieceReader(
            answer,
            vocabulary,
            marks,
            params.stop_token_ids,
            request.drop_prefix,
            gathers=answer is not None and params.logprobs is None and not params.stop,
            thinks_by_text=self._llm.chat_format.thinks and not self._has_tag_tokens,
        )

    def options(self, order: ChatOrder | TokenizeOrder) -> ChatOptions:
        """What a request says of thinking. Raises RequestError for what the model's format cannot do."""
        options = to_options(order.chat_template_kwargs)
        if options.enable_thinking is not None:
            self._check_switch(options.enable_thinking, "chat_template_kwargs")
        effort = order.reasoning_effort if isinstance(order, ChatOrder) else None
        if effort is None:
            return options
        if effort not in _EFFORTS:
            raise RequestError(f"reasoning_effort must be one of {', '.join(_EFFORTS)}", "reasoning_effort")
        if not self._llm.chat_format.thinks:
            raise RequestError(
                "this model does not think before it answers; leave reasoning_effort out", "reasoning_effort"
            )
        thinks = _EFFORTS[effort]
        if options.enable_thinking not in (None, thinks):
            raise RequestError("reasoning_effort and enable_thinking contradict each other", "reasoning_effort")
        self._check_switch(thinks, "reasoning_effort")
        return replace(options, enable_thinking=thinks)

    def _own_tools(self, order: ChatOrder) -> Sequence[Tool] | None:
        """With no tools in the request, those that the model was built with."""
        return () if order.tool_choice == "none" else None

    def _with_tools(
        self,
        order: ChatOrder,
        messages: Sequence[Message],
        params: SamplingParams,
        *,
        tools: Sequence[Tool],
        options: ChatOptions,
        wanted: GuideSpec | None,
    ) -> Request:
        if wanted is not None and wanted.kind not in ("json_schema", "json_object"):
            raise RequestError(f"{wanted.parameter} and tools exclude each other; give one", wanted.parameter)
        form = self._form(order, tools, options, wanted)
        guide: Guide | None = None
        if form.must or form.strict or form.schema is not None:
            grammar = call_grammar(self._llm.chat_format, self._marks, form)
            guide = self._llm.compile_calls(grammar, self._marks.values())
        if form.must:
            params = replace(params, stop=())  # stop strings end texts, not calls
        elif not order.parallel_tool_calls and guide is None:
            params = replace(params, stop_token_ids=(*params.stop_token_ids, *self._ends_of_call()))
        shown = [_without_strict(tool) for tool in tools]
        request = self._llm.chat_request(messages, params, None, tools=shown, chat_template_kwargs=_kwargs(options))
        if guide is not None:
            request = replace(request, guide=guide, drop_prefix="" if form.must else request.drop_prefix)
        return self._placed(order, request, options)

    def _form(
        self, order: ChatOrder, tools: Sequence[Tool], options: ChatOptions, wanted: GuideSpec | None
    ) -> CallForm:
        must, named = order.tool_choice in ("required", "named"), order.tool_choice == "named"
        chosen = {place: tool for place, tool in enumerate(tools) if not named or tool.name == order.tool_name}
        if not chosen:
            raise RequestError(f"tool_choice names '{order.tool_name}', which is none of the tools", "tool_choice")
        return CallForm(
            must=must,
            tools=chosen,
            strict=frozenset(tool.name for tool in chosen.values()) if must else strict_names(chosen.values()),
            several=order.parallel_tool_calls and not named,
            thinks=not must or options.enable_thinking is True,
            closed=not options.thinks and self._can_switch(),
            schema=None if wanted is None or must else wanted.schema(),
        )

    def _without_calls(self, params: SamplingParams) -> SamplingParams:
        """The tag that begins a call never comes."""
        if CALL not in self._ids:
            return params
        return replace(params, logit_bias={**(params.logit_bias or {}), self._ids[CALL]: _NEVER})

    def _placed(self, order: ChatOrder, request: Request, options: ChatOptions) -> Request:
        request = replace(request, priority=order.priority)
        if request.new_parser is None or not request.params.stop:
            return request
        switches = {self._ids[tag]: seeks for tag, seeks in _SWITCHES.items() if tag in self._ids}
        return replace(request, stop_switches=switches, stops_at_first=not self._prompt_thinks(options))

    def _prompt_thinks(self, options: ChatOptions) -> bool:
        opening = self._llm.chat_format.generation_prompt(options)
        return bool(opening) and opening[-1].text.strip() == THINK

    def _ends_of_call(self) -> tuple[int, ...]:
        end = ROLE_TOKENS[Role.ASSISTANT] if is_lines_format(self._llm.chat_format) else END_CALL
        return (self._ids[end],) if end in self._ids else ()

    def _check_switch(self, thinks: bool, field: str) -> None:
        if self._can_switch():
            return
        fits = self._prompt_thinks(ChatOptions()) if thinks else not self._llm.chat_format.thinks
        if not fits:
            raise RequestError(
                f"thinking cannot be switched {'on' if thinks else 'off'} in this model; leave it out", field
            )

    def _can_switch(self) -> bool:
        def prompt(thinks: bool) -> list[Segment]:
            return self._llm.chat_format.prompt([Message(Role.USER, "?")], (), ChatOptions(thinks))

        return prompt(True) != prompt(False)


_SWITCHES: Final = {THINK: False, END_THINK: True, CALL: False, END_CALL: True}
"""Whether stop strings are looked for after a tag: not in reasoning, and not in calls."""


def read_messages(values: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages of a request, without the nulls that clients send for what is not there. Raises RequestError."""
    return to_messages(
        [{key: value for key, value in item.items() if value is not None or key not in _NULLABLE} for item in values]
    )


def read_order_tools(order: ChatOrder | TokenizeOrder) -> tuple[Tool, ...]:
    """The tools of a request. Raises RequestError for one that is not a function with a name and a valid schema."""
    if len(order.tools) > MOST_TOOLS:
        raise RequestError(f"there are {len(order.tools)} tools, at most {MOST_TOOLS} are taken", "tools")
    size = 0
    for index, given in enumerate(order.tools):
        function = given.get("function", given)
        parameters = function.get("parameters") if isinstance(function, Mapping) else None
        if parameters is None:
            continue
        place = f"tools[{index}].function.parameters"
        size += len(GuideSpec.of("json_schema", parameters, place).text)
        if parameters.get("type", "object") != "object":
            raise RequestError(f"{place}.type must be object: arguments have names", place)
    if size > _MOST_DEFINITIONS:
        raise RequestError(f"the tools have {size} characters, at most {_MOST_DEFINITIONS} are taken", "tools")
    return to_tools(order.tools)


def order_guide(order: ChatOrder | TextOrder, text: str | None) -> GuideSpec | None:
    """The form of answer that is asked for. Raises RequestError when it is invalid, or two are asked for."""
    guide = guide_of_options(order.guided, text, order.response_format)
    return guide if order.response_format is None else guide_of_response_format(order.response_format)


def _kwargs(options: ChatOptions) -> dict[str, bool]:
    return {name: value for name, value in vars(options).items() if value is not None}


def _without_strict(tool: Tool) -> Tool:
    """The tool as a prompt shows it: how closely its calls are held to the schema is no business of the model's."""
    if "strict" not in tool.function:
        return tool
    function = {name: value for name, value in tool.function.items() if name != "strict"}
    return Tool(tool.name, {**tool.definition, "function": function} if "function" in tool.definition else function)
