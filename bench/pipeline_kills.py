# SPDX-License-Identifier: Apache-2.0
"""Kills the pipeline of examples/tickets with SIGKILL again and again, and counts what is in the sink.

    python bench/pipeline_kills.py --model runs/snips/bundle --tickets 10000 --kills 20

Prints one JSON object and writes it to bench/results/pipeline_kills.json; ends with 1 if a ticket is missing, there
twice, or has another answer than the engine gives when nobody kills it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from machine import describe_machine

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "bench" / "results" / "pipeline_kills.json"
EXAMPLE = ROOT / "examples" / "tickets"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--tickets", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--pause", type=float, default=1.0, help="most seconds from a goal to its kill")
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="open-autoglm-tickets-") as folder:
        report = kill_and_count(Path(folder), options)
    report = {**report, "model": describe_model(options.model), "max_tokens": options.max_tokens, "machine": machine}
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report))
    return 0 if report["right"] else 1


def kill_and_count(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Make the database, run the pipeline with kills on the way, and compare the sink with a quiet run's answers."""
    database = folder / "tickets.sqlite"
    subprocess.run([sys.executable, EXAMPLE / "make_database.py", database, str(options.tickets)], check=True)
    chance = random.Random(options.seed)
    started, attempts, killed_at = time.monotonic(), 0, list[int]()
    batches = -(-options.tickets // options.batch)
    goals = [batches * number // (options.kills + 1) for number in range(options.kills)]
    while True:
        attempts += 1
        process = start(folder, database, options)
        if len(killed_at) == options.kills:
            output, errors = process.communicate()
            if process.returncode:
                raise SystemExit(errors)
            break
        goal = goals[len(killed_at)]
        while done_batches(folder) < goal and process.poll() is None:
            time.sleep(0.02)
        time.sleep(chance.uniform(0.0, options.pause))
        if process.poll() is not None:  # it was done before its time had come
            output = process.communicate()[0]
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        killed_at.append(done_batches(folder))
    seconds = time.monotonic() - started
    rows = query(database, "select id, answer from answers")
    expected = quiet_answers(database, options)
    answered = Counter(row[0] for row in rows)
    return {
        "tickets": options.tickets,
        "kills": len(killed_at),
        "killed_at_batch": killed_at,
        "state": json.loads(output.splitlines()[-1])["state"],
        "answered": sum(answer is not None for _, answer in rows),
        "duplicated": sum(count > 1 for count in answered.values()),
        "missing": len(expected.keys() - answered.keys()),
        "same_answers_as_without_kills": dict(rows) == expected,
        "seconds": round(seconds, 1),
        "right": len(rows) == options.tickets and dict(rows) == expected,
    }


def describe_model(folder: Path) -> dict[str, Any]:
    """What was built, and how good it is."""
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    return {
        "name": manifest["name"],
        "task": manifest["task"]["kind"],
        "metrics": {name: round(value, 4) for name, value in manifest["metrics"].items()},
        "budget_seconds": manifest["lineage"].get("budget_seconds"),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    }


def start(folder: Path, database: Path, options: argparse.Namespace) -> subprocess.Popen[str]:
    """Run the pipeline, or go on with it: the key makes it the same run."""
    changes = [f"infer.model_hint={options.model.resolve()}", f"infer.for_each.batch={options.batch}"]
    if options.max_tokens:
        changes.append(f"infer.config.max_tokens={options.max_tokens}")
        changes.append("infer.config.on_error=record")
    return subprocess.Popen(
        [sys.executable, "-m", "open_autoglm", "run", EXAMPLE / "tickets.yaml", "--key", "kills", "--json",
         "--folder", folder / "pipelines", *(part for change in changes for part in ("--set", change))],
        env={**os.environ, "TICKETS_URL": f"sqlite:///{database}"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def done_batches(folder: Path) -> int:
    """How many batches of the infer stage are recorded as done."""
    journal = folder / "pipelines" / "pipelines.sqlite"
    if not journal.exists() or not query(journal, "select 1 from sqlite_master where name = 'pipeline_items'"):
        return 0
    return int(query(journal, "select count(*) from pipeline_items where stage = 'infer' and state = 'done'")[0][0])


def query(path: Path, text: str) -> list[tuple]:
    # Not read-only: the first who opens a journal after a kill has to bring it in order.
    connection = sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=30)
    try:
        return connection.execute(text).fetchall()
    finally:
        connection.close()


def quiet_answers(database: Path, options: argparse.Namespace) -> dict[int, str | None]:
    """What the model answers when it is asked by itself, each text once."""
    from open_autoglm.engine import LLM
    from open_autoglm.engine.model_paths import find_model
    from open_autoglm.pipeline.stages.text_cleaner import TextCleaner, TextCleanerConfig

    cleaner = TextCleaner(TextCleanerConfig(remove_html=True))
    rows = [(number, cleaner.clean(body)) for number, body in query(database, "select id, body from tickets")]
    more = {"max_tokens": options.max_tokens} if options.max_tokens else {}
    texts = list(dict.fromkeys(text for _, text in rows))
    with LLM(find_model(options.model)) as llm:
        answered = llm.chat([[{"role": "user", "content": text}] for text in texts], **more)
    known = {text: one.text if one.finish_reason == "stop" else None for text, one in zip(texts, answered, strict=True)}
    return {number: known[text] for number, text in rows}


if __name__ == "__main__":
    raise SystemExit(main())
