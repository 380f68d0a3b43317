# SPDX-License-Identifier: Apache-2.0
"""A server with a folder of pipelines, and workers of its journal when a test wants one."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from open_autoglm.pipeline.catalog import default_catalog
from open_autoglm.pipeline.journal import Journal
from open_autoglm.pipeline.triggers.schedule_book import ScheduleBook
from open_autoglm.pipeline.worker import Worker
from open_autoglm.pipeline.yaml_file import read_pipeline
from open_autoglm.serve.pipelines.pipeline_settings import PipelineSettings
from open_autoglm.serve.routes.openapi_document import openapi_document
from tests.serve.conftest import serving

SECRET = "a-secret-of-the-webhook"
STAGES = """
import time
from pathlib import Path

print("what a module prints when it is imported")


def add(packet, context):
    context.log.info("adding %s", context.config["what"])
    return packet.with_payload({**packet.payload, context.stage: context.config["what"]})


def wait(packet, context):
    context.log.info("waiting for %s", Path(context.config["file"]).name)
    while not Path(context.config["file"]).exists():
        time.sleep(0.02)
    context.log.info("it has come")
    return packet


def fail(packet, context):
    if not Path(context.config["file"]).exists():
        raise ValueError("the file is not there yet")
    return packet
"""
FILES = {
    "sums.yaml": """\
name: sums
pipeline:
- {stage: first, module: web_add, config: {what: 1}}
- {stage: second, module: web_add, config: {what: "${secrets:SUM}"}, needs: [first]}
- {stage: third, module: web_add, config: {what: 3}, needs: [first]}
""",
    "waits.yaml": "name: waits\npipeline:\n- {stage: a, module: web_wait, config: {file: FOLDER/go}}\n"
    "- {stage: b, module: web_add, config: {what: 1}}\n",
    "fails.yaml": "name: fails\npipeline:\n- {stage: a, module: web_fail, config: {file: FOLDER/mended}}\n",
    "bad.yaml": "name: bad\npipeline:\n- {stage: a, module: web_ad}\n",
    "nightly.yaml": "name: nightly\ntrigger: {cron: '0 2 * * *', timezone: Asia/Shanghai}\npipeline:\n"
    "- {stage: a, module: web_add, config: {what: 1}}\n",
    "tickets.yml": "name: tickets\ntrigger: {webhook: /hooks/tickets, secret: HOOK}\npipeline:\n"
    "- {stage: a, module: web_add, config: {what: 1}}\n",
    "open.yaml": "name: open\ntrigger: {webhook: /hooks/open}\npipeline:\n"
    "- {stage: a, module: web_add, config: {what: 1}}\n",
    "twice.yaml": "name: sums\npipeline:\n- {stage: a, module: web_add, config: {what: 1}}\n",
}


@dataclass(frozen=True)
class Station:
    """A server with pipelines. root: its folder of pipelines; runs: where runs are."""

    url: str
    client: httpx.Client
    root: Path
    runs: Path
    database: str

    def get(self, path: str, schema: str = "", **query: Any) -> dict[str, Any]:
        response = self.client.get(path, params=query)
        assert response.status_code == 200, response.text
        return checked(response.json(), schema)

    def post(self, path: str, body: Any = None, status: int = 200, schema: str = "") -> dict[str, Any]:
        response = self.client.post(path, json=body) if body is not None else self.client.post(path)
        assert response.status_code == status, response.text
        return checked(response.json(), schema)

    def start(self, pipeline: str, **body: Any) -> dict[str, Any]:
        return self.post(f"/v1/pipelines/{pipeline}/runs", body, 202, "StartedRun")

    @contextlib.contextmanager
    def working(self) -> Iterator[Worker]:
        """A worker, until the block ends."""
        journal, stop = Journal(self.database), threading.Event()
        worker = Worker(journal, default_catalog(), self.runs)
        thread = threading.Thread(target=worker.serve, args=(stop,))
        thread.start()
        try:
            until(lambda: self.get("/v1/runs")["workers"] == 1)
            yield worker
        finally:
            stop.set()
            thread.join(240)
            worker.close()
            journal.close()

    def until_over(self, run: str) -> dict[str, Any]:
        return until(lambda: (found := self.get(f"/v1/runs/{run}"))["state"] in ("done", "failed") and found)


def until(condition: Any, seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.03)
    return found


SCHEMAS = openapi_document(with_pipelines=True)["components"]


def checked(body: dict[str, Any], schema: str) -> dict[str, Any]:
    """The body, which fits a schema of our document."""
    if schema:
        validator = jsonschema.Draft202012Validator({"components": SCHEMAS, "$ref": f"#/components/schemas/{schema}"})
        assert not list(validator.iter_errors(body)), body
    return body


@pytest.fixture(scope="session")
def stage_package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An installed package with stages."""
    package = tmp_path_factory.mktemp("package")
    folder = package / "web_plugin-1.0.dist-info"
    folder.mkdir()
    (package / "stages_for_web.py").write_text(STAGES)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: web-plugin\nVersion: 1.0\n")
    names = "\n".join(f"web_{name} = stages_for_web:{name}" for name in ("add", "wait", "fail"))
    (folder / "entry_points.txt").write_text(f"[open_autoglm.stages]\n{names}\n")
    sys.path.insert(0, str(package))
    os.environ["OPEN_AUTOGLM_SECRET_SUM"] = "four-and-more"
    os.environ["OPEN_AUTOGLM_SECRET_HOOK"] = SECRET
    yield package
    sys.path.remove(str(package))
    for name in ("SUM", "HOOK"):
        del os.environ[f"OPEN_AUTOGLM_SECRET_{name}"]


@contextlib.contextmanager
def station_in(root: Path, bundle: Path, database: str | None = None, **options: Any) -> Iterator[Station]:
    """A server with the pipelines of this file, in a folder; its journal is a file unless a database is named."""
    (root / "pipelines").mkdir()
    for name, text in FILES.items():
        (root / "pipelines" / name).write_text(text.replace("FOLDER", str(root)))
    settings = PipelineSettings(
        pipelines=str(root / "pipelines"), runs_folder=str(root / "runs"), webhook_body=2000, database=database
    )
    key = options.get("api_key")
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with (
        serving(bundle, pipelines=settings, **options) as running,
        httpx.Client(base_url=running.url, timeout=60, verify=False, headers=headers) as client,
    ):
        runs = root / "runs"
        yield Station(running.url, client, root, runs, database or f"sqlite:///{runs}/pipelines.sqlite")


@pytest.fixture(scope="module")
def station(stage_package: Path, dialogue_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    del stage_package
    root = tmp_path_factory.mktemp("station")
    with station_in(root, dialogue_bundle) as found:
        journal = Journal(found.database)
        ScheduleBook(journal).put(read_pipeline(root / "pipelines" / "nightly.yaml", default_catalog()).to_dict())
        journal.close()
        yield found
