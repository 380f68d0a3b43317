# SPDX-License-Identifier: Apache-2.0
"""What a Dockerfile written by `open-autoglm package` does, done without Docker.

    python deploy/run_without_docker.py FOLDER --root /tmp/image --python /usr/bin/python3.11

The instructions are read from the Dockerfile itself. Paths of the image lie under --root; --python takes the place of
the base image's interpreter. The last stage's files cannot be written by its user, 10001, who has no home and whose
environment holds what ENV says and an API key. Needs root, to become that user.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

KEY = "a-key-for-this-run"
USER = 10001


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("context", type=Path)
    parser.add_argument("--root", type=Path, required=True, help="A folder to make.")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="The base image's interpreter.")
    arguments = parser.parse_args()
    root: Path = arguments.root.resolve()
    root.mkdir(mode=0o755)
    stages = read_stages((arguments.context / "Dockerfile").read_text(encoding="utf-8"))
    builder, last = stages
    build(builder, arguments.context, root, arguments.python)
    for kind, rest in last:
        if kind == "COPY" and not rest.startswith("--from"):
            copy(arguments.context, root, *rest.split())
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222 | (0o055 if path.is_dir() else 0o044))
    run(last, root)


def read_stages(text: str) -> list[list[tuple[str, str]]]:
    """The instructions of each stage."""
    stages: list[list[tuple[str, str]]] = []
    for line in text.replace("\\\n", " ").splitlines():
        kind, _, rest = line.strip().partition(" ")
        if kind == "FROM":
            stages.append([])
        elif kind and not kind.startswith("#"):
            stages[-1].append((kind, rest.strip()))
    return stages


def build(stage: list[tuple[str, str]], context: Path, root: Path, python: Path) -> None:
    work = root / "build"
    for kind, rest in stage:
        if kind == "COPY":
            copy(context, root, *rest.split(), work=work)
        elif kind == "RUN":
            words = [str(python) if word == "python" else placed(word, root) for word in json.loads(rest)]
            print("RUN", *words, flush=True)
            work.mkdir(exist_ok=True)
            subprocess.run(words, cwd=work, check=True, env={"PATH": "/usr/bin:/bin", **proxies()})
        elif kind != "WORKDIR":
            raise SystemExit(f"{kind} is not known here")
    shutil.rmtree(work)


def run(stage: list[tuple[str, str]], root: Path) -> None:
    """The container's command, its health check and requests."""
    scratch = root.with_name(root.name + ".tmp")
    scratch.mkdir(mode=0o1777, exist_ok=True)
    scratch.chmod(0o1777)
    values = dict(stage)
    environment = dict(pair.split("=", 1) for pair in values["ENV"].split())
    environment["OPEN_AUTOGLM_API_KEY"] = KEY
    command = [placed(word, root) for word in json.loads(values["ENTRYPOINT"])]
    port = int(values["EXPOSE"].split()[0])
    probe = [placed(word, root) for word in json.loads(re.sub(r"^.*?CMD ", "", values["HEALTHCHECK"]))]
    print("ENTRYPOINT", *command, flush=True)
    as_user = {"user": USER, "group": USER, "extra_groups": [], "cwd": scratch, "env": environment}
    started = time.monotonic()
    process = subprocess.Popen(command, **as_user)  # type: ignore[call-overload]
    try:
        while subprocess.run(probe, capture_output=True, check=False, **as_user).returncode != 0:  # type: ignore[call-overload]
            if process.poll() is not None or time.monotonic() > started + 120:
                raise SystemExit(f"the container does not become healthy (exit code {process.poll()})")
            time.sleep(0.2)
        print(f"HEALTHCHECK passes after {time.monotonic() - started:.1f} s")
        base = f"http://127.0.0.1:{port}"
        while ask(f"{base}/ready")[0] != 200:
            time.sleep(0.1)
        print(f"/ready says 200 after {time.monotonic() - started:.1f} s")
        expect(ask(f"{base}/v1/models"), 401)
        expect(ask(f"{base}/v1/models", key=KEY), 200)
        body = {"messages": [{"role": "user", "content": "book a table for two"}], "max_tokens": 32}
        expect(ask(f"{base}/v1/chat/completions", key=KEY, body=body), 200)
        owners = {path.name: path.stat().st_uid for path in Path(f"/proc/{process.pid}").glob("status")}
        print("the server runs as user", set(owners.values()))
        writable = [str(path) for path in root.rglob("*") if not path.is_symlink() and can_write(path)]
        print("files of the image that its user can write:", writable or "none")
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    left = sorted(str(path.relative_to(scratch)) for path in scratch.rglob("*"))
    print("SIGTERM: exit code", code, "| left in /tmp:", left or "nothing")
    if code != 0 or writable:
        raise SystemExit(1)


def can_write(path: Path) -> bool:
    status = path.stat()
    return bool(status.st_uid == USER or status.st_mode & 0o002 or (status.st_gid == USER and status.st_mode & 0o020))


def ask(url: str, *, key: str | None = None, body: object | None = None) -> tuple[int, str]:
    headers = {"Content-Type": "application/json", **({} if key is None else {"Authorization": f"Bearer {key}"})}
    data = None if body is None else json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, data, headers), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def expect(answer: tuple[int, str], code: int) -> None:
    print(answer[0], answer[1][:200])
    if answer[0] != code:
        raise SystemExit(f"{code} was expected")


def copy(context: Path, root: Path, source: str, target: str, *, work: Path | None = None) -> None:
    place = Path(placed(target, root)) if target.startswith("/") else (work or root) / target
    place.parent.mkdir(parents=True, exist_ok=True)
    if (context / source).is_dir():
        shutil.copytree(context / source, place, dirs_exist_ok=True)
    else:
        place = place / Path(source).name if target.endswith(("/", "./")) else place
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(context / source, place)


def placed(word: str, root: Path) -> str:
    """A path of the image under the root; all other words as they are."""
    return re.sub(r"^/(?=opt/|bundle|sbom|signing)", f"{root}/", word)


def proxies() -> dict[str, str]:
    """What pip needs to reach its index from here."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("PIP_") or name.lower().endswith("_proxy") or name == "HOME"
    }


if __name__ == "__main__":
    main()
