# SPDX-License-Identifier: Apache-2.0
"""A build through the command line: what it leaves and says, and that neither a kill nor a full disk changes it."""

import json
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator
from transformers import AutoModelForCausalLM, AutoTokenizer

import open_autoglm
from open_autoglm.build_pipeline import STEPS
from open_autoglm.bundle import open_bundle
from open_autoglm.bundle.comparison import compare_manifests, differ_in_time_only
from open_autoglm.chat.detection import READ_TWICE_FORMAT
from open_autoglm.chat.messages import Message, Role
from open_autoglm.chat.template import encode
from open_autoglm.models.checkpoint import load_model
from open_autoglm.models.glm import PackedSequences
from open_autoglm.pipeline import read_events
from tests.e2e.conftest import PLAN, environment, last_json, make_room, run_command, run_here, small_disk
from tests.thoroughness import THOROUGH

KILLED_IN = [number for number in range(len(STEPS)) for _ in range(2)] if THOROUGH else [1, 2, 4]
"""The steps in which a build is killed, one after the other."""


def test_a_build_leaves_a_bundle_and_says_so(built: tuple[Path, dict]) -> None:
    out, said = built
    assert set(said) >= {"bundle", "task", "metrics", "seconds"}
    assert said["task"] == "extraction"
    assert Path(said["bundle"]) == out / "bundle"
    bundle = open_bundle(out / "bundle")
    assert bundle.manifest.metrics == said["metrics"]
    assert {"test_exact_match", "test_valid_json", "valid_exact_match"} <= set(said["metrics"])
    lineage = bundle.manifest.lineage
    assert lineage["seed"] == 0
    assert set(lineage["versions"]) >= {"open_autoglm", "torch", "optuna", "tokenizers"}
    schema = bundle.task.answer_schema
    assert schema is not None
    assert set(schema["properties"]) == {"intent", "slots"}


def test_the_leaderboard_has_the_size_and_the_latency_of_what_is_served(built: tuple[Path, dict]) -> None:
    bundle = open_bundle(built[0] / "bundle")
    [final] = [
        row for row in json.loads((built[0] / "leaderboard.json").read_text())["entries"] if row["kind"] == "final"
    ]
    served = bundle.manifest.quantizations[bundle.manifest.default_weights]
    assert final["size_bytes"] == served.size == (bundle.path / served.file).stat().st_size
    assert final["latency_ms"] > 0


def test_transformers_gives_the_bundles_logits(built: tuple[Path, dict]) -> None:
    folder = built[0] / "bundle"
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "play a song by björk"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    token_ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    asked = [Message(Role.USER, messages[0]["content"])]
    ours, _ = encode(READ_TWICE_FORMAT.prompt(asked), tokenizer.backend_tokenizer)
    assert token_ids[0].tolist() == ours
    model = load_model(folder)
    with torch.no_grad():
        expected = theirs(token_ids).logits[0]
        actual = model.logits(model(token_ids[0], PackedSequences(torch.tensor([token_ids.shape[1]]))))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_eval_gives_the_value_that_the_build_wrote(built: tuple[Path, dict], small_snips: Path) -> None:
    out, said = built
    done = run_here("eval", out / "bundle", small_snips / "test.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    values = last_json(done.stdout)
    assert values["metric"] == "exact_match"
    assert values["n"] == 12
    assert values["value"] == said["metrics"]["test_exact_match"]
    assert values["metrics"]["field_f1"] == said["metrics"]["test_field_f1"]


def test_every_answer_that_ended_fits_the_schema(built: tuple[Path, dict], small_snips: Path, tmp_path: Path) -> None:
    """However little the model has learnt: what ends by itself is valid, only what is cut off may not be."""
    bundle = open_bundle(built[0] / "bundle")
    checker = Draft202012Validator(bundle.task.answer_schema)
    with open_autoglm.LLM(bundle.path) as llm:
        prompts = [json.loads(line)["prompt"] for line in (small_snips / "test.jsonl").read_text().splitlines()]
        answers = llm.chat([[{"role": "user", "content": prompt}] for prompt in prompts], max_tokens=200)
    ended = [(prompt, a.text) for prompt, a in zip(prompts, answers, strict=True) if a.finish_reason == "stop"]
    assert ended
    for prompt, text in ended:
        answer = json.loads(text)
        checker.validate(answer)
        for value in answer["slots"].values():
            if isinstance(value, str) and schema_of(bundle.task.answer_schema, answer, value).get("x-copied"):
                assert value in prompt


def schema_of(schema: dict, answer: dict, value: str) -> dict:
    """The schema of the slot that holds `value`."""
    name = next(key for key, held in answer["slots"].items() if held == value)
    return schema["properties"]["slots"]["properties"][name]


def test_the_same_command_again_is_done_at_once(built: tuple[Path, dict], small_snips: Path) -> None:
    out, said = built
    before = {path: path.stat().st_mtime_ns for path in (out / "bundle").rglob("*") if path.is_file()}
    done = run_command("build", small_snips, "--out", out, *PLAN, "--json")
    assert done.returncode == 0, done.stderr
    assert last_json(done.stdout)["metrics"] == said["metrics"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_other_settings_on_the_same_folder_are_refused(built: tuple[Path, dict], small_snips: Path) -> None:
    done = run_here("build", small_snips, "--out", built[0], *PLAN, "--steps", "28")
    assert done.returncode == 8
    assert "steps" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(1800)
def test_a_second_build_gives_the_same_bytes_dates_aside_although_the_disk_was_full_and_it_was_killed(
    built: tuple[Path, dict], small_snips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk first, then SIGKILL at random moments of its steps: at last all is as in the undisturbed build."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")
    disk = tmp_path / "disk"
    with small_disk(disk) as is_small:
        out = disk / "small"
        words = ("build", str(small_snips), "--out", str(out), *PLAN, "--license", "CC0-1.0", "--json")
        if is_small:
            stopped = run_command(*words)
            assert stopped.returncode == 6, stopped.stderr
            assert "Traceback" not in stopped.stderr
            [error] = [line for line in stopped.stderr.splitlines() if line.startswith("error: ")]
            assert "disk is full" in stopped.stderr
            assert "same command" in stopped.stderr, error
            make_room(disk)
        kill_and_finish(words, out, built[0])
        compare_builds(built[0], out)


def kill_and_finish(words: tuple[str, ...], out: Path, whole: Path) -> None:
    """Kill a build in its steps, and let it end. whole: an undisturbed one, which says how long they take."""
    command = [sys.executable, "-m", "open_autoglm", *words]
    generator = random.Random(20261121)
    kills = 0
    for number in KILLED_IN:
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seen = len(begun(out, number))
        while len(begun(out, number)) == seen and process.poll() is None:
            time.sleep(0.02)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=generator.uniform(0.0, 0.9) * seconds_of(whole, list(STEPS)[number]))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        assert process.wait() in (-signal.SIGKILL, 0)
    assert kills >= len(KILLED_IN) - KILLED_IN.count(4)  # who comes in the last step may find the build finished
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr


def compare_builds(whole: Path, out: Path) -> None:
    first, second = open_bundle(whole / "bundle"), open_bundle(out / "bundle")
    assert (second.manifest.origin.built, second.manifest.origin.seconds) == ("2026-01-01T00:00:00+00:00", {})
    assert (first.manifest.license, second.manifest.license) == (None, "CC0-1.0")
    differences = compare_manifests(first.manifest, second.manifest.model_copy(update={"license": None}))
    assert differ_in_time_only(differences), [item.to_dict() for item in differences]
    assert {"model.safetensors", "int8.safetensors", "tokenizer.json", "config.json"} <= set(first.manifest.files)
    for name in first.manifest.files:
        if name != "README.md":  # it says when it was built
            assert (first.path / name).read_bytes() == (second.path / name).read_bytes(), name
    assert first.manifest.metrics == second.manifest.metrics
    assert trials(out) == trials(whole)
    finished = [event["trial"] for event in read_events(out) if event.get("event") == "trial_finished"]
    assert sorted(set(finished)) == [0, 1]


def begun(out: Path, first: int) -> list[str]:
    """The attempts so far of the steps from number `first` on."""
    steps = list(STEPS)[first:]
    return [event["stage"] for event in read_events(out) if event["stage"] in steps and event.get("state") == "running"]


def seconds_of(out: Path, step: str) -> float:
    """How long a step of a build took."""
    times = {event["state"]: event["time"] for event in read_events(out) if event["stage"] == step and "state" in event}
    return (datetime.fromisoformat(times["done"]) - datetime.fromisoformat(times["running"])).total_seconds()


def test_a_bundle_says_where_it_comes_from(built: tuple[Path, dict]) -> None:
    opened = open_bundle(built[0] / "bundle")
    origin = opened.manifest.origin
    assert opened.manifest.schema_version == 2
    assert set(origin.files_sha256) == {"train", "valid", "test"}
    assert origin.code["version"]
    assert {"plots/metrics.svg", "plots/sizes.svg", "data_report.json", "chat_template.jinja"} <= set(
        opened.manifest.files
    )
    assert f"{opened.manifest.metrics['test_exact_match']:.4f}" in (opened.path / "README.md").read_text("utf-8")


def trials(out: Path) -> list[dict]:
    entries = json.loads((out / "leaderboard.json").read_text())["entries"]
    timed = ("seconds", "latency_ms", "curve")
    return [{key: value for key, value in entry.items() if key not in timed} for entry in entries]


def test_a_second_process_is_refused_with_the_holders_name(small_snips: Path, tmp_path: Path) -> None:
    arguments = ["build", str(small_snips), "--out", str(tmp_path / "run"), *PLAN]
    first = subprocess.Popen(
        [sys.executable, "-m", "open_autoglm", *arguments],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "run" / "events.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = run_here(*arguments)
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 7
    assert f"process {first.pid}" in second.stderr
    assert "Traceback" not in second.stderr
