# SPDX-License-Identifier: Apache-2.0
"""Requests that schemathesis makes of the routes about pipelines: names of what is there, all else at will."""

from __future__ import annotations

from open_autoglm.serve.routes.openapi_document import openapi_document
from tests.serve.fuzzing import Fuzzer, Tally
from tests.serve.pipelines.conftest import Station

PREFIXES = ("/v1/pipelines", "/v1/runs", "/v1/schedules", "/hooks")


def test_no_request_breaks_the_server_and_every_answer_is_documented(station: Station) -> None:
    run = station.start("nightly")["id"]
    over = station.start("nightly")["id"]
    station.post(f"/v1/runs/{over}/cancel")
    document = openapi_document(with_pipelines=True)
    document["paths"] = {path: value for path, value in document["paths"].items() if path.startswith(PREFIXES)}
    del document["paths"]["/v1/runs/{run}/events"]  # of a run that waits it would never end
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    names = {"pipeline": ["nightly", "bad", "none"], "run": [run, over, "none"], "name": ["tickets"]}
                    parameter["schema"] = {"enum": names[parameter["name"]]}
    for name in ("StartRequest", "CheckRequest"):  # settings have the file checked in a new process each time
        del document["components"]["schemas"][name]["properties"]["set"]
    tally = Tally()
    with Fuzzer(station.url, tally, document) as fuzzer:
        for kind in fuzzer.kinds:
            fuzzer.ask(kind, 6)
    assert tally.cases > 80
    assert {name.rsplit(" ", 1)[1] for name in tally.statuses} >= {"200", "202", "400", "401", "404", "409"}
