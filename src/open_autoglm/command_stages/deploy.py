# SPDX-License-Identifier: Apache-2.0
"""`deploy`: a checked bundle takes the place of another in a running server, or everything stays as it was."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from open_autoglm.command_stages.folders import BUNDLE, given_bundle
from open_autoglm.command_stages.models_file import ModelsFileEntry
from open_autoglm.command_stages.output_log import output_to_log
from open_autoglm.command_stages.running_server import RunningServer
from open_autoglm.engine.model_paths import find_model, version_of_model
from open_autoglm.errors import BundleError, OpenAutoGLMError, PipelineError
from open_autoglm.pipeline.amounts import Duration
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.storage import FolderLock, explained, read_json, write_json

_BEFORE: Final = "deploy-before.json"
_PATIENCE: Final = 600.0


class DeployConfig(BaseModel):
    """bundle: a folder or the NAME of runs/NAME; the payload's `bundle` if not given. models_file: the YAML file that
    the server was started with as --models; pid_file: as --pid-file. model: the name in it that gets the new bundle.
    url: of the server's API. releases: the folder in which deployed bundles are kept; `releases` beside models_file if
    not given.

    key: the public key of who must have signed the bundle. data, least: a file of examples, and what the metric of the
    task must reach on it, before the server is touched. probes: of those examples, how many are asked of the server
    afterwards; agreement: the share of them that it must answer as the bundle did when it was checked.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    bundle: str | None = None
    model: str
    models_file: Path
    pid_file: Path
    url: str
    api_key: str | None = Field(default=None, repr=False, description="Write ${secrets:NAME}.")
    releases: Path | None = None
    key: Path | None = None
    data: Path | None = None
    least: float | None = None
    probes: int = Field(default=5, ge=1, le=1000)
    agreement: float = Field(default=0.8, ge=0, le=1)
    wait: Duration = Field(default=120.0, description="For the server to load the bundle.")

    @model_validator(mode="after")
    def _fits(self) -> DeployConfig:
        if (self.data is None) != (self.least is None):
            raise ValueError("give both data and least, or neither")
        return self


class Deploy:
    """Check, copy, check the copy, swap, ask: where one of them fails, the server serves what it served before."""

    config_model = DeployConfig
    own_process = True

    def __init__(self, config: DeployConfig) -> None:
        self._config = config

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with `deployed`: the model, the release's folder, its version, the version before, the metrics."""
        config = self._config
        source = given_bundle(config.bundle, packet)
        releases = config.releases or config.models_file.absolute().parent / "releases"
        with explained(releases, "write"):
            releases.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(releases)
        lock.acquire(patience=min(_PATIENCE, context.seconds_left()))
        try:
            release = self._release(source, releases)
            context.log.info("%s: verified, kept as %s", source, release)
            metrics, answers = self._check(release, context)
            before = self._before(context)
            version = version_of_model(release)
            told: dict[str, Any] = {
                "model": config.model, "release": str(release), "version": version,
                "version_before": before["version"], "metrics": metrics,
            }  # fmt: skip
            self._swap(release, version, before, answers, context)
        finally:
            lock.release()
        return packet.with_payload({**packet.payload, BUNDLE: str(release), "deployed": told})

    def _release(self, source: Path, releases: Path) -> Path:
        """A copy of the verified bundle that nobody writes to any more, verified again as it lies there."""
        from open_autoglm.bundle import open_bundle
        from open_autoglm.bundle.keys import read_verifying_key

        key = None if self._config.key is None else read_verifying_key(self._config.key)
        version = version_of_model(source)
        if version is None:
            raise BundleError(f"{source} is no bundle; only bundles, which can be verified, are deployed")
        open_bundle(source, key=key)
        release = releases / f"{self._config.model.replace('/', '-')}-{version}"
        if not release.exists():
            with explained(release, "write"), tempfile.TemporaryDirectory(prefix=".copy-", dir=releases) as folder:
                shutil.copytree(source, Path(folder) / "bundle", symlinks=True)
                open_bundle(Path(folder) / "bundle", key=key)
                (Path(folder) / "bundle").rename(release)
        open_bundle(release, key=key)
        return release

    def _check(self, release: Path, context: StageContext) -> tuple[dict[str, float], list[tuple[str, str]]]:
        """Metrics on the examples, and texts with their answers; raises PipelineError when they are not good enough."""
        from open_autoglm.evaluate import evaluate_bundle

        config = self._config
        if config.data is None or config.least is None:
            return {}, []
        path = context.stage_folder / "answers.jsonl"
        with output_to_log(context.log):
            evaluation = evaluate_bundle(release, config.data, answers_path=path)
        context.log.info("%s over %d examples", evaluation.metrics, evaluation.n)
        if not evaluation.value >= config.least:
            raise PipelineError(
                f"{evaluation.metric} is {evaluation.value:.4f}, below the {config.least:g} of config.least; "
                "the server was not touched"
            )
        if not path.is_file():
            return evaluation.metrics, []
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for _, line in zip(range(config.probes), lines, strict=False)]
        return evaluation.metrics, self._expected(release, [row["input"] for row in rows if "input" in row])

    def _expected(self, release: Path, texts: list[str]) -> list[tuple[str, str]]:
        """Texts, and what the bundle answers to them as a server would be asked: not cut as when it is scored."""
        from open_autoglm.engine import LLM

        if not texts:
            return []
        with LLM(release) as llm:
            conversations: Any = [[{"role": "user", "content": text}] for text in texts]
            return [
                (text, one.content) for text, one in zip(texts, llm.chat(conversations, temperature=0), strict=True)
            ]

    def _before(self, context: StageContext) -> dict[str, Any]:
        """What the server served before this run, as the first attempt found it."""
        record = context.stage_folder / _BEFORE
        if record.is_file() and (found := read_json(record)).get("key") == context.idempotency_key:
            return found
        entry = ModelsFileEntry.read(self._config.models_file, self._config.model)
        found = {"key": context.idempotency_key, "path": entry.path, "version": self._version_at(entry.path)}
        write_json(record, found)
        return found

    def _version_at(self, path: str) -> str | None:
        """Of the bundle that a path in the models file means, as the server looks for it."""
        beside = self._config.models_file.parent / path
        try:
            return version_of_model(beside if beside.is_dir() else find_model(path))
        except OpenAutoGLMError:
            return None

    def _swap(
        self,
        release: Path,
        version: str | None,
        before: dict[str, Any],
        answers: Sequence[tuple[str, str]],
        context: StageContext,
    ) -> None:
        config = self._config
        server = RunningServer(config.url, config.pid_file, config.api_key)
        try:
            server.card(config.model)  # a server that is away is found before its file is changed
            try:
                ModelsFileEntry.read(config.models_file, config.model).write(release)
                server.reload()
                self._wake(server, context)
                server.wait_for(config.model, version, config.wait, context.cancelled)
                self._probe(server, answers)
            except (OpenAutoGLMError, ConnectionError) as error:
                raise PipelineError(f"{error}; {self._roll_back(server, before)}") from None
            context.log.info("%s serves %s as %s", config.url, version, config.model)
        finally:
            server.close()

    def _wake(self, server: RunningServer, context: StageContext) -> None:
        """Have a model that is not loaded be loaded, by a question, so that it can be checked."""
        if server.card(self._config.model).get("state") == "not loaded":
            context.log.info("the model was not loaded; asking for it")
            server.answer(self._config.model, [{"role": "user", "content": "."}])

    def _probe(self, server: RunningServer, answers: Sequence[tuple[str, str]]) -> None:
        """Ask the server what the bundle was asked. Raises PipelineError when it answers otherwise."""
        same = 0
        for text, answer in answers:
            same += server.answer(self._config.model, [{"role": "user", "content": text}]) == answer
        if answers and same < self._config.agreement * len(answers):
            raise PipelineError(
                f"the server answers {same} of {len(answers)} probes as the bundle did, and config.agreement is "
                f"{self._config.agreement:g}"
            )

    def _roll_back(self, server: RunningServer, before: dict[str, Any]) -> str:
        """Have the server serve what it served. Returns what came of it, for the error."""
        config = self._config
        try:
            ModelsFileEntry.read(config.models_file, config.model).write(Path(before["path"]))
            server.reload()
            if server.card(config.model).get("state") != "not loaded":
                server.wait_for(config.model, before["version"], config.wait, lambda: False)
        except (OpenAutoGLMError, ConnectionError) as error:
            return f"rolling back failed, look at {config.models_file} and the server: {error}"
        return f"rolled back: the server has version {before['version']} again"
