# SPDX-License-Identifier: Apache-2.0
"""The shape of a pipeline's file: which keys there are, what they take, and the JSON Schema that editors use."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from open_autoglm.pipeline.amounts import Duration, Size

PRIORITIES: Final = {"low": -10, "normal": 0, "high": 10, "urgent": 100}
_NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
_SCHEMA_ID: Final = "https://github.com/open-autoglm/open-autoglm/blob/main/docs/pipeline.schema.json"


def _name(value: str) -> str:
    if not re.match(_NAME_PATTERN, value):
        raise ValueError(
            f"{value!r} cannot be a name: use up to 64 letters, digits, '_', '-' and '.', a letter or digit first"
        )
    return value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Name = Annotated[StrictStr, AfterValidator(_name), Field(json_schema_extra={"pattern": _NAME_PATTERN})]
_Number = StrictInt | StrictFloat
_Scalar = StrictStr | StrictBool | StrictInt | StrictFloat


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RetrySection(_Section):
    """How often a stage is tried, and how long it waits in between."""

    attempts: Annotated[StrictInt, Field(ge=1, le=100, description="In all, the first one included.")] = 3
    backoff: Annotated[
        Literal["exponential", "fixed"], Field(description="Whether each wait is twice the one before.")
    ] = "exponential"
    wait: Annotated[Duration, Field(description="The wait after the first failure.")] = 1.0
    jitter: Annotated[
        StrictBool, Field(description="Leave half of each wait to chance, so that many do not come back at once.")
    ] = True


class ResourcesSection(_Section):
    """What a stage takes of the machine while it runs."""

    cpu: Annotated[_Number, Field(ge=0, le=4096, description="Cores; 0.5 is half of one.")] = 1
    memory: Annotated[Size | None, Field(description="Such as 512MB or 2GB.")] = None
    gpu: Annotated[StrictInt, Field(ge=0, le=1024, description="Whole GPUs.")] = 0
    executor: Annotated[
        Literal["local", "ray"] | None, Field(description="Where it runs: on the worker's machine, or a Ray cluster.")
    ] = None


class ForEachSection(_Section):
    """Run the stage once for each batch of records, and put the results together again."""

    items: Annotated[StrictStr, Field(min_length=1, description="The payload's key that holds the records.")] = (
        "records"
    )
    batch: Annotated[StrictInt, Field(ge=1, le=1_000_000, description="Records in a batch.")] = 100

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"items": value} if isinstance(value, str) else value


class TriggerSection(_Section):
    """What starts a run: exactly one of cron, file, webhook, queue and after. Without any: somebody does."""

    cron: Annotated[StrictStr | None, Field(description="Minute, hour, day of the month, month, day of the week.")] = (
        None
    )
    timezone: Annotated[StrictStr, Field(description="Of the cron's times, such as Asia/Shanghai.")] = "UTC"
    missed: Annotated[
        Literal["once", "all", "skip"],
        Field(description="What to do about firings that were missed while no worker ran."),
    ] = "once"
    file: Annotated[StrictStr | None, Field(description="A pattern of files, such as inbox/*.jsonl.")] = None
    webhook: Annotated[StrictStr | None, Field(description="A path, such as /hooks/tickets.")] = None
    secret: Annotated[StrictStr | None, Field(description="The name of the secret that signs the webhook.")] = None
    queue: Annotated[
        StrictStr | None,
        Field(description="A URL, such as redis://localhost/tickets?group=answers, nats:// or kafka://"),
    ] = None
    after: Annotated[Name | None, Field(description="Another pipeline: a run starts when one of it is done.")] = None

    @model_validator(mode="before")
    @classmethod
    def _manual(cls, value: Any) -> Any:
        return {} if value == "manual" else value

    @model_validator(mode="after")
    def _one_source(self) -> TriggerSection:
        given = [name for name in ("cron", "file", "webhook", "queue", "after") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"a trigger has one source, not {' and '.join(given)}; make a pipeline for each")
        return self


class StageSection(_Section):
    """One stage."""

    stage: Annotated[Name, Field(description="Its name.")]
    module: Annotated[StrictStr | None, Field(description="What it does: a built-in stage or one of a plugin.")] = None
    pipeline: Annotated[StrictStr | None, Field(description="In place of a module: another pipeline's file.")] = None
    needs: Annotated[
        list[StrictStr] | None,
        BeforeValidator(_listed),
        Field(description="The stages whose results it takes. If no stage says any, each takes the one before it."),
    ] = None
    config: Annotated[dict[StrictStr, Any], Field(description="The settings of the module.")] = {}
    model_hint: Annotated[StrictStr | None, Field(description="The model to use; becomes config.model_hint.")] = None
    timeout: Annotated[Duration | None, Field(description="Of one attempt, such as 60s or 5m.")] = None
    retry: RetrySection = RetrySection(attempts=1)
    resources: ResourcesSection = ResourcesSection()
    executor: Annotated[Literal["local", "ray"] | None, Field(description="Short for resources.executor.")] = None
    when: Annotated[
        StrictStr | None,
        Field(description="A condition such as payload.score < 0.5; where it does not hold, the packet passes by."),
    ] = None
    for_each: ForEachSection | None = None
    matrix: Annotated[
        dict[Name, Annotated[list[_Scalar], Field(min_length=1, max_length=100)]] | None,
        Field(description="One stage for each combination; ${matrix:NAME} in the config is the value."),
    ] = None

    @model_validator(mode="after")
    def _module_or_pipeline(self) -> StageSection:
        if (self.module is None) == (self.pipeline is None):
            raise ValueError(
                "a stage needs a 'module'" if self.module is None else "a stage has a module or a pipeline, not both"
            )
        if None not in (self.executor, self.resources.executor) and self.executor != self.resources.executor:
            raise ValueError(f"executor is {self.executor}, and resources.executor is {self.resources.executor}")
        if self.pipeline is not None:
            for name in ("when", "for_each", "matrix", "model_hint", "timeout", "executor"):
                if getattr(self, name) is not None:
                    raise ValueError(f"a stage that is a pipeline cannot have '{name}'; give it to the stages inside")
        return self


class PipelineSection(_Section):
    """A pipeline's file."""

    name: Annotated[Name, Field(description="The pipeline's name; cursors and schedules belong to it.")]
    description: StrictStr | None = None
    trigger: TriggerSection = TriggerSection()
    concurrency: Annotated[
        StrictInt | None, Field(ge=1, description="Runs of it at the same time; any number if not given.")
    ] = None
    priority: Annotated[
        Literal["low", "normal", "high", "urgent"], Field(description="Stages of urgent runs overtake others.")
    ] = "normal"
    pipeline: Annotated[list[StageSection], Field(min_length=1, max_length=1000, description="The stages.")]


SECTIONS: Final[dict[str, type[BaseModel]]] = {
    "": PipelineSection,
    "pipeline": StageSection,
    "retry": RetrySection,
    "resources": ResourcesSection,
    "for_each": ForEachSection,
    "trigger": TriggerSection,
}
"""The sections by the key that they are under."""


def pipeline_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a pipeline's file, for editors."""
    schema = PipelineSection.model_json_schema()
    sections = schema["$defs"]
    for holder, key, short in (
        (schema["properties"], "trigger", {"const": "manual"}),
        (sections["StageSection"]["properties"], "for_each", {"type": "string", "minLength": 1}),
        (sections["StageSection"]["properties"], "needs", {"type": "string"}),
    ):
        holder[key] = {"anyOf": [short, holder[key]]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": _SCHEMA_ID, **schema}
