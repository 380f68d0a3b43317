# SPDX-License-Identifier: Apache-2.0
"""Tools in every GLM format: forced calls always fit, calls stream in parts, and what is wrong is told before."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from open_autoglm.chat.detection import format_named
from open_autoglm.chat.format import ChatOptions
from open_autoglm.chat.messages import Message, Role, ToolCall
from open_autoglm.chat.segments import PromptEncoder
from open_autoglm.chat.tools import read_tools
from open_autoglm.engine.answer import Answer
from open_autoglm.engine.order_desk import OrderDesk
from open_autoglm.engine.orders import ChatOrder, Piece
from open_autoglm.engine.piece_merging import merge_pieces
from open_autoglm.engine.prepared_order import PieceBuffer
from open_autoglm.engine.request import Request
from open_autoglm.serve.routes.chat_response import whole_calls
from tests.serve.checkpoints import BOOK, FORMAT_NAMES, PING, TOOLS, make_llm
from tests.serve.conftest import Running, serving
from tests.serve.openai_document import check_openai
from tests.thoroughness import times

SCHEMAS = {"book": BOOK["function"]["parameters"], "ping": {"type": "object", "maxProperties": 0}}
QUESTION = [{"role": "user", "content": "go"}]


@pytest.fixture(scope="module", params=FORMAT_NAMES)
def speaker(request: pytest.FixtureRequest) -> Iterator[Running]:
    with serving(make_llm(request.param)) as running:
        yield running


def ask(running: Running, **options: Any) -> Any:
    values: dict[str, Any] = {"messages": QUESTION, "tools": TOOLS, "temperature": 1.5, "max_tokens": 900, **options}
    return running.client(timeout=120).chat.completions.create(model=running.llm.name, **values)


def check_call(call: Any) -> None:
    assert call.type == "function"
    assert call.id
    jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


def test_required_calls_always_fit_in_every_format(speaker: Running) -> None:
    names: set[str] = set()
    for seed in range(1, times(1, 2) + 1):
        answer = ask(speaker, tool_choice="required", n=times(2, 3), seed=seed * 10)
        check_openai("CreateChatCompletionResponse", json.loads(answer.model_dump_json(exclude_unset=True)))
        for choice in answer.choices:
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content is None
            for call in choice.message.tool_calls:
                check_call(call)
                names.add(call.function.name)
    assert names <= {"book", "ping"}


def test_a_named_tool_is_called_once_and_streams_its_name_first(speaker: Running) -> None:
    choice = {"type": "function", "function": {"name": "book"}}
    whole = ask(speaker, tool_choice=choice, seed=4).choices[0]
    chunks = list(ask(speaker, tool_choice=choice, seed=4, stream=True))
    for chunk in chunks:
        check_openai("CreateChatCompletionStreamResponse", json.loads(chunk.model_dump_json(exclude_unset=True)))
    parts = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [part.index for part in parts] == [0] * len(parts)
    assert parts[0].id
    assert parts[0].function.name == "book"
    assert all(part.function.name is None and part.id is None for part in parts[1:])
    assert "".join(part.function.arguments for part in parts) == whole.message.tool_calls[0].function.arguments
    assert len(whole.message.tool_calls) == 1
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    check_call(whole.message.tool_calls[0])


def test_one_call_only_and_none_at_all(speaker: Running) -> None:
    answer = ask(speaker, tools=[PING], tool_choice="required", parallel_tool_calls=False, n=3, seed=3)
    assert all(len(choice.message.tool_calls) == 1 for choice in answer.choices)
    answer = ask(speaker, tools=[PING], tool_choice="none", max_tokens=40, n=2, seed=3)
    assert all(choice.message.tool_calls is None for choice in answer.choices)


def test_a_strict_tool_is_followed_when_it_is_not_forced(speaker: Running) -> None:
    strict = {"type": "function", "function": {**BOOK["function"], "strict": True}}
    answer = ask(speaker, tools=[strict], n=times(2, 4), seed=6, max_tokens=times(200, 500))
    for choice in answer.choices:
        for call in choice.message.tool_calls or ():
            check_call(call)
        assert choice.finish_reason in ("stop", "length", "tool_calls")


def test_json_beside_tools_is_json_or_a_call(speaker: Running) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    answer = ask(speaker, tools=[PING], response_format=wanted, n=times(2, 4), seed=9, max_tokens=times(300, 600))
    for choice in answer.choices:
        if choice.finish_reason == "stop":
            assert choice.message.content == '{"a": 1}'
        elif choice.finish_reason == "tool_calls":
            assert {call.function.name for call in choice.message.tool_calls} == {"ping"}


@pytest.mark.parametrize(
    ("tool", "options", "words"),
    [
        ({"parameters": {"type": "object", "properties": {"a": {"type": "strin"}}}}, {}, "strin"),
        ({"parameters": {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a"}}}}, {}, "pattern"),
        ({"parameters": [1]}, {}, "parameters"),
        ({"parameters": {"type": "object", "properties": {"a": {"not": {}}}}}, {"tool_choice": "required"}, ""),
        ({"parameters": {"type": "string"}}, {"tool_choice": "required"}, ""),
        (
            {"parameters": {"properties": {"a": {"type": "string", "pattern": "(a|a?)+" * 900}}}},
            {"tool_choice": "required"},
            "",
        ),
        ({"name": "a b"}, {}, "name"),
        ({"name": "other"}, {"tool_choice": {"type": "function", "function": {"name": "ping"}}}, "ping"),
    ],
    ids=str,
)
def test_a_bad_tool_is_a_bad_request_and_the_engine_lives_on(
    speaker: Running, tool: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    given_tool = {"type": "function", "function": {"name": "f", **tool}}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(speaker, tools=[given_tool], **options)
    assert words in str(caught.value)
    assert caught.value.param
    assert ask(speaker, tools=[PING], tool_choice="required").choices[0].message.tool_calls


def test_what_does_not_go_together_is_refused(speaker: Running) -> None:
    for options, field in (
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": openai.omit, "parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"extra_body": {"guided_regex": "a"}}, "guided_regex"),
        ({"tools": [PING, PING]}, "tools"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"functions": [PING["function"]]}, "functions"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(speaker, **options)
        assert caught.value.param == field


def test_thinking_is_switched_where_the_format_has_a_switch(speaker: Running) -> None:
    def effort(value: str) -> Any:
        return ask(speaker, tools=openai.omit, reasoning_effort=value, max_tokens=5)

    name = speaker.llm.name
    if name in ("glm-4.5", "glm-4.7"):
        assert effort("none").usage.prompt_tokens != effort("high").usage.prompt_tokens or name == "glm-4.7"
        for kwargs in ({"enable_thinking": False}, {"enable_thinking": True}):
            ask(speaker, tools=openai.omit, max_tokens=3, extra_body={"chat_template_kwargs": kwargs})
    else:
        with pytest.raises(openai.BadRequestError) as caught:
            effort("none")
        assert caught.value.param == "reasoning_effort"


def pieces_of(name: str, script: list[str], order: ChatOrder) -> tuple[list[Piece], Request]:
    """What the desk makes of tokens that a model would have said. script: marks whole, text in between.

    However many tokens are read together, it is the same.
    """
    llm = make_llm(name)
    tokenizer, marks = llm.tokenizer, {text: i for i, text in llm.chat_format.marks(llm.tokenizer).items()}
    ids: list[int] = []
    for part in script:
        ids += [marks[part]] if part in marks else PromptEncoder(tokenizer).encode_text(part)
    stops = llm.chat_format.stop_token_ids(tokenizer)

    def read(together: int) -> tuple[list[Piece], Request]:
        prepared = OrderDesk(llm).prepare(order)
        request = prepared.requests[0]
        answer = Answer(request, llm.vocabulary, frozenset(stops), 2000)
        buffer, pieces = PieceBuffer(prepared), list[Piece]()
        for token_id in [*ids, stops[0]]:
            delta = answer.take(token_id, None)
            buffer.add(delta)
            if buffer.num_deltas >= together or delta.completion is not None:
                pieces += buffer.take()
            if delta.completion is not None:
                break
        return pieces, request

    def sums(pieces: list[Piece]) -> object:
        [one] = merge_pieces(pieces)
        calls = [replace(call, id="") for call in one.calls]
        return replace(one, calls=calls, times=None)

    pieces, request = read(1)
    for together in (2, 5, 1000):
        assert sums(read(together)[0]) == sums(pieces)
    return pieces, request


NASTY = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(str.strip)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(FORMAT_NAMES), st.integers(-5, 5), st.booleans())
def test_what_is_called_comes_back_as_the_model_was_trained(name: str, count: int, twice: bool) -> None:
    """Rendered calls, as the model would say them, are parsed; the parsed calls render to the same tokens."""
    chat_format = format_named(name)
    tools = read_tools(TOOLS)
    values = json.dumps({"city": "北京", "count": count, "seat": {"row": 1, "kind": "a<b"}}, ensure_ascii=False)
    calls = (ToolCall("book", values),) + ((ToolCall("ping", "{}"),) if twice else ())
    user = Message(Role.USER, "go")
    options = ChatOptions()
    said = chat_format.render([user, Message(Role.ASSISTANT, "", tool_calls=calls)], tools, options)
    first = next(place for place, segment in enumerate(said) if segment.text == "<|assistant|>")
    script = [segment.text for segment in said[first + 1 : -1]]
    if name == "glm-z1":
        script = ["\n", "</think>", "\n", *script]
    order = ChatOrder(QUESTION, {"max_tokens": 1000}, tools=TOOLS)
    pieces, _ = pieces_of(name, script, order)
    found = whole_calls([call for piece in pieces for call in piece.calls])
    assert [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in found] == [
        (call.name, call.values()) for call in calls
    ]
    assert pieces[-1].finish_reason == "tool_calls"
    back = [ToolCall.of(call) for call in found]
    results = [Message(Role.OBSERVATION, "ok", tool_call_id=call.id) for call in back]
    again = chat_format.render([user, Message(Role.ASSISTANT, "", tool_calls=tuple(back)), *results], tools, options)
    expected = chat_format.render([user, Message(Role.ASSISTANT, "", tool_calls=calls), *results], tools, options)
    assert [segment.text for segment in again] == [segment.text for segment in expected]


def test_reasoning_is_split_off_and_stop_strings_do_not_end_it() -> None:
    order = ChatOrder(QUESTION, {"max_tokens": 500, "stop": ["end"]}, tools=TOOLS)
    for name, script in (
        ("glm-4.5", ["\n", "<think>", "the end is near", "</think>", "\nWell, it ends here"]),
        ("glm-4.7", ["the end is near", "</think>", "Well, it ends here"]),
        ("glm-z1", ["the end is near\n", "</think>", "\nWell, it ends here"]),
    ):
        pieces, _ = pieces_of(name, script, order)
        assert "".join(piece.reasoning for piece in pieces) == "the end is near", name
        assert "".join(piece.text for piece in pieces) == "Well, it ", name
        assert pieces[-1].finish_reason == "stop"
        assert pieces[-1].usage is not None
        assert pieces[-1].usage.reasoning_tokens > 3


@pytest.mark.parametrize("name", ["glm-4.5", "glm-4.7", "glm-z1"])
def test_a_thought_words_and_calls_of_one_answer_come_apart(name: str) -> None:
    """And do so however many tokens are read together, which `pieces_of` looks at."""
    chat_format, tools = format_named(name), read_tools(TOOLS)
    values = {"city": "北京", "count": 2, "seat": {"row": 1, "kind": "b"}}
    calls = (ToolCall("book", json.dumps(values, ensure_ascii=False)), ToolCall("ping", "{}"))
    order = ChatOrder(QUESTION, {"max_tokens": 1000}, tools=TOOLS)
    turn = Message(Role.ASSISTANT, "", tool_calls=calls)
    said = [item.text for item in chat_format.render([Message(Role.USER, "go"), turn], tools, ChatOptions())]
    body = said[said.index("<|assistant|>") + 1 : -1]
    if "</think>" in body:
        body = body[body.index("</think>") + 1 :]
    opening = ["\n", "<think>"] if name == "glm-4.5" else []
    words = "" if name == "glm-z1" else "See 海: "  # a name on a line of its own is a call where nothing is before it
    pieces, _ = pieces_of(name, [*opening, "海 is </near> here", "</think>", f"\n{words}", *body], order)
    assert "".join(piece.reasoning for piece in pieces) == "海 is </near> here"
    assert "".join(piece.text for piece in pieces).strip() == words.strip()
    found = whole_calls([call for piece in pieces for call in piece.calls])
    assert [call["function"]["name"] for call in found] == ["book", "ping"]
    assert json.loads(found[0]["function"]["arguments"]) == values
    assert pieces[-1].finish_reason == "tool_calls"
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.reasoning_tokens > 3


def test_a_broken_call_is_content_and_nothing_is_lost() -> None:
    script = ["\n", "<think>", "</think>", "\n", "<tool_call>", "book\n", "<arg_key>", "city", "</arg_key>"]
    pieces, _ = pieces_of("glm-4.5", script, ChatOrder(QUESTION, {"max_tokens": 500}, tools=TOOLS))
    text = "".join(piece.text for piece in pieces)
    assert text.strip() == "<tool_call>book\n<arg_key>city</arg_key>"
    assert not any(piece.calls for piece in pieces)
    assert pieces[-1].finish_reason == "stop"


def test_a_conversation_with_results_goes_on(speaker: Running) -> None:
    first = ask(speaker, tool_choice="required", seed=2).choices[0].message
    history = [*QUESTION, json.loads(first.model_dump_json())]
    history += [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in first.tool_calls]
    answer = ask(speaker, messages=history, tool_choice="none", max_tokens=8)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens > 20
