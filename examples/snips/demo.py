# SPDX-License-Identifier: Apache-2.0
"""`make demo`: build on Snips in five minutes, serve the result, and ask it three commands it has never seen."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

SNIPS = Path(__file__).parent
RUN = Path("runs") / "snips-demo"
BUDGET = "5m"
START_SECONDS = 60


def main() -> int:
    """Build, serve, ask, stop. Returns the exit code."""
    started = time.monotonic()
    command = [sys.executable, "-m", "open_autoglm"]
    built = subprocess.run([*command, "build", str(SNIPS), "--out", str(RUN), "--budget", BUDGET], check=False)
    if built.returncode:
        return built.returncode
    port = free_port()
    serve = [*command, "serve", str(RUN / "bundle"), "--port", str(port), "--served-model-name", "snips"]
    serve += ["--log-level", "warning"]  # the answers are what is to be seen here
    server = subprocess.Popen(serve)
    try:
        base = f"http://127.0.0.1:{port}"
        wait_until_up(server, base)
        right = 0
        for example in held_out_commands(3):
            answer = ask(base, example["prompt"])
            expected = json.loads(example["response"])
            right += answer == expected
            print(f"\n> {example['prompt']}")
            print(json.dumps(answer, ensure_ascii=False, indent=2))
            if answer != expected:
                print(f"  (the test split says: {json.dumps(expected, ensure_ascii=False)})")
    finally:
        server.terminate()
        server.wait(timeout=30)
    print(f"\n{right} of 3 as the test split has it; {time.monotonic() - started:.0f} s in all.")
    print(f"Go on with: open-autoglm serve {RUN / 'bundle'}")
    return 0


def held_out_commands(count: int) -> list[dict[str, str]]:
    """The first `count` rows of the test split, which the build reads once, at its end, to score itself."""
    with (SNIPS / "test.jsonl").open(encoding="utf-8") as file:
        return [json.loads(next(file)) for _ in range(count)]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_up(server: subprocess.Popen[bytes], base: str) -> None:
    """Return when `/health` answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with exit code {server.returncode}")
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit(f"the server did not answer within {START_SECONDS} s")


def ask(base: str, text: str) -> object:
    """One chat completion over HTTP, its content parsed as JSON."""
    body = {"model": "snips", "messages": [{"role": "user", "content": text}]}
    request = urllib.request.Request(
        f"{base}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(json.load(response)["choices"][0]["message"]["content"])


if __name__ == "__main__":
    sys.exit(main())
