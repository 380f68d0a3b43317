# SPDX-License-Identifier: Apache-2.0
"""Pipelines over HTTP: what there is, runs started, watched, ended and done again, by a real worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from open_autoglm.errors import ConfigurationError
from open_autoglm.serve.pipelines.pipeline_settings import PipelineSettings
from open_autoglm.serve.settings import ServeSettings, open_socket
from tests.pipeline.postgres_for_tests import postgres
from tests.serve.conftest import Running
from tests.serve.pipelines.conftest import Station, station_in, until


def fault(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return response.json()["error"]


def test_it_is_off_unless_switched_on(talker: Running) -> None:
    assert httpx.get(f"{talker.url}/v1/pipelines").status_code == 404
    assert httpx.post(f"{talker.url}/hooks/tickets", json={}).status_code == 404
    assert "/v1/pipelines" not in httpx.get(f"{talker.url}/openapi.json").json()["paths"]


def test_pipelines_are_listed_with_their_faults(station: Station) -> None:
    listed = station.get("/v1/pipelines", "Pipelines")
    found = {one["id"]: one for one in listed["data"]}
    assert list(found) == ["bad", "fails", "nightly", "open", "sums", "tickets", "twice", "waits"]
    assert [(one["stage"], one["needs"], one["layer"]) for one in found["sums"]["stages"]] == [
        ("first", [], 0),
        ("second", ["first"], 1),
        ("third", ["first"], 1),
    ]
    assert found["nightly"]["trigger"] == {"kind": "cron", "value": "0 2 * * *", "timezone": "Asia/Shanghai"}
    assert found["tickets"]["trigger"] == {"kind": "webhook", "value": "/hooks/tickets", "timezone": None}
    (wrong,) = found["bad"]["faults"]
    assert wrong.startswith("bad.yaml:3:14: stage 'a'.module: unknown module 'web_ad'; did you mean 'web_add'")
    assert found["twice"]["faults"] == ["twice.yaml: sums.yaml has the name 'sums' too; change one of them"]
    assert station.get("/v1/pipelines/sums", "Pipeline") == found["sums"]
    for name in ("nothing", "..%2fsums", "sums.yaml", "%00", "bad%2f..%2fsums"):
        assert station.client.get(f"/v1/pipelines/{name}").status_code == 404, name


def test_a_file_that_changes_is_seen_at_once(station: Station) -> None:
    path = station.root / "pipelines" / "new.yaml"
    path.write_text("name: new\npipeline:\n- {stage: a, module: web_add, config: {what: 1}}\n")
    assert station.get("/v1/pipelines/new")["valid"]
    path.write_text("name: new\nname: new\n")
    assert "new.yaml:2:1" in station.get("/v1/pipelines/new")["faults"][0]
    path.unlink()
    assert station.client.get("/v1/pipelines/new").status_code == 404


def test_settings_are_checked_and_reach_no_further_than_a_stages_config(station: Station) -> None:
    path = "/v1/pipelines/sums/validate"
    assert station.post(path, schema="Pipeline")["valid"]
    assert station.post(path, {"set": {"first.config.what": [1, {"a": "\x7f\u2028😀"}]}})["valid"]
    for name, value, words in (
        ("first.config.what", "${secrets:HOOK}", "must not refer to the environment or to secrets"),
        ("first.config.what", {"a": ["${env:HOME}"]}, "must not refer to the environment or to secrets"),
        ("first.module", "web_fail", "only what is below 'first.config.' can be set"),
        ("first.config", {}, "only what is below 'first.config.' can be set"),
        ("first.pipeline", "/etc/passwd", "only what is below 'first.config.' can be set"),
        ("frist.config.what", 1, "there is no stage 'frist'; did you mean 'first'"),
    ):
        assert words in station.post(path, {"set": {name: value}})["faults"][0]
    refused = station.client.post("/v1/pipelines/sums/runs", json={"set": {"first.module": "web_fail"}})
    assert "only what is below" in fault(refused, 400)["message"]
    assert "unknown module" in fault(station.client.post("/v1/pipelines/bad/runs"), 400)["message"]


def test_a_run_is_started_worked_on_and_shown(station: Station) -> None:
    started = station.start("sums", payload={"x": 0}, set={"third.config.what": "<3>"}, priority="high", key="k")
    assert (started["state"], started["new"], started["priority"]) == ("waiting", True, 10)
    assert started["workers"] == 0
    assert "no worker is alive" in started["note"]
    assert "open-autoglm worker" in started["note"]
    again = station.start("sums", key="k")
    assert (again["id"], again["new"]) == (started["id"], False)
    assert station.start("waits", key="k")["id"] != started["id"], "keys are a pipeline's own"
    with station.working():
        shown = station.until_over(started["id"])
        assert (shown["workers"], shown["note"]) == (1, None)
    shown = station.get(f"/v1/runs/{started['id']}", "RunDetails", lines=5)
    assert shown["state"] == "done"
    assert shown["payload"]["third"]["third"] == "<3>"
    assert shown["payload"]["second"]["second"] == "***"
    assert [(one["stage"], one["state"], one["attempts"], one["items"]) for one in shown["stages"]] == [
        (name, "done", 1, {"total": 1, "done": 1}) for name in ("first", "second", "third")
    ]
    assert "adding 1" in shown["stages"][0]["log"]["lines"][-1]
    assert shown["created"] <= shown["stages"][0]["started"] <= shown["stages"][0]["ended"] <= shown["updated"]
    everything = json.dumps(shown)
    assert "four-and-more" not in everything
    assert str(station.root) not in everything
    assert station.get(f"/v1/runs/{started['id']}", lines=0)["stages"][0]["log"] is None
    assert station.get("/v1/runs")["workers"] == 0, "it left when it ended"


def test_runs_are_listed_in_pages(station: Station) -> None:
    made = [station.start("nightly")["id"] for _ in range(5)]
    station.post(f"/v1/runs/{made[0]}/cancel", schema="ChangedRun")
    seen: list[str] = []
    after = None
    while True:
        query = {} if after is None else {"after": after}
        page = station.get("/v1/runs", "Runs", pipeline="nightly", limit=2, **query)
        seen += [run["id"] for run in page["data"]]
        after = page["after"]
        assert page["has_more"] == (after is not None)
        if after is None:
            break
    assert seen == made[::-1]
    assert [run["id"] for run in station.get("/v1/runs", pipeline="nightly", state="cancelled")["data"]] == made[:1]
    for name, value in (("limit", 0), ("limit", "x"), ("state", "don"), ("after", "nothing"), ("colour", "red")):
        assert fault(station.client.get("/v1/runs", params={name: value}), 400)["param"] == name
    assert fault(station.client.get("/v1/runs?limit=1&limit=2"), 400)["param"] == "limit"
    for run in made[1:]:
        station.post(f"/v1/runs/{run}/cancel")


def test_runs_are_cancelled_paused_resumed_and_done_again(station: Station) -> None:
    mended = station.root / "mended"
    mended.unlink(missing_ok=True)
    run = station.start("fails")["id"]
    path = f"/v1/runs/{run}"
    assert station.post(f"{path}/pause")["state"] == "paused"
    assert [one["id"] for one in station.get("/v1/runs", state="paused")["data"]] == [run]
    assert "cancel it first" in fault(station.client.post(f"{path}/retry"), 409)["message"]
    with station.working():
        assert station.get(path)["state"] == "paused"
        assert station.post(f"{path}/resume")["note"] is None
        shown = station.until_over(run)
        assert shown["state"] == "failed"
        assert shown["stages"][0]["failures"][0]["message"] == "ValueError: the file is not there yet"
        assert "stages/a/attempt-1.log" in shown["reason"]
        assert str(station.root) not in json.dumps(shown)
        assert "failed; there is nothing to cancel" in fault(station.client.post(f"{path}/cancel"), 409)["message"]
        mended.touch()
        assert "no stage 'z'" in fault(station.client.post(f"{path}/retry", json={"from": "z"}), 400)["message"]
        station.post(f"{path}/retry", schema="ChangedRun")
        assert station.until_over(run)["state"] == "done"
        assert "say with" in fault(station.client.post(f"{path}/retry"), 409)["message"]
        station.post(f"{path}/retry", {"from": "a"})
        again = station.until_over(run)
        assert (again["state"], again["stages"][0]["attempts"]) == ("done", 3)
    for name in ("nothing", run[:6], "%00", "a" * 100):
        assert station.client.get(f"/v1/runs/{name}").status_code == 404, name
        assert station.client.post(f"/v1/runs/{name}/cancel").status_code == 404, name


def test_unknown_fields_and_other_bodies_are_refused(station: Station) -> None:
    run = station.start("nightly")["id"]
    for path, body in (
        ("/v1/pipelines/sums/runs", {"payloads": {}}),
        ("/v1/pipelines/sums/validate", {"sett": {}}),
        (f"/v1/runs/{run}/cancel", {"why": "x"}),
        (f"/v1/runs/{run}/retry", {"from_stage": "a"}),
        ("/v1/schedules/nightly/pause", {"until": 1}),
    ):
        assert fault(station.client.post(path, json=body), 400)["param"] == next(iter(body))
        assert station.client.post(path, content=b"[1]").status_code == 400
    assert station.get(f"/v1/runs/{run}")["state"] == "waiting"
    station.post(f"/v1/runs/{run}/cancel")


def events_of(station: Station, run: str, **options: Any) -> list[dict[str, Any]]:
    """All events of a stream, which must come to its end."""
    found: list[dict[str, Any]] = []
    with station.client.stream("GET", f"/v1/runs/{run}/events", **options) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line == "data: [DONE]":
                return found
            if line.startswith("data: "):
                found.append(json.loads(line[6:]))
                if "waiting for go" in line:
                    (station.root / "go").touch()  # it goes on because its line was seen
    raise AssertionError(f"the stream broke off: {found}")


def test_events_come_while_a_run_goes_on(station: Station) -> None:
    (station.root / "go").unlink(missing_ok=True)
    run = station.start("waits")["id"]
    with station.working():
        events = events_of(station, run)
    changes = [event for event in events if event["type"] == "change"]
    assert [one["state"] for one in changes if one["stage"] == "a"] == ["waiting", "running", "done"]
    assert [one["state"] for one in changes if one["stage"] is None] == ["waiting", "running", "done"]
    assert [one["id"] for one in changes] == sorted(one["id"] for one in changes)
    lines = [line for event in events if event["type"] == "log" and event["stage"] == "a" for line in event["lines"]]
    assert ["waiting for go" in line or "it has come" in line for line in lines] == [True, True]
    assert [event["run"]["state"] for event in events if event["type"] == "run"][-1] == "done"
    known = changes[2]["id"]
    for options in ({"params": {"after": known}}, {"headers": {"Last-Event-ID": str(known)}}):
        rest = [event for event in events_of(station, run, **options) if event["type"] == "change"]
        assert rest == changes[3:]
    assert station.client.get(f"/v1/runs/{run}/events", headers={"Last-Event-ID": "x"}).status_code == 400
    assert station.client.get("/v1/runs/nothing/events").status_code == 404


def test_schedules_are_listed_and_paused(station: Station) -> None:
    (one,) = station.get("/v1/schedules", "Schedules")["data"]
    assert (one["pipeline"], one["paused"]) == ("nightly", False)
    assert one["next"].endswith(" 18:00"), "two in Shanghai is 18:00 UTC of the day before"
    assert station.post("/v1/schedules/nightly/pause", schema="Schedule")["next"] is None
    assert station.get("/v1/schedules")["data"][0]["paused"] is True
    assert station.post("/v1/schedules/nightly/resume")["next"] == one["next"]
    assert station.client.post("/v1/schedules/nothing/pause").status_code == 404


def test_a_key_needs_the_scope(stage_package: Path, dialogue_bundle: Path, tmp_path: Path) -> None:
    from open_autoglm.serve.guards.api_keys import DEFAULT_SCOPES, create_key, write_keys
    from open_autoglm.serve.guards.guard_settings import AccessSettings

    plain, first = create_key((), "plain", 0.0)
    scoped, second = create_key((first,), "scoped", 0.0, scopes=("pipelines",))
    assert "pipelines" not in DEFAULT_SCOPES
    write_keys(tmp_path / "keys.json", (first, second))
    access = AccessSettings(api_keys=str(tmp_path / "keys.json"))
    with station_in(tmp_path, dialogue_bundle, access=access) as found:
        for path in ("/v1/pipelines", "/v1/runs", "/v1/schedules", "/v1/runs/x/events"):
            assert found.client.get(path).status_code == 401
            refused = found.client.get(path, headers={"Authorization": f"Bearer {plain}"})
            assert "no scope 'pipelines'" in fault(refused, 403)["message"]
        assert found.client.get("/v1/runs", headers={"Authorization": f"Bearer {scoped}"}).status_code == 200
        assert found.client.get("/v1/models", headers={"Authorization": f"Bearer {scoped}"}).status_code == 403
        assert fault(found.client.post("/hooks/tickets", json={}), 401)["code"] == "invalid_signature"
        assert found.client.get("/hooks/tickets").status_code == 401


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    on = PipelineSettings(pipelines=str(tmp_path))
    with (
        pytest.raises(ConfigurationError, match="--pipelines lets callers start work"),
        open_socket(ServeSettings(host="0.0.0.0", port=0, allow_unauthenticated=True, pipelines=on)),
    ):
        pass
    with pytest.raises(ConfigurationError, match="give --pipelines FOLDER too"):
        PipelineSettings(database="sqlite:///x")
    with pytest.raises(ConfigurationError, match="would refuse everything"):
        PipelineSettings(webhook_body=0)


def test_workers_that_live_are_known(station: Station) -> None:
    with station.working() as worker:
        assert station.get("/v1/pipelines")["workers"] == 1
        assert worker.name
    until(lambda: station.get("/v1/pipelines")["workers"] == 0)


def test_runs_of_a_journal_in_postgresql(stage_package: Path, dialogue_bundle: Path, tmp_path: Path) -> None:
    """Server and worker share a database only: a run is started, listed, shown and cancelled over HTTP."""
    del stage_package
    with postgres() as url, station_in(tmp_path, dialogue_bundle, database=url) as station:
        first, second = (station.start("waits", key=key, payload={"x": 1})["id"] for key in "ab")
        assert station.start("waits", key="a")["id"] == first
        assert [one["id"] for one in station.get("/v1/runs", "Runs")["data"]] == [second, first]
        assert station.post(f"/v1/runs/{second}/cancel", schema="ChangedRun")["state"] == "cancelled"
        done = station.start("sums")["id"]
        with station.working():
            assert station.until_over(done)["state"] == "done"
            until(lambda: station.get(f"/v1/runs/{first}")["stages"][0]["state"] == "running")
            station.post(f"/v1/runs/{first}/cancel", schema="ChangedRun")
            until(lambda: station.get(f"/v1/runs/{first}")["state"] == "cancelled")
        shown = station.get(f"/v1/runs/{first}", "RunDetails", lines=5)
        assert [(one["stage"], one["state"]) for one in shown["stages"]] == [("a", "cancelled"), ("b", "cancelled")]
        assert [one["id"] for one in station.get("/v1/runs", state="cancelled")["data"]] == [second, first]
        assert not list((tmp_path / "runs").glob("*.sqlite*")), "nothing went into a file"
        assert "tester" not in json.dumps(shown)
