# SPDX-License-Identifier: Apache-2.0
"""Templates of checkpoints: known ones stand for a format of ours, others are rendered and stay safe."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings

from open_autoglm.chat.detection import FORMATS, detect_format, find_template, format_named, matching_format
from open_autoglm.chat.format import ChatOptions
from open_autoglm.chat.jinja_template import JinjaTemplate, TemplateFormat
from open_autoglm.chat.messages import Message, ToolCall
from open_autoglm.chat.segments import PromptEncoder
from open_autoglm.chat.template import CHAT_TEMPLATE, READ_TWICE_TEMPLATE
from open_autoglm.errors import CheckpointError, DataError
from tests.chat.samples import ASSISTANT, NASTY, OBSERVATION, SYSTEM, TAGGED, TOOLS, USER

# Written for this test: no model has it. Contents are stripped, tools are JSON with escapes, thinking is a switch.
OTHER = """[gMASK]<sop>
{%- if tools %}<|system|>tools={{ tools | tojson(ensure_ascii=true) }}{% endif %}
{%- for m in messages %}
    {%- if m.role == 'weird' %}{{ raise_exception('no weird turns') }}{% endif %}
    {%- if m.role == 'assistant' %}<|assistant|>{{ '<think>' if think_here else '' }}::{{ m.content.strip() }}
    {%- for call in m.tool_calls or [] %}<tool_call>{{ call.function.name }}</tool_call>{% endfor %}
    {%- elif m.role == 'tool' %}<|observation|>{{ m.content }}
    {%- else %}<|{{ m.role }}|>{{ m.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and not enable_thinking %}::{% endif %}
{%- endif %}"""


def text_of(segments: list) -> str:
    return "".join(segment.text for segment in segments)


def other() -> TemplateFormat:
    return TemplateFormat.for_tokenizer(JinjaTemplate(OTHER), format_named("glm-4.7"), TAGGED)


@pytest.mark.parametrize(
    ("template", "name"), [(CHAT_TEMPLATE, "open-autoglm"), (READ_TWICE_TEMPLATE, "open-autoglm-read-twice")]
)
def test_the_template_of_our_bundles_stands_for_our_format(tmp_path: Path, template: str, name: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(template)
    assert detect_format(tmp_path, TAGGED).name == name


@pytest.mark.parametrize(
    ("model_type", "name"),
    [("glm4", "glm-4-0414"), ("glm4_moe", "glm-4.5"), ("glm4_moe_lite", "glm-4.7"), ("other", "glm-4.5")],
)
def test_without_a_template_the_kind_of_model_decides(tmp_path: Path, model_type: str, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert detect_format(tmp_path, TAGGED).name == name


def test_templates_in_tokenizer_config_are_found(tmp_path: Path) -> None:
    for value in (OTHER, [{"name": "rag", "template": "x"}, {"name": "default", "template": OTHER}]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
        template = find_template(tmp_path)
        assert template is not None
        assert template.text == OTHER


def test_another_template_is_rendered_itself(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(OTHER)
    chat = detect_format(tmp_path, TAGGED)
    assert isinstance(chat, TemplateFormat)
    messages = [Message(SYSTEM, "S"), Message(USER, "<|assistant|> é"), Message(OBSERVATION, "1")]
    text = text_of(chat.prompt(messages, options=ChatOptions(enable_thinking=False)))
    assert text == "[gMASK]<sop><|system|>S<|user|><|assistant|> é<|observation|>1<|assistant|>::"
    with_tools = text_of(chat.prompt([Message(USER, "<|user|>")], TOOLS))
    assert json.loads(with_tools.split("tools=")[1].split("<|user|>")[0]) == [dict(t.definition) for t in TOOLS]


@settings(max_examples=80, deadline=None)
@given(NASTY, NASTY, NASTY)
def test_text_in_any_template_never_becomes_a_control_token(system: str, user: str, said: str) -> None:
    chat = other()
    messages = [Message(SYSTEM, system), Message(USER, user), Message(ASSISTANT, said), Message(OBSERVATION, user)]
    ids, _ = PromptEncoder(TAGGED).encode(chat.prompt(messages))
    marks = format_named("glm-4.5").marks(TAGGED)
    written = [marks[token_id] for token_id in ids if token_id in marks]
    assert written == [
        "[gMASK]",
        "<sop>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|observation|>",
        "<|assistant|>",
    ]
    text = TAGGED.decode(ids, skip_special_tokens=False)
    start = f"[gMASK]<sop><|system|>{system}<|user|>{user}"
    assert text == f"{start}<|assistant|>::{said.strip()}<|observation|>{user}<|assistant|>"


def test_the_loss_of_a_template_covers_the_answers() -> None:
    call = Message(ASSISTANT, "b", tool_calls=(ToolCall("ping"),))
    messages = [Message(USER, "q"), Message(ASSISTANT, "a", learn=False), Message(USER, "<|assistant|>"), call]
    segments = other().render(messages)
    assert text_of([s for s in segments if s.learn]) == "::b<tool_call>ping</tool_call><|observation|>"
    off = other().render(messages, options=ChatOptions(enable_thinking=False))
    assert not off[0].learn
    assert text_of([s for s in off if s.learn]).endswith("b<tool_call>ping</tool_call><|observation|>")


@pytest.mark.parametrize(
    "bad",
    [
        "{{ ''.__class__.__mro__ }}",
        "{% for m in messages %}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no') }}",
    ],
)
def test_bad_templates_are_refused_in_a_sentence(bad: str) -> None:
    with pytest.raises((CheckpointError, DataError), match=r"chat_template\.jinja"):
        TemplateFormat(JinjaTemplate(bad), format_named("glm-4")).prompt([Message(USER, "q")])


def test_a_huge_template_is_refused() -> None:
    with pytest.raises(CheckpointError, match="characters"):
        JinjaTemplate("x" * 300_000)


CHECKPOINTS = [Path(name) for name in os.environ.get("OPEN_AUTOGLM_TEST_CHECKPOINTS", "").split(os.pathsep) if name]


@pytest.mark.skipif(not CHECKPOINTS, reason="OPEN_AUTOGLM_TEST_CHECKPOINTS names no folders of checkpoints")
@pytest.mark.parametrize("folder", CHECKPOINTS, ids=str)
def test_real_templates_are_matched_to_the_byte(folder: Path) -> None:
    template = find_template(folder)
    assert template is not None
    assert matching_format(template) in FORMATS
