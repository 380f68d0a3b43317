# SPDX-License-Identifier: Apache-2.0
"""`/openapi.json` and `/docs`: what the routes take and give, as a document and as one page that loads nothing else."""

from __future__ import annotations

import html
import json
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid #8885; padding: .5rem 0 1rem; }
h2 { font: 600 1.05rem ui-monospace, monospace; } h2 b { text-transform: uppercase; color: #2a7; }
table { border-collapse: collapse; width: 100%; }
td { text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0; }
td:first-child, td:nth-child(2) { font-family: ui-monospace, monospace; font-size: .85rem; }
i { color: #c40; font-style: normal; }
"""


def add_docs_routes(app: Starlette, *, with_pipelines: bool = False) -> None:
    """Add the routes to an application. The document is made when it is first asked for.

    with_pipelines: it has the routes about pipelines too.
    """
    made: list[tuple[dict[str, Any], str]] = []

    def documents() -> tuple[dict[str, Any], str]:
        from open_autoglm.serve.routes.openapi_document import openapi_document

        if not made:
            document = openapi_document(with_pipelines=with_pipelines)
            made.append((document, docs_page(document)))
        return made[0]

    async def document(_: Request) -> Response:
        return JSONResponse(documents()[0])

    async def page(_: Request) -> Response:
        policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return HTMLResponse(documents()[1], headers=policy)

    app.add_route("/openapi.json", document, methods=["GET"])
    app.add_route("/docs", page, methods=["GET"])


def docs_page(document: dict[str, Any]) -> str:
    """The page of an OpenAPI document."""
    schemas = document["components"]["schemas"]
    parts = [
        f"<section><h2><b>{method}</b> {html.escape(path)}</h2><p>{html.escape(operation['summary'])}</p>"
        f"{_fields(operation, schemas)}</section>"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    info = document["info"]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(info["title"])} API</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>{html.escape(info['title'])} {html.escape(info['version'])}</h1><p>{html.escape(info['description'])} "
        f'The whole of it for machines: <a href="openapi.json">openapi.json</a>.</p>{"".join(parts)}</body></html>'
    )


def _fields(operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    body = operation.get("requestBody")
    if body is None:
        return ""
    schema = schemas[body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]]
    required = schema.get("required", ())
    rows = "".join(
        f"<tr><td>{html.escape(name)}{' <i>required</i>' if name in required else ''}</td>"
        f"<td>{html.escape(_kind(field))}</td><td>{html.escape(field.get('description', ''))}</td></tr>"
        for name, field in schema["properties"].items()
    )
    return f"<table>{rows}</table>"


def _kind(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_kind(item) for item in schema["anyOf"] if item.get("type") != "null"))
    if "enum" in schema or "const" in schema:
        return " | ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "any")
    if kind == "array":
        return f"[{_kind(schema.get('items', {}))}]"
    bounds = [
        f"{sign} {schema[key]:g}"
        for key, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="))
        if key in schema and abs(schema[key]) < 2**31 - 1
    ]
    return " ".join([str(kind), *bounds])
