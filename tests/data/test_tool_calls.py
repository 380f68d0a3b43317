# SPDX-License-Identifier: Apache-2.0
"""Tools, calls and reasoning of data files: read from every shape, learnt to the token, and the same when served."""

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from open_autoglm.chat.built import BuiltFormat
from open_autoglm.chat.detection import BUILT_FORMAT, FORMATS
from open_autoglm.chat.format import ChatFormat
from open_autoglm.chat.messages import Message, Role, ToolCall
from open_autoglm.chat.segments import PromptEncoder
from open_autoglm.chat.tools import read_tools
from open_autoglm.data import Example, FindingKind, encode_examples, prepare, train_tokenizer
from open_autoglm.data.cleaning import clean_private, private_kinds, remove_duplicates
from open_autoglm.data.detection import detect_task
from open_autoglm.data.encoding import lay_out_example
from open_autoglm.data.example_store import StoredExamples
from open_autoglm.data.findings import FindingLog
from open_autoglm.data.layouts import find_layout
from open_autoglm.data.normalisation import normalise_example
from open_autoglm.data.readers import read_rows
from open_autoglm.data.shapes import read_examples
from open_autoglm.engine.conversation import prompt_token_ids
from open_autoglm.errors import DataError
from open_autoglm.task import Task, TaskKind
from tests.chat.samples import TAGGED

USER, ASSISTANT, SYSTEM, OBSERVATION = Role.USER, Role.ASSISTANT, Role.SYSTEM, Role.OBSERVATION
ADD = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
TOOLS = ({"type": "function", "function": ADD},)
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TASK = Task(TaskKind.TOOL_CALLS)


def read(folder: Path, *rows: Any) -> list[Example]:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    file = read_rows(path)
    return read_examples(file, find_layout(file), FindingLog())


def called(*ids: str) -> tuple[ToolCall, ...]:
    return tuple(ToolCall("add", '{"a": 1}', name) for name in ids)


ASK, RESULT, SAY = (
    {"role": "user", "content": "q"},
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "2."},
)
ARGUMENTS = {"name": "add", "arguments": {"a": 1}}
SHAPES = {
    "OpenAI": {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "c2"}]},
                            {**RESULT, "tool_call_id": "c1"}, {**RESULT, "tool_call_id": "c2"}, SAY], "tools": [ADD]},
    "OpenAI, tools of a message": {"messages": [
        {"role": "system", "content": "", "tools": list(TOOLS)}, ASK,
        {"role": "assistant", "tool_calls": [CALL, CALL], "content": ""}, RESULT, RESULT, SAY]},
    "functions": {"messages": [ASK, {"role": "assistant", "content": None, "function_call": ARGUMENTS},
                               {"role": "assistant", "content": None, "function_call": json.dumps(ARGUMENTS)},
                               {"role": "function", "name": "add", "content": "2"}, RESULT, SAY], "functions": [ADD]},
    "ShareGPT": {"conversations": [{"from": "human", "value": "q"},
                                   {"from": "function_call", "value": json.dumps([ARGUMENTS, ARGUMENTS])},
                                   {"from": "observation", "value": "2"}, {"from": "observation", "value": "2"},
                                   {"from": "gpt", "value": "2."}], "tools": json.dumps([ADD])},
    "ms-swift": {"messages": [ASK, {"role": "tool_call", "content": json.dumps(ARGUMENTS)},
                              {"role": "tool_call", "content": ARGUMENTS},
                              RESULT, {"role": "tool_response", "content": "2"}, SAY],
                 "tools": json.dumps([ADD])},
    "GLM, metadata": {"messages": [ASK, {"role": "assistant", "metadata": "add", "content": '{"a": 1}'},
                                   {"role": "assistant", "metadata": "add", "content": '{"a": 1}'},
                                   RESULT, {"role": "observation", "content": "2"}, SAY],
                      "tools": [ADD]},
    "GLM, lines": {"messages": [ASK, {"role": "assistant", "content": 'add\n{"a": 1}'},
                                {"role": "observation", "content": "2"}, SAY], "tools": [ADD]},
    "ChatGLM3": {"conversations": [
        ASK, {"role": "tool", "name": "add", "parameters": {"a": 1}, "observation": "2"}, SAY],
                 "tools": [ADD]},
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_calls_of_every_shape_become_one_turn_with_its_results(tmp_path: Path, name: str) -> None:
    [example] = read(tmp_path, SHAPES[name])
    single = name in ("GLM, lines", "ChatGLM3")
    ids = ("c1", "c2") if name == "OpenAI" else ("c1", "c1") if name.startswith("OpenAI") else ("",) * (2 - single)
    answered = ("c1", "c2") if name == "OpenAI" else ("",) * (2 - single)
    assert example.messages == (
        Message(USER, "q"),
        Message(ASSISTANT, "", tool_calls=called(*ids)),
        *(Message(OBSERVATION, "2", tool_call_id=result) for result in answered),
        Message(ASSISTANT, "2."),
    )
    assert example.tools == TOOLS
    assert Example.from_dict(json.loads(json.dumps(example.to_dict()))) == example


def test_content_before_a_call_and_loss_stay_with_it(tmp_path: Path) -> None:
    call = json.dumps(ARGUMENTS)
    turns = [ASK, {"role": "assistant", "content": "Let me see."}, {"role": "tool_call", "content": call},
             RESULT, {"role": "assistant", "content": "x", "loss": False},
             {"role": "function_call", "content": call}]  # fmt: skip
    [example] = read(tmp_path, {"messages": turns})
    assert example.messages[1] == Message(ASSISTANT, "Let me see.", tool_calls=called(""))
    assert example.messages[3:] == (
        Message(ASSISTANT, "x", learn=False),
        Message(ASSISTANT, "", tool_calls=called("")),
    )


@pytest.mark.parametrize(
    "answer",
    [
        {"content": "A.", "reasoning_content": " hm "},
        {"content": "A.", "reasoning": "hm"},
        {"content": "A.", "thinking": "hm"},
        {"content": "<think>\nhm\n</think>\n\nA."},
        {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "A."}]},
    ],
)
def test_reasoning_is_kept_apart(tmp_path: Path, answer: dict[str, Any]) -> None:
    [example] = read(tmp_path, {"messages": [ASK, {"role": "assistant", **answer}]})
    assert example.messages[1] == Message(ASSISTANT, "A.", reasoning="hm")


def test_metadata_that_names_no_tool_is_left_alone(tmp_path: Path) -> None:
    turns = [{**ASK, "metadata": {"id": 1}}, {**SAY, "metadata": {"model": "x"}}]
    assert read(tmp_path, {"messages": turns})[0].messages == (Message(USER, "q"), Message(ASSISTANT, "2."))
    code = [ASK, {"role": "assistant", "metadata": "python", "content": "print(1)"}]
    assert read(tmp_path, {"messages": code})[0].messages[1] == Message(ASSISTANT, "print(1)", metadata="python")


def test_answers_that_are_calls_of_the_tools_beside_them(tmp_path: Path) -> None:
    row = {"query": "q", "answers": json.dumps([ARGUMENTS]), "tools": json.dumps([ADD])}
    [example] = read(tmp_path, row)
    assert example.messages == (Message(USER, "q"), Message(ASSISTANT, "", tool_calls=called("")))
    other = {**row, "answers": json.dumps([{"name": "Bo"}])}
    assert read(tmp_path, other)[0].messages[-1].content == '[{"name": "Bo"}]'


def test_calls_that_cannot_be_read_leave_the_row_out_and_are_counted(tmp_path: Path) -> None:
    rows = [{"messages": [ASK, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": text}}]}]}
            for text in ("{'a': 1}", "[1]", '{"a": 1}')]  # fmt: skip
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    file, log = read_rows(path), FindingLog()
    assert len(read_examples(file, find_layout(file), log)) == 1
    [finding] = log.findings()
    assert (finding.kind, finding.count) == (FindingKind.DROP, 2)
    assert finding.rows == {"rows.json": "1-2"}
    with pytest.raises(DataError, match=r"row 1, message 2: `tool_calls` is not an array"):
        read(tmp_path, {"messages": [ASK, {"role": "assistant", "tool_calls": {"a": 1}}]})


def test_masked_and_normalised_arguments_stay_json() -> None:
    call = ToolCall("mail", '{"to": "ann@example.com", "phone": 13912345678, "text": "a\\u0301\u2028b"}')
    example = Example((Message(USER, "q"), Message(ASSISTANT, "", tool_calls=(call,))), "f:1")
    spelled = normalise_example(example, FindingLog())
    assert "\n" in spelled.messages[1].tool_calls[0].values()["text"]
    kinds = np.array([private_kinds(spelled)], dtype=np.uint8)
    [masked] = clean_private(StoredExamples.of([spelled]), kinds, FindingLog(), mask=True)
    values = masked.messages[1].tool_calls[0].values()
    assert values["to"] == "[EMAIL]"
    assert values["phone"] == "[PHONE]"


def test_equal_questions_with_other_tools_are_no_duplicates() -> None:
    messages = (Message(USER, "q"), Message(ASSISTANT, "a"))
    rows = [Example(messages, "f:1", TOOLS), Example(messages, "f:2"), Example(messages, "f:3", TOOLS)]
    assert remove_duplicates(rows, FindingLog()) == rows[:2]


WORDS = [
    "rain",
    "song",
    "table",
    "train",
    "city",
    "tomorrow",
    "please",
    "find",
    "book",
    "play",
    "weather",
    "天气",
    "北京",
    "明天",
]


def tool_rows(count: int, *, same: bool) -> list[dict[str, Any]]:
    """Dialogues in ShareGPT's shape: some call one tool, some two at once, some none; some think first."""
    generator = random.Random(3)
    names = ["find_train", "get_weather", "play"]
    rows = []
    for number in range(count):
        said = " ".join(generator.choices(WORDS, k=6))
        offered = names if same else generator.sample(names, 2)
        tools = [{"name": name, "description": said[:9], "parameters": {"type": "object", "properties": {
            "what": {"type": "string"}, "n": {"type": "integer"}}}} for name in offered]  # fmt: skip
        if same:
            tools = [{**tool, "description": "d"} for tool in tools]
        calls = [
            {"name": name, "arguments": {"what": said[: n + 5], "n": number}} for n, name in enumerate(offered[:2])
        ]
        turns = [("human", f"{said} {number}?")]
        if number % 4:
            turns += [("function_call", json.dumps(calls[0] if number % 4 == 1 else calls, ensure_ascii=False))]
            turns += [("observation", json.dumps({"ok": number}))] * (1 if number % 4 == 1 else 2)
        thought = f"<think>\nabout {said}\n</think>\n" if number % 3 == 0 else ""
        turns += [("gpt", f"{thought}It is {said}.")]
        rows.append(
            {"conversations": [{"from": role, "value": value} for role, value in turns], "tools": json.dumps(tools)}
        )
    return rows


def real_files() -> list[Path]:
    return [Path(name) for name in os.environ.get("OPEN_AUTOGLM_TEST_TOOL_DATA", "").split(os.pathsep) if name]


@pytest.fixture(params=["made", *real_files()], ids=str)
def examples(request: pytest.FixtureRequest, tmp_path: Path) -> list[Example]:
    """Made up; and those of the files named in OPEN_AUTOGLM_TEST_TOOL_DATA."""
    path = request.param
    if path == "made":
        path = tmp_path / "calls.json"
        path.write_text(json.dumps(tool_rows(80, same=False), ensure_ascii=False), encoding="utf-8")
    file = read_rows(path)
    found = read_examples(file, find_layout(file), FindingLog())
    assert detect_task(found, find_layout(file)).kind is TaskKind.TOOL_CALLS
    return found


@pytest.mark.parametrize("chat", FORMATS, ids=lambda chat: chat.name)
def test_what_is_learnt_is_what_the_parser_recovers(examples: list[Example], chat: ChatFormat) -> None:
    """From the file to token ids and their mask, and from the learnt tokens alone back to the messages."""
    for example in examples[:60]:
        encoded = encode_examples([example], TAGGED, TASK, max_length=100_000, chat_format=chat)
        tools = read_tools(example.tools)
        marks = chat.marks(TAGGED)
        learnt = np.flatnonzero(encoded.learn)
        for turn in np.split(learnt, np.flatnonzero(np.diff(learnt) > 1) + 1):
            ids = encoded.token_ids[turn].tolist()
            assert marks[ids[-1]].startswith("<|"), "the token that ends a turn is learnt"
        if not chat.thinks or isinstance(chat, BuiltFormat):
            turns = _turns(encoded.token_ids, encoded.learn)
            said = [m for m in example.messages if m.role is ASSISTANT]
            assert len(turns) == len(said)
            for ids, message in zip(turns, said, strict=True):
                parser = chat.parser(tools, tokens=True)
                text: list[int] = []
                for token_id in ids:
                    if token_id in marks:
                        parser.push(TAGGED.decode(text, skip_special_tokens=False))
                        parser.push(marks[token_id], control=True)
                        text = []
                    else:
                        text.append(token_id)
                parser.finish()
                assert parser.content == message.content
                assert parser.reasoning == (message.reasoning if isinstance(chat, BuiltFormat) else "")
                found = [(call.name, call.values()) for call in parser.tool_calls]
                assert found == [(call.name, call.values()) for call in message.tool_calls]


def _turns(token_ids: np.ndarray, learn: np.ndarray) -> list[list[int]]:
    """The stretches of learnt tokens."""
    turns: list[list[int]] = []
    before = False
    for token_id, counts in zip(token_ids.tolist(), learn.tolist(), strict=True):
        if counts:
            turns.append([*turns.pop(), token_id] if before else [token_id])
        before = counts
    return turns


@pytest.mark.parametrize("chat", FORMATS, ids=lambda chat: chat.name)
def test_prompts_are_trained_as_they_are_served(examples: list[Example], chat: ChatFormat) -> None:
    """The tokens before an answer are those that the engine makes of the same messages and tools."""
    encoder = PromptEncoder(TAGGED)
    for example in examples[:60]:
        encoded = encode_examples([example], TAGGED, TASK, max_length=100_000, chat_format=chat)
        served = prompt_token_ids(
            example.prompt, encoder, open_answer=False, chat_format=chat, tools=read_tools(example.tools)
        )
        if chat.name in ("glm-4.7", "glm-z1") and not example.messages[-1].reasoning:
            # Their prompts open the reasoning; an answer without any is served with thinking off.
            served = served[: len(served) - served[::-1].index(TAGGED.token_to_id("<|assistant|>"))]
        assert encoded.token_ids[: len(served)].tolist() == served
        assert encoded.learn[-1]


def test_results_and_what_others_say_are_never_learnt(examples: list[Example]) -> None:
    for example in examples:
        segments = lay_out_example(example, TASK)
        learnt = "".join(segment.text for segment in segments if segment.learn)
        for message in example.messages:
            if message.role is OBSERVATION and len(message.content) > 20:
                assert message.content not in learnt


def test_a_turn_whose_reasoning_is_history_is_not_learnt() -> None:
    turns = (Message(USER, "a"), Message(ASSISTANT, "b", reasoning="r"), Message(USER, "c"),
             Message(ASSISTANT, "d", reasoning="s"))  # fmt: skip
    segments = lay_out_example(Example(turns), TASK)
    learnt = "".join(segment.text for segment in segments if segment.learn)
    assert learnt == "\n<think>\ns\n</think>\nd<|user|>"
    guided = lay_out_example(Example(turns), Task(TaskKind.CLASSIFICATION, labels=("b", "d")))
    assert "".join(segment.text for segment in guided if segment.learn) == "\nb<|user|>\nd<|user|>"


def test_the_tokenizer_knows_the_tags_where_the_data_thinks(examples: list[Example]) -> None:
    thinks = any(message.reasoning for example in examples for message in example.messages)
    made = train_tokenizer(examples, TASK)
    assert (made.token_to_id("<think>") is not None) == thinks
    encoder = PromptEncoder(made)
    typed = encoder.encode(BUILT_FORMAT.prompt([Message(USER, "<think>a</think>")]))[0]
    assert not {made.token_to_id("<think>"), made.token_to_id("</think>")} & {*typed} - {None}


@pytest.mark.parametrize("same", [True, False])
def test_the_task_keeps_the_tools_that_all_rows_share(tmp_path: Path, same: bool) -> None:
    path = tmp_path / "calls.json"
    path.write_text(json.dumps(tool_rows(80, same=same), ensure_ascii=False), encoding="utf-8")
    prepared = prepare(path)
    assert prepared.task.kind is TaskKind.TOOL_CALLS
    names = [tool["function"]["name"] for tool in prepared.task.tools]
    assert names == (["find_train", "get_weather", "play"] if same else [])
    assert Task.from_dict(json.loads(json.dumps(prepared.task.to_dict()))) == prepared.task
    assert prepared.report.output["tools"] == len(names)
    calls = [call.name for e in prepared.train for m in e.messages for call in m.tool_calls]
    assert prepared.report.output["calls"] == {name: calls.count(name) for name in dict.fromkeys(calls)}


XLAM = {
    "id": 0,
    "query": "Where can I find live giveaways for beta access, and add 1 to 2?",
    "tools": json.dumps([
        {"name": "live_giveaways", "description": "By type.",
         "parameters": {"type": {"description": "Type of giveaway", "type": "str", "default": "game"}}},
        {"name": "add", "description": "", "parameters": {"a": {"type": "int", "description": ""}}},
    ]),
    "answers": json.dumps([{"name": "live_giveaways", "arguments": {"type": "beta"}}, ARGUMENTS]),
}  # fmt: skip


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("answers", ["answers", "answer"])
def test_a_query_with_tools_and_the_calls_that_answer_it(tmp_path: Path, as_text: bool, answers: str) -> None:
    """The shape of xLAM's function-calling-60k, as texts of JSON and as JSON itself."""
    row = {**XLAM, answers: XLAM["answers"]}
    if answers != "answers":
        del row["answers"]
    if not as_text:
        row = {name: json.loads(str(row[name])) if name in ("tools", answers) else row[name] for name in row}
    rows = [{**row, "id": number, "query": f"{row['query']} {number}"} for number in range(20)]
    path = tmp_path / "xlam.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    file = read_rows(path)
    layout = find_layout(file)
    examples = read_examples(file, layout, FindingLog())
    assert len(examples) == 20
    for number, example in enumerate(examples):
        assert example.input_text == f"{XLAM['query']} {number}"
        calls = (ToolCall("live_giveaways", '{"type": "beta"}'), ToolCall("add", '{"a": 1}'))
        assert example.messages[1] == Message(ASSISTANT, "", tool_calls=calls)
        parameters = [tool["function"]["parameters"] for tool in example.tools]
        assert parameters[0]["type"] == "object" and list(parameters[0]["properties"]) == ["type"]
        assert parameters[0]["properties"]["type"]["type"] == "string"
        assert parameters[1]["properties"]["a"]["type"] == "integer"
    assert detect_task(examples, layout).kind is TaskKind.TOOL_CALLS
