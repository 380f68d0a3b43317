# SPDX-License-Identifier: Apache-2.0
"""`serve.yaml`, `adaptive.yaml`: models by name, and routes among them, checked with file, line and field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic import ValidationError as Invalid

from open_autoglm.errors import ConfigurationError
from open_autoglm.serve.models.memory_amount import bytes_of_text
from open_autoglm.serve.models.model_pool import ModelEntry
from open_autoglm.serve.models.routing import AUTO, TASKS, Route, RoutingPolicy
from open_autoglm.serve.models.worker_process import ModelSource
from open_autoglm.spelling import did_you_mean
from open_autoglm.yaml_document import Place, YamlDocument, read_yaml

_Number = StrictFloat | StrictInt


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Model(_Section):
    """A model: its folder, other names, and how its engine runs; the latter named as `LLM` names it."""

    path: StrictStr
    aliases: list[StrictStr] = Field(default_factory=list)
    preload: StrictBool = False
    backend: str | None = None
    quantize: Literal["int8", "int4"] | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    kv_cache_dtype: Literal["auto", "float32", "bfloat16", "int8"] | None = None
    threads: Annotated[StrictInt, Field(ge=1)] | None = None
    max_batch_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_sequences: Annotated[StrictInt, Field(ge=1)] | None = None
    kv_blocks: Annotated[StrictInt, Field(ge=1)] | None = None
    block_size: Annotated[StrictInt, Field(ge=1)] | None = None
    enable_prefix_caching: StrictBool | None = None


_ENGINE: Final = tuple(name for name in _Model.model_fields if name not in ("path", "aliases", "preload"))


class _Route(_Section):
    models: Annotated[list[StrictStr], Field(min_length=1)]
    tasks: list[StrictStr] | None = None
    confidence: Annotated[_Number, Field(ge=0, le=1)] | None = None
    head_tokens: Annotated[StrictInt, Field(ge=0)] = 0
    long_prompt: Annotated[StrictInt, Field(ge=0)] | None = None
    patience: Annotated[_Number, Field(ge=0)] | None = None


class _Router(_Section):
    name: Annotated[StrictStr, Field(min_length=1)] = AUTO
    default: StrictStr | None = None
    routes: Annotated[dict[str, _Route], Field(min_length=1)]


class _File(_Section):
    models: Annotated[dict[str, _Model], Field(min_length=1)]
    router: _Router | None = None
    max_loaded: Annotated[StrictInt, Field(ge=1)] | None = None
    memory_limit: StrictInt | StrictStr | None = None


@dataclass(frozen=True)
class ModelsFile:
    """What a file says. memory_limit: bytes."""

    entries: tuple[ModelEntry, ...]
    policy: RoutingPolicy | None = None
    max_loaded: int | None = None
    memory_limit: int | None = None


def read_models_file(path: Path, options: Mapping[str, Any] | None = None) -> ModelsFile:
    """Read models, and routes if there are any. options: of the engine, for models that do not say them.

    A model's path is looked for beside the file first, then as the command line would.
    Raises ConfigurationError that names the file, the line and the field.
    """
    document = read_yaml(path)
    if not isinstance(document.value, dict):
        raise document.fault((), "this must be names and values, beginning with 'models:'")
    try:
        found = _File.model_validate(document.value)
    except Invalid as error:
        raise _fault(document, error) from None
    policy = None if found.router is None else _policy(document, found.router, found.models)
    entries = tuple(_entry(path, name, model, options or {}) for name, model in found.models.items())
    taken = {name for entry in entries for name in (entry.name, *entry.aliases)}
    for route in policy.routes if policy is not None else ():
        if route.name in taken:
            raise document.fault(("router", "routes", route.name), "a model has this name too")
    if policy is not None and policy.name in taken:
        raise document.fault(("router", "name"), f"a model is called '{policy.name}' too")
    limit = found.memory_limit
    return ModelsFile(
        entries,
        policy,
        found.max_loaded,
        None if limit is None else _bytes(limit, document),
    )


def _bytes(value: int | str, document: YamlDocument) -> int:
    try:
        return bytes_of_text(str(value), "memory_limit")
    except ConfigurationError as error:
        raise document.fault(("memory_limit",), str(error).removeprefix("memory_limit: ")) from None


def _entry(path: Path, name: str, model: _Model, options: Mapping[str, Any]) -> ModelEntry:
    beside = path.parent / model.path
    folder = str(beside) if beside.is_dir() else model.path
    own = {field: value for field in _ENGINE if (value := getattr(model, field)) is not None}
    return ModelEntry(name, ModelSource(folder, {**options, **own}), tuple(model.aliases), model.preload)


def _policy(document: YamlDocument, router: _Router, models: Mapping[str, _Model]) -> RoutingPolicy:
    names = [*models, *(alias for model in models.values() for alias in model.aliases)]
    routes: list[Route] = []
    for name, given in router.routes.items():
        place: Place = ("router", "routes", name)
        for index, model in enumerate(given.models):
            if model not in names:
                raise document.fault(
                    (*place, "models", index), f"there is no model '{model}'{did_you_mean(model, names)}"
                )
        for index, task in enumerate(given.tasks or ()):
            if task not in TASKS:
                raise document.fault((*place, "tasks", index), f"unknown task '{task}'{did_you_mean(task, TASKS)}")
        tasks = given.tasks if given.tasks is not None else [name] if name in TASKS else []
        own = {field: getattr(given, field) for field in ("confidence", "head_tokens", "long_prompt", "patience")}
        routes.append(
            _at(document, place, lambda n=name, g=given, t=tasks, o=own: Route(n, tuple(g.models), tuple(t), **o))
        )
    return _at(document, ("router",), lambda: RoutingPolicy(tuple(routes), router.name, router.default))


def _at(document: YamlDocument, place: Place, make: Any) -> Any:
    try:
        return make()
    except ConfigurationError as error:
        raise document.fault(place, str(error)) from None


def _fault(document: YamlDocument, error: Invalid) -> ConfigurationError:
    """What is wrong first, at its line; a misspelt name before what is missing because of it."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    field, place = first["loc"][-1], document.known(first["loc"][:-1])
    if first["type"] == "extra_forbidden":
        return document.fault((*place, field), f"unknown setting{did_you_mean(str(field), _settings_at(place))}")
    if first["type"] == "missing":
        return document.fault(place, f"'{field}' is missing")
    return document.fault(document.known(first["loc"]), first["msg"][:1].lower() + first["msg"][1:])


def _settings_at(place: Place) -> list[str]:
    """The settings that the section at a place takes."""
    section: Any = _File
    for part in place:
        if get_origin(section) is dict:
            section = get_args(section)[1]
        elif isinstance(section, type) and issubclass(section, _Section) and part in section.model_fields:
            hint = section.model_fields[str(part)].annotation
            section = next((kind for kind in get_args(hint) if kind is not type(None)), hint)
            section = hint if get_origin(hint) is dict else section
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, _Section) else []
