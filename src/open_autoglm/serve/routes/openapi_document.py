# SPDX-License-Identifier: Apache-2.0
"""Our OpenAPI 3.2 document. Requests come from the models that check them, so it cannot say anything else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from open_autoglm.serve.routes.chat_request import ChatCompletionRequest
from open_autoglm.serve.routes.classify_route import ClassifyRequest
from open_autoglm.serve.routes.completion_request import CompletionRequest
from open_autoglm.serve.routes.embedding_route import EmbeddingRequest
from open_autoglm.serve.routes.openapi_schemas import RESPONSES
from open_autoglm.serve.routes.tokenize_route import DetokenizeRequest, TokenizeRequest
from open_autoglm.version import __version__

_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream"
_PLAIN: Final = "text/plain"
_OPEN_METRICS: Final = "application/openmetrics-text"
_ANSWER: Final = {400: "A field is at fault.", 404: "There is nothing of that name.", 413: "The body is too large."}
_PARAMETER: Final = re.compile(r"{(\w+)}")
_ALWAYS: Final = {
    401: "The key is missing or wrong.",
    403: "The key is not for this, or the request comes from where none is taken from.",
    429: "Too much was asked for.",
    503: "The model is not there.",
    504: "It took too long.",
}


@dataclass(frozen=True)
class Operation:
    """A route. body: what checks the request. answer: a name in `RESPONSES`. chunk: of the events, if it streams.

    media: the types that the answer may have. query: what checks the query. status: of the answer. conflict: whether
    the state of things may refuse it. signed: by its sender, in place of a key. optional_body: none is one without
    fields.
    """

    path: str
    method: str
    summary: str
    answer: str
    body: type[BaseModel] | None = None
    chunk: str | None = None
    is_public: bool = False
    media: tuple[str, ...] = (_JSON,)
    query: type[BaseModel] | None = None
    status: int = 200
    conflict: bool = False
    signed: bool = False
    optional_body: bool = False


OPERATIONS: Final = (
    Operation(
        "/v1/chat/completions", "post", "Answer a conversation", "ChatCompletion", ChatCompletionRequest,
        "ChatCompletionChunk",
    ),
    Operation("/v1/completions", "post", "Continue texts", "Completion", CompletionRequest, "Completion"),
    Operation("/v1/embeddings", "post", "A vector for each text", "Embeddings", EmbeddingRequest),
    Operation("/v1/classify", "post", "Probabilities of a classifier's labels", "Classes", ClassifyRequest),
    Operation("/tokenize", "post", "Text or messages to tokens", "Tokens", TokenizeRequest),
    Operation("/detokenize", "post", "Tokens to text", "Text", DetokenizeRequest),
    Operation("/v1/models", "get", "What models there are", "Models"),
    Operation("/v1/models/{model}", "get", "One model", "Model"),
    Operation("/metrics", "get", "Numbers for Prometheus", "Metrics", media=(_PLAIN, _OPEN_METRICS)),
    Operation("/health", "get", "Whether the server lives", "Health", is_public=True),
    Operation("/ready", "get", "Whether its models have just computed a step", "Readiness", is_public=True),
)  # fmt: skip


def openapi_document(*, with_pipelines: bool = False) -> dict[str, Any]:
    """The document, as JSON values. with_pipelines: of a server with `--pipelines`."""
    schemas = dict(RESPONSES)
    operations = OPERATIONS
    if with_pipelines:
        from open_autoglm.serve.pipelines.pipeline_operations import PIPELINE_OPERATIONS
        from open_autoglm.serve.pipelines.pipeline_schemas import PIPELINE_RESPONSES

        schemas |= PIPELINE_RESPONSES
        operations = (*OPERATIONS, *PIPELINE_OPERATIONS)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation, schemas)
    return {
        "openapi": "3.2.0",
        "info": {
            "title": "Open-AutoGLM",
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "OpenAI's API over GLM models. A field that is not listed is refused by name.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _described(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    name = operation.path.strip("/").replace("v1/", "").replace("/", "_")
    name = _PARAMETER.sub("one", name)
    content = {
        media: {"itemSchema": _event(operation.answer)} if media == _EVENTS else {"schema": _ref(operation.answer)}
        for media in operation.media
    }
    if operation.chunk is not None:
        content[_EVENTS] = {"itemSchema": _event(operation.chunk)}
    described: dict[str, Any] = {
        "operationId": f"{operation.method}_{name}",
        "summary": operation.summary,
        "responses": {
            str(operation.status): {"description": "The answer.", "content": content},
            **dict(_faults(operation)),
        },
    }
    if operation.is_public or operation.signed:
        described["security"] = []
    if operation.body is not None:
        described["requestBody"] = {
            "required": not operation.optional_body,
            "content": {_JSON: {"schema": _ref(_add(operation.body, schemas))}},
        }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _PARAMETER.findall(operation.path)
    ]
    if operation.query is not None:
        parameters += list(_query(operation.query))
    if parameters:
        described["parameters"] = parameters
    return described


def _query(model: type[BaseModel]) -> Iterator[dict[str, Any]]:
    for name, schema in model.model_json_schema(mode="validation")["properties"].items():
        # Null has no form in a query: what may be left out is left out.
        choices = [choice for choice in schema.pop("anyOf", [schema]) if choice.get("type") != "null"]
        schema.pop("default", None)
        yield {"name": name, "in": "query", "required": False, "schema": {**schema, **choices[0]}}


def _event(chunk: str) -> dict[str, Any]:
    """One event of a stream, as OpenAPI 3.2 sees it."""
    value = {"contentMediaType": _JSON, "contentSchema": {"anyOf": [_ref(chunk), _ref("Error")]}}
    return {
        "type": "object",
        "description": f"Its data is a {chunk}, an error in its place, or, last, `[DONE]`.",
        "properties": {"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, value]}},
        "required": ["data"],
    }


def _faults(operation: Operation) -> Iterator[tuple[str, dict[str, Any]]]:
    faults = {**(_ANSWER if operation.body is not None else {}), **({} if operation.is_public else _ALWAYS)}
    if operation.query is not None:
        faults[400] = _ANSWER[400]
    if "{" in operation.path:
        faults[404] = _ANSWER[404]
    if operation.conflict:
        faults[409] = "Its state does not allow that."
    for status, description in sorted(faults.items()):
        yield str(status), {"description": description, "content": {_JSON: {"schema": _ref("Error")}}}
    if operation.is_public:
        schema = {"anyOf": [_ref(operation.answer), _ref("Error")]}
        yield "503", {"description": "It does not.", "content": {_JSON: {"schema": schema}}}


def _add(model: type[BaseModel], schemas: dict[str, Any]) -> str:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}", mode="validation")
    schemas.update(schema.pop("$defs", {}))
    schemas[model.__name__] = schema
    return model.__name__


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
