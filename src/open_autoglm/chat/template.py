# SPDX-License-Identifier: Apache-2.0
"""The words that all GLM chat formats share: control tokens, roles, ends; and our own format in Jinja."""

from __future__ import annotations

from typing import Final

from tokenizers import Tokenizer

from open_autoglm.chat.messages import Role
from open_autoglm.chat.segments import Segment, encode, encode_text

__all__ = [
    "ANSWER_PREFIX",
    "BEGIN_MASK",
    "BEGIN_SEQUENCE",
    "CHAT_TEMPLATE",
    "CONTROL_TOKENS",
    "END_OF_TEXT",
    "READ_TWICE_TEMPLATE",
    "ROLE_TOKENS",
    "STOP_TOKENS",
    "Segment",
    "encode",
    "encode_text",
    "stop_token_ids",
]

END_OF_TEXT: Final = "<|endoftext|>"
BEGIN_MASK: Final = "[gMASK]"
BEGIN_SEQUENCE: Final = "<sop>"
ROLE_TOKENS: Final[dict[Role, str]] = {role: f"<|{role.value}|>" for role in Role}
CONTROL_TOKENS: Final[tuple[str, ...]] = (END_OF_TEXT, BEGIN_MASK, BEGIN_SEQUENCE, *ROLE_TOKENS.values())
"""Every control token of the format; `<|endoftext|>` comes first and pads."""

STOP_TOKENS: Final[tuple[str, ...]] = (END_OF_TEXT, ROLE_TOKENS[Role.USER], ROLE_TOKENS[Role.OBSERVATION])
"""What ends an assistant's turn."""

ANSWER_PREFIX: Final = "\n"
"""What an assistant's turn begins with, between its role token and its first word."""

CHAT_TEMPLATE: Final = r"""
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content -%}{%- for part in content -%}{{ part if part is string else part.text }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- '[gMASK]<sop>' -}}
{%- if tools -%}
{{- '<|system|>\n# 可用工具\n' -}}
{%- for tool in tools -%}
{%- set function = tool.function if tool.function else tool -%}
{{- '\n## ' ~ function.name ~ '\n\n' ~ (function | tojson(indent=4)) ~ '\n' -}}
{{- '在调用上述函数时，请使用 Json 格式表示调用的参数。' -}}
{%- endfor -%}
{%- endif -%}
{%- set seen = namespace(user=-1) -%}
{%- for message in messages -%}
{%- if message.role in ('user', 'human') -%}{%- set seen.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- set keeps = clear_thinking is defined and not clear_thinking -%}
{%- for message in messages -%}
{%- set role = 'observation' if message.role in ('tool', 'function') else message.role -%}
{%- set role = 'system' if role == 'developer' else role -%}
{%- set content = text(message.content) -%}
{%- set reasoning = '' -%}
{%- if role == 'assistant' and message.reasoning_content and (keeps or loop.index0 > seen.user) -%}
{%- set reasoning = message.reasoning_content.strip() -%}
{%- endif -%}
{%- if reasoning -%}
{{- '<|assistant|>\n<think>\n' ~ reasoning ~ '\n</think>\n' ~ content -}}
{%- elif content or not message.tool_calls -%}
{{- '<|' ~ role ~ '|>' ~ (message.metadata or '') ~ '\n' ~ content -}}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function if call.function else call -%}
{%- set arguments = function.arguments -%}
{{- '<|assistant|>' ~ function.name ~ '\n' ~ (arguments if arguments is string else arguments | tojson) -}}
{%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
"""`built.BuiltFormat` in Jinja, for transformers, vLLM and their like; a test keeps the two equal byte for byte."""

_CONTENT: Final = "{%- set content = text(message.content) -%}\n"

READ_TWICE_TEMPLATE: Final = CHAT_TEMPLATE.replace(
    _CONTENT,
    _CONTENT + "{%- if role == 'user' and content -%}{%- set content = content ~ '\\n' ~ content -%}{%- endif -%}\n",
)
"""`built.ReadTwiceFormat` in Jinja."""


def stop_token_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of the tokens that end an assistant's turn."""
    found = (tokenizer.token_to_id(token) for token in STOP_TOKENS)
    return tuple(token_id for token_id in found if token_id is not None)
