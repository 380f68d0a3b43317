# SPDX-License-Identifier: Apache-2.0
"""A pipeline from its YAML file: read, checked as a whole, and every fault named with file, line and column."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from open_autoglm.errors import ConfigurationError, PipelineError, SpecificationError
from open_autoglm.pipeline.conditions import parse_condition
from open_autoglm.pipeline.expansion import Expander, PlacedStage
from open_autoglm.pipeline.file_faults import FaultList
from open_autoglm.pipeline.file_schema import PRIORITIES, PipelineSection, TriggerSection
from open_autoglm.pipeline.inherited_settings import with_inherited_settings
from open_autoglm.pipeline.references import fill, outside_sources, references_in, unknown_kind
from open_autoglm.pipeline.secrets import SecretStore
from open_autoglm.pipeline.specification import (
    ForEachSpecification,
    PipelineSpecification,
    ResourceSpecification,
    RetrySpecification,
    StageSpecification,
)
from open_autoglm.pipeline.stage import StageCatalog, config_model_of
from open_autoglm.pipeline.triggers.queues.address import QueueAddress, check_scheme, parse_address
from open_autoglm.pipeline.triggers.schedule import check_cron, check_timezone
from open_autoglm.spelling import did_you_mean
from open_autoglm.yaml_document import Place, YamlDocument, YamlSyntaxError, parse_yaml, read_yaml

_WEBHOOK: Final = re.compile(r"/hooks/[A-Za-z0-9._~/-]{1,200}")
_JITTER: Final = 0.5
"""The share of a wait that `jitter: true` leaves to chance."""


@dataclass(frozen=True)
class PipelineFile:
    """What a file says, checked. Its specification has no matrices and no pipelines in pipelines any more.

    concurrency: how many runs of it at once, None for any number. priority: of its runs; more overtakes less.
    queue: the trigger's, with what it refers to filled in; it is written down nowhere.
    """

    path: Path
    specification: PipelineSpecification
    trigger: TriggerSection
    concurrency: int | None
    priority: int
    redact: SecretStore = field(repr=False, compare=False)
    queue: QueueAddress | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as a run remembers it; references to secrets stay references."""
        return {
            **self.specification.to_dict(),
            "source": str(self.path.resolve()),
            "concurrency": self.concurrency,
            "priority": self.priority,
            "trigger": self.trigger.model_dump(exclude_defaults=True),
        }


def read_pipeline(
    path: Path,
    catalog: StageCatalog,
    *,
    changes: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    look_up: bool = True,
) -> PipelineFile:
    """Read and check a pipeline's file.

    changes: like `fetch.config.query=select 1`, stronger than the file. settings: values by names like
    `fetch.config.query`, from somebody who may change what is below a stage's config and refer to nothing outside.
    environment: of this process if not given; what the file refers to must be there. look_up: if not, nothing is
    looked up there, and settings that need it are checked by the worker only.
    Raises SpecificationError with every fault that was found.
    """
    faults = FaultList()
    secrets = SecretStore(os.environ if environment is None else environment)
    document = _document(path, faults)
    if document is None:
        raise faults.error()
    for change in changes:
        _change(document, change, faults)
    for name, value in (settings or {}).items():
        _set(document, name, value, faults)
    section = parse_section(document, faults)
    if section is None:
        raise faults.error()
    _check_trigger(document, section, faults)
    placed = with_inherited_settings(Expander(faults, _read_section).expand(document, section), catalog)
    sources = outside_sources(os.environ if environment is None else environment, secrets) if look_up else {}
    queue = _queue(document, section, sources, faults) if look_up else None
    for stage in placed:
        _check_stage(stage, catalog, sources, secrets, faults)
    faults.raise_if_any()
    try:
        specification = PipelineSpecification(section.name, tuple(_specify(stage) for stage in placed))
    except PipelineError as error:  # found again by the specification itself: what no single place shows
        faults.add(document, ("pipeline",), str(error))
        raise faults.error() from None
    return PipelineFile(
        path, specification, section.trigger, section.concurrency, PRIORITIES[section.priority], secrets, queue
    )


def _document(path: Path, faults: FaultList) -> YamlDocument | None:
    try:
        return read_yaml(path)
    except YamlSyntaxError as error:
        faults.add_at(path, error.line, error.column, error.reason)
    except ConfigurationError as error:
        raise SpecificationError(str(error)) from None
    return None


def _read_section(path: Path, faults: FaultList) -> tuple[YamlDocument, PipelineSection] | None:
    document = _document(path, faults)
    section = None if document is None else parse_section(document, faults)
    return None if document is None or section is None else (document, section)


def parse_section(document: YamlDocument, faults: FaultList) -> PipelineSection | None:
    """The file in its types; None, with faults, if it is not of the right shape."""
    if not isinstance(document.value, dict):
        faults.add(document, (), "a pipeline's file is names and values, beginning with 'name:' and 'pipeline:'")
        return None
    try:
        return PipelineSection.model_validate(document.value)
    except ValidationError as error:
        faults.add_shape(document, error)
        return None


def _change(document: YamlDocument, change: str, faults: FaultList) -> None:
    """Put one `--set` into the document's values."""
    name, equals, text = change.partition("=")
    flag = f"--set {name}"
    if not equals:
        faults.add_flag(flag, "write it like stage.config.key=value")
        return
    try:
        value = parse_yaml(text, Path(flag)).value
    except ConfigurationError:
        value = text
    _put(document, name, value, flag, faults)


def _set(document: YamlDocument, name: str, value: Any, faults: FaultList) -> None:
    """Put a value from outside into the document's values."""
    flag = f"set {name}"
    if any(reference.kind != "matrix" for reference in references_in(value)):
        faults.add_flag(flag, "a value must not refer to the environment or to secrets; only the file may")
        return
    _put(document, name, value, flag, faults, below="config")


def _put(
    document: YamlDocument, name: str, value: Any, flag: str, faults: FaultList, *, below: str | None = None
) -> None:
    stages = document.value.get("pipeline") if isinstance(document.value, dict) else None
    names = {
        stage["stage"]: stage
        for stage in (stages if isinstance(stages, list) else ())
        if isinstance(stage, dict) and isinstance(stage.get("stage"), str)
    }
    found = max((stage for stage in names if name.startswith(f"{stage}.")), key=len, default=None)
    keys = [] if found is None else name[len(found) + 1 :].split(".")
    if found is None and "." in name and not names:
        faults.add_flag(flag, "write it like stage.config.key=value")
        return
    if found is None:
        faults.add_flag(
            flag, f"there is no stage '{name.partition('.')[0]}'" + did_you_mean(name.partition(".")[0], names)
        )
        return
    if below is not None and (keys[0] != below or len(keys) < 2):
        faults.add_flag(flag, f"only what is below '{found}.{below}.' can be set")
        return
    target: Any = names[found]
    for key in keys[:-1]:
        target = target.setdefault(key, {}) if isinstance(target, dict) else None
    if not isinstance(target, dict) or not all(keys):
        faults.add_flag(flag, "this does not lead to a setting; write it like stage.config.key=value")
        return
    target[keys[-1]] = value


def _check_trigger(document: YamlDocument, section: PipelineSection, faults: FaultList) -> None:
    trigger = section.trigger
    for key, check in (("cron", check_cron), ("timezone", check_timezone)):
        value = getattr(trigger, key)
        if value is None:
            continue
        try:
            check(value)
        except ConfigurationError as error:
            faults.add(document, ("trigger", key), str(error))
    if trigger.webhook is not None and not _WEBHOOK.fullmatch(trigger.webhook):
        faults.add(document, ("trigger", "webhook"), "a webhook is a path that begins with '/hooks/'")
    if trigger.after == section.name:
        faults.add(document, ("trigger", "after"), "a pipeline cannot follow itself")


def _queue(
    document: YamlDocument, section: PipelineSection, sources: Mapping[str, Any], faults: FaultList
) -> QueueAddress | None:
    """Where the trigger's queue is, references filled in."""
    url, place = section.trigger.queue, ("trigger", "queue")
    if url is None:
        return None
    for reference in references_in(url):
        if reference.kind not in sources:
            faults.add(
                document, place, unknown_kind(reference) or f"${{{reference.kind}:...}} has no value in a trigger"
            )
            return None
    try:
        address = parse_address(str(fill(url, sources, last=True)))
        check_scheme(address.scheme)
    except ConfigurationError as error:
        faults.add(document, place, str(error))
        return None
    return address


def _check_stage(
    stage: PlacedStage, catalog: StageCatalog, sources: Mapping[str, Any], secrets: SecretStore, faults: FaultList
) -> None:
    document, place = stage.document, stage.place
    if stage.section.when is not None:
        try:
            parse_condition(stage.section.when)
        except PipelineError as error:
            faults.add(document, (*place, "when"), str(error))
    complete = True
    for reference in references_in(stage.config):
        where: Place = (*place, "config", *reference.place)
        if wrong := unknown_kind(reference):
            faults.add(document, where, wrong)
        elif reference.kind == "matrix":
            faults.add(document, where, f"${{matrix:{reference.name}}} has no value in the stage's matrix")
        elif sources:
            try:
                sources[reference.kind](reference.name)
                continue
            except ConfigurationError as error:
                faults.add(document, where, str(error))
        complete = False
    if stage.module not in catalog:
        faults.add(
            document, (*place, "module"), f"unknown module '{stage.module}'" + did_you_mean(stage.module, catalog)
        )
        return
    try:
        model = config_model_of(catalog.load(stage.module))
    except PipelineError as error:
        faults.add(document, (*place, "module"), str(error))
        return
    if model is None or not complete:
        return
    try:
        model.model_validate(fill(stage.config, sources, last=True))
    except ValidationError as error:
        faults.add_config(document, (*place, "config"), error, model, secrets.redactor)


def _specify(stage: PlacedStage) -> StageSpecification:
    section = stage.section
    retry, resources, batches = section.retry, section.resources, section.for_each
    return StageSpecification(
        stage=stage.name,
        module=stage.module,
        needs=stage.needs,
        config=stage.config,
        timeout_seconds=section.timeout,
        retry=RetrySpecification(
            attempts=retry.attempts,
            backoff_seconds=retry.wait,
            backoff_factor=2.0 if retry.backoff == "exponential" else 1.0,
            jitter=_JITTER if retry.jitter else 0.0,
        ),
        when=section.when,
        for_each=None if batches is None else ForEachSpecification(batches.items, batches.batch),
        resources=ResourceSpecification(
            float(resources.cpu),
            resources.memory or 0,
            resources.gpu,
            section.executor or resources.executor or "local",
        ),
    )
