# SPDX-License-Identifier: Apache-2.0
"""What answers look like, as JSON schemas for our OpenAPI document; the tests hold the answers to them."""

from __future__ import annotations

from typing import Any, Final

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_NUMBER: Final[Schema] = {"type": "number"}
FLAG: Final[Schema] = {"type": "boolean"}


def ref_schema(name: str) -> Schema:
    """A schema of the document by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def list_schema(items: Schema) -> Schema:
    """A list of these."""
    return {"type": "array", "items": items}


def or_null(schema: Schema) -> Schema:
    """This or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def object_schema(
    required: dict[str, Schema], optional: dict[str, Schema] | None = None, description: str = ""
) -> Schema:
    """An object with these properties and no others."""
    schema: Schema = {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }
    return {**schema, "description": description} if description else schema


_REASON: Final[Schema] = {"enum": ["stop", "length", "tool_calls"]}
_TOKEN: Final = {"token": TEXT, "logprob": _NUMBER, "bytes": list_schema(COUNT)}
_INPUT_USAGE: Final = object_schema({"prompt_tokens": COUNT, "total_tokens": COUNT})
_CALL: Final = object_schema(
    {
        "id": TEXT,
        "type": {"const": "function"},
        "function": object_schema({"name": TEXT, "arguments": {"type": "string", "description": "A JSON object."}}),
    }
)
_CALL_PART: Final = object_schema(
    {"index": COUNT, "function": object_schema({}, {"name": TEXT, "arguments": TEXT})},
    {"id": TEXT, "type": {"const": "function"}},
)
_CHAT_HEAD: Final = {"id": TEXT, "created": COUNT, "model": TEXT}
_METADATA: Final = {"metadata": {"type": "object", "additionalProperties": TEXT}}

RESPONSES: Final[dict[str, Schema]] = {
    "Error": object_schema(
        {
            "error": object_schema(
                {"message": TEXT, "type": TEXT, "param": or_null(TEXT), "code": or_null(TEXT)},
                description="What was wrong, the field at fault, and what to do.",
            )
        }
    ),
    "Usage": object_schema(
        {
            "prompt_tokens": COUNT,
            "completion_tokens": COUNT,
            "total_tokens": COUNT,
            "prompt_tokens_details": object_schema({"cached_tokens": COUNT}),
            "completion_tokens_details": object_schema({"reasoning_tokens": COUNT}),
        }
    ),
    "ChatLogprobs": object_schema(
        {
            "content": list_schema(object_schema({**_TOKEN, "top_logprobs": list_schema(object_schema(_TOKEN))})),
            "refusal": {"type": "null"},
        }
    ),
    "ChatCompletion": object_schema(
        {
            **_CHAT_HEAD,
            "object": {"const": "chat.completion"},
            "choices": list_schema(
                object_schema(
                    {
                        "index": COUNT,
                        "message": object_schema(
                            {"role": {"const": "assistant"}, "content": or_null(TEXT), "refusal": {"type": "null"}},
                            {"reasoning_content": TEXT, "tool_calls": list_schema(_CALL)},
                        ),
                        "logprobs": or_null(ref_schema("ChatLogprobs")),
                        "finish_reason": _REASON,
                    }
                )
            ),
            "usage": ref_schema("Usage"),
        },
        _METADATA,
    ),
    "ChatCompletionChunk": object_schema(
        {
            **_CHAT_HEAD,
            "object": {"const": "chat.completion.chunk"},
            "choices": list_schema(
                object_schema(
                    {
                        "index": COUNT,
                        "delta": object_schema(
                            {},
                            {
                                "role": {"const": "assistant"},
                                "content": TEXT,
                                "reasoning_content": TEXT,
                                "tool_calls": list_schema(_CALL_PART),
                            },
                        ),
                        "logprobs": or_null(ref_schema("ChatLogprobs")),
                        "finish_reason": or_null(_REASON),
                    }
                )
            ),
        },
        {"usage": or_null(ref_schema("Usage")), **_METADATA},
        description="One event of a stream; `[DONE]` follows the last one, and an error may come in its place.",
    ),
    "Completion": object_schema(
        {
            **_CHAT_HEAD,
            "object": {"const": "text_completion"},
            "choices": list_schema(
                object_schema(
                    {
                        "index": COUNT,
                        "text": TEXT,
                        "logprobs": or_null(
                            object_schema(
                                {
                                    "tokens": list_schema(TEXT),
                                    "token_logprobs": list_schema(_NUMBER),
                                    "top_logprobs": list_schema({"type": "object", "additionalProperties": _NUMBER}),
                                    "text_offset": list_schema(COUNT),
                                }
                            )
                        ),
                        "finish_reason": or_null({"enum": ["stop", "length"]}),
                    }
                )
            ),
        },
        {"usage": or_null(ref_schema("Usage"))},
        description="Whole, or one event of a stream.",
    ),
    "Embeddings": object_schema(
        {
            "object": {"const": "list"},
            "model": TEXT,
            "usage": _INPUT_USAGE,
            "data": list_schema(
                object_schema(
                    {
                        "object": {"const": "embedding"},
                        "index": COUNT,
                        "embedding": {
                            "anyOf": [list_schema(_NUMBER), {"type": "string", "description": "float32, base64"}]
                        },
                    }
                )
            ),
        }
    ),
    "Classes": object_schema(
        {
            **_CHAT_HEAD,
            "object": {"const": "list"},
            "labels": list_schema(TEXT),
            "usage": _INPUT_USAGE,
            "data": list_schema(
                object_schema({"index": COUNT, "label": TEXT, "probs": list_schema(_NUMBER), "num_classes": COUNT})
            ),
        }
    ),
    "Tokens": object_schema(
        {
            "count": COUNT,
            "max_model_len": COUNT,
            "tokens": list_schema(COUNT),
            "token_strs": or_null(list_schema(TEXT)),
        }
    ),
    "Text": object_schema({"prompt": TEXT}),
    "Model": object_schema(
        {
            "id": TEXT,
            "object": {"const": "model"},
            "created": COUNT,
            "owned_by": TEXT,
            "max_model_len": or_null(COUNT),
            "task": or_null(TEXT),
            "aliases": list_schema(TEXT),
            "state": TEXT,
            "version": or_null(TEXT),
        }
    ),
    "Models": object_schema({"object": {"const": "list"}, "data": list_schema(ref_schema("Model"))}),
    "Metrics": {"type": "string", "description": "In the exposition format, one sample a line."},
    "Health": object_schema(
        {
            "status": {"enum": ["ok", "stopping"]},
            "model": TEXT,
            "running": COUNT,
            "waiting": COUNT,
            "kv_blocks": object_schema({"free": COUNT, "total": COUNT}),
        }
    ),
    "Readiness": object_schema(
        {
            "status": {"enum": ["ready", "not ready"]},
            "models": {
                "type": "object",
                "additionalProperties": object_schema({"state": TEXT, "ready": FLAG}, {"reason": TEXT}),
            },
        }
    ),
}
"""Name -> schema of what the routes answer."""
