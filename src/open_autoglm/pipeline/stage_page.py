# SPDX-License-Identifier: Apache-2.0
"""What the built-in stages do and take, as a page in Markdown, made from their code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.stage import StageCatalog, config_model_of
from open_autoglm.pipeline.stages import BUILT_IN
from open_autoglm.spelling import did_you_mean

_EXAMPLES: Final = Path(__file__).parent / "stages" / "examples.yaml"
_HEAD: Final = """# Built-in stages

Made by `open-autoglm stages > docs/stages.md`; do not edit. [pipelines.md](pipelines.md) says how stages become a
pipeline. Records are mappings with an `id`, under `records` of the payload; a stage adds fields to each and keeps the
rest.
"""


def example_stages() -> dict[str, dict[str, Any]]:
    """For each built-in stage, one as a pipeline's file has it, without `stage` and `module`."""
    return yaml.safe_load(_EXAMPLES.read_text(encoding="utf-8"))


def stage_page(only: str | None = None) -> str:
    """The page of all stages, or the part of one. Raises PipelineError when there is no stage of that name."""
    if only is not None:
        if only not in BUILT_IN:
            raise PipelineError(f"there is no built-in stage '{only}'{did_you_mean(only, BUILT_IN)}")
        return "\n".join(_section(only)) + "\n"
    listing = " · ".join(f"[`{name}`](#{name})" for name in sorted(BUILT_IN))
    parts = [_HEAD, listing, ""]
    for name in sorted(BUILT_IN):
        parts += [*_section(name), ""]
    return "\n".join(parts).rstrip("\n") + "\n"


def _section(name: str) -> Iterator[str]:
    code: Any = StageCatalog(BUILT_IN).load(name)
    model = config_model_of(code)
    if model is None:
        raise PipelineError(f"the stage {name} has no config_model")
    purpose = _prose(sys.modules[code.__module__].__doc__).partition(": ")[2]
    yield f"## {name}"
    yield ""
    yield f"{purpose[:1].upper()}{purpose[1:]} {_prose(code.__doc__)}"
    yield ""
    yield from _example(name)
    schema = model.model_json_schema()
    for part in reversed([one for one in model.__mro__ if issubclass(one, BaseModel) and one is not BaseModel]):
        if part.__doc__:
            yield _prose(part.__doc__)
            yield ""
    yield from _table(schema)
    for title, nested in sorted(schema.get("$defs", {}).items()):
        if nested.get("properties"):
            yield ""
            yield f"**{_plain_title(title)}**: {_prose(nested.get('description'))}"
            yield ""
            yield from _table(nested)


def _example(name: str) -> Iterator[str]:
    stage = {"stage": "name", "module": name, **example_stages()[name]}
    text = yaml.safe_dump([stage], sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
    yield "```yaml"
    yield from text.rstrip("\n").splitlines()
    yield "```"
    yield ""


def _table(schema: Mapping[str, Any]) -> Iterator[str]:
    yield "| setting | takes | default | |"
    yield "| --- | --- | --- | --- |"
    required = set(schema.get("required", ()))
    for name, field in schema["properties"].items():
        default = "**needed**" if name in required else _default(field)
        about = "" if "$ref" in field else _prose(field.get("description"))
        yield f"| `{name}` | {_cell(_type(field))} | {default} | {_cell(about)} |"


def _type(field: Mapping[str, Any]) -> str:
    """What a setting takes, in a few words."""
    if "$ref" in field:
        return _plain_title(str(field["$ref"]).rpartition("/")[2])
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(one) for one in field["anyOf"] if one.get("type") != "null"))
    kind = field.get("type")
    if kind == "array":
        items = field.get("items", {})
        return f"list of {_type(items)}" if items else "list"
    if kind == "object":
        values = field.get("additionalProperties")
        return f"mapping to {_type(values)}" if isinstance(values, dict) and values else "mapping"
    if kind in ("integer", "number"):
        low = field.get("minimum", field.get("exclusiveMinimum"))
        high = field.get("maximum", field.get("exclusiveMaximum"))
        span = "" if low is None and high is None else f" {'' if low is None else low}..{'' if high is None else high}"
        return ("whole number" if kind == "integer" else "number") + span
    if kind == "string":
        return "path" if field.get("format") == "path" else "text"
    return {"boolean": "true or false"}.get(str(kind), "anything")


def _default(field: Mapping[str, Any]) -> str:
    if "default" not in field or field["default"] is None:
        return ""
    return f"`{json.dumps(field['default'], ensure_ascii=False)}`"


def _plain_title(title: str) -> str:
    return title.removesuffix("Config").lower()


def _prose(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
