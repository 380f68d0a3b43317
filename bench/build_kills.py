# SPDX-License-Identifier: Apache-2.0
"""Kills a build with SIGKILL at random points and compares what it ends with to an undisturbed build.

    python bench/build_kills.py examples/snips --kills 30

Both builds have the same seed and counted steps, and one thread, so that sums are taken in one order. The points are
spread over the steps by how long each took undisturbed, with at least one in each. Prints one JSON object and writes
it to bench/results/build_kills.json; ends with 1 if a file of the bundle differs, dates aside, or if a trial was lost
or run twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from machine import describe_machine
from open_autoglm.build_pipeline import STEPS
from open_autoglm.bundle import open_bundle
from open_autoglm.bundle.comparison import compare_manifests, differ_in_time_only
from open_autoglm.pipeline import read_events

RESULT = Path(__file__).parent / "results" / "build_kills.json"
_DATED = "README.md"
"""The one file of a bundle that says when it was built."""


def main() -> int:
    """Build twice, once with kills; print and write what became of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=180, help="of the winner's training; a trial has a third")
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="open-autoglm-kills-") as name:
        # A bundle is named after its run's folder, so both have the same.
        whole, killed = Path(name) / "undisturbed" / "run", Path(name) / "killed" / "run"
        words = ["build", str(options.data), "--steps", str(options.steps), "--trials", str(options.trials)]
        words += ["--seed", str(options.seed), "--json"]
        started = time.monotonic()
        finish(words, whole)
        quiet = time.monotonic() - started
        killed_at = kill_again_and_again(words, killed, step_seconds(whole), options)
        differences = compare(whole, killed)
        trials, expected = finished_trials(killed), finished_trials(whole)
    lost, doubled = expected - trials, trials - expected
    report = {
        "command": f"python bench/build_kills.py {options.data} --kills {options.kills}",
        "kills": len(killed_at),
        "killed_at": killed_at,
        "trials": sorted(expected),
        "trials_lost": sorted(lost),
        "trials_run_twice": sorted(doubled),
        "files_that_differ": differences,
        "seconds_undisturbed": round(quiet, 1),
        "seconds_with_kills": round(time.monotonic() - started - quiet, 1),
        "right": not differences and not lost and not doubled and len(killed_at) == options.kills,
        "machine": machine,
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report))
    return 0 if report["right"] else 1


def start(words: list[str], out: Path) -> subprocess.Popen[str]:
    """Begin the build in `out`, or go on with it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "open_autoglm", *words, "--out", str(out)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(words: list[str], out: Path) -> None:
    """Let the build come to its end."""
    process = start(words, out)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(errors)


def kill_again_and_again(
    words: list[str], out: Path, lengths: dict[str, float], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Kill the build in `out` so many times, then let it end; returns where each kill came.

    lengths: of each step undisturbed, in seconds.
    """
    chance = random.Random(options.seed)
    killed_at: list[dict[str, Any]] = []
    for step, count in share_kills(lengths, options.kills).items():
        for number in range(count):
            # The n-th of a step's kills falls in the n-th part of it, so that all of the step is reached.
            wait = lengths[step] * (number + chance.random()) / count
            process = start(words, out)
            seen = begun(out, step)
            while begun(out, step) == seen and process.poll() is None:
                time.sleep(0.02)
            time.sleep(wait / (1 + number))  # a step goes on from where it was, so its later parts are near
            if process.poll() is not None:
                process.communicate()
                return killed_at
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            killed_at.append({"step": step, "seconds_into_attempt": round(wait / (1 + number), 2)})
    finish(words, out)
    return killed_at


def share_kills(lengths: dict[str, float], kills: int) -> dict[str, int]:
    """How many kills each step gets: one, and of the rest by its length."""
    shares = dict.fromkeys(lengths, 1)
    while sum(shares.values()) < kills:
        longest = max(lengths, key=lambda step: lengths[step] / shares[step])
        shares[longest] += 1
    return shares


def step_seconds(out: Path) -> dict[str, float]:
    """How long each step of a finished build took, in their order."""
    times: dict[str, dict[str, datetime]] = {step: {} for step in STEPS}
    for event in read_events(out):
        if event.get("stage") in times and "state" in event:
            times[event["stage"]][event["state"]] = datetime.fromisoformat(event["time"])
    return {step: (states["done"] - states["running"]).total_seconds() for step, states in times.items()}


def begun(out: Path, step: str) -> int:
    """How many times a step has begun."""
    if not (out / "events.jsonl").exists():
        return 0
    return sum(event.get("stage") == step and event.get("state") == "running" for event in read_events(out))


def finished_trials(out: Path) -> Counter[str]:
    """How often each trial is on the record as ended, on the leaderboard."""
    entries = json.loads((out / "leaderboard.json").read_text(encoding="utf-8"))["entries"]
    return Counter(entry["name"] for entry in entries if entry["kind"] == "trial")


def compare(whole: Path, killed: Path) -> list[str]:
    """The places in which two bundles differ, dates and durations aside."""
    first, second = open_bundle(whole / "bundle"), open_bundle(killed / "bundle")
    changed = compare_manifests(first.manifest, second.manifest)
    found = [] if differ_in_time_only(changed) else [item.place for item in changed]
    for name in first.manifest.files:
        if name != _DATED and (first.path / name).read_bytes() != (second.path / name).read_bytes():
            found.append(name)
    return sorted(set(found))


if __name__ == "__main__":
    raise SystemExit(main())
