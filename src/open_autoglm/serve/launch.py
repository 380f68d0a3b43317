# SPDX-License-Identifier: Apache-2.0
"""From what the command line says to a running server. Loads little: the engine's process starts before the rest."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_autoglm.engine.model_paths import find_model, name_of_model, version_of_model
from open_autoglm.errors import ConfigurationError, EngineError, OpenAutoGLMError
from open_autoglm.serve.guards.api_keys import read_keys
from open_autoglm.serve.guards.transport_security import tls_context
from open_autoglm.serve.models.worker_process import ModelSource, WorkerProcess
from open_autoglm.serve.pid_file import PidFile
from open_autoglm.serve.settings import ServeSettings, open_socket

if TYPE_CHECKING:
    from open_autoglm.serve.models.model_client import Models
    from open_autoglm.serve.models.model_pool import ModelEntry
    from open_autoglm.serve.models.routing import RoutingPolicy


@dataclass(frozen=True)
class LaunchPlan:
    """What to serve.

    models: bundles, checkpoint folders or names of runs, each may be written NAME=PATH. options: the keyword arguments
    of `LLM` for each of them. models_file: YAML that names more, read again on SIGHUP. pid_file: see `PidFile`.
    in_process: the engine of the one model runs in the server's own process. preload: load all when the server starts.
    max_loaded, memory_limit: see `PoolLimits`.
    Raises ConfigurationError for a plan that cannot be.
    """

    models: Sequence[str] = ()
    options: dict[str, Any] = field(default_factory=dict)
    models_file: Path | None = None
    pid_file: Path | None = None
    in_process: bool = False
    preload: bool = False
    max_loaded: int | None = None
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        if not self.models and self.models_file is None:
            raise ConfigurationError("give a model to serve, or --models FILE.yaml")
        if self.in_process and not self.is_single:
            raise ConfigurationError("--in-process serves one model only; leave it out")

    @property
    def is_single(self) -> bool:
        """Whether there is one model, loaded for as long as the server runs."""
        return len(self.models) == 1 and self.models_file is None and _name_and_path(self.models[0])[0] is None


def launch(plan: LaunchPlan, settings: ServeSettings, reread: Callable[[], ServeSettings] | None = None) -> None:
    """Serve until SIGTERM or SIGINT. reread: reads the settings again, on SIGHUP.

    Raises what a setting, a key file, a certificate, the address or a model has wrong with it.
    """
    started = time.monotonic()
    tls = tls_context(settings.tls)
    if settings.access.api_keys is not None:
        read_keys(Path(settings.access.api_keys))  # what is wrong with it is told before anything is loaded
    protocols = None
    if settings.protocol:  # likewise
        from open_autoglm.serve.protocols.protocol_plugins import make_protocols

        protocols = make_protocols(settings.protocol)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(open_socket(settings))
        pid_file = None
        if plan.pid_file is not None:
            pid_file = PidFile(plan.pid_file)
            pid_file.take()
            stack.callback(pid_file.close)
        models: Models
        reload_models = None
        if plan.in_process:
            models = _in_process(plan, settings, stack)
        elif plan.is_single:
            process = _started(plan, settings)  # it imports and we import at the same time
            stack.callback(process.close)
            models = _one(plan, settings, process)
        else:
            models, reload_models = _many(plan, settings)
        from open_autoglm.serve.server import run_server

        run_server(
            models,
            settings,
            listener,
            started,
            tls=tls,
            reread=reread,
            reload_models=reload_models,
            pid_file=pid_file,
            protocols=protocols,
        )


def _in_process(plan: LaunchPlan, settings: ServeSettings, stack: contextlib.ExitStack) -> Models:
    from open_autoglm.engine import LLM
    from open_autoglm.engine.model_service import ModelService
    from open_autoglm.serve.models.model_client import OneModel

    llm = stack.enter_context(LLM(plan.models[0], **plan.options))
    if llm.vocabulary is None:
        raise ConfigurationError(f"{llm.name} has no tokenizer.json, so it cannot chat; add the checkpoint's tokenizer")
    service = ModelService(llm, max_queued=settings.max_queued)
    return OneModel(service, settings.served_model_name, int(time.time()), _version(plan))


def _one(plan: LaunchPlan, settings: ServeSettings, process: WorkerProcess) -> Models:
    from open_autoglm.serve.models.engine_process import EngineProcess
    from open_autoglm.serve.models.model_client import OneModel

    source = ModelSource(plan.models[0], plan.options)
    model = EngineProcess(source, max_queued=settings.max_queued, label=settings.served_model_name, process=process)
    return OneModel(model, settings.served_model_name, int(time.time()), _version(plan))


def _version(plan: LaunchPlan) -> str | None:
    """Of the bundle of the one model; none for a folder that loading it will complain about."""
    try:
        return version_of_model(find_model(plan.models[0]))
    except OpenAutoGLMError:
        return None


def _many(plan: LaunchPlan, settings: ServeSettings) -> tuple[Models, Callable[[], Awaitable[str]]]:
    """The models, and what takes them anew from their file."""
    from open_autoglm.serve.models.model_pool import ModelPool, PoolLimits
    from open_autoglm.serve.models.models_file import ModelsFile, read_models_file
    from open_autoglm.serve.models.reloading import ModelsReload
    from open_autoglm.serve.models.routed_models import RoutedModels

    if settings.served_model_name is not None:
        raise ConfigurationError("--served-model-name is for one model; write NAME=PATH for each of several")
    named = [_entry(word, plan) for word in plan.models]

    def read() -> ModelsFile:
        found = ModelsFile(())
        if plan.models_file is not None:
            found = read_models_file(plan.models_file, plan.options)
        entries = [replace(entry, preload=entry.preload or plan.preload) for entry in found.entries]
        return replace(found, entries=(*named, *entries))

    found = read()
    limits = PoolLimits(
        found.max_loaded if plan.max_loaded is None else plan.max_loaded,
        found.memory_limit if plan.memory_limit is None else plan.memory_limit,
    )
    pool = ModelPool(found.entries, max_queued=settings.max_queued, limits=limits)

    def read_again() -> tuple[Sequence[ModelEntry], RoutingPolicy | None]:
        again = read()
        return again.entries, again.policy

    reloading = ModelsReload(pool, found.policy, read_again)
    return (pool if found.policy is None else RoutedModels(pool, found.policy)), reloading.reload


def _entry(word: str, plan: LaunchPlan) -> ModelEntry:
    from open_autoglm.serve.models.model_pool import ModelEntry

    name, path = _name_and_path(word)
    if name is None:
        name = name_of_model(find_model(path))
    return ModelEntry(name, ModelSource(path, plan.options), preload=plan.preload)


def _name_and_path(word: str) -> tuple[str | None, str]:
    """NAME=PATH in its parts; a folder may have the sign in its own name."""
    name, equals, path = word.partition("=")
    if not equals or not name.strip() or Path(word).exists():
        return None, word
    return name, path


def _started(plan: LaunchPlan, settings: ServeSettings) -> WorkerProcess:
    try:
        return WorkerProcess(ModelSource(plan.models[0], plan.options), settings.max_queued)
    except OSError as error:
        raise EngineError(f"the system does not let the engine start: {error.strerror or error}") from None
