# SPDX-License-Identifier: Apache-2.0
"""What a stage is: the interface that its code has, and the catalogue in which a specification finds it by name.

A stage's code is one of two things:

* a class made with its validated settings, whose `invoke` does the work;
* a plain function `(packet, context) -> packet`, which reads its settings from `context.config`.

    class Shout:
        config_model = ShoutConfig          # a pydantic model; a fault in the YAML names its field and line
        input_schema = {"required": ["text"], "properties": {"text": {"type": "string"}}}   # JSON Schema of the payload

        def __init__(self, config: ShoutConfig) -> None: ...
        def invoke(self, packet: Packet, context: StageContext) -> Packet:
            return packet.with_payload({"text": packet.payload["text"].upper()})

An object of such a class is made once for each process and settings, and kept: what is costly to open (a model, a
connection) belongs in `__init__`. `invoke` is then called for one packet after another, of any run, never for two at
once. It returns a packet, or yields several: the stages that follow then run once for each.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, cast, runtime_checkable

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.spelling import did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_TARGET: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

StageResult = Packet | Iterator[Packet]


@runtime_checkable
class Stage(Protocol):
    """Anything that turns a packet into a packet, or into several."""

    def invoke(self, packet: Packet, context: StageContext) -> StageResult:
        """Do the work. Must be safe to repeat: the same `context.idempotency_key` may come again after a crash."""
        ...


class StageClass(Protocol):
    """What a class may say about its stages; all of it is optional but `__call__`.

    config_model: a pydantic model of the settings. Without one, any settings are taken and the class is made with the
        dictionary. input_schema, output_schema: JSON Schema of the payload that comes in and goes out.
    own_process: True for work that should neither share its process with other stages nor leave anything behind in
        it, such as training; False runs in a warm process. inherits: settings that a pipeline's file need not give,
        and the modules whose nearest stage before gives them instead, such as `{"url": "sql_source"}`.
    """

    config_model: type[BaseModel]
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any]
    own_process: bool
    inherits: Mapping[str, str]

    def __call__(self, config: Any) -> Stage:
        """The stage with these settings, an object of `config_model`."""
        ...


StageFunction = Callable[[Packet, StageContext], StageResult]
"""The short form of a stage."""


class StageCatalog(Mapping[str, str]):
    """The stages that a specification may name: short name -> `package.module:attribute`.

    Nothing that is not in it is ever imported, whatever a file says.
    Raises PipelineError for a name or a target that cannot be one.
    """

    def __init__(self, modules: Mapping[str, str]) -> None:
        for name, target in modules.items():
            if not _NAME.fullmatch(name):
                raise PipelineError(f"{name!r} cannot name a stage's module: use letters, digits, '_', '-' and '.'")
            if not _TARGET.fullmatch(target):
                raise PipelineError(f"module '{name}': {target!r} is not of the form package.module:attribute")
        self._modules = dict(modules)

    @classmethod
    def of(cls, *sources: Mapping[str, str]) -> StageCatalog:
        """Several catalogues as one. Raises PipelineError when two know the same name for different code."""
        modules: dict[str, str] = {}
        for source in sources:
            for name, target in source.items():
                if modules.setdefault(name, target) != target:
                    raise PipelineError(
                        f"two stages are called '{name}': {modules[name]} and {target}; disable one of the plugins"
                    )
        return cls(modules)

    def target(self, name: str) -> str:
        """Where the code is. Raises PipelineError, with what was probably meant, for an unknown name."""
        if name not in self._modules:
            raise PipelineError(f"unknown module '{name}'" + did_you_mean(name, self._modules))
        return self._modules[name]

    def load(self, name: str) -> StageFunction | StageClass:
        """The code itself, imported. Raises PipelineError when there is none or it cannot be imported."""
        return load_target(self.target(name))

    def __getitem__(self, name: str) -> str:
        return self._modules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


def load_target(target: str) -> StageFunction | StageClass:
    """Import `package.module:attribute`, which must come from a catalogue. Raises PipelineError with the reason."""
    module_name, _, attribute = target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise PipelineError(f"the module {target} cannot be loaded: {type(error).__name__}: {error}") from error
    if isinstance(found, type):
        if not callable(getattr(found, "invoke", None)):
            raise PipelineError(f"{target} is a class without a method invoke(packet, context)")
    elif not callable(found):
        raise PipelineError(f"{target} is not callable; a stage is a function of a packet and a context, or a class")
    return cast("StageFunction | StageClass", found)


def config_model_of(code: StageFunction | StageClass) -> type[BaseModel] | None:
    """The pydantic model of a stage's settings, if it has one."""
    return getattr(code, "config_model", None)


def make_stage(code: StageFunction | StageClass, config: Mapping[str, Any]) -> Stage:
    """The stage with its settings.

    Raises pydantic.ValidationError for settings that its model refuses, and whatever its `__init__` raises.
    """
    if not isinstance(code, type):
        return _FunctionStage(cast("StageFunction", code))
    model = config_model_of(cast("StageClass", code))
    settings: Any = dict(config) if model is None else model.model_validate(dict(config))
    return cast("StageClass", code)(settings)


class _FunctionStage:
    def __init__(self, function: StageFunction) -> None:
        self._function = function

    def invoke(self, packet: Packet, context: StageContext) -> StageResult:
        return self._function(packet, context)


def packets_of(result: object, packet: Packet, stage: str) -> Iterator[Packet]:
    """The packets that `invoke` returned or yields, each checked.

    Raises PipelineError when one is no packet, or belongs to another session than the packet that went in.
    """
    several = isinstance(result, Iterable) and not isinstance(result, Packet | Mapping | str | bytes)
    for one in cast("Iterable[object]", result) if several else (result,):
        if not isinstance(one, Packet):
            raise PipelineError(f"stage '{stage}' returned a {type(one).__name__}; it must return a Packet")
        if one.session_id != packet.session_id:
            raise PipelineError(f"stage '{stage}' changed the session_id of its packet; use packet.with_payload")
        yield one
