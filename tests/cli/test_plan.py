# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm plan` as users start it, and targets as `build` takes them."""

import json
from pathlib import Path

import pytest
from tests.e2e.conftest import last_json, run_command, run_here
from tests.engine.tiny_bundle import make_bundle

from open_autoglm.build_pipeline import check_settings
from open_autoglm.build_steps.target_device import describe_target, target_of, tried_formats
from open_autoglm.cli.plan import parse_size
from open_autoglm.errors import ConfigurationError
from open_autoglm.models.config import ModelConfig
from open_autoglm.search.latency_model import Workload
from open_autoglm.search.target_latency import TargetLatency
from open_autoglm.targets import LIMITS, resolve_target

SMALL = ModelConfig(512, 96, 256, 3, 3, 1, 32, max_position_embeddings=512)


def test_a_bundle_is_planned_for_this_machine_and_served_so(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    done = run_command("plan", bundle, "--json", "--context", "64")
    assert done.returncode == 0, done.stderr
    plan = last_json(done.stdout)
    assert plan["fits"] is True
    assert plan["target"]["bandwidth"] > 0
    assert plan["speed"]["decode_x1"] > 0
    assert plan["speed"]["measured"] is True
    assert plan["speed"]["measured_layers"] >= 1
    assert any("random weights" in note for note in plan["notes"])
    assert plan["setup"]["context"] == 64
    assert plan["command"][:3] == ["open-autoglm", "serve", str(bundle)]
    shown = run_here("plan", bundle, "--target", "raspberry-pi-5", "--max-memory", "20MB", "--context", "64")
    assert shown.returncode == 1, shown.stderr
    assert "nothing fits 20 MB" in shown.stdout
    assert "would fit:" in shown.stdout
    wrong = run_here("plan", bundle, "--target", "rasberry-pi-5")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "did you mean 'raspberry-pi-5'" in wrong.stderr


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("1.5GiB", 3 << 29), ("900M", 900 * 10**6), ("4096", 4096), ("64 kib", 65536)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1GB", "two", "1e9", "9" * 40])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ConfigurationError, match="write it like 900MB"):
        parse_size(text)


def test_a_build_takes_named_targets_and_files(tmp_path: Path) -> None:
    rows = tmp_path / "train.csv"
    rows.write_text("input,output\na,b\n")
    board = tmp_path / "board.yaml"
    board.write_text(
        "processor: x\ncores: 2\nmemory_gib: 0.5\nbandwidth_gb_per_s: 2\ngops: {float32: 4}\narchitecture: aarch64\n"
    )
    asked = dict.fromkeys(("out", "valid", "test", "task", "columns", "base", "trials", "steps"))
    for given, name in (("cpu", "cpu"), ("raspberry-pi-4", "raspberry-pi-4"), (str(board), "board")):
        settings = check_settings(rows, **{**asked, "target": given, "budget": "5m", "seed": 0})
        payload = json.loads(json.dumps(settings.to_payload()))
        assert payload["target"] == name
        assert ("target_profile" in payload) == (name == "board")
        assert target_of(payload) == resolve_target(given)
    with pytest.raises(ConfigurationError, match="did you mean 'h100'"):
        check_settings(rows, **{**asked, "target": "h10", "budget": "5m", "seed": 0})


def test_a_target_decides_what_is_tried_and_is_recorded() -> None:
    names = {
        name: {tried.weights for tried in tried_formats(resolve_target(name))}
        for name in ("cpu", "raspberry-pi-4", "raspberry-pi-5", "h100")
    }
    rounded = {"int8", "int4"}
    assert names == {"cpu": rounded, "raspberry-pi-4": rounded, "raspberry-pi-5": rounded, "h100": set()}
    assert "plan" not in describe_target(resolve_target(), SMALL, "int8")
    record = describe_target(resolve_target("raspberry-pi-5"), SMALL, "int8")
    assert record["name"] == "raspberry-pi-5"
    assert record["plan"]["fits"] is True
    assert record["plan"]["setup"]["weights"] == "int8"


def test_constraints_are_checked_by_estimates_for_the_target() -> None:
    predicted = {
        name: TargetLatency(Workload(30, 20), resolve_target(name)).predict(SMALL)
        for name in ("raspberry-pi-4", "raspberry-pi-5", "laptop")
    }
    assert all(set(values) == set(LIMITS) for values in predicted.values())
    times = [predicted[name]["latency_ms"] for name in ("raspberry-pi-4", "raspberry-pi-5", "laptop")]
    assert times == sorted(times, reverse=True)
    larger = ModelConfig(512, 192, 512, 6, 3, 1, 64, max_position_embeddings=512)
    for name, values in predicted.items():
        assert (
            TargetLatency(Workload(30, 20), resolve_target(name)).predict(larger)["latency_ms"] > values["latency_ms"]
        )
