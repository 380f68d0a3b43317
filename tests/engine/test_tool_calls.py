# SPDX-License-Identifier: Apache-2.0
"""Tools from the examples to an answer: a tiny model that has learnt four dialogues by heart calls what it should."""

import itertools
import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from open_autoglm.bundle import BundleManifest, write_bundle
from open_autoglm.bundle.huggingface import write_tokenizer
from open_autoglm.chat.detection import BUILT_FORMAT
from open_autoglm.chat.messages import Message, Role, ToolCall
from open_autoglm.chat.parsing import ParsedAnswer
from open_autoglm.chat.tools import read_tools
from open_autoglm.data import Example, encode_examples, train_tokenizer
from open_autoglm.data.tool_calls import shared_tools
from open_autoglm.engine import LLM, Completion, SamplingParams
from open_autoglm.engine.answer_reader import AnswerReader
from open_autoglm.engine.request import Delta
from open_autoglm.errors import RequestError
from open_autoglm.evaluate import evaluate_bundle, evaluate_calls
from open_autoglm.metrics import Samples
from open_autoglm.models.checkpoint import save_model
from open_autoglm.models.glm import GlmForCausalLM, PackedSequences
from open_autoglm.task import Task, TaskKind
from tests.engine.tiny_bundle import make_config, make_model

USER, ASSISTANT, OBSERVATION = Role.USER, Role.ASSISTANT, Role.OBSERVATION
TOOLS = tuple(
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {key: {}}}}}
    for name, key in (("weather", "city"), ("clock", "zone"))
)
OSLO, ROME, UTC = (
    ToolCall("weather", '{"city": "Oslo"}'),
    ToolCall("weather", '{"city": "Rome"}'),
    ToolCall("clock", '{"zone": 1}'),
)
DIALOGUES = (
    (Message(USER, "weather in oslo?"), Message(ASSISTANT, "", reasoning="a city: oslo", tool_calls=(OSLO,))),
    (Message(USER, "rome, and the time"), Message(ASSISTANT, "Both.", tool_calls=(ROME, UTC))),
    (Message(USER, "hi"), Message(ASSISTANT, "Hello!")),
    (Message(USER, "in rome"), Message(ASSISTANT, "", tool_calls=(ROME,)), Message(OBSERVATION, "sunny 20"),
     Message(ASSISTANT, "It is sunny.")),
)  # fmt: skip
EXAMPLES = [Example(messages, f"rows:{number}", TOOLS) for number, messages in enumerate(DIALOGUES, start=1)]
TASK = Task(TaskKind.TOOL_CALLS, tools=shared_tools(EXAMPLES))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(EXAMPLES, TASK)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GlmForCausalLM:
    """Trained until it knows its four dialogues by heart."""
    made = make_model(make_config(tokenizer, max_position_embeddings=1024))
    encoded = encode_examples(EXAMPLES, tokenizer, TASK, max_length=1024)
    ids, learn = torch.from_numpy(encoded.token_ids).long(), torch.from_numpy(encoded.learn)
    lengths = torch.from_numpy(encoded.lengths)
    learnt = learn.nonzero().squeeze(1)
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)
    for _ in range(400):
        logits = made.logits(made(ids, PackedSequences(lengths))[learnt - 1])
        loss = torch.nn.functional.cross_entropy(logits, ids[learnt])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            break
    assert loss.item() < 0.05
    return made.eval()


@pytest.fixture(scope="module")
def llm(model: GlmForCausalLM, tokenizer: Tokenizer) -> LLM:
    return LLM.from_model(model, tokenizer, task=TASK)


@pytest.fixture(scope="module")
def bundle(model: GlmForCausalLM, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calls")
    staging = folder / "staging"
    staging.mkdir()
    save_model(model, staging)
    write_tokenizer(tokenizer, staging, max_length=1024)
    config = model.config
    manifest = BundleManifest(
        name="calls", task=TASK.to_dict(), architecture=config.architecture, parameters=config.num_parameters()
    )
    write_bundle(folder / "bundle", staging, manifest)
    return folder / "bundle"


def said(completion: Completion) -> Message:
    """The answer as a turn, without the ids of its calls."""
    assert completion.answer is not None
    assert not completion.answer.problems
    message = completion.answer.message
    assert all(call.id for call in message.tool_calls)
    return replace(message, tool_calls=tuple(replace(call, id="") for call in message.tool_calls))


@pytest.mark.parametrize("given", [TOOLS, None, [tool["function"] for tool in TOOLS]], ids=["given", "task", "bare"])
def test_what_was_learnt_is_answered_in_its_parts(llm: LLM, given: list | None) -> None:
    for dialogue in DIALOGUES:
        completion = llm.chat(list(dialogue[:1]), tools=given, temperature=0.0, max_tokens=100)
        assert said(completion) == dialogue[1]
        assert completion.content == dialogue[1].content
        assert completion.reasoning == dialogue[1].reasoning
        assert completion.finish_reason == "stop"
        assert all(call.name in completion.text for call in completion.tool_calls)
    both, hello = llm.chat([list(dialogue[:1]) for dialogue in DIALOGUES[1:3]], temperature=0.0, max_tokens=100)
    assert (said(both), said(hello)) == (DIALOGUES[1][1], DIALOGUES[2][1])


def test_a_dialogue_goes_on_with_what_the_tool_returned(llm: LLM) -> None:
    first = llm.chat("in rome", temperature=0.0, max_tokens=100)
    assert first.answer is not None
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny 20"}
    asked = {"role": "user", "content": "in rome"}
    answered = {"role": "assistant", "content": None, "tool_calls": [first.tool_calls[0].to_openai()]}
    assert llm.chat([asked, answered, result], temperature=0.0, max_tokens=100).content == "It is sunny."


def test_the_prompt_is_the_one_that_was_learnt(llm: LLM, tokenizer: Tokenizer) -> None:
    encoded = encode_examples(EXAMPLES, tokenizer, TASK, max_length=1024)
    for index, example in enumerate(EXAMPLES):
        request = llm.chat_request(example.prompt, SamplingParams(max_tokens=5))
        row = encoded.token_ids[encoded.offsets[index] : encoded.offsets[index + 1]].tolist()
        learn = encoded.learn[encoded.offsets[index] : encoded.offsets[index + 1]].tolist()
        prompt = list(request.prompt_token_ids)
        assert row[: len(prompt)] == prompt
        assert all(learn[len(prompt) :])


def test_a_stream_is_read_as_the_whole_is(llm: LLM, tokenizer: Tokenizer) -> None:
    for dialogue in DIALOGUES[:2]:
        request = llm.chat_request(list(dialogue[:1]), SamplingParams(max_tokens=100))
        [whole] = llm.complete([request])
        reader = llm.reader(request)
        assert reader is not None
        for token_id in whole.token_ids:
            reader.push(Delta("", tokenizer.decode([token_id], skip_special_tokens=True), (token_id,)))
        reader.push(Delta("", "", (), (), whole))
        found, expected = reader.answer, whole.answer
        assert expected is not None
        assert (found.content, found.reasoning) == (expected.content, expected.reasoning)
        assert [(c.name, c.arguments) for c in found.tool_calls] == [(c.name, c.arguments) for c in expected.tool_calls]


def test_a_stop_string_ends_the_parts_too(llm: LLM) -> None:
    completion = llm.chat("hi", temperature=0.0, stop=["lo!"])
    assert (completion.text, completion.content) == ("Hel", "Hel")
    thought = llm.chat("weather in oslo?", temperature=0.0, max_tokens=100, stop=["city:"])
    assert (thought.reasoning, thought.content, thought.tool_calls) == ("a ", "", ())


def test_a_guided_answer_is_content(llm: LLM) -> None:
    completion = llm.chat("hi", temperature=0.0, guided_choice=["weather\n{}", "no"])
    assert completion.answer is None
    assert completion.content == completion.text
    assert not completion.tool_calls


def test_pieces_of_any_size_are_read_alike(llm: LLM, tokenizer: Tokenizer) -> None:
    """Tokens come before their text when the engine holds text back that may become a stop string."""
    assert llm.vocabulary is not None
    marks = BUILT_FORMAT.marks(tokenizer)
    tokenizer.encode_special_tokens = False
    text = '\n<think>\nwhy 天\n</think>\nDo.<|assistant|>weather\n{"city": "天"}<|observation|>'
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    visible = text.replace("<|assistant|>", "").replace("<|observation|>", "").removeprefix("\n")
    for held, size in itertools.product((0, 1, 5, 1000), (1, 2, 5)):
        reader = AnswerReader(_parser(), llm.vocabulary, marks, drop_prefix="\n")
        released = 0
        for place in range(0, len(ids), size):
            some = tuple(ids[place : place + size])
            seen = tokenizer.decode(ids[: place + size], skip_special_tokens=True).removeprefix("\n").rstrip("\ufffd")
            upto = max(released, len(seen) - held)
            reader.push(Delta("", visible[released:upto], some))
            released = upto
        done = Completion(visible, tuple(ids), "stop", 1)
        reader.push(Delta("", visible[released:], (), (), done))
        answer = replace(reader.answer, tool_calls=())
        assert answer == ParsedAnswer("Do.", "why 天")
        assert [(call.name, call.values()) for call in reader.answer.tool_calls] == [("weather", {"city": "天"})]


def _parser():
    return BUILT_FORMAT.parser(read_tools(TOOLS), tokens=True)


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"tools": "x"}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "retrieval", "name": "f"}]}, "tools"),
        ({"tools": [{"name": "a\nb"}]}, "tools"),
        ({"tools": [{"name": "f"}, {"name": "f"}]}, "tools"),
        ({"tools": [{"name": "f", "parameters": []}]}, "tools"),
        ({"tools": [{"name": "f", "parameters": {"properties": {"type": {"type": "text"}}}}]}, "tools"),
        ({"tools": [{"name": "f", "parameters": {"properties": {"a": {"pattern": "("}}}}]}, "tools"),
        ({"tools": [{"name": "f", "description": "\ud800"}]}, "tools"),
        ({"tools": [{"name": "f", "description": "long " * 9999}]}, "messages"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"enable_thinking": "yes"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ],
)
def test_bad_tools_and_options_are_named(llm: LLM, options: dict, parameter: str) -> None:
    with pytest.raises(RequestError) as raised:
        llm.chat("hi", **options)
    assert raised.value.parameter == parameter
    assert llm.chat("hi", temperature=0.0).content == "Hello!"


def test_good_schemas_are_taken(llm: LLM) -> None:
    schema = {
        "type": ["object", "null"],
        "properties": {"type": {"enum": [{"type": 1}]}, "pattern": {"type": "string"}},
    }
    llm.chat_request("hi", SamplingParams(max_tokens=5), tools=[{"name": "f", "parameters": schema}])
    llm.chat_request("hi", SamplingParams(max_tokens=5), chat_template_kwargs={"enable_thinking": False})


def values_of(scores: dict[str, Samples]) -> dict[str, float]:
    return {name: samples.value for name, samples in scores.items()}


def test_calls_are_scored(llm: LLM, bundle: Path, tmp_path: Path) -> None:
    scores, rows = evaluate_calls(llm, EXAMPLES, max_tokens=100)
    assert values_of(scores) == {"call_match": 1.0, "call_names": 1.0, "call_decision": 1.0, "call_parse_rate": 1.0}
    assert [row["answer"] == row["reference"] for row in rows] == [True] * 5
    wrong = [replace(EXAMPLES[0], messages=(DIALOGUES[0][0], DIALOGUES[1][1])), EXAMPLES[2]]
    scores, _ = evaluate_calls(llm, wrong, max_tokens=100)
    assert values_of(scores) == {"call_match": 0.0, "call_names": 0.0, "call_decision": 1.0, "call_parse_rate": 1.0}
    file, answers = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    lines = [{"messages": [m.to_dict() for m in e.messages], "tools": list(e.tools)} for e in EXAMPLES]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation = evaluate_bundle(bundle, file, backend="torch", answers_path=answers)
    assert evaluation.metric == "perplexity"
    assert evaluation.metrics["call_match"] == 1.0
    assert len(answers.read_text().splitlines()) == 5


def test_the_chat_command_shows_calls_and_reasoning(bundle: Path) -> None:
    command = [sys.executable, "-m", "open_autoglm", "chat", str(bundle)]
    asked = "weather in oslo?\nhi\n"
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
    assert done.stdout == '| a city: oslo\n-> weather({"city": "Oslo"})\nHello!\n'
    done = subprocess.run([*command, "--json"], input=asked, capture_output=True, text=True, check=True)
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["answer"], first["reasoning"]) == ("", "a city: oslo")
    assert first["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert second["answer"] == "Hello!"
    assert "tool_calls" not in second


def test_on_a_terminal_the_dialogue_goes_on_with_the_result(bundle: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "open_autoglm", "chat", str(bundle)]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        os.close(theirs)
        os.write(ours, b"in rome\nsunny 20\n\x04")
        out, errors = running.communicate(timeout=120)
        os.close(ours)
    assert running.returncode == 0, errors
    assert '-> weather({"city": "Rome"})' in out
    assert "It is sunny." in out


def test_tools_of_training_data_are_taken_as_they_are(llm: LLM) -> None:
    """Files write types such as `str`, which a request may not."""
    odd = {"name": "f", "parameters": {"properties": {"a": {"type": "str"}}}}
    with pytest.raises(RequestError, match="'str' is no JSON type"):
        llm.chat_request("hi", SamplingParams(max_tokens=5), tools=[odd])
    llm.chat_request("hi", SamplingParams(max_tokens=5), tools=read_tools([odd]))
