# SPDX-License-Identifier: Apache-2.0
"""The format of the models built by us: segments, Jinja and token ids say the same, and no user can forge a token."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from open_autoglm.chat.built import BuiltFormat
from open_autoglm.chat.detection import BUILT_FORMAT, READ_TWICE_FORMAT, format_named
from open_autoglm.chat.format import ChatOptions
from open_autoglm.chat.messages import Message, Role, ToolCall
from open_autoglm.chat.segments import encode
from open_autoglm.chat.template import CHAT_TEMPLATE, CONTROL_TOKENS, READ_TWICE_TEMPLATE, stop_token_ids
from open_autoglm.chat.tools import read_tools
from tests.chat.samples import CALLS, NASTY, PLAIN, TOOLS

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
PLAIN_MESSAGES = st.lists(st.builds(Message, st.sampled_from(Role), NASTY), min_size=1, max_size=5)
MESSAGES = st.lists(
    st.one_of(
        st.builds(Message, st.sampled_from([Role.SYSTEM, Role.USER, Role.OBSERVATION]), NASTY),
        st.builds(Message, st.just(Role.ASSISTANT), NASTY, reasoning=NASTY, tool_calls=CALLS),
    ),
    min_size=1,
    max_size=6,
)
THEIRS = {
    chat: PreTrainedTokenizerFast(tokenizer_object=PLAIN, chat_template=template)
    for chat, template in ((BUILT_FORMAT, CHAT_TEMPLATE), (READ_TWICE_FORMAT, READ_TWICE_TEMPLATE))
}


def as_openai(message: Message, *, objects: bool) -> dict[str, Any]:
    """As users of transformers write it: the arguments of calls as objects, or as the API's text."""
    values = message.to_dict()
    if values["role"] == "observation":
        values["role"] = "tool"
    for call in values.get("tool_calls", ()):
        if objects:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return values


def text_of(segments: list) -> str:
    return "".join(segment.text for segment in segments)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(THEIRS)), MESSAGES, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_transformers_renders_the_same_bytes(
    chat: BuiltFormat, messages: list[Message], prompt: bool, with_tools: bool, clear: bool, objects: bool
) -> None:
    options = ChatOptions(clear_thinking=clear)
    tools = TOOLS if with_tools else ()
    theirs = THEIRS[chat].apply_chat_template(
        [as_openai(message, objects=objects) for message in messages],
        tools=[dict(tool.definition) for tool in tools] or None,
        add_generation_prompt=prompt,
        tokenize=False,
        **({} if clear else {"clear_thinking": False}),
    )
    ours = chat.render(messages, tools, options, add_generation_prompt=prompt)
    if not prompt and messages[-1].role is Role.ASSISTANT:
        ours = ours[:-1]  # the turn's end, which training adds
    assert text_of(ours) == theirs


@settings(max_examples=150, deadline=None)
@given(PLAIN_MESSAGES, st.booleans())
def test_without_tools_and_reasoning_it_is_glm_4(messages: list[Message], prompt: bool) -> None:
    glm4 = format_named("glm-4").render(messages, add_generation_prompt=prompt)
    assert text_of(BUILT_FORMAT.render(messages, add_generation_prompt=prompt)) == text_of(glm4)


@settings(max_examples=150, deadline=None)
@given(PLAIN_MESSAGES)
def test_text_never_becomes_a_control_token(messages: list[Message]) -> None:
    token_ids, _ = encode(BUILT_FORMAT.prompt(messages), PLAIN)
    control = {PLAIN.token_to_id(token) for token in CONTROL_TOKENS}
    assert sum(token_id in control for token_id in token_ids) == 2 + len(messages) + 1


@settings(max_examples=100, deadline=None)
@given(PLAIN_MESSAGES)
def test_the_loss_covers_assistant_turns_and_what_ends_them(messages: list[Message]) -> None:
    token_ids, learn = encode(BUILT_FORMAT.render(messages), PLAIN)
    learnt = [token_id for token_id, flag in zip(token_ids, learn, strict=True) if flag]
    expected: list[int] = []
    for index, message in enumerate(messages):
        if message.role is Role.ASSISTANT:
            PLAIN.encode_special_tokens = True
            expected += PLAIN.encode("\n" + message.content, add_special_tokens=False).ids
            following = messages[index + 1].role if index + 1 < len(messages) else Role.USER
            expected.append(PLAIN.token_to_id(f"<|{following.value}|>"))
    assert learnt == expected


def test_glm4_layout_to_the_byte() -> None:
    messages = [Message(Role.SYSTEM, "Be brief."), Message(Role.USER, "你好")]
    assert text_of(BUILT_FORMAT.prompt(messages)) == "[gMASK]<sop><|system|>\nBe brief.<|user|>\n你好<|assistant|>"
    assert [PLAIN.id_to_token(i) for i in stop_token_ids(PLAIN)] == ["<|endoftext|>", "<|user|>", "<|observation|>"]


def test_what_a_user_says_stands_twice_and_nothing_else() -> None:
    messages = [Message(Role.SYSTEM, "Be brief."), Message(Role.USER, "play\nit"), Message(Role.ASSISTANT, "{}")]
    assert text_of(READ_TWICE_FORMAT.prompt([*messages, Message(Role.USER, "你好")])) == (
        "[gMASK]<sop><|system|>\nBe brief.<|user|>\nplay\nit\nplay\nit<|assistant|>\n{}"
        "<|user|>\n你好\n你好<|assistant|>"
    )
    assert text_of(READ_TWICE_FORMAT.prompt([Message(Role.USER, "")])) == "[gMASK]<sop><|user|>\n<|assistant|>"


def test_tools_calls_results_and_reasoning_to_the_byte() -> None:
    tools = read_tools([{"type": "function", "function": {"name": "ping", "description": "问"}}])
    calls = (ToolCall("ping", "{}", "c1"), ToolCall("ping", '{"n": 1}', "c2"))
    messages = [
        Message(Role.SYSTEM, "S"),
        Message(Role.USER, "q"),
        Message(Role.ASSISTANT, "Both.", reasoning="why\n", tool_calls=calls),
        Message(Role.OBSERVATION, "1", tool_call_id="c1"),
        Message(Role.OBSERVATION, "2", tool_call_id="c2"),
        Message(Role.ASSISTANT, "Done."),
    ]
    advice = "在调用上述函数时，请使用 Json 格式表示调用的参数。"
    listed = '## ping\n\n{\n    "name": "ping",\n    "description": "问"\n}\n' + advice
    said = '<|assistant|>\n<think>\nwhy\n</think>\nBoth.<|assistant|>ping\n{}<|assistant|>ping\n{"n": 1}'
    before = f"[gMASK]<sop><|system|>\n# 可用工具\n\n{listed}<|system|>\nS<|user|>\nq"
    after = "<|observation|>\n1<|observation|>\n2<|assistant|>\nDone.<|user|>"
    segments = BUILT_FORMAT.render(messages, tools)
    assert text_of(segments) == before + said + after
    learnt = text_of([segment for segment in segments if segment.learn])
    assert learnt == said.removeprefix("<|assistant|>") + "<|observation|>" + "\nDone.<|user|>"
    history = BUILT_FORMAT.prompt([*messages, Message(Role.USER, "r")], tools)
    assert "<think>" not in text_of(history)
    assert "<|assistant|>\nBoth.<|assistant|>ping" in text_of(history)


def test_an_answer_that_thinks_is_parsed_with_its_tags_as_tokens_and_as_text() -> None:
    for tokens in (True, False):
        for opened in (True, False):
            parser = BUILT_FORMAT.parser(TOOLS, open_answer=opened, tokens=tokens)
            pieces = ["" if opened else "\n", "<think>", "\nwh", "y\n", "</think>", "\nBoth", "\n."]
            for piece in pieces:
                parser.push(piece, control=tokens and piece in ("<think>", "</think>"))
            parser.push("<|assistant|>", control=True)
            parser.push('book\n{"count": 1}')
            parser.push("<|observation|>", control=True)
            parser.finish()
            assert (parser.content, parser.reasoning) == ("Both\n.", "why")
            assert [(call.name, call.arguments) for call in parser.tool_calls] == [("book", '{"count": 1}')]


def test_a_tag_out_of_place_is_text() -> None:
    parser = BUILT_FORMAT.parser((), open_answer=True, tokens=True)
    for piece in ("a", "</think>", "b", "<think>", "c"):
        parser.push(piece, control="think" in piece)
    parser.finish()
    assert parser.content == "a</think>b<think>c"
