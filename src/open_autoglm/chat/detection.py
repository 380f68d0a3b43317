# SPDX-License-Identifier: Apache-2.0
"""Which chat format a checkpoint has: by the template that it brings, else by its tokens and its kind of model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from open_autoglm.chat.built import BuiltFormat, ReadTwiceFormat
from open_autoglm.chat.format import ChatFormat, ChatOptions
from open_autoglm.chat.glm4 import Glm0414Format, Glm0414SpacedFormat, Glm4Format, GlmZ1Format
from open_autoglm.chat.glm45 import Glm45Format, Glm47Format
from open_autoglm.chat.jinja_template import JinjaTemplate, TemplateFormat, TemplateLimitError
from open_autoglm.chat.messages import Message, Role, ToolCall
from open_autoglm.chat.tools import Tool, read_tools
from open_autoglm.errors import CheckpointError, DataError, StorageError
from open_autoglm.storage import read_json
from open_autoglm.task import Task

BUILT_FORMAT: Final = BuiltFormat()
"""The format of the models built by us."""

READ_TWICE_FORMAT: Final = ReadTwiceFormat()
"""That of models built by us that read their input twice."""

FORMATS: Final[tuple[ChatFormat, ...]] = (
    Glm47Format(), Glm45Format(), GlmZ1Format(), Glm0414Format(), Glm0414SpacedFormat(), Glm4Format(), BUILT_FORMAT,
    READ_TWICE_FORMAT,
)  # fmt: skip
"""Every format of our own."""

_TEMPLATE_FILE: Final = "chat_template.jinja"
_BY_MODEL_TYPE: Final = {
    "glm4": "glm-4-0414",
    "glm4_moe": "glm-4.5",
    "glm4v_moe": "glm-4.5",
    "glm4_moe_lite": "glm-4.7",
    "glm_moe_dsa": "glm-4.7",
}


def format_named(name: str) -> ChatFormat:
    """The format of our own that has this name. Raises CheckpointError, listing the names, for another one."""
    for known in FORMATS:
        if known.name == name:
            return known
    raise CheckpointError(f"unknown chat format '{name}'; choose one of: {', '.join(item.name for item in FORMATS)}")


def built_format(task: Task | None) -> BuiltFormat:
    """The format of a model that we built for a task; the plain one if the task is not known."""
    return READ_TWICE_FORMAT if task is not None and task.reads_twice else BUILT_FORMAT


def detect_format(folder: Path, tokenizer: Tokenizer | None) -> ChatFormat:
    """The chat format of a checkpoint folder.

    A template that renders a set of probes as one of our formats does stands for that format; any other template is
    rendered itself. Without a template the kind of model and the tokenizer's tags decide.
    Raises CheckpointError for a template that cannot be read.
    """
    template = find_template(folder)
    guess = _guess(folder, tokenizer)
    if template is None:
        return guess
    if equal := matching_format(template):
        return equal
    base = _nearest(template.text, guess)
    return (
        TemplateFormat(template, base) if tokenizer is None else TemplateFormat.for_tokenizer(template, base, tokenizer)
    )


def find_template(folder: Path) -> JinjaTemplate | None:
    """The chat template of a checkpoint: its own file, or in `tokenizer_config.json`; `default` if it has several.

    Raises CheckpointError for one that cannot be read.
    """
    file = folder / _TEMPLATE_FILE
    if file.is_file():
        try:
            return JinjaTemplate(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file} cannot be read ({error})") from None
    config = folder / "tokenizer_config.json"
    try:
        found = read_json(config).get("chat_template") if config.is_file() else None
    except (StorageError, AttributeError) as error:
        raise CheckpointError(f"{config} is not JSON that can be read ({error})") from None
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return JinjaTemplate(found, f"chat_template in {config}") if isinstance(found, str) and found else None


def matching_format(template: JinjaTemplate) -> ChatFormat | None:
    """The format of our own that renders every probe as the template does, if one does."""
    for known in FORMATS:
        probes = (*_PROBES, *_THOUGHT_PROBES) if isinstance(known, Glm45Format | BuiltFormat) else _PROBES
        if all(_agrees(known, template, probe) for probe in probes):
            return known
    return None


_TOOLS: Final = read_tools(
    [
        {
            "type": "function",
            "function": {
                "name": "find_train",
                "description": "找火车",
                "parameters": {"type": "object", "properties": {"to": {"type": "string"}, "n": {"type": "integer"}}},
            },
        },
        {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
    ]
)
_USER: Final = Message(Role.USER, "先问 A?")
_ANSWER: Final = Message(Role.ASSISTANT, "答 B.")
_CALLS: Final = Message(
    Role.ASSISTANT,
    "",
    tool_calls=(ToolCall("find_train", '{"to": "上海", "n": 2}'), ToolCall("find_train", '{"n": 1}')),
)
_RESULTS: Final = (Message(Role.OBSERVATION, '{"ok": true}'), Message(Role.OBSERVATION, "none"))
_DIALOGUE: Final = (Message(Role.SYSTEM, "Be brief."), _USER, _ANSWER, Message(Role.USER, "再问"))

Probe = tuple[Sequence[Message], Sequence[Tool], ChatOptions, bool]
_PROBES: Final[tuple[Probe, ...]] = (
    (_DIALOGUE, (), ChatOptions(), True),
    (_DIALOGUE, (), ChatOptions(enable_thinking=True), True),
    (_DIALOGUE, (), ChatOptions(enable_thinking=False), True),
    ((_USER, _ANSWER), (), ChatOptions(), False),
    ((_USER, _ANSWER, *_DIALOGUE), (), ChatOptions(), True),
    ((_DIALOGUE[0], _USER, _CALLS, *_RESULTS), _TOOLS, ChatOptions(), True),
    ((_USER, _CALLS, *_RESULTS, _ANSWER, *_DIALOGUE[3:]), _TOOLS, ChatOptions(), True),
)
_THOUGHT: Final = Message(Role.ASSISTANT, "C.", reasoning="想一想")
_THOUGHT_PROBES: Final[tuple[Probe, ...]] = (
    ((_USER, _THOUGHT), (), ChatOptions(), False),
    ((_USER, _THOUGHT, _USER), (), ChatOptions(), True),
    ((_USER, _THOUGHT, _USER), (), ChatOptions(clear_thinking=False), True),
)


def _agrees(known: ChatFormat, template: JinjaTemplate, probe: Probe) -> bool:
    messages, tools, options, prompted = probe
    tools = tools if template.takes_tools else ()
    try:
        ours = known.render(messages, tools, options, add_generation_prompt=prompted)
        theirs = template.render(
            known.template_messages(messages), [tool.definition for tool in tools], options,
            add_generation_prompt=prompted,
        )  # fmt: skip
    except TemplateLimitError as error:
        raise CheckpointError(str(error)) from None
    except DataError:
        return False
    if not prompted and ours[-1].control and ours[-1].learn:
        ours = ours[:-1]  # the end of the turn, which training adds
    return "".join(segment.text for segment in ours) == theirs


def _guess(folder: Path, tokenizer: Tokenizer | None) -> ChatFormat:
    try:
        model_type = read_json(folder / "config.json").get("model_type")
    except (StorageError, AttributeError):
        model_type = None
    if isinstance(model_type, str) and model_type in _BY_MODEL_TYPE:
        return format_named(_BY_MODEL_TYPE[model_type])
    has_tags = tokenizer is not None and tokenizer.token_to_id("<arg_key>") is not None
    return format_named("glm-4.5" if has_tags else "glm-4")


def _nearest(template: str, guess: ChatFormat) -> ChatFormat:
    """The format of our own whose answers a model with this template gives."""
    if "<arg_key>" in template:
        return format_named("glm-4.7" if "</arg_key><arg_value>" in template else "glm-4.5")
    if "metadata" not in template:
        return guess
    if "<|assistant|>\n<think>" in template:
        return format_named("glm-z1")
    return format_named("glm-4-0414") if "!= 'system'" in template else format_named("glm-4")
