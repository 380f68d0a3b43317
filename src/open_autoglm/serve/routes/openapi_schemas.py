# SPDX-License-Identifier: Apache-2.0
"""What answers look like, as JSON schemas for our OpenAPI document; the tests hold the answers to them."""

from __future__ import annotations

from typing import Any, Final

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_NUMBER: Final[Schema] = {"type": "number"}
_FLAG: Final[Schema] = {"type": "boolean"}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None, description: str = "") -> Schema:
    schema: Schema = {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }
    return {**schema, "description": description} if description else schema


_REASON: Final[Schema] = {"enum": ["stop", "length", "tool_calls"]}
_TOKEN: Final = {"token": _TEXT, "logprob": _NUMBER, "bytes": _list(_COUNT)}
_INPUT_USAGE: Final = _object({"prompt_tokens": _COUNT, "total_tokens": _COUNT})
_CALL: Final = _object(
    {
        "id": _TEXT,
        "type": {"const": "function"},
        "function": _object({"name": _TEXT, "arguments": {"type": "string", "description": "A JSON object."}}),
    }
)
_CALL_PART: Final = _object(
    {"index": _COUNT, "function": _object({}, {"name": _TEXT, "arguments": _TEXT})},
    {"id": _TEXT, "type": {"const": "function"}},
)
_CHAT_HEAD: Final = {"id": _TEXT, "created": _COUNT, "model": _TEXT}
_METADATA: Final = {"metadata": {"type": "object", "additionalProperties": _TEXT}}

RESPONSES: Final[dict[str, Schema]] = {
    "Error": _object(
        {
            "error": _object(
                {"message": _TEXT, "type": _TEXT, "param": _or_null(_TEXT), "code": _or_null(_TEXT)},
                description="What was wrong, the field at fault, and what to do.",
            )
        }
    ),
    "Usage": _object(
        {
            "prompt_tokens": _COUNT,
            "completion_tokens": _COUNT,
            "total_tokens": _COUNT,
            "prompt_tokens_details": _object({"cached_tokens": _COUNT}),
            "completion_tokens_details": _object({"reasoning_tokens": _COUNT}),
        }
    ),
    "ChatLogprobs": _object(
        {"content": _list(_object({**_TOKEN, "top_logprobs": _list(_object(_TOKEN))})), "refusal": {"type": "null"}}
    ),
    "ChatCompletion": _object(
        {
            **_CHAT_HEAD,
            "object": {"const": "chat.completion"},
            "choices": _list(
                _object(
                    {
                        "index": _COUNT,
                        "message": _object(
                            {"role": {"const": "assistant"}, "content": _or_null(_TEXT), "refusal": {"type": "null"}},
                            {"reasoning_content": _TEXT, "tool_calls": _list(_CALL)},
                        ),
                        "logprobs": _or_null(_ref("ChatLogprobs")),
                        "finish_reason": _REASON,
                    }
                )
            ),
            "usage": _ref("Usage"),
        },
        _METADATA,
    ),
    "ChatCompletionChunk": _object(
        {
            **_CHAT_HEAD,
            "object": {"const": "chat.completion.chunk"},
            "choices": _list(
                _object(
                    {
                        "index": _COUNT,
                        "delta": _object(
                            {},
                            {
                                "role": {"const": "assistant"},
                                "content": _TEXT,
                                "reasoning_content": _TEXT,
                                "tool_calls": _list(_CALL_PART),
                            },
                        ),
                        "logprobs": _or_null(_ref("ChatLogprobs")),
                        "finish_reason": _or_null(_REASON),
                    }
                )
            ),
        },
        {"usage": _or_null(_ref("Usage")), **_METADATA},
        description="One event of a stream; `[DONE]` follows the last one, and an error may come in its place.",
    ),
    "Completion": _object(
        {
            **_CHAT_HEAD,
            "object": {"const": "text_completion"},
            "choices": _list(
                _object(
                    {
                        "index": _COUNT,
                        "text": _TEXT,
                        "logprobs": _or_null(
                            _object(
                                {
                                    "tokens": _list(_TEXT),
                                    "token_logprobs": _list(_NUMBER),
                                    "top_logprobs": _list({"type": "object", "additionalProperties": _NUMBER}),
                                    "text_offset": _list(_COUNT),
                                }
                            )
                        ),
                        "finish_reason": _or_null({"enum": ["stop", "length"]}),
                    }
                )
            ),
        },
        {"usage": _or_null(_ref("Usage"))},
        description="Whole, or one event of a stream.",
    ),
    "Embeddings": _object(
        {
            "object": {"const": "list"},
            "model": _TEXT,
            "usage": _INPUT_USAGE,
            "data": _list(
                _object(
                    {
                        "object": {"const": "embedding"},
                        "index": _COUNT,
                        "embedding": {"anyOf": [_list(_NUMBER), {"type": "string", "description": "float32, base64"}]},
                    }
                )
            ),
        }
    ),
    "Classes": _object(
        {
            **_CHAT_HEAD,
            "object": {"const": "list"},
            "labels": _list(_TEXT),
            "usage": _INPUT_USAGE,
            "data": _list(_object({"index": _COUNT, "label": _TEXT, "probs": _list(_NUMBER), "num_classes": _COUNT})),
        }
    ),
    "Tokens": _object(
        {
            "count": _COUNT,
            "max_model_len": _COUNT,
            "tokens": _list(_COUNT),
            "token_strs": _or_null(_list(_TEXT)),
        }
    ),
    "Text": _object({"prompt": _TEXT}),
    "Model": _object(
        {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": _COUNT,
            "owned_by": _TEXT,
            "max_model_len": _or_null(_COUNT),
            "task": _or_null(_TEXT),
            "aliases": _list(_TEXT),
            "state": _TEXT,
            "version": _or_null(_TEXT),
        }
    ),
    "Models": _object({"object": {"const": "list"}, "data": _list(_ref("Model"))}),
    "Metrics": {"type": "string", "description": "In the exposition format, one sample a line."},
    "Health": _object(
        {
            "status": {"enum": ["ok", "stopping"]},
            "model": _TEXT,
            "running": _COUNT,
            "waiting": _COUNT,
            "kv_blocks": _object({"free": _COUNT, "total": _COUNT}),
        }
    ),
    "Readiness": _object(
        {
            "status": {"enum": ["ready", "not ready"]},
            "models": {
                "type": "object",
                "additionalProperties": _object({"state": _TEXT, "ready": _FLAG}, {"reason": _TEXT}),
            },
        }
    ),
}
"""Name -> schema of what the routes answer."""
